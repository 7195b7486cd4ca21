"""Limits and deadlines as programs write them: this type-checks."""

from typing import Any, ClassVar

import fastsock
from fastsock import DeadlineError, LineTooLongError


class Server(fastsock.ThreadingTCPServer):
    max_connections = 100
    max_connections_per_peer: int | None = 5
    overload = "reject"
    quiet_disconnects = True

    def connection_refused(self, client_address: Any, reason: str) -> None:
        print(client_address, reason.upper())

    def handle_accept_error(self, error: OSError) -> None:
        print(error.errno)

    def handle_timeout_error(self, request: Any, client_address: Any, which: str) -> None:
        super().handle_timeout_error(request, client_address, which.upper())


class Patient(fastsock.StreamRequestHandler):
    first_byte_timeout = 5
    idle_timeout: ClassVar[float | None] = 0.5
    request_timeout = None
    write_timeout = 3.5
    max_line_size = 8192

    def handle(self) -> None:
        try:
            self.wfile.write(self.rfile.readline())
        except DeadlineError as error:
            timeout: TimeoutError = error
            print(error.which.upper(), timeout.errno)
        except LineTooLongError as error:
            value: ValueError = error
            print(value)


class Raw(fastsock.BaseRequestHandler):
    idle_timeout = 3


def change(server: fastsock.TCPServer) -> None:
    server.max_connections = None
    server.max_connections_per_peer = 3
    server.overload = "wait"
    server.quiet_disconnects = False
    raise DeadlineError("timed out", which="idle_timeout")
