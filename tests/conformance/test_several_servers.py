"""One thread that serves several servers: fastsock.serve_forever()."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Background,
    Trace,
    ask,
    connect,
    receive,
    upper,
    wait_until,
)

Make = Callable[..., Any]
SOON = 5
pytestmark = pytest.mark.fastsock_only(reason="an addition of fastsock")
KINDS = ("TCPServer", "UnixStreamServer", "UDPServer", "ThreadingTCPServer", "ForkingTCPServer")


def make_servers(ss: ModuleType, make: Make, *names: str, **attributes: Any) -> list[Any]:
    servers = []
    for name in names:
        base = getattr(ss, name)
        stream = not issubclass(base, ss.UDPServer)
        handler = ss.StreamRequestHandler if stream else ss.DatagramRequestHandler
        servers.append(make(base, upper(handler), **attributes))
    return servers


@pytest.mark.parametrize("poll_interval", [0.01, 60, None])
def test_several_servers(ss: ModuleType, make: Make, poll_interval: float | None) -> None:
    """Each is stopped by its own shutdown(); the call ends when all have stopped."""
    servers = make_servers(ss, make, *KINDS)
    thread = Background(ss.serve_forever, *servers, poll_interval=poll_interval)
    for _ in range(2):
        for server in servers:
            assert ask(server) == b"HELLO\n"
    while servers:
        begun = time.monotonic()
        stopped = servers.pop(1 if len(servers) > 1 else 0)
        stopped.shutdown()
        assert time.monotonic() - begun < SOON
        assert stopped._BaseServer__is_shut_down.is_set()
        for server in servers:
            assert thread.is_alive()
            assert ask(server) == b"HELLO\n"
    assert thread.result() is None


def test_backlog_of_a_stopped_server(ss: ModuleType, make: Make) -> None:
    """A server that was stopped accepts nothing, although others of its thread go on."""
    first, second = make_servers(ss, make, "TCPServer", "TCPServer")
    thread = Background(ss.serve_forever, first, second)
    assert ask(first) == b"HELLO\n"
    first.shutdown()
    with connect(first) as client:
        client.sendall(b"hello\n")
        for _ in range(3):
            assert ask(second) == b"HELLO\n"
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(10)
        client.settimeout(TIMEOUT)
        second.shutdown()
        thread.result()
        thread = Background(ss.serve_forever, first)
        assert receive(client) == b"HELLO\n"
        first.shutdown()
        thread.result()


def test_service_actions(ss: ModuleType, make: Make, trace: Trace) -> None:
    """Of every server, with every interval."""
    servers = make_servers(ss, make, "TCPServer", "UDPServer")
    for server in servers:
        server.service_actions = lambda server=server: trace.log(type(server).__name__)
    thread = Background(ss.serve_forever, *servers, poll_interval=0.01)
    for server in servers:
        trace.wait(type(server).__name__, 3)
    for server in servers:
        server.shutdown()
    thread.result()


def test_hooks(ss: ModuleType, make: Make) -> None:
    """In the calling thread, looked up on each server."""
    servers = make_servers(ss, make, "TCPServer", "TCPServer")
    seen: list[Any] = []

    def verify_request(request: Any, client_address: Any) -> bool:
        seen.append(threading.current_thread())
        return True

    servers[1].verify_request = verify_request
    thread = Background(ss.serve_forever, *servers)
    assert [ask(server) for server in servers] == [b"HELLO\n"] * 2
    assert seen == [thread]
    for server in servers:
        server.shutdown()
    thread.result()


def test_exception_ends_all(ss: ModuleType, make: Make) -> None:
    """One that serve_forever() would raise is raised, and no shutdown() waits in vain."""
    servers = make_servers(ss, make, "TCPServer", "TCPServer")

    def fail(request: Any, client_address: Any) -> bool:
        raise SystemExit(3)

    servers[0].verify_request = fail
    thread = Background(ss.serve_forever, *servers)
    assert ask(servers[1]) == b"HELLO\n"
    with connect(servers[0]) as client:
        with pytest.raises(SystemExit):
            thread.result()
        assert receive(client) == b""
    for server in servers:
        assert server._BaseServer__is_shut_down.is_set()
        Background(server.shutdown).result()


def test_shutdown_before(ss: ModuleType, make: Make) -> None:
    """Of one: the others are served. Of all: it returns at once."""
    first, second = make_servers(ss, make, "TCPServer", "TCPServer")
    first.shutdown()
    thread = Background(ss.serve_forever, first, second)
    assert ask(second) == b"HELLO\n"
    assert first._BaseServer__is_shut_down.is_set()
    second.shutdown()
    thread.result()
    for server in (first, second):
        server.shutdown()
    Background(ss.serve_forever, first, second, poll_interval=60).result()


def test_shutdown_from_a_handler(ss: ModuleType, make: Make) -> None:
    """Of its own server and of another one in the same thread: no deadlock."""
    first, second = make_servers(ss, make, "TCPServer", "TCPServer")

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            first.shutdown()
            second.shutdown()
            self.wfile.write(b"done")

    first.RequestHandlerClass = Handler
    thread = Background(ss.serve_forever, first, second, poll_interval=60)
    assert ask(second) == b"HELLO\n"
    assert ask(first, b"") == b"done"
    thread.result()


def test_one_and_none(ss: ModuleType, make: Make) -> None:
    (server,) = make_servers(ss, make, "TCPServer")
    thread = Background(ss.serve_forever, server)
    assert ask(server) == b"HELLO\n"
    server.shutdown()
    thread.result()
    assert Background(ss.serve_forever).result() is None


def test_served_alone_afterwards(ss: ModuleType, make: Make) -> None:
    """The servers are ordinary ones before and after."""
    servers = make_servers(ss, make, "TCPServer", "UDPServer")
    for _ in range(2):
        thread = Background(ss.serve_forever, *servers)
        assert [ask(server) for server in servers] == [b"HELLO\n"] * 2
        for server in servers:
            server.shutdown()
        thread.result()
        alone = [Background(server.serve_forever) for server in servers]
        assert [ask(server) for server in servers] == [b"HELLO\n"] * 2
        for server, each in zip(servers, alone, strict=True):
            server.shutdown()
            each.result()


def test_closed_while_stopped(ss: ModuleType, make: Make) -> None:
    """shutdown() and server_close() of one do not disturb the others."""
    first, second = make_servers(ss, make, "TCPServer", "TCPServer")
    thread = Background(ss.serve_forever, first, second)
    assert ask(first) == b"HELLO\n"
    first.shutdown()
    first.server_close()
    for _ in range(3):
        assert ask(second) == b"HELLO\n"
    second.shutdown()
    thread.result()
    wait_until(lambda: not thread.is_alive())
