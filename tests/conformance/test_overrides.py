"""Hooks are looked up as Python would: each one alone, overridden in every way there is."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import Kind, Trace, ask, connect, ended, new, receive, serving, upper

Make = Callable[..., Any]
Install = Callable[[Any, str], None]

HOOKS = (
    "get_request",
    "verify_request",
    "process_request",
    "process_request_thread",
    "finish_request",
    "shutdown_request",
    "close_request",
    "service_actions",
    "handle_timeout",
    "handle_error",
    "collect_children",
    "server_close",
)
WAYS = ("subclass", "mix-in", "instance", "class", "library")
ONLY = {"process_request_thread": "Threading", "collect_children": "Forking"}
KINDS = [Kind("", "TCP"), Kind("", "UDP"), Kind("Threading", "TCP"), Kind("Forking", "TCP")]
four_kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def each_hook(without: tuple[str, ...]) -> pytest.MarkDecorator:
    """Parametrize over kind and name: the hooks that each kind of server has."""
    return pytest.mark.parametrize(
        ("kind", "name"),
        [
            pytest.param(kind, name, id=f"{kind}-{name}")
            for kind in KINDS
            for name in HOOKS
            if name not in without and ONLY.get(name, kind.flavour) == kind.flavour
        ],
    )


def wrapper(trace: Trace, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def hook(*args: Any, **kwargs: Any) -> Any:
        trace.log(name)
        return original(*args, **kwargs)

    return hook


def overridden_class(trace: Trace, base: Any, name: str, way: str) -> Any:
    """The class of the server, with the hook overridden where the way does it in a class."""

    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        trace.log(name)
        return getattr(super(owner, self), name)(*args, **kwargs)

    if way == "subclass":
        owner = new("Server", base, **{name: hook})
    elif way == "mix-in":
        owner = new("MixIn", object, **{name: hook})
        return new("Server", owner, base)
    else:
        owner = new("Server", base)
    return owner


def override_later(trace: Trace, server: Any, name: str, way: str, patch: Any) -> None:
    if way == "instance":
        setattr(server, name, wrapper(trace, name, getattr(server, name)))
    elif way == "class":
        cls = type(server)
        patch.setattr(cls, name, wrapper(trace, name, getattr(cls, name)))
    elif way == "library":
        owner = next(cls for cls in type(server).__mro__ if name in vars(cls))
        patch.setattr(owner, name, wrapper(trace, name, vars(owner)[name]))


def boom(self: Any) -> None:
    raise ValueError("boom")


@contextlib.contextmanager
def answered(server: Any, fails: bool) -> Iterator[None]:
    with connect(server) as client:
        client.sendall(b"hello\n")
        yield
        if not fails:
            assert receive(client) == b"HELLO\n"
        elif server.socket_type == socket.SOCK_STREAM:
            assert ended(client)


def expected_calls(kind: Kind, name: str) -> int:
    return 2 if kind.flavour == "Forking" and name == "close_request" else 1


def make_server(ss: ModuleType, kind: Kind, make: Make, trace: Trace, name: str, way: str) -> Any:
    handler = upper(kind.handler(ss))
    server = make(overridden_class(trace, kind.server(ss), name, way), handler)
    if name == "handle_error":
        server.RequestHandlerClass = new("Failing", handler, handle=boom)
        if way in ("class", "instance"):
            type(server).handle_error = lambda self, request, client_address: None
    return server


@pytest.mark.parametrize("way", WAYS)
@each_hook(without=("service_actions",))
def test_handle_request(
    ss: ModuleType,
    kind: Kind,
    name: str,
    way: str,
    make: Make,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = make_server(ss, kind, make, trace, name, way)
    override_later(trace, server, name, way, monkeypatch)
    if name in ("handle_timeout", "collect_children"):
        server.timeout = 0
        server.handle_request()
    elif name == "server_close":
        server.__exit__(None, None, None)
    else:
        with answered(server, fails=name == "handle_error"):
            server.handle_request()
    trace.wait(name, expected_calls(kind, name))
    assert trace.names() == [name] * expected_calls(kind, name)


@pytest.mark.parametrize("way", WAYS)
@each_hook(without=("handle_timeout", "server_close"))
def test_serve_forever(
    ss: ModuleType,
    kind: Kind,
    name: str,
    way: str,
    make: Make,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Overridden after the loop has begun, where the way allows it."""
    server = make_server(ss, kind, make, trace, name, way)
    periodic = name in ("service_actions", "collect_children")
    with serving(server):
        if name != "handle_error":
            assert ask(server) == b"HELLO\n"
            trace.clear()
        override_later(trace, server, name, way, monkeypatch)
        if periodic:
            trace.wait(name, 2)
            return
        with answered(server, fails=name == "handle_error"):
            trace.wait(name, expected_calls(kind, name))
    # the first request may have been ending still
    assert len(trace.names()) in range(expected_calls(kind, name), 5)


