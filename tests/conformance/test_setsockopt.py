"""setsockopt() of a request, which fastsock calls itself when the value is a number."""

from __future__ import annotations

import socket
from types import ModuleType
from typing import Any

import pytest
import support
from support import connect, new, outcome

NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY)
LINGER = (socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        (*NODELAY, 1),
        (*NODELAY, True),
        (*NODELAY, 0),
        (*NODELAY, -1),
        (*NODELAY, 1.0),
        (*NODELAY, "1"),
        (*NODELAY, None),
        (*NODELAY, None, 4),
        (*NODELAY, 1, 4),
        (*NODELAY, b"\1\0\0\0"),
        (*NODELAY, 1 << 31),
        (*NODELAY, -(1 << 31)),
        (1 << 31, 1, 1),
        (socket.IPPROTO_TCP, 1 << 40, 1),
        ("tcp", 1, 1),
        (socket.IPPROTO_TCP, 9999, 1),
        (socket.SOL_SOCKET, socket.SO_RCVBUF, 20000),
        NODELAY,
        (),
        LINGER,
    ],
    ids=str,
)
def test_as_of_any_socket(
    make: Any, ss: ModuleType, arguments: tuple[Any, ...], closed: bool
) -> None:
    found = []

    def handle(handler: Any) -> None:
        request = handler.request
        if closed:
            request.close()
        found.append(outcome(request.setsockopt, *arguments))
        if not closed:
            found.append(request.getsockopt(*NODELAY) != 0)
            found.append(request.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))

    attributes = {"tcp_nodelay": False} if support.is_fastsock(ss) else {}
    server = make(ss.TCPServer, new("Handler", ss.BaseRequestHandler, handle=handle), **attributes)
    with connect(server):
        server.handle_request()
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()[:2], support.TIMEOUT),
        listener.accept()[0] as plain,
    ):
        if closed:
            plain.close()
        assert found[0] == outcome(plain.setsockopt, *arguments)
        if not closed:
            assert found[1] == (plain.getsockopt(*NODELAY) != 0)
            assert found[2] == plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)


@pytest.mark.fastsock_only(reason="the standard library has one kind of socket")
def test_a_number_hands_nothing_over(make: Any, ss: ModuleType) -> None:
    from fastsock import _methods

    found = []

    def setup(handler: Any) -> None:
        handler.request.setsockopt(*NODELAY, True)
        found.append(_methods.lazily(handler.request) is not None)
        handler.request.setsockopt(*LINGER)
        found.append(_methods.lazily(handler.request) is not None)

    server = make(ss.TCPServer, new("Handler", ss.BaseRequestHandler, setup=setup))
    with connect(server):
        server.handle_request()
    assert found == [True, False]
