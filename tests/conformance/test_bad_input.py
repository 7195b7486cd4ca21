"""Bad addresses, ports in use, closed servers: the same exceptions as the standard library."""

from __future__ import annotations

import errno
import os
import socket
import socketserver
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import Background, Kind, connect, ended, kinds, new, outcome, serving, upper

Make = Callable[..., Any]
each_kind = kinds(flavours=("", "Threading", "Forking"))


def same(ss: ModuleType, function: Callable[[ModuleType], Any]) -> tuple[Any, ...]:
    """Type, errno and args of what it raises, which both implementations must agree on."""
    ours, theirs = outcome(function, ss), outcome(function, socketserver)
    assert ours == theirs
    assert ours[0] != "returned"
    return ours


INTERNET = [
    None,
    5,
    "127.0.0.1:0",
    (),
    ("127.0.0.1",),
    ("127.0.0.1", 0, 0),
    ["127.0.0.1", 0],
    ("127.0.0.1", "0"),
    ("127.0.0.1", None),
    ("127.0.0.1", 1.5),
    ("127.0.0.1", -1),
    ("127.0.0.1", 65536),
    ("127.0.0.1", 1 << 70),
    (5, 0),
    (None, 0),
    ("nul\0byte", 0),
    ("x" * 64 + ".invalid", 0),
    ("203.0.113.5", 0),
    ("::1", 0),
]
UNIX = [
    None,
    5,
    ("127.0.0.1", 0),
    "x" * 108,
    b"x" * 200,
    "/no/such/directory/socket",
    "/dev/null",
    "\ud800",
]


@pytest.mark.parametrize("address", INTERNET, ids=lambda value: repr(value)[:20])
@kinds(transports=("TCP", "UDP"))
def test_internet_address(ss: ModuleType, kind: Kind, address: Any) -> None:
    same(ss, lambda module: kind.server(module)(address, None))


@pytest.mark.parametrize("address", UNIX, ids=lambda value: repr(value)[:20])
@kinds(transports=("UnixStream", "UnixDatagram"))
def test_unix_address(ss: ModuleType, kind: Kind, address: Any) -> None:
    same(ss, lambda module: kind.server(module)(address, None))


def test_too_long_path(ss: ModuleType) -> None:
    raised = same(ss, lambda module: module.UnixStreamServer("x" * 108, None))
    assert raised == (OSError, None, ("AF_UNIX path too long",))


@pytest.mark.parametrize(
    "attributes",
    [
        {"address_family": 9999},
        {"address_family": "INET"},
        {"socket_type": 9999},
        {"socket_type": None},
        {"request_queue_size": "long"},
        {"request_queue_size": None},
        {"request_queue_size": 1 << 40},
    ],
    ids=str,
)
def test_attributes(ss: ModuleType, attributes: dict[str, Any]) -> None:
    same(ss, lambda module: new("Server", module.TCPServer, **attributes)(("127.0.0.1", 0), None))


@pytest.mark.parametrize(
    "arguments", [(), (("127.0.0.1", 0),), (("127.0.0.1", 0), None, True, None)], ids=str
)
def test_arguments(ss: ModuleType, arguments: tuple[Any, ...]) -> None:
    kind, _, _ = outcome(ss.TCPServer, *arguments)
    assert kind is TypeError


@each_kind
def test_address_in_use(ss: ModuleType, kind: Kind, make: Make) -> None:
    address = make(kind.server(ss)).server_address
    raised = same(ss, lambda module: kind.server(module)(address, None))
    assert raised[:2] == (OSError, errno.EADDRINUSE)


def test_failed_constructor_leaves_the_address_free(ss: ModuleType, make: Make) -> None:
    def fail(self: Any) -> None:
        failed.append(self.server_address)
        raise KeyError

    failed: list[Any] = []
    with pytest.raises(KeyError):
        make(ss.TCPServer, server_activate=fail)
    assert make(ss.TCPServer, address=failed[0]).server_address == failed[0]


# --- closed servers


