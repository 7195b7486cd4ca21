"""The loop: poll_interval, service_actions, and the private names with which it is stopped."""

from __future__ import annotations

import ctypes
import os
import selectors
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
    ended,
    kinds,
    new,
    receive,
    serving,
    serving_seldom,
    upper,
    wait_until,
)

Make = Callable[..., Any]
sync = kinds(flavours=("",), transports=("TCP", "UDP"))


def counting(ss: ModuleType, make: Make, trace: Trace, base: Any = None, **attributes: Any) -> Any:
    """A server that traces service_actions() and answers."""
    base = base or ss.TCPServer
    stream = not issubclass(base, ss.UDPServer)
    handler = ss.StreamRequestHandler if stream else ss.DatagramRequestHandler
    attributes.setdefault("service_actions", lambda self: trace.log("service_actions"))
    return make(base, upper(handler), **attributes)


# --- poll_interval and service_actions


@pytest.mark.parametrize("poll_interval", [0, 0.0, 0.001, 0.05, -1])
@sync
def test_short_poll_interval(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace, poll_interval: float
) -> None:
    """On an idle server service_actions() is called once in every interval."""
    server = counting(ss, make, trace, kind.server(ss))
    begun = time.monotonic()
    with serving(server, poll_interval):
        trace.wait("service_actions", 3)
        elapsed = time.monotonic() - begun
    assert 3 * poll_interval <= elapsed < 3 * max(poll_interval, 0) + 1


def test_a_request_puts_service_actions_off(ss: ModuleType, make: Make) -> None:
    """The interval begins anew with each request: nothing is called before it is over."""
    times: list[float] = []
    server = make(
        ss.TCPServer,
        upper(ss.StreamRequestHandler),
        service_actions=lambda self: times.append(time.monotonic()),
    )
    interval = 0.4
    with serving(server, interval):
        wait_until(lambda: times)
        wait_until(lambda: time.monotonic() > times[0] + interval / 2)
        ask(server)
        wait_until(lambda: len(times) >= 3)
    assert times[2] - times[1] > interval - 0.01


def test_long_poll_intervals(ss: ModuleType, make: Make, trace: Trace) -> None:
    """None: never. Otherwise not before its time. The default is half a second."""
    begun = time.monotonic()
    never, long, default = (
        make(
            ss.TCPServer, service_actions=lambda self, name=name: trace.log(name, time.monotonic())
        )
        for name in ("never", "long", "default")
    )
    with serving_seldom(never, None), serving_seldom(long, 60):
        thread = Background(default.serve_forever)
        trace.wait("default")
        elapsed = float(trace.events()[0].args[0]) - begun
        time.sleep(0.1)
        assert set(trace.names()) == {"default"}
    default._BaseServer__shutdown_request = True
    with connect(default):
        thread.result()
    assert 0.45 < elapsed < 2


@pytest.mark.parametrize("how", ["by position", "by name"])
def test_poll_interval_argument(ss: ModuleType, make: Make, trace: Trace, how: str) -> None:
    server = counting(ss, make, trace)
    arguments = ((0.001,), {}) if how == "by position" else ((), {"poll_interval": 0.001})
    thread = Background(server.serve_forever, *arguments[0], **arguments[1])
    trace.wait("service_actions", 3)
    server.shutdown()
    assert thread.result() is None


@sync
def test_service_actions_once_per_request(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace
) -> None:
    """After each one, although several wait already."""
    server = counting(
        ss,
        make,
        trace,
        kind.server(ss),
        finish_request=lambda self, request, address: trace.log("finish_request"),
        verify_request=lambda self, request, address: bool(len(trace.names()) != 2),
    )
    clients = [connect(server) for _ in range(4)]
    for client in clients:
        client.send(b"x")
    with serving_seldom(server):
        trace.wait("service_actions", 4)
        for client in clients:
            if kind.stream:
                assert ended(client)
            client.close()
    assert trace.names() == [
        "finish_request",
        "service_actions",
        "service_actions",  # after a request that was rejected, too
        "finish_request",
        "service_actions",
        "finish_request",
        "service_actions",
    ]


