"""server.socket belongs to the program: replaced, wrapped, inherited, selected on."""

from __future__ import annotations

import os
import select
import selectors
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Background,
    Kind,
    Trace,
    ask,
    connect,
    ended,
    kinds,
    receive,
    serving,
    serving_seldom,
    upper,
)

Make = Callable[..., Any]

# A self-signed certificate for these tests only; nobody checks its dates.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgrGjyBtXmMre5y7Vi
BEdJVXlxETq2HZn65j4bSfpN1+KhRANCAASdYkn0HjA34huRqWTdcaJ3oBOlftJm
Q9X6yF9L0WcPOATxlj/b9Wsjd4hZ60jR0nbWbkkSJcHlkR0KREFjE1jA
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmzCCAUGgAwIBAgIUVMAXv2Ds+OFEzPCDfjaOT1QJxnQwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMDA5MTIzNloYDzIxMjYxMDI3
MDkxMjM2WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASdYkn0HjA34huRqWTdcaJ3oBOlftJmQ9X6yF9L0WcPOATxlj/b9Wsj
d4hZ60jR0nbWbkkSJcHlkR0KREFjE1jAo28wbTAdBgNVHQ4EFgQUgcAiPI+6hyPl
MMIlZxyNVYtHrwEwHwYDVR0jBBgwFoAUgcAiPI+6hyPlMMIlZxyNVYtHrwEwDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARgglsb2NhbGhvc3SHBH8AAAEwCgYIKoZI
zj0EAwIDSAAwRQIgdKRwuszwW5ZSjufynwLcXa4TvNg85jHPHT3x6UWCr14CIQD6
pf2AvZCiIl34+t7N+q2F5FZmLr3iUFf1T//jhpZU6g==
-----END CERTIFICATE-----
"""


# --- replaced


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def replace(server: Any, sock: socket.socket) -> None:
    old, server.socket = server.socket, sock
    server.server_address = sock.getsockname()
    old.close()


@kinds(flavours=("", "Threading"), transports=("TCP",))
@pytest.mark.parametrize("mode", ["handle_request", "serve_forever"])
def test_socket_replaced_before(ss: ModuleType, kind: Kind, make: Make, mode: str) -> None:
    server = make(kind.server(ss), upper(ss.StreamRequestHandler))
    assert server.fileno() == server.socket.fileno()
    for _ in range(2):
        spare = os.open(os.devnull, os.O_RDONLY)  # so that the number is another one
        replace(server, listener())
        os.close(spare)
        assert server.fileno() == server.socket.fileno()
        if mode == "serve_forever":
            with serving(server):
                assert ask(server) == b"HELLO\n"
        else:
            with connect(server) as client:
                client.sendall(b"hello\n")
                server.handle_request()
                assert receive(client) == b"HELLO\n"


def test_listener_taken_over(ss: ModuleType, make: Make) -> None:
    """As under socket activation: the descriptor comes from somebody else."""
    with listener() as original:
        server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
        replace(server, socket.socket(fileno=os.dup(original.fileno())))
        with serving(server):
            assert ask(server) == b"HELLO\n"
        server.server_close()
        with connect(server) as client:  # the original still listens
            connection, _ = original.accept()
            connection.close()
            assert ended(client)


@pytest.mark.parametrize("blocking", [True, False])
def test_flags_of_a_foreign_listener(ss: ModuleType, make: Make, blocking: bool) -> None:
    """They stay as they were: another process may share them."""
    with listener() as original:
        server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
        replace(server, original.dup())
        os.set_blocking(original.fileno(), blocking)
        for _ in range(2):
            with serving(server):
                assert ask(server) == b"HELLO\n"
                assert os.get_blocking(original.fileno()) is blocking
            assert os.get_blocking(original.fileno()) is blocking


def test_datagram_socket_replaced(ss: ModuleType, make: Make) -> None:
    server = make(ss.UDPServer, upper(ss.DatagramRequestHandler))
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))
    replace(server, sock)
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_socket_object_replaced_while_serving(ss: ModuleType, make: Make, trace: Trace) -> None:
    """Another object on the same descriptor, as wrappers do it."""

    class Wrapped(socket.socket):
        def accept(self) -> Any:
            trace.log("accept")
            return super().accept()

    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    with serving_seldom(server):
        assert ask(server) == b"HELLO\n"
        server.socket = Wrapped(fileno=server.socket.detach())
        assert ask(server) == b"HELLO\n"
    assert trace.names()[:1] == ["accept"]


@pytest.mark.fastsock_only(reason="the descriptor is looked up again at every turn of the loop")
def test_descriptor_replaced_while_serving(ss: ModuleType, make: Make, trace: Trace) -> None:
    server = make(
        ss.TCPServer,
        upper(ss.StreamRequestHandler),
        service_actions=lambda self: trace.log("service_actions"),
    )
    with serving(server):
        assert ask(server) == b"HELLO\n"
        old = server.socket
        server.socket = listener()
        server.server_address = server.socket.getsockname()
        trace.clear()
        trace.wait("service_actions", 2)
        assert ask(server) == b"HELLO\n"
        old.close()
        assert ask(server) == b"HELLO\n"


@pytest.mark.parametrize("base", ["BaseServer", "TCPServer"])
def test_fileno_overridden(ss: ModuleType, make: Make, trace: Trace, base: str) -> None:
    """The loop waits for what fileno() says, whatever the socket is."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        class Server(getattr(ss, base)):
            def fileno(self) -> int:
                return ours.fileno()

            def get_request(self) -> Any:
                return ours.recv(100), "there"

            def shutdown_request(self, request: Any) -> None:
                trace.log("shutdown_request", request)

        class Handler(ss.BaseRequestHandler):
            def handle(self) -> None:
                theirs_too = self.request
                trace.log("handle", theirs_too)

        server = Server(("127.0.0.1", 0), Handler)
        with server, serving(server):
            theirs.send(b"one")
            trace.wait("shutdown_request")
            theirs.send(b"two")
            trace.wait("shutdown_request", 2)
    assert [event.args[0] for event in trace.named("handle")] == ["b'one'", "b'two'"]


