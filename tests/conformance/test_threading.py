"""ThreadingMixIn: a thread per request, its exceptions, daemon_threads, block_on_close."""

from __future__ import annotations

import contextlib
import contextvars
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    WORKER_NAME,
    Background,
    FakeRequest,
    Trace,
    about_threads,
    ask,
    connect,
    ended,
    event,
    kinds,
    multiplexes,
    new,
    receive,
    recording,
    serving,
    upper,
    wait_until,
)

Make = Callable[..., Any]

threaded = kinds(flavours=("Threading",), transports=("TCP", "UDP"))
END = ["shutdown_request", "close_request"]
BOOM = ValueError("boom")


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What threading.excepthook gets: (exception type, text, thread name)."""
    seen: list[Any] = []

    def hook(args: Any) -> None:
        seen.append((args.exc_type, str(args.exc_value), args.thread.name))

    monkeypatch.setattr(threading, "excepthook", hook)
    yield seen


class Gate:
    """A handler that says it has begun, then waits to be let go."""

    def __init__(self, ss: ModuleType) -> None:
        self.begun = threading.Semaphore(0)
        self.release = event(ss)
        self.finished: list[str] = []
        self.threads: list[threading.Thread] = []
        self.handler = new("Handler", ss.BaseRequestHandler, handle=self.handle)

    def handle(self) -> None:
        self.threads.append(threading.current_thread())
        number = len(self.threads)
        self.begun.release()
        assert self.release.wait(TIMEOUT)
        # work that a server_close() which doesn't join them all would miss
        time.sleep(0.01 * min(number, 3))
        self.finished.append("done")

    def wait_begun(self, count: int = 1) -> None:
        for _ in range(count):
            assert self.begun.acquire(timeout=TIMEOUT)


@pytest.fixture
def gate(ss: ModuleType) -> Iterator[Gate]:
    gate = Gate(ss)
    yield gate
    gate.release.set()
    for thread in gate.threads:
        if thread is not threading.current_thread():
            thread.join(TIMEOUT)


# --- exceptions


def run(ss: ModuleType, server: Any, trace: Trace) -> list[str]:
    """One request; what its thread or greenlet called, once that has ended."""
    trace.clear()
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        if not multiplexes(ss):
            server._threads.join()
    return called_in_request(ss, trace)


def called_in_request(ss: ModuleType, trace: Trace) -> list[str]:
    if multiplexes(ss):
        names = trace.names()
        begun = "process_request_thread" in names
        return names[names.index("process_request_thread") :] if begun else []
    return [event.name for event in trace.events() if WORKER_NAME.fullmatch(event.thread)]


def recorded(ss: ModuleType, kind: Any, make: Make, trace: Trace, **raising: Any) -> Any:
    quiet = new("Quiet", kind.server(ss), handle_error=lambda self, request, address: None)
    handler = recording(upper(kind.handler(ss)), trace, raising)
    return make(recording(quiet, trace, raising), handler)


@threaded
@pytest.mark.parametrize("step", ["finish_request", "setup", "handle", "finish"])
def test_exception(
    ss: ModuleType, kind: Any, make: Make, trace: Trace, hooked: list[Any], step: str
) -> None:
    """handle_error() in the thread and inside the exception, then the request is ended."""
    server = recorded(ss, kind, make, trace, **{step: ValueError("boom")})
    called = run(ss, server, trace)
    assert called[:2] == ["process_request_thread", "finish_request"]
    assert called[-3:] == ["handle_error", *END]
    assert ("finish" in called) == (step in ("handle", "finish"))
    (event,) = trace.named("handle_error")
    assert (event.call, event.exception) == ("handle_error(request, address)", "ValueError")
    assert hooked == []


@threaded
@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_ending(
    ss: ModuleType,
    kind: Any,
    make: Make,
    trace: Trace,
    hooked: list[Any],
    ending: type[BaseException],
) -> None:
    """Not for handle_error(): the request is ended, and threading.excepthook gets it.

    Greenlets share the thread of the loop, which a KeyboardInterrupt leaves.
    """
    server = recorded(ss, kind, make, trace, handle=ending("stop"))
    leaves = multiplexes(ss) and ending is KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt) if leaves else contextlib.nullcontext():
        run(ss, server, trace)
    assert called_in_request(ss, trace)[-3:] == ["finish", *END]
    if leaves:
        assert hooked == []
        return
    ((kind_of_error, text, thread),) = hooked
    assert (kind_of_error, text) == (ending, "stop")
    assert thread == trace.named("handle")[0].thread


@threaded
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("handle_error", ["handle_error", *END]),
        ("shutdown_request", ["handle_error", "shutdown_request"]),
        ("close_request", ["handle_error", *END]),
        ("process_request_thread", ["process_request_thread"]),
    ],
)
def test_exception_at_the_end(
    ss: ModuleType,
    kind: Any,
    make: Make,
    trace: Trace,
    hooked: list[Any],
    where: str,
    expected: list[str],
) -> None:
    raising = {"handle": ValueError("boom"), where: KeyError("again")}
    server = recorded(ss, kind, make, trace, **raising)
    called = run(ss, server, trace)
    assert called[-len(expected) :] == expected
    assert [error[0] for error in hooked] == [KeyError]
    server.last_request = raising[where].__traceback__ = None


@threaded
def test_exception_in_process_request(ss: ModuleType, kind: Any, make: Make, trace: Trace) -> None:
    """In the serving thread it is handled there."""
    server = recorded(ss, kind, make, trace, process_request=ValueError("boom"))
    assert run(ss, server, trace) == []
    assert trace.names()[:6] == [
        "get_request",
        "verify_request",
        "process_request",
        "handle_error",
        *END,
    ]


def test_handle_error_inside_the_exception(ss: ModuleType, make: Make, hooked: list[Any]) -> None:
    seen = []

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        seen.append((sys.exc_info()[0], threading.current_thread().name))
        raise  # noqa: PLE0704

    def handle(self: Any) -> None:
        raise ValueError("boom")

    handler = new("Handler", ss.BaseRequestHandler, handle=handle)
    server = make(ss.ThreadingTCPServer, handler, handle_error=handle_error)
    with serving(server), connect(server) as client:
        assert ended(client)
    wait_until(lambda: hooked)
    assert hooked == [(ValueError, "boom", seen[0][1])]
    assert seen[0][0] is ValueError
    assert multiplexes(ss) or WORKER_NAME.fullmatch(seen[0][1])


# --- the thread


def test_concurrent(ss: ModuleType, make: Make, gate: Gate) -> None:
    """Every request has its own thread for as long as it lasts."""
    server = make(ss.ThreadingTCPServer, gate.handler, request_queue_size=64)
    clients = [connect(server) for _ in range(20)]
    with serving(server):
        gate.wait_begun(20)
        threads = 1 if multiplexes(ss) else 20
        assert len(set(gate.threads)) == threads
        assert len({thread.name for thread in gate.threads}) == threads
        if not multiplexes(ss):
            assert all(WORKER_NAME.fullmatch(thread.name) for thread in gate.threads)
            assert not any(thread.daemon for thread in gate.threads)
        assert set(gate.threads) <= set(threading.enumerate())
        gate.release.set()
        assert all(ended(client) for client in clients)
    for client in clients:
        client.close()
    assert len(gate.finished) == 20


@about_threads("threading.local, signal mask, trace functions are the serving thread's")
def test_thread_is_as_new(ss: ModuleType, make: Make) -> None:
    """Whether threads are reused or not, a request sees nothing of an earlier one."""
    local = threading.local()
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            thread = threading.current_thread()
            seen.append(
                (
                    getattr(local, "value", "unset"),
                    variable.get(),
                    getattr(thread, "value", "unset"),
                    signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
                    sys.gettrace(),
                    sys.getprofile(),
                    sys.get_asyncgen_hooks().firstiter,
                    thread.daemon,
                    thread is threading.main_thread(),
                )
            )
            names.append(thread.name)
            local.value = "set"
            variable.set("set")
            thread.value = "set"
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
            sys.setprofile(lambda *args: None)
            sys.set_asyncgen_hooks(firstiter=lambda generator: None)

    names: list[str] = []
    server = make(ss.ThreadingTCPServer, Handler)
    with serving(server):
        for _ in range(5):
            assert ask(server, b"") == b""
    server.server_close()
    fresh = ("unset", "unset", "unset", False, None, None, None, False, False)
    assert seen == [fresh] * 5
    assert len(set(names)) == 5
    assert all(WORKER_NAME.fullmatch(name) for name in names)
    numbers = [int(name.split()[0].split("-")[1]) for name in names]
    assert numbers == sorted(numbers)


@about_threads("the thread of a request outlives it")
def test_thread_is_not_alive_afterwards(ss: ModuleType, make: Make, gate: Gate) -> None:
    """What current_thread() was in a handler can be joined."""
    server = make(ss.ThreadingTCPServer, gate.handler)
    gate.release.set()
    with serving(server), connect(server) as client:
        assert ended(client)
        gate.threads[0].join(TIMEOUT)
        assert not gate.threads[0].is_alive()
    with pytest.raises(RuntimeError):
        gate.threads[0].start()


def test_subclass_starts_its_own_threads(ss: ModuleType, make: Make, trace: Trace) -> None:
    """process_request() overridden to run process_request_thread() elsewhere."""

    class Server(ss.ThreadingTCPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            trace.log("process_request")
            Background(self.process_request_thread, request, client_address)

    server = make(Server, upper(ss.StreamRequestHandler))
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert trace.names() == ["process_request"]


# --- daemon_threads, block_on_close, _threads


@pytest.mark.parametrize("where", ["subclass", "instance", "library"])
@pytest.mark.parametrize("value", [False, True])
def test_daemon_threads(
    ss: ModuleType,
    make: Make,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    value: bool,
    where: str,
) -> None:
    server = make(new("Server", ss.ThreadingTCPServer), gate.handler)
    if where == "library":
        monkeypatch.setattr(ss.ThreadingMixIn, "daemon_threads", value)
    else:
        (server if where == "instance" else type(server)).daemon_threads = value
    with connect(server):
        server.handle_request()
        gate.wait_begun()
        if multiplexes(ss):
            if not value:
                gate.release.set()
            server.server_close()  # unwinds daemons
            assert gate.finished == ([] if value else ["done"])
            return
        assert gate.threads[0].daemon is value
        assert list(server._threads) == ([] if value else gate.threads)
        if value:
            server.server_close()  # joins no daemon
            assert gate.finished == []
            assert gate.threads[0].is_alive()


@pytest.mark.parametrize("kind", ["ThreadingTCPServer", "ThreadingUDPServer"])
def test_server_close_joins(ss: ModuleType, make: Make, gate: Gate, kind: str) -> None:
    server = make(getattr(ss, kind), gate.handler)
    clients = [connect(server) for _ in range(3)]
    for client in clients:
        client.sendall(b"x")
        server.handle_request()
    gate.wait_begun(3)

    def release() -> None:
        wait_until(lambda: server.fileno() == -1)  # the listener goes first
        assert gate.finished == []
        gate.release.set()

    thread = Background(release)
    server.server_close()
    assert len(gate.finished) == 3
    if not multiplexes(ss):
        assert list(server._threads) == []
    thread.result()
    for client in clients:
        client.close()


@pytest.mark.parametrize("where", ["subclass", "instance"])
def test_block_on_close_false(ss: ModuleType, make: Make, gate: Gate, where: str) -> None:
    server = make(new("Server", ss.ThreadingTCPServer), gate.handler)
    (server if where == "instance" else type(server)).block_on_close = False
    with connect(server):
        server.handle_request()
        gate.wait_begun()
        if not multiplexes(ss):
            assert isinstance(server._threads, ss._NoThreads)
            assert not gate.threads[0].daemon
        server.server_close()
        assert gate.finished == []


@about_threads("_threads: there are none to keep")
def test_threads_is_per_server(ss: ModuleType, make: Make, gate: Gate) -> None:
    first, second = (make(ss.ThreadingTCPServer, gate.handler) for _ in range(2))
    assert "_threads" not in vars(first)
    with connect(first):
        first.handle_request()
        gate.wait_begun()
        assert list(first._threads) == gate.threads
        assert list(second._threads if "_threads" in vars(second) else []) == []
        second.server_close()
        gate.release.set()


@about_threads("_threads, and process_request() without a loop that lets a greenlet run")
def test_threads_do_not_pile_up(ss: ModuleType, make: Make) -> None:
    """Requests that are over are forgotten while the server runs."""
    server = make(ss.ThreadingTCPServer)
    served = 400
    longest = 0
    for _ in range(served):
        request = FakeRequest()
        server.process_request(request, None)
        wait_until(lambda request=request: "close" in request.calls)
        longest = max(longest, len(server._threads))
    assert 0 < longest < served / 2


@about_threads("_threads: there are none to keep")
def test_threads_replaced(ss: ModuleType, make: Make, trace: Trace) -> None:
    """A subclass may bring its own keeper of threads."""

    class Keeper(list[Any]):
        def append(self, thread: Any) -> None:
            trace.log("append")
            super().append(thread)

        def join(self) -> None:
            trace.log("join")
            for thread in self:
                thread.join(TIMEOUT)

    server = make(ss.ThreadingTCPServer, upper(ss.StreamRequestHandler))
    server._threads = keeper = Keeper()
    with serving(server):
        assert ask(server) == b"HELLO\n"
    server.server_close()
    assert trace.names() == ["append", "join"]
    assert not keeper[0].is_alive()


# --- threads that outlive the main thread, threads that cannot be started


AT_EXIT = """
import socket, threading
begun, go_on = threading.Event(), threading.Event()
class Handler(ss.BaseRequestHandler):
    def handle(self):
        begun.set()
        go_on.wait(10)
        threading.main_thread().join()
        print("finished", flush=True)
