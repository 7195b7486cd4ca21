"""Handlers whose loop's thread has ended with an exception: they can never go on."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, Background, connect, handling, new, receive, wait_until

from fastsock.multiplexing import Event, spawn, to_thread


class Once(Exception):
    pass


class Left:
    """A server, and a thread that serves it until fail()."""

    def __init__(self, fastsock_dir: str | None, handle: Any, **attributes: Any) -> None:
        module = module_of("multiplexing", fastsock_dir)
        self.failing = False

        def service_actions(_: Any) -> None:
            if self.failing:
                raise Once

        base = new("Server", module.ThreadingTCPServer, service_actions=service_actions)
        self.server = new("Server", base, **attributes)(("127.0.0.1", 0), handling(module, handle))
        self.serve()

    def serve(self) -> None:
        def serve() -> None:
            with contextlib.suppress(Once):
                self.server.serve_forever(0.002)

        self.failing = False
        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()

    def fail(self) -> None:
        self.failing = True
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive()

    def hub(self) -> Any:
        return vars(self.server)["_fastsock_tasks"].hub


@pytest.mark.parametrize("attributes", [{}, {"daemon_threads": True}, {"block_on_close": False}])
def test_server_close_closes_their_connections(
    fastsock_dir: str | None, time_limit: None, attributes: Any
) -> None:
    """Once each, by shutdown_request(); and gives back what the loop had."""
    begun = threading.Semaphore(0)
    closed = []

    def handle(self: Any) -> None:
        begun.release()
        self.rfile.readline()

    def shutdown_request(self: Any, request: Any) -> None:
        closed.append(request)
        super(type(self), self).shutdown_request(request)

    before = len(os.listdir("/proc/self/fd"))
    left = Left(fastsock_dir, handle, shutdown_request=shutdown_request, **attributes)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(left.server)) for _ in range(3)]
        for _ in clients:
            assert begun.acquire(timeout=TIMEOUT)
        left.fail()
        hub = left.hub()
        left.server.server_close()
        assert [receive(client) for client in clients] == [b""] * 3
        assert hub.closed
        left.server.server_close()
    assert len(closed) == len(set(closed)) == 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_of_several_threads(fastsock_dir: str | None, time_limit: None) -> None:
    """One after the other has served it and ended."""
    begun = threading.Semaphore(0)

    def handle(self: Any) -> None:
        begun.release()
        self.rfile.readline()

    left = Left(fastsock_dir, handle)
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(3):
            clients.append(stack.enter_context(connect(left.server)))
            assert begun.acquire(timeout=TIMEOUT)
            left.fail()
            left.serve()
        left.fail()
        left.server.server_close()
        assert [receive(client) for client in clients] == [b""] * 3


def test_of_several_servers_in_one_thread(fastsock_dir: str | None, time_limit: None) -> None:
    """The other's handlers keep what they have."""
    begun = threading.Semaphore(0)

    def handle(self: Any) -> None:
        begun.release()
        self.rfile.readline()

    module = module_of("multiplexing", fastsock_dir)
    angry = threading.Event()

    class Server(module.ThreadingTCPServer):  # type: ignore[misc]
        def service_actions(self) -> None:
            if angry.is_set():
                raise Once

    servers = [Server(("127.0.0.1", 0), handling(module, handle)) for _ in range(2)]

    def serve() -> None:
        with contextlib.suppress(Once):
            module.serve_forever(*servers, poll_interval=0.002)

    thread = threading.Thread(target=serve)
    thread.start()
    with connect(servers[0]) as first, connect(servers[1]) as second:
        for _ in servers:
            assert begun.acquire(timeout=TIMEOUT)
        angry.set()
        thread.join()
        servers[0].server_close()
        assert receive(first) == b""
        second.setblocking(False)
        with pytest.raises(BlockingIOError):
            second.recv(1)
        servers[1].server_close()
        second.settimeout(TIMEOUT)
        assert receive(second) == b""


def test_a_thread_that_is_still_there_may_go_on(fastsock_dir: str | None, time_limit: None) -> None:
    """So nothing is taken from its handlers."""
    go_on = threading.Event()
    failed = threading.Event()
    begun = threading.Event()

    def handle(self: Any) -> None:
        begun.set()
        self.wfile.write(self.rfile.readline())

    module = module_of("multiplexing", fastsock_dir)

    class Server(module.ThreadingTCPServer):  # type: ignore[misc]
        def service_actions(self) -> None:
            if begun.is_set() and not failed.is_set():
                raise Once

    def serve() -> None:
        try:
            server.serve_forever(0.002)
        except Once:
            failed.set()
        assert go_on.wait(TIMEOUT)
        server.server_close()

    server = Server(("127.0.0.1", 0), handling(module, handle))
    thread = Background(serve)
    with connect(server) as client:
        assert failed.wait(TIMEOUT)
        server.server_close()
        client.sendall(b"line\n")
        go_on.set()
        assert receive(client) == b"line\n"
    thread.result()


def test_who_joins_what_they_have_spawned(fastsock_dir: str | None, time_limit: None) -> None:
    spawned: list[Any] = []
    never: Any = Event()

    def handle(self: Any) -> None:
        to_thread(int)
        spawned.append(spawn(never.wait))
        self.rfile.readline()

    left = Left(fastsock_dir, handle)
    with connect(left.server) as client:
        wait_until(lambda: spawned)
        left.fail()
        joining = Background(spawned[0].join)
        left.server.server_close()
        assert receive(client) == b""
        assert joining.result() is True
    assert not spawned[0].is_alive()
    wait_until(lambda: not any("to_thread" in each.name for each in threading.enumerate()))


def test_what_shutdown_request_raises(
    fastsock_dir: str | None, time_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told of as in a handler's thread, and the others are closed."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: told.append(found.exc_type))
    begun = threading.Semaphore(0)

    def handle(self: Any) -> None:
        begun.release()
        self.rfile.readline()

    def shutdown_request(self: Any, request: Any) -> None:
        super(type(self), self).shutdown_request(request)
        raise LookupError

    left = Left(fastsock_dir, handle, shutdown_request=shutdown_request)
    with connect(left.server) as first, connect(left.server) as second:
        for _ in range(2):
            assert begun.acquire(timeout=TIMEOUT)
        left.fail()
        left.server.server_close()
        assert receive(first) == receive(second) == b""
    assert told == [LookupError, LookupError]
