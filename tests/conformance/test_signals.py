"""Signals while a server runs in the main thread."""

from __future__ import annotations

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import TIMEOUT, Background, Kind, Trace, ask, kinds, serving, upper, wait_until

Make = Callable[..., Any]
LONG = 60  # a poll_interval that is not waited for
SOON = 5  # seconds: generous, and much shorter than LONG
sync = kinds(flavours=("",), transports=("TCP", "UDP"))


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and a test may install what it likes."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGUSR1)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def kill_main(number: int) -> None:
    """A real signal that interrupts the main thread's system call."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


INTERRUPTS = {
    "interrupt_main": lambda number: _thread.interrupt_main(number),
    "raise_signal": signal.raise_signal,
    "pthread_kill": kill_main,
    "kill": lambda number: os.kill(os.getpid(), number),
}
each_interrupt = pytest.mark.parametrize("interrupt", INTERRUPTS)


def once_served(server: Any, function: Callable[..., Any], *args: Any) -> Background:
    """Call function in another thread when the main thread is in serve_forever()."""

    def run() -> None:
        assert ask(server) == b"HELLO\n"
        time.sleep(0.02)  # let it become idle: the harder case
        function(*args)

    return Background(run)


@sync
@each_interrupt
def test_keyboard_interrupt(ss: ModuleType, kind: Kind, make: Make, interrupt: str) -> None:
    """At the latest at the end of a poll_interval, however the signal came."""
    server = make(kind.server(ss), upper(kind.handler(ss)))
    thread = once_served(server, INTERRUPTS[interrupt], signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        server.serve_forever(0.02)
    thread.result()
    assert server._BaseServer__is_shut_down.is_set()
    with serving(server):
        assert ask(server) == b"HELLO\n"


@sync
@pytest.mark.parametrize("poll_interval", [LONG, None])
def test_keyboard_interrupt_at_once(
    ss: ModuleType, kind: Kind, make: Make, poll_interval: float | None
) -> None:
    """A real signal does not wait for the interval."""
    server = make(kind.server(ss), upper(kind.handler(ss)))
    thread = once_served(server, kill_main, signal.SIGINT)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        server.serve_forever(poll_interval)
    assert time.monotonic() - begun < SOON
    thread.result()


@each_interrupt
def test_keyboard_interrupt_of_handle_request(ss: ModuleType, make: Make, interrupt: str) -> None:
    server = make(ss.TCPServer)
    server.timeout = 0.2 if interrupt in ("interrupt_main", "raise_signal") else LONG
    thread = Background(lambda: time.sleep(0.02) or INTERRUPTS[interrupt](signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        server.handle_request()
        time.sleep(1)  # where the signal came just before the end
    thread.result()


@each_interrupt
def test_python_handler(ss: ModuleType, make: Make, trace: Trace, interrupt: str) -> None:
    """It runs in the main thread while the server goes on, and the wait is taken up again."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    signal.signal(signal.SIGUSR1, lambda number, frame: trace.log("signal"))

    def play() -> None:
        for count in (1, 2):
            INTERRUPTS[interrupt](signal.SIGUSR1)
            trace.wait("signal", count)
        assert ask(server) == b"HELLO\n"
        server._BaseServer__shutdown_request = True

    thread = once_served(server, play)
    server.serve_forever(0.02)
    thread.result()
    assert {event.thread for event in trace.events()} == {threading.current_thread().name}


def test_handle_request_waits_on_after_a_signal(ss: ModuleType, make: Make, trace: Trace) -> None:
    """Its timeout counts from the beginning."""
    server = make(ss.TCPServer, handle_timeout=lambda self: trace.log("timeout"))
    server.timeout = 0.2
    signal.signal(signal.SIGUSR1, lambda number, frame: trace.log("signal"))

    def play() -> None:
        for _ in range(2):
            time.sleep(0.03)
            kill_main(signal.SIGUSR1)

    thread = Background(play)
    begun = time.monotonic()
    server.handle_request()
    assert 0.2 <= time.monotonic() - begun < 0.2 + SOON
    thread.result()
    assert sorted(trace.names()) == ["signal", "signal", "timeout"]


def test_python_handler_sets_the_flag(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))

    def stop(number: int, frame: Any) -> None:
        server._BaseServer__shutdown_request = True

    signal.signal(signal.SIGUSR1, stop)
    thread = once_served(server, kill_main, signal.SIGUSR1)
    server.serve_forever(0.02)
    thread.result()