class Server(ss.ThreadingTCPServer):
    daemon_threads = bool(int(sys.argv[1]))
    block_on_close = False
server = Server(("127.0.0.1", 0), Handler)
client = socket.create_connection(server.server_address)
server.handle_request()
begun.wait(10)
server.server_close()
if not Server.daemon_threads:
    go_on.set()
print("main", flush=True)
"""


@about_threads("threads that are no daemons and outlive the main thread")
@pytest.mark.parametrize(("daemon", "output"), [(0, "main\nfinished\n"), (1, "main\n")])
def test_interpreter_exit(script: Callable[..., Any], daemon: int, output: str) -> None:
    """The interpreter waits for requests of threads that are no daemons, and only for them."""
    process = script(AT_EXIT, str(daemon))
    assert process.communicate(timeout=TIMEOUT) == (output, "")
    assert process.returncode == 0


NO_THREAD = """
import socket, threading
class Server(ss.ThreadingTCPServer):
    def handle_error(self, request, client_address):
        print(sys.exc_info()[0].__name__)
class Handler(ss.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"served")
server = Server(("127.0.0.1", 0), Handler)
def ask():
    with socket.create_connection(server.server_address, timeout=10) as client:
        server.handle_request()
        return client.recv(10)
threading.stack_size(1 << 47)
print(ask())
threading.stack_size(0)
print(ask())
if len(sys.argv) > 1:
    server.server_close()
    print("closed")
