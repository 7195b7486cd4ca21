"""rfile and wfile of a StreamRequestHandler, and what it takes to have them.

Over a Unix socket, since the kernel does least there. What is read lies in the socket before the
time starts, what is written has room there: no call waits. The kernel's part is included.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from conftest import TIMEOUT, Block

LINE = b"x" * 63 + b"\n"
LINES = 100
LONG = b"x" * 65535 + b"\n"


class Pair(NamedTuple):
    handler: Any
    client: socket.socket

    def drain(self) -> None:
        """Have the handler's buffer and the socket empty."""
        self.handler.wfile.flush()
        self.client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self.client.recv(1 << 16):
                pass
        self.client.settimeout(TIMEOUT)


@pytest.fixture
def opened(
    ss: Any,
    listening: Callable[..., Any],
    connect: Callable[[Any], socket.socket],
    closing: contextlib.ExitStack,
) -> Callable[..., Pair]:
    """opened(**attributes of the handler's class) -> a handler whose files are open, its client."""

    class Open(ss.StreamRequestHandler):  # type: ignore[misc]
        def finish(self) -> None:
            """Not yet."""

    def make(**attributes: Any) -> Pair:
        server = listening("UnixStreamServer")
        client = connect(server)
        request, address = server.get_request()
        closing.callback(server.shutdown_request, request)
        handler = type("Handler", (Open,), attributes)(request, address, server)
        closing.callback(super(Open, handler).finish)
        return Pair(handler, client)

    return make


# ------------------------------------------------------------------ reading


def test_readline(opened: Callable[..., Pair], block: Block) -> None:
    """Nothing but readline() in a for loop; one receive for all."""
    handler, client = opened()

    def readline() -> None:
        read = handler.rfile.readline
        for _ in range(LINES):
            read()

    block(
        f"rfile.readline(): {LINES} lines of {len(LINE)} bytes",
        readline,
        lambda: client.sendall(LINE * LINES),
    )


def test_readline_with_limit(opened: Callable[..., Pair], block: Block) -> None:
    """As http.server calls it."""
    handler, client = opened()

    def readline() -> None:
        read = handler.rfile.readline
        for _ in range(LINES):
            read(65537)

    block(
        f"rfile.readline(65537): {LINES} lines of {len(LINE)} bytes",
        readline,
        lambda: client.sendall(LINE * LINES),
    )


def test_readline_long(opened: Callable[..., Pair], block: Block) -> None:
    """A line that is longer than the buffer; several receives."""
    handler, client = opened()
    block(
        f"rfile.readline(): a line of {len(LONG)} bytes",
        lambda: handler.rfile.readline(),
        lambda: client.sendall(LONG),
    )


def test_iteration(opened: Callable[..., Pair], block: Block) -> None:
    """What `for line in self.rfile` does, without the body."""
    handler, client = opened()

    def iterate() -> None:
        for _ in itertools.islice(handler.rfile, LINES):
            pass

    block(
        f"for line in rfile: {LINES} lines of {len(LINE)} bytes",
        iterate,
        lambda: client.sendall(LINE * LINES),
    )


@pytest.mark.parametrize("size", [16, 65536])
def test_read(opened: Callable[..., Pair], block: Block, size: int) -> None:
    """Out of the buffer, and past it; all that is asked for is there."""
    handler, client = opened()
    calls = 100 if size < 1000 else 1
    data = b"x" * (size * calls)

    def read() -> None:
        read = handler.rfile.read
        for _ in range(calls):
            read(size)

    block(f"rfile.read({size}): {calls} of them", read, lambda: client.sendall(data))


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_write(opened: Callable[..., Pair], block: Block, wbufsize: int) -> None:
    """Unbuffered, each is a send; buffered, nothing is sent as long as it is timed."""
    pair = opened(wbufsize=wbufsize)

    def write() -> None:
        write = pair.handler.wfile.write
        for _ in range(LINES):
            write(LINE)

    block(f"wfile.write(), wbufsize {wbufsize}: {LINES} of {len(LINE)} bytes", write, pair.drain)


def test_write_long(opened: Callable[..., Pair], block: Block) -> None:
    """Unbuffered; one send."""
    pair = opened()
    block(
        f"wfile.write(), wbufsize 0: {len(LONG)} bytes",
        lambda: pair.handler.wfile.write(LONG),
        pair.drain,
    )


def test_flush(opened: Callable[..., Pair], block: Block) -> None:
    """One send."""
    pair = opened(wbufsize=-1)

    def prepare() -> None:
        pair.drain()
        pair.handler.wfile.write(LINE)

    block(f"wfile.flush(): {len(LINE)} bytes", lambda: pair.handler.wfile.flush(), prepare)


# ------------------------------------------------------------------ a connection and its handler

CONNECTIONS = 100


def test_get_request(
    listening: Callable[..., Any], connect: Callable[[Any], socket.socket], block: Block
) -> None:
    """Connections that wait in the backlog; what accept(2) takes is included.

    The hook called as a method, as a program that overrides it does. fastsock's loop, which makes
    the connection by itself, is in test_dispatch.py.
    """
    server = listening("UnixStreamServer")
    taken: list[Any] = []
    clients: list[socket.socket] = []

    def close() -> None:
        while taken:
            taken.pop()[0].close()
        while clients:
            clients.pop().close()

    def prepare() -> None:
        close()
        clients.extend(connect(server) for _ in range(CONNECTIONS))

    def get_request() -> None:
        for _ in range(CONNECTIONS):
            taken.append(server.get_request())

    block(f"get_request(): {CONNECTIONS} Unix connections", get_request, prepare)
    close()


def test_shutdown_request(
    listening: Callable[..., Any], connect: Callable[[Any], socket.socket], block: Block
) -> None:
    """Connections that nothing was done with; shutdown(2) and close(2)."""
    server = listening("UnixStreamServer")
    taken: list[Any] = []
    clients: list[socket.socket] = []

    def prepare() -> None:
        while clients:
            clients.pop().close()
        clients.extend(connect(server) for _ in range(CONNECTIONS))
        taken[:] = [server.get_request()[0] for _ in range(CONNECTIONS)]

    def shutdown_request() -> None:
        for request in taken:
            server.shutdown_request(request)

    block(f"shutdown_request(): {CONNECTIONS} Unix connections", shutdown_request, prepare)


@pytest.mark.parametrize("name", ["BaseRequestHandler", "StreamRequestHandler"])
def test_handler(
    ss: Any,
    listening: Callable[..., Any],
    connect: Callable[[Any], socket.socket],
    closing: contextlib.ExitStack,
    benchmark: Any,
    name: str,
) -> None:
    """Made, set up (rfile, wfile), finished; an empty handle(). One connection for all."""
    server = listening("UnixStreamServer")
    closing.enter_context(connect(server))
    request, address = server.get_request()
    closing.callback(server.shutdown_request, request)
    benchmark.group = f"{name}(): setup, an empty handle, finish"
    benchmark(getattr(ss, name), request, address, server)