@pytest.mark.parametrize("where", ["instance", "class", "library"])
def test_service_actions_patched_in_later(
    ss: ModuleType,
    make: Make,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """On a server that is idle, at the latest with the next interval."""
    server = make(new("Server", ss.TCPServer), upper(ss.StreamRequestHandler))
    with serving(server, 0.02):
        assert ask(server) == b"HELLO\n"
        owner = {"instance": server, "class": type(server), "library": ss.BaseServer}[where]
        monkeypatch.setattr(owner, "service_actions", lambda *args: trace.log("patched"))
        trace.wait("patched", 2)
        monkeypatch.undo()
        assert ask(server) == b"HELLO\n"


def test_bad_poll_interval(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    with pytest.raises(TypeError):
        server.serve_forever("soon")
    with serving(server):
        assert ask(server) == b"HELLO\n"


# --- the private names


@sync
@pytest.mark.parametrize("poll_interval", [0.01, 60])
def test_flag_set_in_handler(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace, poll_interval: float
) -> None:
    """The request is finished, service_actions() called once more, and that is all."""
    server = counting(ss, make, trace, kind.server(ss))

    def handle(self: Any) -> None:
        trace.clear()
        self.server._BaseServer__shutdown_request = True
        self.wfile.write(b"last")

    server.RequestHandlerClass = new("Handler", kind.handler(ss), handle=handle)
    thread = Background(server.serve_forever, poll_interval)
    with connect(server) as first, connect(server) as second:
        first.send(b"x")
        assert receive(first) == b"last"
        thread.result()
        second.send(b"x")
    assert trace.names() == ["service_actions"]
    assert server._BaseServer__shutdown_request is False


def test_flag_set_in_another_thread(ss: ModuleType, make: Make, trace: Trace) -> None:
    server = counting(ss, make, trace)
    thread = Background(server.serve_forever, 0.02)
    trace.wait("service_actions")
    assert server._BaseServer__shutdown_request is False
    assert not server._BaseServer__is_shut_down.is_set()
    server._BaseServer__shutdown_request = True
    thread.result()
    assert server._BaseServer__is_shut_down.is_set()
    assert server._BaseServer__shutdown_request is False


def test_flag_set_in_service_actions(ss: ModuleType, make: Make) -> None:
    def stop(self: Any) -> None:
        self._BaseServer__shutdown_request = True

    server = make(ss.TCPServer, service_actions=stop)
    server.serve_forever(0)
    server.serve_forever(0.01)


def test_flag_set_while_the_loop_waits(ss: ModuleType, make: Make) -> None:
    """A request that wakes the loop afterwards is not accepted; the next loop gets it."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    thread = Background(server.serve_forever, 60)
    assert ask(server) == b"HELLO\n"
    time.sleep(0.05)  # it is waiting by now; were it not, the test would pass for less
    server._BaseServer__shutdown_request = True
    with connect(server) as client:
        client.sendall(b"later\n")
        thread.result()
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(10)
        client.settimeout(TIMEOUT)
        with serving(server):
            assert receive(client) == b"LATER\n"


def test_flag_set_before(ss: ModuleType, make: Make, trace: Trace) -> None:
    """It ends the next loop before that has done anything, once."""
    server = counting(ss, make, trace)
    server._BaseServer__shutdown_request = True
    server.serve_forever(60)
    assert trace.names() == []
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_subclass_that_reads_the_flag(ss: ModuleType, make: Make) -> None:
    """_BaseServer__is_shut_down is an Event: programs wait on it."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    thread = Background(server.serve_forever, 0.02)
    assert ask(server) == b"HELLO\n"
    assert not server._BaseServer__is_shut_down.wait(0.01)
    server._BaseServer__shutdown_request = True
    assert server._BaseServer__is_shut_down.wait(TIMEOUT)
    thread.result()


@sync
def test_own_loop(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """A subclass whose serve_forever() is a copy of the standard library's."""

    class Server(kind.server(ss)):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            self._BaseServer__is_shut_down.clear()
            try:
                with ss._ServerSelector() as selector:
                    selector.register(self, selectors.EVENT_READ)
                    while not self._BaseServer__shutdown_request:
                        ready = selector.select(poll_interval)
                        if self._BaseServer__shutdown_request:
                            break
                        if ready:
                            trace.log("ready")
                            self._handle_request_noblock()
                        self.service_actions()
            finally:
                self._BaseServer__shutdown_request = False
                self._BaseServer__is_shut_down.set()

    server = make(Server, upper(kind.handler(ss)))
    for _ in range(2):
        with serving(server):
            assert ask(server) == b"HELLO\n"
    assert trace.names() == ["ready"] * 2


def test_own_loop_on_handle_request(ss: ModuleType, make: Make) -> None:
    """serve_forever() overridden with the oldest loop there is."""

    class Server(ss.TCPServer):
        stopped = False

        def serve_forever(self, poll_interval: float = 0.5) -> None:
            self.timeout = poll_interval
            while not self.stopped:
                self.handle_request()

        def shutdown(self) -> None:
            self.stopped = True

    server = make(Server, upper(ss.StreamRequestHandler))
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_super_serve_forever(ss: ModuleType, make: Make, trace: Trace) -> None:
    class Server(ss.ThreadingTCPServer):
        def serve_forever(self, poll_interval: float = 0.5) -> None:
            trace.log("begin")
            super().serve_forever(poll_interval)
            trace.log("end")

    server = make(Server, upper(ss.StreamRequestHandler))
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert trace.names() == ["begin", "end"]


# --- exceptions from outside


def test_asynchronous_exception(ss: ModuleType, make: Make, trace: Trace) -> None:
    """PyThreadState_SetAsyncExc into the serving thread ends the loop of an idle server."""

    class Stop(BaseException):
        pass

    server = counting(ss, make, trace)
    thread = Background(server.serve_forever, 0.02)
    trace.wait("service_actions")
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop)) == 1
    with pytest.raises(Stop):
        thread.result()
    assert server._BaseServer__is_shut_down.is_set()
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_asynchronous_exception_without_hooks(ss: ModuleType, make: Make) -> None:
    """The same with nothing overridden: the core alone must notice it."""

    class Stop(BaseException):
        pass

    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    thread = Background(server.serve_forever, 0.02)
    assert ask(server) == b"HELLO\n"
    raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert raise_in(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Stop)) == 1
    with pytest.raises(Stop):
        thread.result()


def test_other_threads_run_meanwhile(ss: ModuleType, make: Make) -> None:
    """Waiting for requests does not hold the GIL."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    count = 0
    done = threading.Event()

    def work() -> None:
        nonlocal count
        while not done.is_set():
            count += 1

    with serving_seldom(server):
        thread = Background(work)
        wait_until(lambda: count > 1000)
        done.set()
        thread.result()


def test_idle_loop_uses_no_processor(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    with serving_seldom(server):
        assert ask(server) == b"HELLO\n"
        before = os.times()
        time.sleep(0.3)
        after = os.times()
    assert after.user + after.system - before.user - before.system < 0.15


def test_many_requests(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    with serving_seldom(server):
        for number in range(200):
            assert ask(server, b"number %d\n" % number) == b"NUMBER %d\n" % number