"""


@about_threads("no thread is started")
def test_thread_that_cannot_be_started(script: Callable[..., Any]) -> None:
    """The client is closed and the server goes on."""
    process = script(NO_THREAD)
    assert process.communicate(timeout=TIMEOUT) == ("RuntimeError\nb''\nb'served'\n", "")


@about_threads("no thread is started")
@pytest.mark.fastsock_only(reason="server_close() works although a thread could not be started")
def test_server_close_after_a_thread_could_not_be_started(script: Callable[..., Any]) -> None:
    out, err = script(NO_THREAD, "close").communicate(timeout=TIMEOUT)
    assert (out.splitlines()[-1], err) == ("closed", "")


@about_threads("serve_forever() returns when its handlers have ended, not before")
def test_handler_uses_the_connection_after_shutdown(ss: ModuleType, make: Make) -> None:
    """shutdown() ends the loop, not the requests."""
    asked, answer = threading.Event(), threading.Event()

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            asked.set()
            assert answer.wait(TIMEOUT)
            self.wfile.write(self.rfile.readline())

    server = make(ss.ThreadingTCPServer, Handler)
    with connect(server) as client:
        with serving(server):
            assert asked.wait(TIMEOUT)
        client.sendall(b"still here\n")
        answer.set()
        assert receive(client) == b"still here\n"
