"""Every hook of every server class: called in order, with its arguments, in its place."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import (
    POLL,
    WORKER_NAME,
    Background,
    Event,
    Kind,
    Trace,
    connect,
    ended,
    kinds,
    multiplexes,
    new,
    receive,
    recording,
    serving,
    upper,
)

Make = Callable[..., Any]

GET = ["get_request()", "verify_request(request, address)", "process_request(request, address)"]
WORK = [
    "finish_request(request, address)",
    "Handler(request, address, server)",
    "setup()",
    "handle()",
    "finish()",
]
END = ["shutdown_request(request)", "close_request(request)"]
GET_NAMES = ["get_request", "verify_request"]
PERIODIC = ("service_actions", "collect_children")


def calls(events: list[Event]) -> list[str]:
    return [event.call for event in events if event.name not in PERIODIC]


def check_places(
    kind: Kind, events: list[Event], serving_thread: str, multiplexed: bool = False
) -> None:
    """The order within each thread or process, and which one it is.

    A greenlet's are in the serving thread as well, and begin where the loop waits next.
    """
    here = [e for e in events if (e.pid, e.thread) == (os.getpid(), serving_thread)]
    if multiplexed:
        assert here == events
        begun = [event.name for event in events].index("process_request_thread")
        here = events[:begun]
    there = [e for e in events if e not in here]
    if kind.flavour == "":
        assert calls(here) == GET + WORK + END
        assert there == []
        return
    assert calls(there)[-len(WORK + END) :] == WORK + END
    assert len({(e.pid, e.thread) for e in there}) == 1
    if kind.flavour == "Threading":
        assert calls(here) == GET
        assert calls(there)[:-7] == ["process_request_thread(request, address)"]
        assert there[0].pid == os.getpid()
        assert multiplexed or WORKER_NAME.fullmatch(there[0].thread)
    else:
        assert calls(here) == [*GET, "close_request(request)"]
        assert calls(there)[:-7] == []
        assert there[0].pid != os.getpid()


def closes(kind: Kind) -> int:
    return 2 if kind.flavour == "Forking" else 1


def request(server: Any, kind: Kind, run: Callable[[], Any]) -> None:
    """A client that asks, makes the server run, and checks the answer."""
    with connect(server) as client:
        client.sendall(b"hello\n")
        run()
        assert receive(client) == b"HELLO\n"


@kinds()
def test_handle_request(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    handler = recording(upper(kind.handler(ss)), trace)
    server = make(recording(kind.server(ss), trace), handler)
    assert trace.names() == ["server_bind", "server_activate"]
    for _ in range(2):
        trace.clear()
        request(server, kind, server.handle_request)
        events = trace.wait("close_request", closes(kind))
        assert not {"service_actions", "handle_timeout", "handle_error"} & set(trace.names())
        check_places(kind, events, threading.current_thread().name, multiplexes(ss))


@kinds()
def test_serve_forever(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    handler = recording(upper(kind.handler(ss)), trace)
    server = make(recording(kind.server(ss), trace), handler)
    with serving(server) as thread:
        for _ in range(2):
            trace.clear()
            request(server, kind, lambda: None)
            events = trace.wait("close_request", closes(kind))
            assert not {"handle_timeout", "handle_error"} & set(trace.names())
            check_places(kind, events, thread.name, multiplexes(ss))


@kinds()
def test_server_close(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    server = make(recording(kind.server(ss), trace))
    trace.clear()
    with server:
        pass
    collect = ["collect_children(blocking=True)"] if kind.flavour == "Forking" else []
    assert [event.call for event in trace.events()] == ["server_close()", *collect]
    assert server.fileno() == -1


@kinds()
def test_rejected_request(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """verify_request() false: the request is ended and never processed."""

    class Rejecting(kind.server(ss)):
        def verify_request(self, request: Any, client_address: Any) -> bool:
            return False

    server = make(recording(Rejecting, trace), recording(upper(kind.handler(ss)), trace))
    trace.clear()
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        assert calls(trace.events()) == GET[:2] + END
        if kind.stream:
            # what the client sent was never read, so the close may arrive as a reset
            assert ended(client)


@kinds(transports=("TCP", "UDP"))
@pytest.mark.parametrize("answer", [0, "", None, (), 1, "yes", [0]], ids=repr)
def test_truth_of_verify_request(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace, answer: Any
) -> None:
    server = make(
        kind.server(ss),
        verify_request=lambda self, request, client_address: answer,
        process_request=lambda self, request, client_address: trace.log("process_request"),
    )
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
    assert trace.names() == (["process_request"] if answer else [])


@kinds()
def test_timeout(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    server = make(recording(kind.server(ss), trace))
    trace.clear()
    server.timeout = 0.01
    assert server.handle_request() is None
    collect = ["collect_children"] if kind.flavour == "Forking" else []
    assert trace.names() == ["handle_timeout", *collect]


@kinds(flavours=("", "Threading"))
def test_nothing_started(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """Once requests have been served: handle_request() with none, and with one that is rejected."""

    class Choosy(kind.server(ss)):
        timeout = 0.01
        accepts = True

        def verify_request(self, request: Any, client_address: Any) -> bool:
            return self.accepts

        def handle_timeout(self) -> None:
            trace.log("handle_timeout")

    server = make(recording(Choosy, trace), upper(kind.handler(ss)))
    for _ in range(2):
        server.accepts, server.timeout = True, None
        request(server, kind, server.handle_request)
        server.accepts, server.timeout = False, 0.01
        trace.clear()
        server.handle_request()
        assert "handle_timeout" in trace.names()
        with connect(server) as client:
            client.sendall(b"hello\n")
            server.handle_request()
            assert trace.names()[-4:] == [*GET_NAMES, "shutdown_request", "close_request"]


@kinds(flavours=("Threading",), transports=("TCP", "UnixStream"))
def test_handlers_go_on_in_handle_request(ss: ModuleType, kind: Kind, make: Make) -> None:
    """A program whose loop is its own: a handler that waits is not kept waiting by the loop."""

    def handle(self: Any) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())
            self.wfile.flush()

    server = make(kind.server(ss), new("Lines", ss.StreamRequestHandler, handle=handle))
    over: list[bool] = []

    def loop() -> None:
        while not over:
            server.handle_request()
        server.server_close()

    with connect(server) as client:
        thread = Background(loop)
        for line in (b"one\n", b"two\n", b"three\n"):
            client.sendall(line)
            assert client.recv(100) == line.upper()
    over.append(True)
    connect(server).close()
    thread.result()


@kinds(transports=("TCP", "UDP"))
def test_service_actions(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """In the serving thread, on every timeout; a forking server collects its children there."""
    server = make(recording(kind.server(ss), trace))
    trace.clear()
    with serving(server, POLL) as thread:
        events = trace.wait("service_actions", 3)
    assert {event.thread for event in events} == {thread.name}
    cycle = ["service_actions"] + (["collect_children"] if kind.flavour == "Forking" else [])
    names = [event.name for event in events]
    assert names == (cycle * len(names))[: len(names)]


@kinds(flavours=("", "Threading"))
def test_objects_are_handed_on(ss: ModuleType, kind: Kind, make: Make) -> None:
    """The very objects of get_request() reach the hooks and the handler."""
    seen: list[Any] = []
    done = threading.Event()

    class Server(kind.server(ss)):
        def get_request(self) -> Any:
            seen.append(super().get_request())
            return seen[0]

        def finish_request(self, request: Any, client_address: Any) -> None:
            seen.append((request, client_address))
            super().finish_request(request, client_address)

        def close_request(self, request: Any) -> None:
            super().close_request(request)
            done.set()

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            seen.append((self.request, self.client_address))
            assert self.server is server

    server = make(Server, Handler)
    with connect(server) as client:
        client.sendall(b"x")
        server.handle_request()
        assert done.wait(10)
        request, address = seen[0]
        assert len(seen) == 3
        assert all(item[0] is request and item[1] is address for item in seen)
        if kind.stream:
            assert address == client.getsockname()
        else:
            assert request[0] == b"x"
            assert request[1] is server.socket
            assert address == client.getsockname()


@kinds(flavours=("",), transports=("TCP", "UnixStream"))
def test_request_is_a_socket(ss: ModuleType, kind: Kind, make: Make) -> None:
    """request: a blocking socket.socket of the listener's family that is not inherited."""
    import socket

    seen = []

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            request = self.request
            seen.append(
                (
                    isinstance(request, socket.socket),
                    request.family,
                    request.type,
                    request.getpeername() == self.client_address,
                    request.getsockname(),
                    request.gettimeout(),
                    os.get_blocking(request.fileno()),
                    request.get_inheritable(),
                )
            )

    server = make(kind.server(ss), Handler)
    with connect(server):
        server.handle_request()
    family, address = server.address_family, server.server_address
    assert seen == [(True, family, socket.SOCK_STREAM, True, address, None, True, False)]


@kinds(flavours=("",))
def test_handle_request_in_any_thread(ss: ModuleType, kind: Kind, make: Make) -> None:
    names = []

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            names.append(threading.current_thread().name)

    server = make(kind.server(ss), Handler)
    with connect(server) as client:
        if not kind.stream:
            client.sendall(b"x")
        assert (thread := Background(server.handle_request)).result() is None
    assert names == [thread.name]
