# ruff: noqa: F821
"""What a type checker knows of limits and deadlines."""

import fastsock


def servers(server: fastsock.ThreadingTCPServer) -> None:
    reveal_type(server.max_connections)  # -> int | None
    reveal_type(server.max_connections_per_peer)  # -> int | None
    reveal_type(server.overload)  # -> str
    reveal_type(server.quiet_disconnects)  # -> bool
    reveal_type(server.connection_refused(("", 0), "max_connections"))  # -> None
    reveal_type(server.handle_accept_error(OSError()))  # -> None


def handlers(handler: fastsock.StreamRequestHandler, error: fastsock.DeadlineError) -> None:
    reveal_type(handler.first_byte_timeout)  # -> float | None
    reveal_type(handler.idle_timeout)  # -> float | None
    reveal_type(handler.request_timeout)  # -> float | None
    reveal_type(handler.write_timeout)  # -> float | None
    reveal_type(handler.max_line_size)  # -> int | None
    reveal_type(error.which)  # -> str
