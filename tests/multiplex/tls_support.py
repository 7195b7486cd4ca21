"""TLS servers of both kinds for the tests: a thread for each request, and a greenlet."""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import tls_material
from support import TIMEOUT, new, serving

#: where a server's connections are wrapped
WAYS = ("listener", "get_request", "setup")


@cache
def server_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(tls_material.CERTIFICATE + tls_material.KEY)
        file.flush()
        context.load_cert_chain(file.name)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


@cache
def client_context() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=tls_material.CERTIFICATE)


def handler(base: Any, handle: Callable[[Any], Any], way: str = "setup", **attributes: Any) -> Any:
    """A handler class, which wraps its connection itself if that is the way."""
    context = attributes.pop("context", None) or server_context()

    def setup(self: Any) -> None:
        if way == "setup":
            if self.timeout is not None:
                self.request.settimeout(self.timeout)
            self.request = context.wrap_socket(self.request, server_side=True)
        base.setup(self)

    def finish(self: Any) -> None:
        base.finish(self)
        if way == "setup":  # the server knows only what was wrapped
            self.request.close()

    return new("Handler", base, handle=handle, setup=setup, finish=finish, **attributes)


def wrapping(base: Any, way: str, context: ssl.SSLContext | None = None) -> Any:
    """A server class that wraps in this way."""
    used = context or server_context()

    class Server(base):
        failures: list[BaseException]

        def __init__(self, *args: Any) -> None:
            self.failures = []
            super().__init__(*args)

        def server_activate(self) -> None:
            super().server_activate()
            if way == "listener":
                self.socket = used.wrap_socket(self.socket, server_side=True)

        def get_request(self) -> Any:
            request, address = super().get_request()
            if way == "get_request":
                request = used.wrap_socket(request, server_side=True)
            return request, address

        def handle_error(self, request: Any, client_address: Any) -> None:
            import sys

            self.failures.append(sys.exc_info()[1])  # type: ignore[arg-type]

    Server.request_queue_size = 256
    return Server


@contextlib.contextmanager
def serving_tls(
    module: Any, handle: Callable[[Any], Any], way: str = "setup", **attributes: Any
) -> Iterator[Any]:
    """A threading server of a module like socketserver, which runs, with these attributes."""
    base = wrapping(module.ThreadingTCPServer, way)
    for name, value in attributes.items():
        setattr(base, name, value)
    made = handler(module.StreamRequestHandler, handle, way)
    with base(("127.0.0.1", 0), made) as server, serving(server):
        yield server


def echo(self: Any) -> None:
    for line in self.rfile:
        self.wfile.write(line)


@contextlib.contextmanager
def silent(server: Any) -> Iterator[socket.socket]:
    """A connection whose client says nothing, not even the first word of the handshake."""
    with socket.create_connection(server.server_address, TIMEOUT) as sock:
        yield sock


@contextlib.contextmanager
def connected(server: Any) -> Iterator[ssl.SSLSocket]:
    with (
        silent(server) as plain,
        client_context().wrap_socket(plain, server_hostname="localhost") as sock,
    ):
        yield sock


def exactly(sock: Any, count: int) -> bytes:
    chunks = []
    while count and (chunk := sock.recv(count)):
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def answers(client: Any, line: bytes = b"hello\n") -> bool:
    """Whether a server that echoes does."""
    client.sendall(line)
    return exactly(client, len(line)) == line


def text_of_timeout(call: str, *arguments: Any) -> str:
    """What an ordinary SSLSocket says when a call has taken too long."""
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0.01)
        sock = server_context().wrap_socket(near, server_side=True, do_handshake_on_connect=False)
        with sock:
            if call != "do_handshake":
                client = client_context().wrap_bio(
                    incoming := ssl.MemoryBIO(),
                    outgoing := ssl.MemoryBIO(),
                    server_hostname="localhost",
                )
                shake_hands(sock, far, client, incoming, outgoing)
            try:
                while True:
                    getattr(sock, call)(*arguments)
            except TimeoutError as error:
                return str(error)


def shake_hands(sock: Any, far: Any, client: Any, incoming: Any, outgoing: Any) -> None:
    sock.setblocking(False)
    done = [False, False]
    while not all(done):
        for index, end in enumerate((client, sock)):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                done[index] = True
            if index == 0:
                far.sendall(outgoing.read())
            else:
                with contextlib.suppress(BlockingIOError):
                    incoming.write(far.recv(1 << 16, socket.MSG_DONTWAIT))
    sock.settimeout(0.01)