def closed(module: ModuleType, kind: Kind, folder: str) -> Any:
    address: Any = ("127.0.0.1", 0)
    if kind.transport.startswith("Unix"):
        address = os.path.join(folder, f"s{len(os.listdir(folder))}")
    server = kind.server(module)(address, module.BaseRequestHandler)
    server.server_close()
    return server


CALLS: dict[str, Callable[[Any], Any]] = {
    "serve_forever": lambda server: server.serve_forever(0.01),
    "handle_request": lambda server: server.handle_request(),
    "get_request": lambda server: server.get_request(),
    "server_bind": lambda server: server.server_bind(),
}


@each_kind
@pytest.mark.parametrize("call", CALLS)
def test_closed_server(ss: ModuleType, kind: Kind, folder: str, call: str) -> None:
    same(ss, lambda module: CALLS[call](closed(module, kind, folder)))


def test_closed_server_again(ss: ModuleType, folder: str) -> None:
    """Every time, not only the first one; and shutdown() afterwards returns."""

    def serve_twice(module: ModuleType) -> Any:
        server = closed(module, Kind("", "TCP"), folder)
        first = outcome(server.serve_forever, 0.01)
        assert first == (ValueError, None, ("Invalid file descriptor: -1",))
        assert server._BaseServer__is_shut_down.is_set()
        assert server._BaseServer__shutdown_request is False
        server.shutdown()
        server._BaseServer__shutdown_request = False
        return server.serve_forever(0.01)

    same(ss, serve_twice)


def test_fileno_of_a_closed_server(ss: ModuleType, folder: str) -> None:
    server = closed(ss, Kind("", "TCP"), folder)
    assert server.fileno() == -1
    assert server._handle_request_noblock() is None  # get_request() fails with an OSError


@pytest.mark.parametrize("value", [None, "three", -7], ids=repr)
def test_bad_fileno(ss: ModuleType, value: Any) -> None:
    def serve(module: ModuleType) -> None:
        with new("Server", module.TCPServer, fileno=lambda self: value)(
            ("127.0.0.1", 0), None
        ) as server:
            server.serve_forever(0.01)

    kind = outcome(serve, socketserver)[0]
    assert outcome(serve, ss)[0] is kind


def test_fileno_that_fails(ss: ModuleType) -> None:
    def fail(self: Any) -> int:
        raise ZeroDivisionError("no number")

    def serve(module: ModuleType) -> None:
        with new("Server", module.TCPServer, fileno=fail)(("127.0.0.1", 0), None) as server:
            server.serve_forever(0.01)

    same(ss, serve)


def test_base_server_lacks_a_source(ss: ModuleType) -> None:
    """BaseServer alone has neither fileno() nor get_request()."""
    server = ss.BaseServer(None, None)
    for call in ("serve_forever", "handle_request", "_handle_request_noblock"):
        with pytest.raises((AttributeError, ValueError)):
            getattr(server, call)()


# --- bad requests


@pytest.mark.parametrize("result", [None, 5, (), (1,), (1, 2, 3), "ab3"], ids=repr)
def test_get_request_returns_nonsense(ss: ModuleType, result: Any) -> None:
    def serve(module: ModuleType) -> None:
        base = new("Server", module.TCPServer, get_request=lambda self: result)
        with base(("127.0.0.1", 0), None) as server, connect(server):
            server.handle_request()

    same(ss, serve)


def test_handler_class_that_cannot_be_called(
    ss: ModuleType, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error of every request, not of the server."""
    server = make(ss.TCPServer)
    server.RequestHandlerClass = None
    with connect(server) as client:
        server.handle_request()
        assert ended(client)
    assert "TypeError: 'NoneType' object is not callable" in capsys.readouterr().err
    server.RequestHandlerClass = upper(ss.StreamRequestHandler)
    with serving(server), connect(server) as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"HELLO\n"


def test_listener_that_was_shut_down(ss: ModuleType, make: Make) -> None:
    """socket.shutdown() on the listener: accept() fails for ever, but nobody spins or hangs."""
    server = make(ss.TCPServer)
    server.timeout = 0.05
    server.socket.shutdown(socket.SHUT_RDWR)
    outcomes = Background(outcome, server.handle_request).result()
    assert outcomes[0] in ("returned", OSError)
