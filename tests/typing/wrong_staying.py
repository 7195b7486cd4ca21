# ruff: noqa: F401
"""Mistakes with limits and deadlines that a type checker has to find."""

import fastsock
from fastsock import DeadlineErrors  # error: attr-defined


class Server(fastsock.TCPServer):
    max_connections = "many"  # error: assignment
    max_connections_per_peer = 2.5  # error: assignment
    overload = None  # error: assignment
    quiet_disconnects = "yes"  # error: assignment

    def connection_refused(self, client_address: int) -> None: ...  # error: override


class Handler(fastsock.StreamRequestHandler):
    first_byte_timeout = "5"  # error: assignment
    idle_timeout = [3]  # error: assignment
    max_line_size = 1.5  # error: assignment


def use(server: fastsock.TCPServer) -> None:
    server.max_connections = "3"  # error: assignment
    server.handle_accept_error("EMFILE")  # error: arg-type
    fastsock.DeadlineError("timed out", which=3)  # error: arg-type
