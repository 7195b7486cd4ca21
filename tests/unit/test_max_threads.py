"""max_threads: so many requests under way, and the backlog is the queue."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import TIMEOUT, Background, connect, receive, serving, wait_until

import fastsock


class Held(fastsock.StreamRequestHandler):
    """Answers when it is told to."""

    def handle(self) -> None:
        server: Any = self.server
        with server.lock:
            server.handling += 1
            server.most = max(server.most, server.handling)
        try:
            self.wfile.write(self.rfile.readline())
            assert server.go_on.acquire(timeout=TIMEOUT)
        finally:
            with server.lock:
                server.handling -= 1


class Server(fastsock.ThreadingTCPServer):
    max_threads = 2
    poll_interval = 60.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Held)
        self.lock = threading.Lock()
        self.handling = self.most = 0
        self.go_on = threading.Semaphore(0)
        self.accepted = 0

    def verify_request(self, request: Any, client_address: Any) -> bool:
        self.accepted += 1
        return True


@pytest.fixture(params=[True, False], ids=["reused", "new"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server() as server:
        server.reuse_threads = request.param
        yield server
        for _ in range(100):
            server.go_on.release()


def asking(server: Server, count: int) -> list[socket.socket]:
    clients = [connect(server) for _ in range(count)]
    for client in clients:
        client.sendall(b"hello\n")
    return clients


def close(clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()


def test_no_more_than_so_many_at_a_time(server: Server) -> None:
    """The next is accepted when one has ended, and not before; the loop does not wait."""
    with serving(server, 60.0):
        clients = asking(server, 5)
        for waiting in range(5):
            wait_until(lambda: server.accepted >= min(5, waiting + 2))  # noqa: B023
            wait_until(lambda: server.handling == min(2, 5 - waiting))  # noqa: B023
            assert server.accepted == min(5, waiting + 2)
            server.go_on.release()
        for client in clients:
            assert receive(client) == b"hello\n"
        close(clients)
    assert server.most == 2


def test_the_end_of_a_request_is_told_late(server: Server) -> None:
    """When the loop has counted it already and taken another: that is no place for one more."""
    with serving(server, 60.0):
        clients = asking(server, 3)
        wait_until(lambda: server.handling == 2)
        slots = vars(server)["_fastsock_slots"]
        wait_until(lambda: slots.most == 2)
        slots.wake()
        wait_until(lambda: not select.select([slots], [], [], 0)[0])
    assert server.accepted == 2
    server.go_on.release(2)
    for client in clients[:2]:
        assert receive(client) == b"hello\n"
    close(clients)


def test_shutdown_with_a_full_house(server: Server) -> None:
    """shutdown() does not wait for a thread to become free; the backlog stays."""
    with serving(server, 60.0):
        clients = asking(server, 3)
        wait_until(lambda: server.handling == 2)
    assert server.accepted == 2
    with serving(server, 60.0):
        server.go_on.release()
        wait_until(lambda: server.accepted == 3)
        for _ in range(2):
            server.go_on.release()
        for client in clients:
            assert receive(client) == b"hello\n"
    close(clients)


def test_handle_request_waits(server: Server) -> None:
    """Where there is no loop, the call waits until a thread is free."""
    clients = asking(server, 3)
    server.handle_request()
    server.handle_request()
    third = Background(server.handle_request)
    wait_until(lambda: server.accepted == 3 and server.handling == 2)
    server.go_on.release()
    third.join()
    for _ in range(2):
        server.go_on.release()
    for client in clients:
        assert receive(client) == b"hello\n"
    close(clients)
    assert server.most == 2


def test_a_failed_start_gives_its_place_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.max_threads = 1
    server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
    failing: Callable[..., Any] = lambda *args, **kwargs: (_ for _ in ()).throw(RuntimeError("no"))  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", failing)  # reuse is off where it is patched
        clients = asking(server, 2)
        server.handle_request()
        server.handle_request()
    close(clients)
    clients = asking(server, 1)
    server.go_on.release()
    server.handle_request()
    assert receive(clients[0]) == b"hello\n"
    close(clients)


@pytest.mark.parametrize("limit", [0, -1, "8", None])
def test_what_is_no_limit(server: Server, limit: Any) -> None:
    """A program may have an attribute of that name, with a meaning of its own."""
    server.max_threads = limit
    clients = asking(server, 3)
    with serving(server, 60.0):
        wait_until(lambda: server.handling == 3)
        for _ in clients:
            server.go_on.release()
        for client in clients:
            assert receive(client) == b"hello\n"
    close(clients)
