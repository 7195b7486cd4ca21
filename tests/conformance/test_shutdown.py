"""shutdown(): from everywhere, at any time, and what becomes of the requests."""

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
    Kind,
    Trace,
    ask,
    connect,
    kinds,
    new,
    receive,
    serving,
    serving_seldom,
    upper,
)

Make = Callable[..., Any]
LONG = 60  # a poll_interval that is not waited for
SOON = 5  # seconds: generous, and much shorter than LONG
no_deadlock = pytest.mark.fastsock_only(reason="shutdown() would deadlock")
prompt = pytest.mark.fastsock_only(reason="shutdown() would wait for the poll_interval")
sync = kinds(flavours=("",), transports=("TCP", "UDP"))


@kinds()
def test_shutdown(ss: ModuleType, kind: Kind, make: Make) -> None:
    """It returns when the loop has ended; the server can be served again."""
    server = make(kind.server(ss), upper(kind.handler(ss)))
    for _ in range(3):
        thread = Background(server.serve_forever, 0.01)
        assert ask(server) == b"HELLO\n"
        assert not server._BaseServer__is_shut_down.is_set()
        assert server.shutdown() is None
        assert server._BaseServer__is_shut_down.is_set()
        thread.result()


def test_shutdown_waits_for_the_request(ss: ModuleType, make: Make, trace: Trace) -> None:
    """In a server without threads the request being handled is finished first."""
    go_on = threading.Event()

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            trace.log("begin")
            assert go_on.wait(TIMEOUT)
            time.sleep(0.02)
            trace.log("end")

    server = make(ss.TCPServer, Handler)
    thread = Background(server.serve_forever, 0.01)
    with connect(server) as client:
        trace.wait("begin")
        caller = Background(server.shutdown)
        caller.join(0.03)
        assert caller.is_alive()
        go_on.set()
        caller.result()
        trace.log("returned")
        assert receive(client) == b""
    thread.result()
    assert trace.names() == ["begin", "end", "returned"]


