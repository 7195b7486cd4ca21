"""Servers of every flavour whose books are looked at."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import connect, new, serving, wait_until

import fastsock

FLAVOURS = ("sync", "threading", "forking", "multiplexing")
MIXINS: dict[str, tuple[Any, ...]] = {
    "sync": (),
    "threading": (fastsock.ThreadingMixIn,),
    "forking": (fastsock.ForkingMixIn,),
    "multiplexing": (fastsock.MultiplexingMixIn,),
}


def flavours(*chosen: str) -> pytest.MarkDecorator:
    """Parametrize a test over `flavour`: all of them, or some."""
    return pytest.mark.parametrize("flavour", chosen or FLAVOURS)


def server_class(flavour: str, transport: str = "TCP", **attributes: Any) -> Any:
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")
    base = getattr(fastsock, f"{transport}Server")
    return new("Server", *MIXINS[flavour], base, **attributes)


@contextlib.contextmanager
def served(
    flavour: str,
    handle: Callable[[Any], Any],
    transport: str = "TCP",
    address: Any = ("127.0.0.1", 0),
    handler: dict[str, Any] | None = None,
    **attributes: Any,
) -> Iterator[Any]:
    """A server that runs, and says nothing of its handlers' errors."""
    attributes.setdefault("handle_error", lambda *request: None)
    base: Any = fastsock.StreamRequestHandler
    if transport in ("UDP", "UnixDatagram"):
        base = fastsock.DatagramRequestHandler
    made = new("Handler", base, handle=handle, **(handler or {}))
    with (
        server_class(flavour, transport, **attributes)(address, made) as server,
        serving(server),
    ):
        yield server


def stats_when(server: Any, predicate: Callable[[Any], Any]) -> Any:
    """The stats of a server, as soon as they are so."""
    found: list[Any] = []

    def look() -> bool:
        found[:] = [server.stats()]
        return bool(predicate(found[0]))

    try:
        wait_until(look)
    except TimeoutError:
        raise AssertionError(found[0]) from None
    return found[0]


def live(server: Any, count: int) -> list[Any]:
    """The connections, once there are so many."""
    stats_when(server, lambda stats: stats.active == count)
    found: list[Any] = server.connections
    assert len(found) == count
    return found


def echo(self: Any) -> None:
    """Each line, until the end."""
    for line in self.rfile:
        self.wfile.write(line)


def line_of(sock: socket.socket) -> bytes:
    with sock.makefile("rb", 0) as file:
        return file.readline()


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or what comes before the end."""
    received = b""
    while len(received) < size and (chunk := sock.recv(size - len(received))):
        received += chunk
    return received


def talk(server: Any, line: bytes = b"hello\n") -> socket.socket:
    """A client that has got an answer, and stays."""
    sock = connect(server)
    sock.sendall(line)
    assert line_of(sock) == line
    if isinstance(server, fastsock.ForkingMixIn):  # a child may be faster than its parent
        stats_when(server, lambda stats: stats.children == stats.active)
    return sock
