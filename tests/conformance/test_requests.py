"""Requests that are no fresh TCP connections: other sources, other objects, hijacked ones."""

from __future__ import annotations

import functools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Background,
    FakeRequest,
    Kind,
    Trace,
    ask,
    connect,
    ended,
    kinds,
    new,
    receive,
    serving,
    upper,
)

Make = Callable[..., Any]


# --- any readable source


def piped(ss: ModuleType, base: Any) -> Any:
    """A BaseServer without a socket: a request is a line that arrives on a pipe."""

    class PipeServer(base):
        def __init__(self, handler: Any) -> None:
            super().__init__("pipe", handler)
            self.reader, self.writer = os.pipe()
            self.closed = False

        def fileno(self) -> int:
            return self.reader

        def get_request(self) -> Any:
            return os.read(self.reader, 5), "pipe"

        def server_close(self) -> None:
            super().server_close()
            if not self.closed:
                os.close(self.reader)
                os.close(self.writer)
            self.closed = True

    return PipeServer


@pytest.fixture
def pipe_server(ss: ModuleType, trace: Trace) -> Iterator[Callable[..., Any]]:
    servers = []

    def make(*mixins: Any) -> Any:
        class Handler(ss.BaseRequestHandler):
            def handle(self) -> None:
                trace.log("handle", self.request, self.client_address)

        base = piped(ss, ss.BaseServer)
        server = (new("Server", *mixins, base) if mixins else base)(Handler)
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.server_close()


@pytest.mark.parametrize("mixin", [None, "ThreadingMixIn", "ForkingMixIn"])
def test_server_without_a_socket(
    ss: ModuleType, pipe_server: Callable[..., Any], trace: Trace, mixin: str | None
) -> None:
    server = pipe_server(*([getattr(ss, mixin)] if mixin else []))
    os.write(server.writer, b"first")
    with serving(server):
        trace.wait("handle")
        os.write(server.writer, b"other")
        trace.wait("handle", 2)
    assert sorted(event.call for event in trace.events()) == [
        "handle(b'first', pipe)",
        "handle(b'other', pipe)",
    ]


def test_hooks_without_a_socket(
    ss: ModuleType, pipe_server: Callable[..., Any], trace: Trace
) -> None:
    """Nothing but the hooks of BaseServer: they do nothing to the request."""
    server = pipe_server()
    server.verify_request = lambda request, address: request != b"wrong"
    server.close_request = lambda request: trace.log("close", request)
    os.write(server.writer, b"wrongright")
    with serving(server):
        trace.wait("close", 2)
    assert [event.call for event in trace.events()] == [
        "close(b'wrong')",
        "handle(b'right', pipe)",
        "close(b'right')",
    ]


@pytest.mark.fastsock_only(reason="the standard library asks self.socket for its timeout")
def test_handle_request_without_a_socket(
    ss: ModuleType, pipe_server: Callable[..., Any], trace: Trace
) -> None:
    server = pipe_server()
    server.handle_timeout = lambda: trace.log("handle_timeout")
    server.timeout = 0.01
    server.handle_request()
    os.write(server.writer, b"first")
    server.handle_request()
    assert trace.names() == ["handle_timeout", "handle"]


def test_closed_source(ss: ModuleType, pipe_server: Callable[..., Any]) -> None:
    """The end of the source is readable, too: get_request() decides what that means."""

    class Finished(Exception):
        pass

    def get_request() -> Any:
        if not (data := os.read(server.reader, 5)):
            raise Finished
        return data, "pipe"

    server = pipe_server()
    server.get_request = get_request
    os.write(server.writer, b"first")
    spare = os.open(os.devnull, os.O_RDONLY)
    os.dup2(spare, server.writer)  # the writing end is gone
    os.close(spare)
    with pytest.raises(Finished):
        server.serve_forever(0.01)


def test_listener_made_by_the_program(ss: ModuleType) -> None:
    """BaseServer on a socket of one's own, with the three methods that it takes."""

    class Server(ss.BaseServer):
        def __init__(self, listener: socket.socket, handler: Any) -> None:
            super().__init__(listener.getsockname(), handler)
            self.socket = listener
            self.address_family, self.socket_type = listener.family, listener.type

        def fileno(self) -> int:
            return self.socket.fileno()

        def get_request(self) -> Any:
            return self.socket.accept()

        def close_request(self, request: Any) -> None:
            request.close()

        def server_close(self) -> None:
            self.socket.close()

    listener = socket.create_server(("127.0.0.1", 0))
    with Server(listener, upper(ss.StreamRequestHandler)) as server, serving(server):
        assert ask(server) == b"HELLO\n"
    assert listener.fileno() == -1


# --- other objects


