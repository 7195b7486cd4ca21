"""ThreadingMixIn: how a request comes to its thread; and connections there and back."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TIMEOUT, Block


def test_hand_over(
    ss: Any,
    listening: Callable[..., Any],
    connect: Callable[[Any], socket.socket],
    block: Block,
) -> None:
    """A connection waits in the backlog: from handle_request() until its handler runs.

    The accept and the change of thread are included; the thread of the request before has ended.
    Where threads are reused, that means to wake one up.
    """
    running = threading.Event()

    class Handler(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            running.set()

    server = listening("ThreadingUnixStreamServer", Handler)
    client: socket.socket | None = None

    def prepare() -> None:
        nonlocal client
        if client is not None:
            assert client.recv(1) == b""  # its thread has shut it down
            client.close()
        running.clear()
        client = connect(server)

    def hand_over() -> None:
        server.handle_request()
        assert running.wait(TIMEOUT)

    block("ThreadingMixIn: accept until the handler runs", hand_over, prepare)


def test_hand_over_in_a_loop(
    ss: Any, serve: Callable[..., Any], block: Block, closing: contextlib.ExitStack
) -> None:
    """The same with serve_forever() in another thread: from the client's connect() on.

    The loop's waking up is included, and the connect.
    """
    running = threading.Event()

    class Handler(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            running.set()

    server = serve("ThreadingTCPServer", Handler)
    client: socket.socket | None = None
    closing.callback(lambda: client and client.close())

    def prepare() -> None:
        nonlocal client
        if client is not None:
            assert client.recv(1) == b""
            client.close()
        running.clear()
        client = socket.socket()
        client.settimeout(TIMEOUT)

    def hand_over() -> None:
        assert client is not None
        client.connect(server.server_address)
        assert running.wait(TIMEOUT)

    block("ThreadingTCPServer: connect until the handler runs", hand_over, prepare)


def test_process_request(ss: Any, block: Block, closing: contextlib.ExitStack) -> None:
    """process_request() alone, as long as it keeps the loop; an empty handler, no socket."""
    ended = threading.Event()
    ended.set()

    class Handler(ss.BaseRequestHandler):  # type: ignore[misc]
        def finish(self) -> None:
            ended.set()

    class Server(ss.ThreadingMixIn, ss.BaseServer):  # type: ignore[misc]
        pass

    server = closing.enter_context(Server(None, Handler))

    def prepare() -> None:
        assert ended.wait(TIMEOUT)
        ended.clear()

    block(
        "ThreadingMixIn.process_request(): until it returns, an empty handler",
        lambda: server.process_request(server, "nobody"),
        prepare,
    )


@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer"])
def test_round_trip(ss: Any, serve: Callable[..., Any], benchmark: Any, name: str) -> None:
    """A connection, a request, the reply. A client in another thread of this process: its part
    and the changes of thread are included."""

    class Echo(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100))

    server = serve(name, Echo)

    def request() -> None:
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"

    benchmark.group = f"{name}: a connection there and back, client included"
    benchmark(request)
