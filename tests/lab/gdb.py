# SPDX-License-Identifier: Apache-2.0
"""A client of QEMU's debug stub, for stopping a guest at an instruction of its kernel."""

import socket


class Gdb:
    """Speaks GDB's remote serial protocol. QEMU stops the guest when it connects.

    The guest is to have one vCPU: a step moves all of them.
    """

    def __init__(self, path, timeout=60):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rb")
        self.ask("?")

    def break_at(self, address):
        """Sets a hardware breakpoint, which no byte of the guest's memory shows."""
        assert self.ask(f"Z1,{address:x},1") == "OK"

    def clear(self, address):
        assert self.ask(f"z1,{address:x},1") == "OK"

    def run(self):
        """Lets the guest run until it meets a breakpoint."""
        return self.ask("c")

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
        answer = b""
        while not answer:
            byte = self._read(1)
            while byte != b"$":  # acknowledgements
                byte = self._read(1)
            while (byte := self._read(1)) != b"#":
                answer += byte
            self._read(2)
            self._socket.sendall(b"+")
            if answer.startswith(b"O") and answer != b"OK":  # console output
                answer = b""
            elif not answer:
                return ""
        return answer.decode()

    def _read(self, count):
        data = self._stream.read(count)
        if not data:
            raise ConnectionError("QEMU closed its debug stub")
        return data
