# ruff: noqa: F821
"""What a type checker knows of limits, deadlines, and what a server says about itself."""

import fastsock
from fastsock.metrics import Collector


def numbers(server: fastsock.ThreadingTCPServer) -> None:
    stats = server.stats()
    reveal_type(stats.accepted)  # -> int
    reveal_type(stats.refused)  # -> dict[str, int]
    reveal_type(stats.timed_out)  # -> dict[str, int]
    reveal_type(stats.accept_errors)  # -> dict[int, int]
    reveal_type(stats.threads_idle)  # -> int
    reveal_type(stats.longest_running)  # -> float
    reveal_type(stats.latencies)  # -> tuple[tuple[float, int], ...]
    reveal_type(stats.latency_sum)  # -> float
    stats.accepted = 3  # error: misc
    print(stats.requests)  # error: attr-defined


def connections(server: fastsock.UnixStreamServer) -> None:
    for connection in server.connections:
        reveal_type(connection.since)  # -> float
        reveal_type(connection.seconds)  # -> float
        reveal_type(connection.bytes_in)  # -> int
        reveal_type(connection.state)  # -> str
        reveal_type(connection.is_live)  # -> bool
        reveal_type(connection.close())  # -> None


def broadcast(handler: fastsock.StreamRequestHandler, server: fastsock.TCPServer) -> None:
    result = server.broadcast(b"line", exclude=handler.request)
    reveal_type(result.sent)  # -> int
    reveal_type(result.skipped[0].seconds)  # -> float
    server.broadcast(bytearray(3))
    server.broadcast("text")  # error: arg-type


def collector(server: fastsock.TCPServer) -> None:
    collected = Collector(server)
    collected.add(server, name="front")
    collected.remove(server)
    collected.add("127.0.0.1")  # error: arg-type


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
