"""Requests of a server without a handler, beside plain sockets to compare them with."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import Kind, connect, kinds, outcome

Make = Callable[..., Any]
each_stream = kinds(flavours=("",), transports=("TCP", "UnixStream"))
TCP = Kind("", "TCP")


def taking(ss: ModuleType, kind: Kind = TCP, **attributes: Any) -> Any:
    """A server class that puts its requests aside; what becomes of them is the test's affair."""

    class Taking(kind.server(ss)):
        taken: list[Any]

        def server_activate(self) -> None:
            self.taken = []
            super().server_activate()

        def process_request(self, request: Any, client_address: Any) -> None:
            self.taken.append(request)

    return type("Taking", (Taking,), attributes)


def take(server: Any) -> tuple[Any, socket.socket]:
    """A request that nobody has used yet, and its client."""
    client = connect(server)
    server.handle_request()
    return server.taken.pop(), client


@contextlib.contextmanager
def fresh(ss: ModuleType, make: Make, kind: Kind = TCP) -> Iterator[tuple[Any, socket.socket]]:
    request, client = take(make(taking(ss, kind)))
    with request, client:
        yield request, client


@contextlib.contextmanager
def plain(kind: Kind = TCP, folder: str = "") -> Iterator[tuple[Any, socket.socket]]:
    """What accept() of a plain listener returns, and its client."""
    family = socket.AF_UNIX if kind.transport == "UnixStream" else socket.AF_INET
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind(os.path.join(folder, "plain") if folder else ("127.0.0.1", 0))
        listener.listen()
        client.settimeout(10)
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            yield accepted, client
    if folder:
        os.unlink(os.path.join(folder, "plain"))


@contextlib.contextmanager
def both(
    ss: ModuleType, make: Make, folder: str, kind: Kind = TCP
) -> Iterator[tuple[tuple[Any, socket.socket], tuple[Any, socket.socket]]]:
    """(request, client) of the implementation, and of plain sockets."""
    where = folder if kind.transport == "UnixStream" else ""
    with plain(kind, where) as expected, fresh(ss, make, kind) as found:
        yield found, expected


def same(found: Any, expected: Any, function: Callable[..., Any]) -> Any:
    """Check that function(request, client) does the same on both; what that is."""
    results = [outcome(function, *pair) for pair in (found, expected)]
    assert results[0] == results[1], "\n   found: {}\nexpected: {}".format(*results)
    return results[0]


each_state = pytest.mark.parametrize("state", ["fresh", "handed over", "timeout", "busy"])


def bring_into(state: str, sock: Any, client: socket.socket) -> None:
    if state == "handed over":
        sock.getpeername()
    elif state == "timeout":
        sock.settimeout(0.1)
    elif state == "busy":
        client.sendall(b"xyz")
        assert sock.recv(2) == b"xy" and sock.recv(2) == b"z"
        assert sock.send(b"1") == 1 and client.recv(1) == b"1"


@pytest.fixture
def default_timeout() -> Iterator[Callable[[float | None], None]]:
    before = socket.getdefaulttimeout()
    yield socket.setdefaulttimeout
    socket.setdefaulttimeout(before)


def greet(request: Any) -> None:
    """In a process of its own: answer the line that the client sends."""
    request.sendall(request.recv(100).upper() + type(request).__module__.encode())
    request.close()
    sys.exit(0)