# --- TLS


@pytest.fixture
def server_context() -> Iterator[ssl.SSLContext]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(CERTIFICATE)
        file.flush()
        context.load_cert_chain(file.name)
    yield context


def ask_tls(server: Any, data: bytes = b"hello\n") -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(server) as sock, context.wrap_socket(sock) as client:
        client.sendall(data)
        chunks = []
        while chunk := client.recv(65536):
            chunks.append(chunk)
        return b"".join(chunks)


def tls_handler(ss: ModuleType, **attributes: Any) -> Any:
    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            assert isinstance(self.connection, ssl.SSLSocket)
            assert self.connection.version()
            line = self.rfile.readline()
            self.wfile.write(line.upper())
            if line == b"large\n":
                self.wfile.write(b"x" * 500_000)

    return type("Handler", (Handler,), attributes)


each_flavour = kinds(transports=("TCP",))


@each_flavour
@pytest.mark.parametrize("wbufsize", [0, -1])
def test_tls_in_get_request(
    ss: ModuleType, kind: Kind, make: Make, server_context: ssl.SSLContext, wbufsize: int
) -> None:
    class Server(kind.server(ss)):
        def get_request(self) -> Any:
            connection, address = super().get_request()
            return server_context.wrap_socket(connection, server_side=True), address

    server = make(Server, tls_handler(ss, wbufsize=wbufsize))
    with serving(server):
        assert ask_tls(server) == b"HELLO\n"
        assert len(ask_tls(server, b"large\n")) == 500_006


@each_flavour
def test_tls_listener(
    ss: ModuleType, kind: Kind, make: Make, server_context: ssl.SSLContext
) -> None:
    """server.socket wrapped: accept() shakes hands; a client that cannot is passed over."""
    server = make(kind.server(ss), tls_handler(ss))
    server.socket = server_context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        assert ask_tls(server) == b"HELLO\n"
        with connect(server) as client:
            client.sendall(b"this is not TLS\n")
            while not ended(client):
                pass
        assert ask_tls(server) == b"HELLO\n"


def test_tls_listener_wrapped_while_serving(
    ss: ModuleType, make: Make, server_context: ssl.SSLContext
) -> None:
    server = make(ss.ThreadingTCPServer, upper(ss.StreamRequestHandler))
    with serving(server):
        assert ask(server) == b"HELLO\n"
        server.socket = server_context.wrap_socket(server.socket, server_side=True)
        assert ask_tls(server) == b"HELLO\n"


def test_tls_handle_request(ss: ModuleType, make: Make, server_context: ssl.SSLContext) -> None:
    server = make(ss.TCPServer, tls_handler(ss, timeout=TIMEOUT))
    server.socket = server_context.wrap_socket(server.socket, server_side=True)
    thread = Background(ask_tls, server, b"large\n")
    server.handle_request()
    assert len(thread.result()) == 500_006


def test_tls_in_a_handler(ss: ModuleType, make: Make, server_context: ssl.SSLContext) -> None:
    """setup() wraps the request, in the thread of the request."""

    class Handler(tls_handler(ss)):
        def setup(self) -> None:
            self.request = server_context.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.unwrap().close()

    server = make(ss.ThreadingTCPServer, Handler)
    with serving(server):
        assert ask_tls(server) == b"HELLO\n"


# --- selected on


@pytest.mark.parametrize("how", ["select", "poll", "selectors"])
def test_select(ss: ModuleType, make: Make, how: str) -> None:
    """Servers have a fileno(): wait for several, and let each handle its request."""
    stream, datagram = upper(ss.StreamRequestHandler), upper(ss.DatagramRequestHandler)
    servers = [
        make(ss.TCPServer, stream),
        make(ss.UnixStreamServer, stream),
        make(ss.UDPServer, datagram),
    ]

    def wait() -> list[Any]:
        if how == "select":
            return select.select(servers, [], [], TIMEOUT)[0]
        if how == "poll":
            poller = select.poll()
            for server in servers:
                poller.register(server, select.POLLIN)
            ready = [fd for fd, _ in poller.poll(TIMEOUT * 1000)]
            return [server for server in servers if server.fileno() in ready]
        with selectors.DefaultSelector() as selector:
            for server in servers:
                selector.register(server, selectors.EVENT_READ)
            return [key.fileobj for key, _ in selector.select(TIMEOUT)]

    for index in (0, 1, 2, 1, 0):
        with connect(servers[index]) as client:
            client.sendall(b"hello\n")
            (ready,) = wait()
            assert ready is servers[index]
            ready.handle_request()
            assert receive(client) == b"HELLO\n"


def test_select_two_at_once(ss: ModuleType, make: Make) -> None:
    servers = [make(ss.TCPServer, upper(ss.StreamRequestHandler)) for _ in range(2)]
    clients = [connect(server) for server in servers]
    for client in clients:
        client.sendall(b"hello\n")
    left = 2
    while left:
        ready, _, _ = select.select(servers, [], [], TIMEOUT)
        for server in ready:
            server.handle_request()
            left -= 1
    for client in clients:
        assert receive(client) == b"HELLO\n"
        client.close()
