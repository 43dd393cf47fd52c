# SPDX-License-Identifier: Apache-2.0
"""A client of QEMU's debug stub, for stopping a guest at an instruction of its kernel."""

import select
import socket


class Gdb:
    """Speaks GDB's remote serial protocol. QEMU stops the guest when it connects.

    The guest is to have one vCPU: a step moves all of them.
    """

    def __init__(self, path, timeout=60):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        # QEMU tells that it stopped the guest, unasked, and perhaps not at all.
        self._socket.settimeout(0.5)
        try:
            while self._socket.recv(4096):
                pass
        except TimeoutError:
            pass
        self._socket.sendall(b"+")
        self._socket.settimeout(timeout)
        self._stream = self._socket.makefile("rb", buffering=0)
        self.ask("?")

    def break_at(self, address):
        """Sets a hardware breakpoint, which no byte of the guest's memory shows."""
        answer = self.ask(f"Z1,{address:x},1")
        assert answer == "OK", answer

    def clear(self, address):
        assert self.ask(f"z1,{address:x},1") == "OK"

    def run(self, seconds):
        """Lets the guest run until it meets a breakpoint; false when it met none within `seconds`. It is
        stopped either way."""
        self._socket.sendall(b"$c#63")
        self._read(1)  # the acknowledgement
        met = bool(select.select([self._socket], [], [], seconds)[0])
        if not met:
            self._socket.sendall(b"\x03")
        self._answer()
        return met

    def step(self, count=1):
        for _ in range(count):
            self.ask("s")

    def detach(self):
        """The guest runs on without breakpoints."""
        self.ask("D")
        self._stream.close()
        self._socket.close()

    def ask(self, packet):
        checksum = sum(packet.encode()) & 0xff
        self._socket.sendall(f"${packet}#{checksum:02x}".encode())
        return self._answer()

    def _answer(self):
        answer = b""
        while self._read(1) != b"$":  # acknowledgements
            pass
        while (byte := self._read(1)) != b"#":
            answer += byte
        self._read(2)
        self._socket.sendall(b"+")
        return answer.decode()

    def _read(self, count):
        data = self._stream.read(count)
        if not data:
            raise ConnectionError("QEMU closed its debug stub")
        return data
