"""From a request that is there to its end, with a handler that does nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TIMEOUT, Block

REQUESTS = 100


@pytest.fixture
def sourceless(ss: Any, closing: contextlib.ExitStack) -> Any:
    """A server whose requests are objects, of which there is always one more."""
    readable, other = socket.socketpair()
    closing.enter_context(readable)
    closing.enter_context(other)
    other.send(b"x")

    class Server(ss.BaseServer):  # type: ignore[misc]
        socket = readable  # handle_request() asks for its timeout

        def fileno(self) -> int:
            return readable.fileno()

        def get_request(self) -> tuple[object, str]:
            return self, "nobody"

    return closing.enter_context(Server(None, ss.BaseRequestHandler))


def test_serve_forever(
    sourceless: Any, block: Block, serve_so_many: Callable[[Any, int], None]
) -> None:
    """All hooks; a wait for the descriptor (poll, select) and service_actions() each time."""
    block(
        f"serve_forever(): {REQUESTS} requests without a socket, through all hooks",
        lambda: serve_so_many(sourceless, REQUESTS),
    )


def test_handle_request(sourceless: Any, benchmark: Any) -> None:
    """All hooks but service_actions(), and the wait."""
    benchmark.group = "handle_request(): a request without a socket, through all hooks"
    benchmark(sourceless.handle_request)


def test_process_request(sourceless: Any, benchmark: Any) -> None:
    """finish_request(), which makes the handler, and shutdown_request(), close_request()."""
    benchmark.group = "process_request(): a request without a socket"
    benchmark(sourceless.process_request, sourceless, "nobody")


def test_connections(
    listening: Callable[..., Any],
    connect: Callable[[Any], socket.socket],
    block: Block,
    serve_so_many: Callable[[Any, int], None],
) -> None:
    """Accept to close, of connections that wait in the backlog. Unix sockets: the least kernel."""
    server = listening("UnixStreamServer")
    clients: list[socket.socket] = []

    def prepare() -> None:
        for client in clients:
            client.close()
        clients[:] = [connect(server) for _ in range(REQUESTS)]

    block(
        f"serve_forever(): {REQUESTS} Unix connections, accept to close",
        lambda: serve_so_many(server, REQUESTS),
        prepare,
    )


def test_shutdown(ss: Any, block: Block, closing: contextlib.ExitStack) -> None:
    """shutdown() alone, from another thread, as soon as the server has become idle.

    The standard library's takes up to the poll_interval.
    """
    server: Any = None
    thread = threading.Thread()

    def end() -> None:
        if server is not None:
            server.shutdown()  # at once, where it has been shut down
            thread.join(TIMEOUT)
            server.server_close()

    closing.callback(end)

    def prepare() -> None:
        nonlocal server, thread
        end()
        served = threading.Event()
        server = ss.TCPServer(("127.0.0.1", 0), ss.BaseRequestHandler)
        server.service_actions = served.set
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        with socket.create_connection(server.server_address, TIMEOUT):
            assert served.wait(TIMEOUT)

    block(
        "shutdown() of an idle server, the default poll_interval",
        lambda: server.shutdown(),
        prepare,
    )
