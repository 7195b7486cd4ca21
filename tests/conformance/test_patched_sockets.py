"""A program that patches socket.socket means every request, too."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from accepted import Make, fresh, take, taking
from support import TIMEOUT, Trace, ask, handling, serving

CALLS: dict[str, tuple[Any, ...]] = {
    "recv": (100,),
    "recv_into": (bytearray(10),),
    "recvfrom": (100,),
    "recvmsg": (100,),
    "send": (b"x",),
    "sendall": (b"x",),
    "sendmsg": ([b"x"],),
    "sendfile": (None,),
    "getpeername": (),
    "getsockname": (),
    "getsockopt": (socket.SOL_SOCKET, socket.SO_TYPE),
    "setsockopt": (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    "settimeout": (3,),
    "setblocking": (True,),
    "gettimeout": (),
    "getblocking": (),
    "fileno": (),
    "shutdown": (socket.SHUT_RD,),
    "makefile": (),
    "dup": (),
}


@pytest.mark.parametrize("name", [name for name in CALLS if name != "fileno"])
def test_method_patched(ss: ModuleType, make: Make, name: str) -> None:
    """Before the request is accepted; afterwards requests are what they were."""
    server = make(taking(ss))
    calls: list[Any] = []

    def patched(self: Any, *args: Any) -> None:
        calls.append((self, args))

    with mock.patch.object(socket.socket, name, patched):
        request, client = take(server)
        calls.clear()
        getattr(request, name)(*CALLS[name])
        ((used, args),) = calls
        assert used is request and args[: len(CALLS[name])] == CALLS[name]
    request.close()
    client.close()
    request, client = take(server)
    with request, client:
        client.sendall(b"x")
        assert request.recv(10) == b"x"


@pytest.mark.parametrize("name", ["getpeername", "sendmsg", "setsockopt", "sendfile", "makefile"])
def test_patched_after_the_accept(ss: ModuleType, make: Make, name: str) -> None:
    with fresh(ss, make) as (request, _):
        with mock.patch.object(socket.socket, name, return_value="patched"):
            assert getattr(request, name)(*CALLS[name]) == "patched"
        assert name in ("sendfile", "sendmsg") or getattr(request, name)(*CALLS[name]) != "patched"


def test_accept_patched(ss: ModuleType, make: Make, trace: Trace) -> None:
    """accept() of the program's own: its connection is the request."""
    accept = socket.socket.accept

    def counted(self: Any) -> Any:
        trace.log("accept")
        return accept(self)

    server = make(ss.TCPServer, handling(ss, lambda self: self.wfile.write(self.rfile.readline())))
    with serving(server):
        assert ask(server) == b"hello\n"
        with mock.patch.object(socket.socket, "accept", counted):
            assert ask(server) == b"hello\n"
            assert ask(server) == b"hello\n"
        assert ask(server) == b"hello\n"
    assert trace.names() == ["accept"] * 2


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_files_use_the_patched_methods(
    ss: ModuleType, make: Make, trace: Trace, wbufsize: int
) -> None:
    """What rfile and wfile receive and send goes through the program's methods."""

    def logging(name: str) -> Callable[..., Any]:
        method = getattr(socket.socket, name)

        def logged(self: Any, *args: Any) -> Any:
            trace.log(name)
            return method(self, *args)

        return logged

    def handle(self: Any) -> None:
        self.wfile.write(self.rfile.readline().upper())

    server = make(ss.TCPServer, handling(ss, handle, wbufsize=wbufsize))
    sends = "sendall" if wbufsize == 0 else "send"
    with (
        serving(server),
        mock.patch.object(socket.socket, "recv_into", logging("recv_into")),
        mock.patch.object(socket.socket, sends, logging(sends)),
        socket.create_connection(server.server_address, TIMEOUT) as client,
    ):
        client.sendmsg([b"hello\n"])
        assert client.recv(100) == b"HELLO\n"
    assert trace.names() == ["recv_into", sends]


def test_socket_class_replaced(ss: ModuleType, make: Make, trace: Trace) -> None:
    """socket.socket replaced by a subclass under a running server: accept() makes those."""

    class Mine(socket.socket):
        def recv(self, *args: Any) -> bytes:
            trace.log("recv")
            return super().recv(*args)

    def handle(self: Any) -> None:
        self.request.sendall(self.request.recv(100) + type(self.request).__name__.encode())

    server = make(ss.ThreadingTCPServer, handling(ss, handle))
    with serving(server):
        with mock.patch.object(socket, "socket", Mine):
            assert ask(server) == b"hello\nMine"
        assert ask(server).startswith(b"hello\n")
    assert trace.named("recv")
