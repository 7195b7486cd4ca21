"""Datagram servers: what one datagram costs the server, and there and back."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
from conftest import TIMEOUT, Block

DATAGRAM = b"x" * 64
DATAGRAMS = 100


@pytest.mark.parametrize("replies", [False, True], ids=["silent", "replies"])
def test_dispatch(
    ss: Any,
    block: Block,
    closing: contextlib.ExitStack,
    serve_so_many: Callable[[Any, int], None],
    replies: bool,
) -> None:
    """Datagrams that wait in the socket: the server's side alone, receive to the handler's end."""

    class Reply(ss.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(self.packet)

    handler = Reply if replies else ss.BaseRequestHandler
    server = closing.enter_context(ss.UDPServer(("127.0.0.1", 0), handler))
    client = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.settimeout(TIMEOUT)
    client.connect(server.server_address)
    answers = 0

    def prepare() -> None:
        nonlocal answers
        for _ in range(answers):
            client.recv(100)
        answers = DATAGRAMS if replies else 0
        for _ in range(DATAGRAMS):
            client.send(DATAGRAM)

    block(
        f"serve_forever(): {DATAGRAMS} datagrams, "
        + ("a reply to each through wfile" if replies else "an empty handler"),
        lambda: serve_so_many(server, DATAGRAMS),
        prepare,
    )


def test_handle_request(ss: Any, block: Block, closing: contextlib.ExitStack) -> None:
    """One that is there; the wait for it included."""
    server = closing.enter_context(ss.UDPServer(("127.0.0.1", 0), ss.BaseRequestHandler))
    client = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect(server.server_address)
    block(
        "handle_request(): a datagram, an empty handler",
        server.handle_request,
        lambda: client.send(DATAGRAM),
    )


def test_round_trip(
    ss: Any, serve: Callable[..., Any], closing: contextlib.ExitStack, benchmark: Any
) -> None:
    """A client in another thread of this process: its part and the changes of thread included."""

    class Reply(ss.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(self.packet)

    server = serve("UDPServer", Reply)
    client = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.settimeout(TIMEOUT)
    client.connect(server.server_address)

    def request() -> None:
        client.send(DATAGRAM)
        assert client.recv(100) == DATAGRAM

    benchmark.group = "UDPServer: a datagram there and back, client included"
    benchmark(request)