@pytest.mark.fastsock_only(reason="the flag's setter wakes the loop")
@pytest.mark.parametrize("poll_interval", [LONG, None])
def test_python_handler_sets_the_flag_at_once(
    ss: ModuleType, make: Make, poll_interval: float | None
) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))

    def stop(number: int, frame: Any) -> None:
        server._BaseServer__shutdown_request = True

    signal.signal(signal.SIGUSR1, stop)
    thread = once_served(server, kill_main, signal.SIGUSR1)
    begun = time.monotonic()
    server.serve_forever(poll_interval)
    assert time.monotonic() - begun < SOON
    thread.result()


@pytest.mark.fastsock_only(reason="shutdown() in a signal handler would deadlock")
@each_interrupt
def test_python_handler_calls_shutdown(ss: ModuleType, make: Make, interrupt: str) -> None:
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    signal.signal(signal.SIGUSR1, lambda number, frame: server.shutdown())
    thread = once_served(server, INTERRUPTS[interrupt], signal.SIGUSR1)
    server.serve_forever(0.02)
    thread.result()
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_python_handler_that_raises(ss: ModuleType, make: Make) -> None:
    """Its exception comes out of serve_forever(), between requests as well as within one."""

    class Stop(Exception):
        pass

    def stop(number: int, frame: Any) -> None:
        raise Stop

    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    signal.signal(signal.SIGUSR1, stop)
    thread = once_served(server, kill_main, signal.SIGUSR1)
    with pytest.raises(Stop):
        server.serve_forever(LONG)
    thread.result()


def test_signal_in_a_handler_that_reads(ss: ModuleType, make: Make, trace: Trace) -> None:
    """A request handler that waits for its client: the read goes on after the signal."""
    import socket

    def handle(self: Any) -> None:
        trace.log("handle")
        trace.log("read", self.rfile.readline())

    handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
    server = make(ss.TCPServer, handler)
    signal.signal(signal.SIGUSR1, lambda number, frame: trace.log("signal"))

    def play() -> None:
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            trace.wait("handle")
            time.sleep(0.02)
            kill_main(signal.SIGUSR1)
            trace.wait("signal")
            client.sendall(b"line\n")
            assert client.recv(10) == b""

    thread = Background(play)
    server.handle_request()
    thread.result()
    assert [event.call for event in trace.events()] == [
        "handle()",
        "signal()",
        "read(b'line\\n')",
    ]


def test_interrupt_in_a_handler_that_reads(ss: ModuleType, make: Make) -> None:
    """Ctrl-C ends it, the request is ended, and the exception comes out of the server."""
    import socket

    began = threading.Event()

    def handle(self: Any) -> None:
        began.set()
        self.rfile.readline()

    handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
    server = make(ss.TCPServer, handler)

    def play() -> None:
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            assert began.wait(TIMEOUT)
            time.sleep(0.02)
            kill_main(signal.SIGINT)
            assert client.recv(10) == b""

    thread = Background(play)
    with pytest.raises(KeyboardInterrupt):
        server.serve_forever(LONG)
    thread.result()


CTRL_C = """
class Server(getattr(ss, sys.argv[1])):
    def service_actions(self):
        print("serving", flush=True)
with Server(("127.0.0.1", 0), ss.BaseRequestHandler) as server:
    try:
        server.serve_forever(float(sys.argv[2]))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
PLAIN_CTRL_C = """
server = ss.ThreadingTCPServer(("127.0.0.1", 0), ss.BaseRequestHandler)
print("serving", flush=True)
server.serve_forever(60)
"""


@pytest.mark.parametrize("base", ["TCPServer", "ThreadingUDPServer"])
def test_ctrl_c(script: Callable[..., Any], base: str) -> None:
    process = script(CTRL_C, base, "0.05")
    assert process.stdout.readline() == "serving\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert (out.replace("serving\n", ""), err) == ("interrupted\n", "")
    assert process.returncode == 0


def test_ctrl_c_not_caught(script: Callable[..., Any]) -> None:
    """An idle server with a long interval ends at once, with Python's own message."""
    process = script(PLAIN_CTRL_C)
    assert process.stdout.readline() == "serving\n"
    wait_until(lambda: sleeping(process.pid))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=TIMEOUT)
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_default_actions_of_other_signals(script: Callable[..., Any], number: int) -> None:
    process = script(PLAIN_CTRL_C)
    assert process.stdout.readline() == "serving\n"
    process.send_signal(number)
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == -number


def sleeping(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"
