"""Micro benchmarks, each on both implementations: ``ci/bench`` runs them.

Times are for reading, side by side and from one run; nothing fails on one.
"""

from __future__ import annotations

import importlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

IMPLEMENTATIONS = ("socketserver", "fastsock")
TIMEOUT = 10.0


@pytest.fixture(params=IMPLEMENTATIONS)
def ss(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(request.param)


@pytest.fixture
def serve(ss: Any) -> Iterator[Callable[..., Any]]:
    """serve(server class's name, handler) -> a server that runs in a thread, backlog 128."""
    running = []

    def start(name: str, handler: Any, **arguments: Any) -> Any:
        server_class = type(name, (getattr(ss, name),), {"request_queue_size": 128})
        server = server_class(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs=arguments)
        thread.start()
        running.append((server, thread))
        return server

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.benchmark(group="one connection, one request")
@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer"])
def test_connection(benchmark: Any, ss: Any, serve: Callable[..., Any], name: str) -> None:
    class Echo(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(self.request.recv(100))

    server = serve(name, Echo)

    def request() -> None:
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"

    benchmark(request)


@pytest.mark.benchmark(group="one datagram")
def test_datagram(benchmark: Any, ss: Any, serve: Callable[..., Any]) -> None:
    class Echo(ss.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(self.packet)

    server = serve("UDPServer", Echo)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        client.connect(server.server_address)

        def request() -> None:
            client.send(b"hello")
            assert client.recv(100) == b"hello"

        benchmark(request)


@pytest.mark.benchmark(group="dispatch through all hooks, an empty handler")
def test_dispatch(benchmark: Any, ss: Any) -> None:
    class Server(ss.BaseServer):  # type: ignore[misc]
        def get_request(self) -> tuple[object, str]:
            return self, "nobody"

    server = Server(None, ss.BaseRequestHandler)
    benchmark(server._handle_request_noblock)


@pytest.mark.benchmark(group="shutdown() of an idle server, the default poll_interval")
def test_shutdown(benchmark: Any, ss: Any) -> None:
    threads = []

    def setup() -> tuple[tuple[Any], dict[str, Any]]:
        server = ss.TCPServer(("127.0.0.1", 0), ss.BaseRequestHandler)
        idle = threading.Event()
        server.service_actions = idle.set
        threads.append(threading.Thread(target=server.serve_forever))
        threads[-1].start()
        with socket.create_connection(server.server_address, TIMEOUT):
            assert idle.wait(TIMEOUT)
        return (server,), {}

    def shutdown(server: Any) -> None:
        server.shutdown()
        server.server_close()

    benchmark.pedantic(shutdown, setup=setup, rounds=100)
    for thread in threads:
        thread.join(TIMEOUT)