@four_kinds
def test_override_taken_back(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """An instance attribute that is deleted again uncovers the default."""
    server = make(kind.server(ss), upper(kind.handler(ss)))
    with serving(server):
        for _ in range(2):
            server.verify_request = wrapper(trace, "verify_request", server.verify_request)
            assert ask(server) == b"HELLO\n"
            del server.verify_request
            assert ask(server) == b"HELLO\n"
    assert trace.names() == ["verify_request"] * 2


@four_kinds
def test_class_of_a_running_server_changes(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace
) -> None:
    server = make(new("Server", kind.server(ss)), upper(kind.handler(ss)))
    with serving(server):
        assert ask(server) == b"HELLO\n"
        server.__class__ = overridden_class(trace, kind.server(ss), "finish_request", "subclass")
        assert ask(server) == b"HELLO\n"
    assert trace.names() == ["finish_request"]


@four_kinds
def test_static_and_class_methods(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    server = make(
        kind.server(ss),
        upper(kind.handler(ss)),
        verify_request=staticmethod(lambda request, client_address: trace.log("verify") or 1),
        service_actions=classmethod(lambda cls: trace.log("service")),
    )
    with serving(server):
        assert ask(server) == b"HELLO\n"
        trace.wait("service")
    assert "verify" in trace.names()


@four_kinds
def test_request_handler_class_replaced(ss: ModuleType, kind: Kind, make: Make) -> None:
    server = make(kind.server(ss), upper(kind.handler(ss)))

    def handle(self: Any) -> None:
        self.wfile.write(self.rfile.readline().lower())

    with serving(server):
        assert ask(server, b"Hello\n") == b"HELLO\n"
        server.RequestHandlerClass = new("Lower", kind.handler(ss), handle=handle)
        assert ask(server, b"Hello\n") == b"hello\n"


@pytest.mark.parametrize("name", ["setup", "handle", "finish"])
@pytest.mark.parametrize("way", ["subclass", "mix-in", "class", "library"])
@four_kinds
def test_handler_hook(
    ss: ModuleType,
    kind: Kind,
    name: str,
    way: str,
    make: Make,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = upper(kind.handler(ss))
    handler = overridden_class(trace, base, name, way)
    server = make(kind.server(ss), handler)
    with serving(server):
        assert ask(server) == b"HELLO\n"
        trace.clear()
        if way == "class":
            monkeypatch.setattr(handler, name, wrapper(trace, name, getattr(handler, name)))
        elif way == "library":
            owner = next(cls for cls in base.__mro__ if name in vars(cls))
            monkeypatch.setattr(owner, name, wrapper(trace, name, vars(owner)[name]))
        assert ask(server) == b"HELLO\n"
        assert trace.names() == [name]


@four_kinds
def test_handler_without_super(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """A handler that only has an __init__ of its own: no setup, handle or finish is called."""

    class Handler:
        def __init__(self, *args: Any) -> None:
            trace.log("init", len(args), args[2] is server)

        def handle(self) -> None:
            trace.log("handle")

    server = make(kind.server(ss), Handler)
    with serving(server), connect(server) as client:
        client.sendall(b"x")
        trace.wait("init")
    assert [event.call for event in trace.events()] == ["init(3, True)"]


@pytest.mark.parametrize("mode", ["handle_request", "serve_forever"])
@four_kinds
def test_handle_request_noblock(
    ss: ModuleType, kind: Kind, mode: str, make: Make, trace: Trace
) -> None:
    """The private step between the loop and the hooks: public code overrides it."""
    base = overridden_class(trace, kind.server(ss), "_handle_request_noblock", "subclass")
    server = make(base, upper(kind.handler(ss)))
    if mode == "serve_forever":
        with serving(server):
            assert ask(server) == b"HELLO\n"
            assert ask(server) == b"HELLO\n"
    else:
        for _ in range(2):
            with answered(server, fails=False):
                server.handle_request()
    assert trace.names() == ["_handle_request_noblock"] * 2


def test_handle_request_noblock_replaced(ss: ModuleType, make: Make) -> None:
    """Without super(): then nothing else takes the request; its value is handle_request()'s."""
    accepted = threading.Event()

    class Server(ss.TCPServer):
        def _handle_request_noblock(self) -> str:
            request, _ = self.socket.accept()
            accepted.set()
            with request:
                request.sendall(b"raw")
            return "done"

        def get_request(self) -> Any:
            raise AssertionError("not reached")

    server = make(Server)
    with connect(server) as client:
        assert server.handle_request() == "done"
        assert receive(client) == b"raw"
    accepted.clear()
    with serving(server):
        assert ask(server, b"") == b"raw"
        assert accepted.is_set()


def test_get_request_calls_accept_of_the_socket(ss: ModuleType, make: Make, trace: Trace) -> None:
    """server.socket may be anything with an accept()."""

    class Proxy:
        def __init__(self, sock: Any) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def accept(self) -> Any:
            trace.log("accept")
            return self.sock.accept()

    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    server.socket = Proxy(server.socket)
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        assert receive(client) == b"HELLO\n"
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert trace.names() == ["accept"] * 2


def test_get_request_calls_recvfrom_of_the_socket(ss: ModuleType, make: Make, trace: Trace) -> None:
    """A datagram server reads with recvfrom(max_packet_size) of whatever server.socket is."""

    class Proxy:
        def __init__(self, sock: Any) -> None:
            self.sock = sock

        def __getattr__(self, name: str) -> Any:
            return getattr(self.sock, name)

        def recvfrom(self, size: int) -> Any:
            trace.log("recvfrom", size)
            return self.sock.recvfrom(size)

    server = make(ss.UDPServer, upper(ss.DatagramRequestHandler))
    server.socket = Proxy(server.socket)
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        assert receive(client) == b"HELLO\n"
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert [event.call for event in trace.events()] == ["recvfrom(8192)"] * 2
