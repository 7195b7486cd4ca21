"""The class of TLS sockets, and programs in processes of their own."""

from __future__ import annotations

import _socket
import contextlib
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tls_material
from support import TIMEOUT, load_implementation, receive, run_script, wait_until
from tls_support import (
    answers,
    client_context,
    connected,
    echo,
    server_context,
    serving_tls,
    silent,
)


@pytest.fixture
def mux(fastsock_dir: str | None) -> ModuleType:
    """A module with the names of socketserver, whose threads are greenlets."""
    return load_implementation("multiplex", fastsock_dir)


@pytest.fixture
def serve(mux: ModuleType, time_limit: None) -> Iterator[Callable[..., Any]]:
    """As ``serving_tls()``, for the rest of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(serving_tls(mux, *arguments))


def test_outside_of_hubs_it_is_as_ever(serve: Any) -> None:
    serve(echo)
    near, far = socket.socketpair()
    with (
        far,
        server_context().wrap_socket(near, server_side=True, do_handshake_on_connect=False) as sock,
    ):
        assert (type(sock).__module__, type(sock).__qualname__) == ("ssl", "SSLSocket")
        assert type(sock) is not ssl.SSLSocket
        assert repr(sock).startswith("<ssl.SSLSocket fd=")
        sock.settimeout(0.02)
        with pytest.raises(TimeoutError, match=r"^The read operation timed out$"):
            sock.read(1)
        assert type(sock._sslobj).__module__ == "_ssl"
        assert _socket.socket.gettimeout(sock) == sock.gettimeout() == 0.02


@pytest.mark.parametrize("leave", ["detach", "wrap again"])
def test_a_descriptor_that_is_given_away_blocks_again(serve: Any, leave: str) -> None:
    found = []

    def handle(self: Any) -> None:
        assert self.rfile.readline() == b"hello\n"
        request = self.request
        found.append(os.get_blocking(request.fileno()))
        if leave == "detach":
            sock = socket.socket(fileno=request.detach())
        else:
            sock = server_context().wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        found.append(os.get_blocking(sock.fileno()))
        sock.close()

    with connected(serve(handle)) as client:
        client.sendall(b"hello\n")
        wait_until(lambda: len(found) == 2)
    assert found == [False, True]


@pytest.fixture
def class_of_contexts() -> Iterator[None]:
    before = ssl.SSLContext.sslsocket_class
    yield
    ssl.SSLContext.sslsocket_class = before


def test_a_class_of_the_program_is_kept(serve: Any, class_of_contexts: None) -> None:
    reads = []

    class Counting(ssl.SSLSocket):
        def read(self, *arguments: Any) -> Any:
            reads.append(self)
            return super().read(*arguments)

    ssl.SSLContext.sslsocket_class = Counting
    server = serve(echo)
    with connected(server) as first, connected(server) as second:
        for client in (first, second):
            assert isinstance(client, Counting)
            assert answers(client)
    assert len(reads) >= 4


@pytest.mark.parametrize("of", [object, socket.socket])
def test_a_class_that_is_no_relative_is_left_alone(
    serve: Any, class_of_contexts: None, of: type
) -> None:
    class Foreign(of):  # type: ignore[misc]
        pass

    ssl.SSLContext.sslsocket_class = Foreign
    server = serve(lambda self: None, "none")
    with silent(server) as client:
        assert client.recv(1) == b""
    assert ssl.SSLContext.sslsocket_class is Foreign


# --- processes of their own

LATE = """
import sys, threading
import fastsock.multiplexing as multiplexing
assert "ssl" not in sys.modules
folder = sys.argv[1]

class Handler(ss.StreamRequestHandler):
    def setup(self):
        import ssl
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder + "/both.pem")
        self.request = context.wrap_socket(self.request, server_side=True)
        super().setup()
    def handle(self):
        self.wfile.write(self.rfile.readline())
    def finish(self):
        super().finish()
        self.request.close()

class Server(ss.ThreadingTCPServer):
    def handle_error(self, request, client_address):
        pass

with Server(("127.0.0.1", 0), Handler) as server:
    assert "ssl" not in sys.modules
    print(server.server_address[1], flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), server.shutdown())).start()
    server.serve_forever()
print(any(type(finder).__module__ == "fastsock._tls" for finder in sys.meta_path))
"""


def test_ssl_imported_by_a_handler(
    mux: ModuleType, fastsock_dir: str | None, tmp_path: Path, time_limit: None
) -> None:
    """The first handler that imports it has a client that does not shake hands."""
    (tmp_path / "both.pem").write_text(tls_material.CERTIFICATE + tls_material.KEY)
    with run_script(mux, fastsock_dir, LATE, str(tmp_path)) as process:
        try:
            port = int(process.stdout.readline())  # type: ignore[union-attr]
            address = ("127.0.0.1", port)
            with socket.create_connection(address, TIMEOUT) as first:
                first.sendall(b"\x16")
                with (
                    socket.create_connection(address, TIMEOUT) as plain,
                    client_context().wrap_socket(plain, server_hostname="localhost") as client,
                ):
                    assert answers(client)
            output, errors = process.communicate("", TIMEOUT)
        finally:
            process.kill()
    assert (output.split(), errors) == (["False"], "")


INTERRUPTED = """
import os, signal, sys, ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1] + "/both.pem")
signal.signal(signal.SIGUSR1, lambda *_: os.write(1, b"signal\\n"))

class Server(ss.ThreadingTCPServer):
    def get_request(self):
        request, address = super().get_request()
        print("shaking", flush=True)
        return context.wrap_socket(request, server_side=True), address

with Server(("127.0.0.1", 0), ss.BaseRequestHandler) as server:
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever(60)
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_signals_during_a_handshake_in_the_loop(
    mux: ModuleType, fastsock_dir: str | None, tmp_path: Path, time_limit: None
) -> None:
    (tmp_path / "both.pem").write_text(tls_material.CERTIFICATE + tls_material.KEY)
    with run_script(mux, fastsock_dir, INTERRUPTED, str(tmp_path)) as process:
        try:
            output: Any = process.stdout
            address = ("127.0.0.1", int(output.readline()))
            with socket.create_connection(address, TIMEOUT) as client:
                assert output.readline() == "shaking\n"
                process.send_signal(signal.SIGUSR1)
                assert output.readline() == "signal\n"
                process.send_signal(signal.SIGINT)
                assert receive(client) == b""
            text, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert (text, errors) == ("interrupted\n", "")