def test_shutdown_from_several_threads(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    thread = Background(server.serve_forever, 0.05)
    assert ask(server) == b"HELLO\n"
    callers = [Background(server.shutdown) for _ in range(5)]
    for caller in callers:
        caller.result()
    thread.result()


def test_shutdown_when_the_loop_has_ended(ss: ModuleType, make: Make, trace: Trace) -> None:
    """It returns at once, and is remembered for the next loop, once."""
    server = make(
        ss.TCPServer,
        upper(ss.StreamRequestHandler),
        service_actions=lambda self: trace.log("service_actions"),
    )
    with serving(server):
        assert ask(server) == b"HELLO\n"
    server.shutdown()
    server.shutdown()
    assert server._BaseServer__shutdown_request is True
    trace.clear()
    server.serve_forever(LONG)
    assert trace.names() == []
    assert server._BaseServer__shutdown_request is False
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_shutdown_after_the_loop_failed(ss: ModuleType, make: Make) -> None:
    """serve_forever() left by an exception counts as ended."""

    class Server(ss.TCPServer):
        def service_actions(self) -> None:
            raise KeyError

    server = make(Server)
    with pytest.raises(KeyError):
        server.serve_forever(0)
    server.shutdown()


@sync
def test_backlog_is_kept(ss: ModuleType, kind: Kind, make: Make) -> None:
    """What was not accepted before shutdown() is served by the next loop."""
    served = []

    class Handler(kind.handler(ss)):
        def handle(self) -> None:
            self.wfile.write(self.rfile.readline().upper())
            served.append(1)
            self.server._BaseServer__shutdown_request = True

    server = make(kind.server(ss), Handler)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        client.sendall(b"hello\n")
    for count, client in enumerate(clients, 1):
        server.serve_forever(LONG)
        assert len(served) == count
        assert receive(client) == b"HELLO\n"
        client.close()


def test_backlog_is_for_a_sibling(ss: ModuleType, make: Make) -> None:
    """Two servers on one listener: what the one leaves, the other one gets."""
    first = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    first.socket.setblocking(False)  # both wake up for one connection: accept() must not wait
    second = ss.TCPServer(first.server_address, upper(ss.StreamRequestHandler), False)
    second.socket.close()
    second.socket = first.socket.dup()
    with second:
        with serving(first):
            assert ask(first) == b"HELLO\n"
        with connect(first) as client:
            client.sendall(b"hello\n")
            with serving(second):
                assert receive(client) == b"HELLO\n"
        with serving(first), serving(second):
            for _ in range(20):
                assert ask(first) == b"HELLO\n"


def test_slow_handler_does_not_hold_accepted_connections(ss: ModuleType, make: Make) -> None:
    """While one request is handled the next one is for whoever accepts it."""
    go_on = threading.Event()
    begun = threading.Event()

    class Slow(ss.StreamRequestHandler):
        def handle(self) -> None:
            begun.set()
            assert go_on.wait(TIMEOUT)

    slow = make(ss.TCPServer, Slow)
    quick = ss.TCPServer(slow.server_address, upper(ss.StreamRequestHandler), False)
    quick.socket.close()
    quick.socket = slow.socket.dup()
    with quick, connect(slow), connect(slow) as client:
        client.sendall(b"hello\n")
        with serving(slow):
            assert begun.wait(TIMEOUT)
            with serving(quick):
                assert receive(client) == b"HELLO\n"
            go_on.set()


def test_shutdown_then_close(ss: ModuleType, make: Make) -> None:
    """The usual end of a test server, many times over."""
    for _ in range(10):
        server = make(ss.ThreadingTCPServer, upper(ss.StreamRequestHandler))
        thread = Background(server.serve_forever, 0.005)
        assert ask(server) == b"HELLO\n"
        server.shutdown()
        server.server_close()
        thread.result()


def test_shutdown_overridden(ss: ModuleType, make: Make, trace: Trace) -> None:
    class Server(ss.TCPServer):
        def shutdown(self) -> None:
            trace.log("shutdown")
            super().shutdown()

    server = make(Server, upper(ss.StreamRequestHandler))
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert trace.names() == ["shutdown"]


@kinds(flavours=("Threading", "Forking"), transports=("TCP",))
def test_shutdown_from_a_handler_elsewhere(ss: ModuleType, kind: Kind, make: Make) -> None:
    """A handler in a thread of its own may call it; in a child it is the child's own affair."""

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            if kind.flavour == "Threading":
                self.server.shutdown()
            else:
                self.server._BaseServer__shutdown_request = True
            self.wfile.write(b"done")

    server = make(kind.server(ss), Handler)
    thread = Background(server.serve_forever, 0.01)
    assert ask(server, b"") == b"done"
    if kind.flavour == "Forking":
        assert ask(server, b"") == b"done"
        server.shutdown()
    thread.result()


# --- where the standard library waits, or waits for ever


@no_deadlock
@pytest.mark.parametrize("poll_interval", [0.01, LONG, None])
@sync
def test_shutdown_from_a_handler(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace, poll_interval: float | None
) -> None:
    """In the serving thread it cannot wait: the loop ends after this request."""

    def handle(self: Any) -> None:
        self.server.shutdown()
        self.server.shutdown()
        trace.log("returned")
        self.wfile.write(b"done")

    server = make(kind.server(ss), new("Handler", kind.handler(ss), handle=handle))
    thread = Background(server.serve_forever, poll_interval)
    assert ask(server, b"x") == b"done"
    thread.result()
    assert trace.names() == ["returned"]
    server.RequestHandlerClass = upper(kind.handler(ss))
    with serving(server):
        assert ask(server) == b"HELLO\n"


@no_deadlock
@pytest.mark.parametrize(
    "hook", ["service_actions", "verify_request", "process_request", "shutdown_request"]
)
def test_shutdown_from_a_hook(ss: ModuleType, make: Make, hook: str) -> None:
    base = ss.TCPServer

    def overridden(self: Any, *args: Any) -> Any:
        self.shutdown()
        return getattr(base, hook)(self, *args)

    server = make(new("Server", base, **{hook: overridden}), upper(ss.StreamRequestHandler))
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.serve_forever(0.01)
        assert receive(client) == b"HELLO\n"


@no_deadlock
def test_shutdown_before_serve_forever(ss: ModuleType, make: Make, trace: Trace) -> None:
    """It returns, and ends the next loop before that touches the socket."""
    server = make(
        ss.TCPServer,
        upper(ss.StreamRequestHandler),
        service_actions=lambda self: trace.log("service_actions"),
    )
    server.shutdown()
    server.shutdown()
    server.serve_forever(LONG)
    assert trace.names() == []
    with serving(server):
        assert ask(server) == b"HELLO\n"


@no_deadlock
@kinds(transports=("TCP", "UDP"))
def test_close_before_serve_forever(ss: ModuleType, kind: Kind, make: Make) -> None:
    """shutdown() and server_close() before the serving thread got going: it ends quietly."""
    server = make(kind.server(ss))
    server.shutdown()
    server.server_close()
    assert server.serve_forever(LONG) is None
    with pytest.raises(ValueError):
        server.serve_forever(LONG)


@no_deadlock
def test_shutdown_without_a_loop_ever(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer)
    Background(server.shutdown).result()
    server.server_close()
    Background(server.shutdown).result()


@prompt
@pytest.mark.parametrize("poll_interval", [LONG, None])
@kinds()
def test_shutdown_is_prompt(
    ss: ModuleType, kind: Kind, make: Make, poll_interval: float | None
) -> None:
    server = make(kind.server(ss), upper(kind.handler(ss)))
    for _ in range(2):
        thread = Background(server.serve_forever, poll_interval)
        assert ask(server) == b"HELLO\n"
        begun = time.monotonic()
        server.shutdown()
        thread.result()
        assert time.monotonic() - begun < SOON


@prompt
def test_flag_is_prompt(ss: ModuleType, make: Make) -> None:
    """Whoever sets the private flag wakes the loop, too."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    thread = Background(server.serve_forever, None)
    assert ask(server) == b"HELLO\n"
    server._BaseServer__shutdown_request = True
    thread.result(SOON)


def test_flag_reset(ss: ModuleType, make: Make, trace: Trace) -> None:
    """Set and taken back before the loop looks: it never was."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    server._BaseServer__shutdown_request = True
    server._BaseServer__shutdown_request = False
    with serving(server):
        assert ask(server) == b"HELLO\n"


@prompt
def test_waking_is_not_an_event(ss: ModuleType, make: Make, trace: Trace) -> None:
    """A loop that was woken only to stop calls no hook."""
    server = make(
        ss.TCPServer,
        upper(ss.StreamRequestHandler),
        service_actions=lambda self: trace.log("service_actions"),
    )
    thread = Background(server.serve_forever, LONG)
    assert ask(server) == b"HELLO\n"
    trace.wait("service_actions")
    server.shutdown()
    thread.result()
    assert trace.names() == ["service_actions"]


def test_serving_seldom_ends(ss: ModuleType, make: Make) -> None:
    """Without a wake-up of its own a client ends the wait."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    with serving_seldom(server):
        assert ask(server) == b"HELLO\n"
