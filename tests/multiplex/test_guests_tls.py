"""TLS sockets of a program's own class, which get_request() returns."""

from __future__ import annotations

import ssl
import threading
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, connect, handling, serving
from tls_support import client_context, server_context


class Own(ssl.SSLSocket):
    """A program's own."""


@pytest.mark.parametrize("each", ["threading", "multiplexing"])
def test_a_class_of_ones_own(each: str, fastsock_dir: str | None, time_limit: None) -> None:
    module = module_of(each, fastsock_dir)
    server_context.cache_clear()
    context = server_context()
    server_context.cache_clear()
    context.sslsocket_class = Own
    entered = threading.Semaphore(0)

    def get_request(self: Any) -> Any:
        accepted, address = self.socket.accept()
        return context.wrap_socket(accepted, server_side=True), address

    def handle(self: Any) -> None:
        assert isinstance(self.request, Own)
        entered.release()
        self.wfile.write(self.rfile.readline())

    server_class = type("Server", (module.ThreadingTCPServer,), {"get_request": get_request})
    client = client_context()
    with (
        server_class(("127.0.0.1", 0), handling(module, handle)) as server,
        serving(server),
        client.wrap_socket(connect(server), server_hostname="localhost") as silent,
        client.wrap_socket(connect(server), server_hostname="localhost") as other,
    ):
        assert entered.acquire(timeout=TIMEOUT)
        assert entered.acquire(timeout=TIMEOUT)
        other.sendall(b"hello\n")
        assert other.recv(10) == b"hello\n"
        silent.sendall(b"late\n")
        assert silent.recv(10) == b"late\n"