@kinds(transports=("TCP",))
def test_requests_of_any_type(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """get_request() may return what it likes, if the ends of a request are overridden."""

    class Server(kind.server(ss)):
        def get_request(self) -> Any:
            connection, _ = super().get_request()
            return ("tuple", connection), {"client": "address"}

        def shutdown_request(self, request: Any) -> None:
            super().shutdown_request(request[1])

        def close_request(self, request: Any) -> None:
            if isinstance(request, tuple):
                request = request[1]
            super().close_request(request)

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            trace.log("handle", self.request[0], self.client_address)

    server = make(Server, Handler)
    with serving(server), connect(server) as client:
        assert receive(client) == b""
    assert [event.call for event in trace.events()] == ["handle(tuple, {'client': 'address'})"]


@pytest.mark.parametrize("address", [None, "", (), {"a": "dict"}, ["unhashable"]], ids=repr)
@kinds(flavours=("", "Threading"), transports=("TCP", "UDP"))
def test_opaque_client_address(ss: ModuleType, kind: Kind, make: Make, address: Any) -> None:
    seen = []
    done = threading.Event()

    class Server(kind.server(ss)):
        def get_request(self) -> Any:
            return super().get_request()[0], address

        def verify_request(self, request: Any, client_address: Any) -> bool:
            seen.append(client_address)
            return True

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            seen.append(self.client_address)
            done.set()

    server = make(Server, Handler)
    with connect(server) as client:
        client.send(b"x")
        server.handle_request()
        assert done.wait(TIMEOUT)
    assert len(seen) == 2
    assert all(each is address for each in seen)


@kinds(transports=("TCP", "UnixStream"))
def test_already_connected_sockets(ss: ModuleType, kind: Kind, make: Make) -> None:
    """get_request() hands out a socket that never was accepted."""
    kept = []

    class Server(kind.server(ss)):
        def get_request(self) -> Any:
            connection, address = super().get_request()
            connection.close()
            ours, theirs = socket.socketpair()
            kept.append(theirs)
            theirs.sendall(b"from within\n")
            return ours, address

    server = make(Server, upper(ss.StreamRequestHandler))
    with serving(server), connect(server) as client:
        assert ended(client)
    with kept[0] as theirs:
        theirs.settimeout(TIMEOUT)
        assert receive(theirs) == b"FROM WITHIN\n"


def test_nothing_accepted(ss: ModuleType, make: Make) -> None:
    """A get_request() that doesn't take what is ready: it is asked again."""
    asked = threading.Semaphore(0)

    class Server(ss.TCPServer):
        calls = 0

        def get_request(self) -> Any:
            self.calls += 1
            asked.release()
            if self.calls < 4:
                raise OSError("not yet")
            return super().get_request()

    server = make(Server, upper(ss.StreamRequestHandler))
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert server.calls == 4


# --- the ends of requests


def test_shutdown_request(ss: ModuleType, make: Make) -> None:
    """The writing side is shut down, whether that works or not, then close_request()."""
    server = make(ss.TCPServer)
    for error in (None, OSError(107, "not connected"), BrokenPipeError(32, "broken")):
        request = FakeRequest(error)
        assert server.shutdown_request(request) is None
        assert request.calls == [("shutdown", socket.SHUT_WR), "close"]
    request = FakeRequest(ValueError("a bug"))
    with pytest.raises(ValueError):
        server.shutdown_request(request)
    assert request.calls == [("shutdown", socket.SHUT_WR)]
    request = FakeRequest()
    assert server.close_request(request) is None
    assert request.calls == ["close"]


@kinds(transports=("TCP", "UnixStream"))
def test_hijacked_connection(ss: ModuleType, kind: Kind, make: Make) -> None:
    """shutdown_request() as a no-op: the connection lives on and belongs to the handler."""
    kept = []

    class Server(kind.server(ss)):
        def shutdown_request(self, request: Any) -> None:
            pass

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            kept.append(self.request)
            self.wfile.write(self.rfile.readline())

    if kind.flavour == "Forking":
        pytest.skip("the child that has it ends")
    server = make(Server, Handler)
    with connect(server) as client, serving(server):
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        assert ask_open(server) == b"next\n"
        with kept[0] as connection:
            connection.sendall(b"hijacked")
            assert client.recv(100) == b"hijacked"
            client.sendall(b"answer")
            connection.settimeout(TIMEOUT)
            assert connection.recv(100) == b"answer"
        assert receive(client) == b""
    server.server_close()
    kept[1].close()


def ask_open(server: Any) -> bytes:
    """One line there and back, without waiting for the end of the connection."""
    with connect(server) as client:
        client.sendall(b"next\n")
        return client.recv(100)


def test_hijacked_after_an_exception(ss: ModuleType, make: Make) -> None:
    """The same when the handler ends with one, in a rejected request, and in a thread."""
    kept = []

    class Server(ss.TCPServer):
        def shutdown_request(self, request: Any) -> None:
            kept.append(request)

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass

    def handle(self: Any) -> None:
        raise ValueError

    handler = new("Handler", ss.BaseRequestHandler, handle=handle)
    rejecting = new("Rejecting", Server, verify_request=lambda self, request, address: False)
    threading_server = new("ThreadingServer", ss.ThreadingMixIn, Server)
    for base in (Server, rejecting, threading_server):
        server = make(base, handler)
        with connect(server) as client:
            server.handle_request()
            server.server_close()
            with kept.pop() as connection:
                connection.sendall(b"alive")
            assert client.recv(100) == b"alive"


def test_connection_upgraded_within_a_handler(ss: ModuleType, make: Make) -> None:
    """self.request replaced: the handler's end is the new one's business."""

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            replacement = socket.socket(fileno=self.request.detach())
            self.request = self.connection = replacement
            with replacement:
                replacement.sendall(b"upgraded")

    server = make(ss.ThreadingTCPServer, Handler)
    with serving(server):
        assert ask(server, b"") == b"upgraded"


def test_process_request_on_a_queue(ss: ModuleType, make: Make) -> None:
    """A pool of one's own: process_request() only hands the request on."""
    import queue

    requests: queue.Queue[Any] = queue.Queue()

    class Server(ss.TCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            requests.put((request, client_address))

    def work() -> None:
        for _ in range(6):
            request, client_address = requests.get(timeout=TIMEOUT)
            server.finish_request(request, client_address)
            server.shutdown_request(request)

    server = make(Server, upper(ss.StreamRequestHandler))
    worker = Background(work)
    clients = [connect(server) for _ in range(6)]
    with serving(server):
        for client in clients:
            client.sendall(b"hello\n")
        for client in clients:
            assert receive(client) == b"HELLO\n"
            client.close()
    worker.result()


# --- RequestHandlerClass


class Session:
    """Handlers that are no classes."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def method(self, request: Any, client_address: Any, server: Any) -> None:
        self.trace.log("method", len(vars(server)) > 0)


@kinds(transports=("TCP", "UDP"))
def test_request_handler_class(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """Anything that can be called: a partial, a lambda, a bound method."""

    class Greeting(kind.handler(ss)):
        def __init__(self, *args: Any, word: bytes) -> None:
            self.word = word
            super().__init__(*args)

        def handle(self) -> None:
            self.wfile.write(self.word)

    server = make(kind.server(ss), functools.partial(Greeting, word=b"partial"))
    with serving(server):
        assert ask(server) == b"partial"
        server.RequestHandlerClass = lambda *args: Greeting(*args, word=b"lambda")
        assert ask(server) == b"lambda"
        server.RequestHandlerClass = Session(trace).method
        with connect(server) as client:
            client.send(b"x")
            trace.wait("method")
    assert [event.call for event in trace.events()] == ["method(True)"]


def test_finish_request_without_a_handler_class(ss: ModuleType, make: Make) -> None:
    """Overridden, with no handler class at all."""

    class Server(ss.ThreadingTCPServer):
        def finish_request(self, request: Any, client_address: Any) -> None:
            request.sendall(str(client_address[1]).encode())

    server = make(Server)
    server.RequestHandlerClass = None
    with serving(server), connect(server) as client:
        assert receive(client) == str(client.getsockname()[1]).encode()


class _Getter:
    """As a decorator may put in the place of a method."""

    def __init__(self, called: list[Any]) -> None:
        self.called = called

    def __get__(self, instance: Any, cls: Any) -> Callable[..., None]:
        kind = "class" if instance is None else "instance"

        def init(*args: Any) -> None:
            self.called.append((kind, args[0]))

        return init


@pytest.mark.parametrize("way", ["method", "static", "descriptor", "returns", "new", "metaclass"])
def test_handler_classes_made_oddly(ss: ModuleType, way: str) -> None:
    """A handler is made as any call of its class makes an instance."""
    called: list[Any] = []

    class Meta(type):
        def __call__(cls, *args: Any) -> None:
            called.append(("metaclass", args[0]))

    class Handler:
        def __init__(self, *args: Any) -> None:
            called.append(("instance", args[0]))

    class Other(Handler):
        if way == "static":
            __init__ = staticmethod(lambda *args: called.append(("static", args[0])))
        elif way == "descriptor":
            __init__ = _Getter(called)  # type: ignore[assignment]
        elif way == "returns":

            def __init__(self, *args: Any) -> None:
                return 5  # type: ignore[return-value]  # noqa: PLE0101

        elif way == "new":

            def __new__(cls, *args: Any) -> Any:
                called.append(("new", args[0]))

    made: Any = Meta("Made", (), {}) if way == "metaclass" else Other
    server = ss.BaseServer(None, made)
    if way == "returns":
        with pytest.raises(TypeError, match="should return None, not 'int'"):
            server.finish_request("request", None)
        return
    server.finish_request("request", None)
    expected = {"method": "instance", "descriptor": "instance"}.get(way, way)
    assert called == [(expected, "request")]
