"""TLS sockets of a program's own class, of contexts of which it says so."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
import tls_material
from crews import module_of
from support import TIMEOUT, Background, connect, serving
from tls_support import answers, client_context, connected, exactly, handler, silent, wrapping

CALLS: list[str] = []


class Own(ssl.SSLSocket):
    """A program's own."""

    def do_handshake(self, block: bool = False) -> None:
        CALLS.append("do_handshake")
        super().do_handshake(block)

    def read(self, *arguments: Any) -> Any:
        CALLS.append("read")
        return super().read(*arguments)

    def sendall(self, data: Any, flags: int = 0) -> None:
        CALLS.append("sendall")
        super().sendall(data, flags)


class Refusing(ssl.SSLSocket):
    def __init_subclass__(cls) -> None:
        raise TypeError("no subclasses")


class OwnContext(ssl.SSLContext):
    sslsocket_class = Own


def context_of(where: str, folder: Any, cls: Any = Own) -> Any:
    """A server's context, of which the class of its sockets is said in one of three places."""
    (folder / "both.pem").write_text(tls_material.CERTIFICATE + tls_material.KEY)
    context = (OwnContext if where == "subclass" else ssl.SSLContext)(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    if where == "instance":
        context.sslsocket_class = cls
    elif where == "all":
        ssl.SSLContext.sslsocket_class = cls
    return context


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = ssl.SSLContext.sslsocket_class
    CALLS.clear()
    yield
    ssl.SSLContext.sslsocket_class = before


@contextlib.contextmanager
def served(each: str, fastsock_dir: str | None, context: Any, way: str, handle: Any) -> Any:
    module = module_of(each, fastsock_dir)
    base = wrapping(module.ThreadingTCPServer, way, context)
    made = handler(module.StreamRequestHandler, handle, way, context=context)
    with base(("127.0.0.1", 0), made) as server, serving(server):
        yield server


@pytest.mark.parametrize("where", ["instance", "subclass", "all"])
@pytest.mark.parametrize("way", ["setup", "get_request", "listener"])
def test_others_run_meanwhile(
    each: str, fastsock_dir: str | None, time_limit: None, tmp_path: Any, where: str, way: str
) -> None:
    """During a handshake, and while one has nothing to read."""
    context = context_of(where, tmp_path)

    def handle(self: Any) -> None:
        assert isinstance(self.request, Own)
        for line in self.rfile:
            self.wfile.write(line)

    with (
        served(each, fastsock_dir, context, way, handle) as server,
        connected(server) as idle,
        connected(server) as first,
    ):
        assert answers(first)
        with silent(server) as third:
            third.sendall(b"\x16\x03")
            assert answers(first)
            if way == "setup":
                with connected(server) as fourth:
                    assert answers(fourth)
            assert answers(first)
        assert answers(idle)
    assert {"do_handshake", "read", "sendall"} <= set(CALLS)
    assert context.sslsocket_class is Own
    assert (ssl.SSLContext.sslsocket_class is Own) == (where == "all")


def test_its_methods_come_first_when_there_is_no_tls_any_more(
    each: str, fastsock_dir: str | None, time_limit: None, tmp_path: Any
) -> None:
    def handle(self: Any) -> None:
        plain = self.request.unwrap()
        CALLS.clear()
        plain.sendall(b"plain")

    context = context_of("instance", tmp_path)
    with served(each, fastsock_dir, context, "setup", handle) as server:
        with connected(server) as client:
            assert exactly(client.unwrap(), 5) == b"plain"
    assert CALLS == ["sendall"]


def test_a_class_that_refuses(
    each: str, fastsock_dir: str | None, time_limit: None, tmp_path: Any
) -> None:
    """It blocks, as it says it is to be."""
    found = []

    def handle(self: Any) -> None:
        found.append(type(self.request))
        self.wfile.write(self.rfile.readline())

    context = context_of("instance", tmp_path, Refusing)
    with served(each, fastsock_dir, context, "get_request", handle) as server:
        with connected(server) as client:
            assert answers(client)
    assert found == [Refusing]


def test_a_class_that_is_given_later(
    each: str, fastsock_dir: str | None, time_limit: None, tmp_path: Any
) -> None:
    """To what get_request() returns."""
    context = context_of("instance", tmp_path, ssl.SSLSocket)
    module = module_of(each, fastsock_dir)

    class Server(module.ThreadingTCPServer):  # type: ignore[misc]
        def get_request(self) -> Any:
            accepted, address = self.socket.accept()
            request = context.wrap_socket(accepted, server_side=True)
            request.__class__ = Own
            return request, address

    def handle(self: Any) -> None:
        assert isinstance(self.request, Own)
        for line in self.rfile:
            self.wfile.write(line)

    made = handler(module.StreamRequestHandler, handle, "get_request")
    with (
        Server(("127.0.0.1", 0), made) as server,
        serving(server),
        connected(server) as idle,
        connected(server) as first,
    ):
        assert answers(first)
        assert answers(idle)
    assert {"read", "sendall"} <= set(CALLS)


def test_wrapped_in_a_thread(
    each: str, fastsock_dir: str | None, time_limit: None, tmp_path: Any
) -> None:
    """And then a handler's: no other is kept waiting."""
    context = context_of("instance", tmp_path)

    def handle(self: Any) -> None:
        wrapping = Background(context.wrap_socket, self.request, server_side=True)
        with wrapping.result() as sock, sock.makefile("rb") as lines:
            assert isinstance(sock, Own)
            for line in lines:
                sock.sendall(line)

    with (
        served(each, fastsock_dir, context, "none", handle) as server,
        client_context().wrap_socket(connect(server), server_hostname="localhost") as idle,
        client_context().wrap_socket(connect(server), server_hostname="localhost") as first,
    ):
        first.settimeout(TIMEOUT)
        assert answers(first)
        assert answers(idle)
