# SPDX-License-Identifier: Apache-2.0
"""A QMP client just large enough for tests."""

import json
import socket


class QmpError(Exception):
    """QEMU refused a command; the text is QEMU's own."""


class Qmp:
    """One connection to a QMP socket. QEMU serves one client per socket at a time."""

    def __init__(self, path, timeout=30):
        self.events = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._stream = self._socket.makefile("rb")
        # An event of the moment may come first.
        while "QMP" not in (message := self._receive()):
            self.events.append(message)
        self.greeting = message["QMP"]
        self.execute("qmp_capabilities")

    def execute(self, command, **arguments):
        """The command's return value. Dashes in argument names are written as underscores."""
        message = {"execute": command}
        if arguments:
            message["arguments"] = {k.replace("_", "-"): v for k, v in arguments.items()}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            reply = self._receive()
            if "event" in reply:
                self.events.append(reply)
            elif "error" in reply:
                raise QmpError(f'{command}: {reply["error"]["desc"]}')
            else:
                return reply["return"]

    def wait_event(self):
        """Waits until QEMU says something; it is in `events` then."""
        self.events.append(self._receive())

    def human(self, line):
        """The output of a command of the human monitor."""
        return self.execute("human-monitor-command", command_line=line)

    def status(self):
        return self.execute("query-status")["status"]

    def read_to_end(self):
        """The events of a QEMU that ends, until it has."""
        try:
            while True:
                message = self._receive()
                if "event" in message:
                    self.events.append(message)
        except (OSError, QmpError):
            pass

    def close(self):
        self._stream.close()
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _receive(self):
        line = self._stream.readline()
        if not line:
            raise QmpError("QEMU closed the QMP connection")
        return json.loads(line)
