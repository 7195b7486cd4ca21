"""ThreadingMixIn: when a request's thread begins and ends, for threading and for the system."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from inside import Inside
from support import (
    TIMEOUT,
    Background,
    FakeRequest,
    about_threads,
    ask,
    connect,
    ended,
    handling,
    multiplexes,
    new,
    serving,
    upper,
    wait_until,
)

Make = Callable[..., Any]


@pytest.fixture
def inside(ss: ModuleType, make: Make) -> Inside:
    return Inside(ss, make)


@pytest.fixture
def held(inside: Inside) -> Iterator[Any]:
    """A request that lasts until its event is set: (call, event)."""
    go_on = threading.Event()
    call = inside.start(lambda: go_on.wait(TIMEOUT))
    yield call, go_on
    go_on.set()
    call.result()


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What threading.excepthook gets: (exception type, thread)."""
    seen: list[Any] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda args: seen.append((args.exc_type, args.thread))
    )
    return seen


def tasks() -> set[str]:
    """The native ids of the threads of this process."""
    return set(os.listdir("/proc/self/task"))


# --- as threading sees it


@about_threads("what threading.enumerate() has")
def test_known_to_threading(inside: Inside) -> None:
    before = threading.active_count()
    threads = set(threading.enumerate())
    for _ in range(4):
        go_on = threading.Event()
        call = inside.start(lambda go_on=go_on: (go_on.wait(TIMEOUT), threading.enumerate()))
        assert call.thread not in threads
        assert set(threading.enumerate()) == threads | {call.thread}
        assert threading.active_count() == before + 1
        assert list(inside.server._threads)[-1] is call.thread
        go_on.set()
        assert set(call.result()[1]) == threads | {call.thread}
        assert set(threading.enumerate()) == threads
        assert threading.active_count() == before
    inside.server.server_close()
    assert list(inside.server._threads) == []


@about_threads("what threading.enumerate() has")
def test_known_when_process_request_returns(ss: ModuleType, make: Make) -> None:
    """As Thread.start() has it: the thread has begun, and threading knows it."""
    go_on = threading.Semaphore(0)
    handler = new("Handler", ss.BaseRequestHandler, handle=lambda self: go_on.acquire(timeout=10))
    server = make(ss.ThreadingTCPServer, handler)
    before = threading.active_count()
    for _ in range(20):
        for count in (1, 2):
            server.process_request(FakeRequest(), None)
            thread = server._threads[-1]
            assert threading.active_count() == before + count
            assert thread in threading.enumerate()
            assert thread.ident is not None
            assert thread.is_alive()
            assert f"{thread!r}".endswith(f", started {thread.ident})>")
        go_on.release(2)
        for thread in server._threads:
            thread.join(TIMEOUT)
        server._threads.reap()


@about_threads("the daemon flag of a thread")
def test_daemon(inside: Inside) -> None:
    """daemon_threads as it is when the request begins."""
    for daemon in (False, True, False, False, True, True, False):
        inside.server.daemon_threads = daemon
        call = inside.start(lambda: threading.current_thread().daemon)
        assert call.result() is daemon
        assert call.thread.daemon is daemon
        assert (call.thread in inside.server._threads) is not daemon


@about_threads("the daemon flag of a thread")
def test_daemon_is_truthy(inside: Inside) -> None:
    inside.server.daemon_threads = 1
    call = inside.start(lambda: threading.current_thread())
    assert call.result().daemon
    assert call.thread not in inside.server._threads


@about_threads("joining a thread")
def test_join(held: Any) -> None:
    """Any number of others can wait, with and without a timeout."""
    call, go_on = held
    thread = call.thread
    for timeout in (0, 0.0, -1, 0.001):
        assert thread.join(timeout) is None
        assert thread.is_alive()
    joining = [Background(thread.join, timeout) for timeout in (None, 8, None, 9, None)]
    waited = Background(thread.join, 0.01)
    waited.result()
    assert thread.is_alive()
    assert all(joiner.is_alive() for joiner in joining)
    go_on.set()
    for joiner in joining:
        joiner.result()
    assert not thread.is_alive()
    for timeout in (None, 0, 5):
        thread.join(timeout)


@about_threads("joining a thread")
@pytest.mark.parametrize(("timeout", "error"), [(1e20, OverflowError), ("soon", TypeError)])
def test_join_refuses(held: Any, timeout: Any, error: type[Exception]) -> None:
    """(Up to 3.12 the standard library takes the thread for ended after that.)"""
    with pytest.raises(error):
        held[0].thread.join(timeout)


@about_threads("joining a thread")
def test_join_from_the_next_request(inside: Inside, held: Any) -> None:
    call, go_on = held
    joins = inside.start(lambda: (call.thread.join(TIMEOUT), call.thread.is_alive()))
    go_on.set()
    assert joins.result() == (None, False)
    assert inside(call.thread.join) is None  # perhaps in the same thread of the system


def error_of(function: Callable[[], Any]) -> Any:
    with pytest.raises(RuntimeError) as caught:
        function()
    return str(caught.value)


@about_threads("what a thread refuses")
def test_misuse(inside: Inside, held: Any) -> None:
    """RuntimeError, with the words of threading."""

    def use() -> Any:
        thread = threading.current_thread()
        errors = [error_of(call) for call in (thread.join, lambda: thread.join(0), thread.start)]
        return [*errors, error_of(lambda: setattr(thread, "daemon", True))]

    join, once, daemon = (
        "cannot join current thread",
        "threads can only be started once",
        "cannot set daemon status of active thread",
    )
    call, go_on = held
    assert inside(use) == [join, join, once, daemon]
    assert error_of(call.thread.start) == once
    assert error_of(lambda: setattr(call.thread, "daemon", True)) == daemon
    go_on.set()
    call.result()
    assert error_of(call.thread.start) == once
    assert error_of(lambda: setattr(call.thread, "daemon", True)) == daemon
    assert inside(use) == [join, join, once, daemon]


# --- how a request ends


class Own(BaseException):
    pass


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt, GeneratorExit, Own])
def test_base_exception(inside: Inside, hooked: list[Any], ending: type[BaseException]) -> None:
    def end() -> None:
        raise ending

    for _ in range(3):
        if inside.multiplexes and ending is KeyboardInterrupt:  # it leaves the loop's thread
            with pytest.raises(KeyboardInterrupt):
                inside(end)
        else:
            call = inside.start(end)
            assert call.result() is None
            assert hooked.pop() == (ending, call.thread)
        assert hooked == []
        assert inside(lambda: (1, None)) == (1, None)


@about_threads("the end of a thread")
@pytest.mark.fastsock_only(reason="threads are reused")
def test_thread_of_a_base_exception_ends(ss: ModuleType, inside: Inside, hooked: Any) -> None:
    def end() -> None:
        native_ids.append(str(threading.get_native_id()))
        raise Own

    native_ids: list[str] = []
    inside(end)
    wait_until(lambda: not tasks() & set(native_ids))


def test_excepthook_raises(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is reported, and the server goes on."""

    def hook(args: Any) -> None:
        raise ValueError("of the hook")

    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr("sys.excepthook", lambda *args: seen.append(args[0]))
    seen: list[Any] = []

    def end() -> None:
        raise Own

    inside(end)
    assert seen == [ValueError]
    assert inside(lambda: 1) == 1


def test_exception_in_handle_error(ss: ModuleType, make: Make, hooked: list[Any]) -> None:
    """...and of shutdown_request(): to threading.excepthook, with the request's thread."""
    threads: list[threading.Thread] = []

    def fail(self: Any, *args: Any) -> None:
        threads.append(threading.current_thread())
        raise ValueError

    def error(self: Any, *args: Any) -> None:
        raise KeyError

    server = make(ss.ThreadingTCPServer, handling(ss, fail), handle_error=error)
    for _ in range(3):
        with connect(server) as client:
            server.handle_request()
            assert ended(client)
            wait_until(lambda: hooked)
        assert hooked.pop() == (KeyError, threads[-1])
        if not multiplexes(ss):
            threads[-1].join(TIMEOUT)
            assert not threads[-1].is_alive()


@pytest.mark.parametrize("daemon", [False, True])
def test_dropped_at_once(ss: ModuleType, make: Make, daemon: bool) -> None:
    """Handler, request, what the handler knew, the thread: nothing waits for the next request."""
    references: list[Any] = []
    joins: list[Callable[[float], None]] = []

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            thread = threading.current_thread()
            thread.mine = mine = Own()  # type: ignore[attr-defined]
            if multiplexes(ss):
                del thread.mine  # type: ignore[attr-defined]
                references[:] = map(weakref.ref, (self, self.request, mine))
                return
            references[:] = map(weakref.ref, (self, self.request, thread, mine))
            joins.append(thread.join)

    server = make(ss.ThreadingTCPServer, Handler, daemon_threads=daemon)
    gc.disable()
    try:
        for _ in range(3):
            with connect(server) as client:
                server.handle_request()
                assert ended(client)
            if not multiplexes(ss):
                joins.pop()(TIMEOUT)
                if not daemon:
                    server._threads.reap()
            wait_until(lambda: not any(reference() for reference in references))
    finally:
        gc.enable()


@pytest.mark.parametrize("close", [False, True])
def test_server_is_dropped(ss: ModuleType, close: bool) -> None:
    """Its threads don't keep it, nor does a Thread that somebody has kept."""
    threads: list[threading.Thread] = []

    def handle(self: Any) -> None:
        threads.append(threading.current_thread())

    gc.collect()
    gc.disable()
    try:
        server = ss.ThreadingTCPServer(("127.0.0.1", 0), handling(ss, handle))
        for count in (1, 2):
            with connect(server) as client:
                server.handle_request()
                assert ended(client)
            wait_until(lambda count=count: len(threads) == count)
            if not multiplexes(ss):
                threads[-1].join(TIMEOUT)
        listener = server.socket
        if close:
            server.server_close()
        reference = weakref.ref(server)
        del server
        wait_until(lambda: reference() is None)
        listener.close()
    finally:
        gc.enable()


# --- hooks and options


def test_process_request_thread_overridden(ss: ModuleType, make: Make) -> None:
    seen: list[Any] = []

    class Server(ss.ThreadingTCPServer):
        def process_request_thread(self, request: Any, client_address: Any) -> None:
            seen.append((threading.current_thread(), client_address))
            super().process_request_thread(request, client_address)

    server = make(Server, upper(ss.StreamRequestHandler))
    addresses = []
    with serving(server):
        for _ in range(5):
            with connect(server) as client:
                addresses.append(client.getsockname())
                client.sendall(b"hello\n")
                assert client.recv(10) == b"HELLO\n"
                assert ended(client)
    assert [address for _, address in seen] == addresses
    assert len({thread for thread, _ in seen}) == (1 if multiplexes(ss) else 5)


def test_own_pool(ss: ModuleType, make: Make) -> None:
    """process_request() overridden to run the requests in the program's own pool."""
    with ThreadPoolExecutor(2, "own") as executor:

        class Server(ss.ThreadingTCPServer):
            def process_request(self, request: Any, client_address: Any) -> None:
                executor.submit(self.process_request_thread, request, client_address)

        names: list[str] = []

        def handle(self: Any) -> None:
            names.append(threading.current_thread().name)
            self.wfile.write(self.rfile.readline())

        server = make(Server, handling(ss, handle))
        with serving(server):
            for _ in range(10):
                assert ask(server) == b"hello\n"
        server.server_close()
    assert set(names) <= {"own_0", "own_1"}
    assert len(names) == 10


@about_threads("_threads: there are none to keep")
def test_threads_of_the_program(ss: ModuleType, inside: Inside) -> None:
    """server_close() joins a Thread that a program has put into _threads."""
    inside(lambda: None)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, args=(TIMEOUT,))
    thread.start()
    inside.server._threads.append(thread)
    closing = Background(inside.server.server_close)
    wait_until(lambda: inside.server.fileno() == -1)
    assert closing.is_alive()
    go_on.set()
    closing.result()
    assert not thread.is_alive()


@about_threads("threads of the system; its handlers wait in a threading.Barrier")
@pytest.mark.parametrize("wait", [False, True])
def test_server_close_ends_the_threads(ss: ModuleType, make: Make, wait: bool) -> None:
    """The requests' and with them the system's, at once if block_on_close, else as they end."""
    before = tasks()
    count = 10
    barrier = threading.Barrier(count + 1)
    go_on = threading.Event()
    done: list[int] = []

    def handle(self: Any) -> None:
        barrier.wait(TIMEOUT)
        assert go_on.wait(TIMEOUT)
        done.append(1)

    server = make(
        ss.ThreadingTCPServer, handling(ss, handle), block_on_close=wait, request_queue_size=16
    )
    clients = [connect(server) for _ in range(count)]
    for _ in clients:
        server.handle_request()
    barrier.wait(TIMEOUT)
    closing = Background(server.server_close)
    wait_until(lambda: server.fileno() == -1)
    if wait:
        assert closing.is_alive()
        assert done == []
    else:
        closing.result()
    go_on.set()
    closing.result()
    if wait:
        assert len(done) == count
    wait_until(lambda: tasks() <= before, 5)  # less than thread_idle_timeout
    for client in clients:
        client.close()


def test_server_close_ends_resting_threads(ss: ModuleType, make: Make) -> None:
    before = tasks()
    server = make(ss.ThreadingTCPServer, upper(ss.StreamRequestHandler))
    with serving(server):
        for daemon in (False, True):
            server.daemon_threads = daemon
            assert ask(server) == b"HELLO\n"
    server.server_close()
    wait_until(lambda: tasks() <= before, 5)
    server.server_close()


@about_threads("a thread that would join itself")
def test_server_close_in_a_handler(inside: Inside) -> None:
    """Of a daemon; one that is not would join itself."""
    assert "join current" in inside(lambda: error_of(inside.server.server_close))


def test_server_close_in_a_daemon_handler(inside: Inside) -> None:
    inside.server.daemon_threads = True
    inside(lambda: None)
    assert inside(inside.server.server_close) is None


# --- threading.Thread replaced


@about_threads("no Thread is made")
def test_thread_class_replaced(inside: Inside) -> None:
    """Requests run in what threading.Thread is at the time."""
    inside(lambda: None)
    for name in ("Own", "Other"):
        Replaced = new(name, threading.Thread)
        with mock.patch("threading.Thread", Replaced):
            assert inside(lambda: type(threading.current_thread())) is Replaced
    assert isinstance(inside(threading.current_thread), threading.Thread)


@about_threads("no Thread is made")
@pytest.mark.parametrize("method", ["start", "run", "__init__", "_bootstrap_inner"])
def test_thread_method_replaced(inside: Inside, method: str) -> None:
    original = getattr(threading.Thread, method)
    called = []

    def replaced(self: Any, *args: Any, **kwargs: Any) -> None:
        called.append(self)
        original(self, *args, **kwargs)

    inside(lambda: None)
    with mock.patch.object(threading.Thread, method, replaced):
        for _ in range(2):
            thread = inside(threading.current_thread)
            assert thread in called
    called.clear()
    inside(lambda: None)
    assert called == []


# --- options that fastsock adds


@about_threads("reused threads")
@pytest.mark.fastsock_only(reason="reuse_threads is not in the standard library")
@pytest.mark.parametrize("where", ["subclass", "instance"])
def test_reuse_threads_false(ss: ModuleType, inside: Inside, where: str) -> None:
    inside(lambda: None)
    if where == "instance":
        inside.server.reuse_threads = False
    else:
        inside.server.__class__ = new("Server", type(inside.server), reuse_threads=False)
    for _ in range(3):
        assert inside(lambda: type(threading.current_thread())) is threading.Thread


@about_threads("reused threads")
@pytest.mark.fastsock_only(reason="thread_idle_timeout is not in the standard library")
@pytest.mark.parametrize("daemon", [False, True])
def test_thread_idle_timeout(ss: ModuleType, inside: Inside, daemon: bool) -> None:
    inside.server.thread_idle_timeout = 0.05
    inside.server.daemon_threads = daemon
    before = tasks()
    for _ in range(3):
        begin = time.monotonic()
        native_id = str(inside(threading.get_native_id))
        wait_until(lambda native_id=native_id: native_id not in tasks(), 5)
        assert time.monotonic() - begin >= 0.05
    assert tasks() <= before


# --- many


@about_threads("its handlers wait for each other in a threading.Barrier")
def test_burst(ss: ModuleType, make: Make) -> None:
    """Requests don't wait for each other: all of them run at the same time, again and again."""
    count = 200
    barrier = threading.Barrier(count)

    def handle(self: Any) -> None:
        barrier.wait(TIMEOUT)
        self.wfile.write(b"%d" % threading.get_ident())

    server = make(ss.ThreadingTCPServer, handling(ss, handle), request_queue_size=256)
    with serving(server):
        for _ in range(3):
            clients = [connect(server) for _ in range(count)]
            assert len({client.recv(100) for client in clients}) == count
            for client in clients:
                client.close()


@pytest.mark.parametrize("daemon", [False, True])
def test_many_requests(ss: ModuleType, make: Make, daemon: bool) -> None:
    """Clients at the same time, requests one after another: each gets its own answer."""
    of_thread = threading.local()

    def handle(self: Any) -> None:
        local = new("Own") if multiplexes(ss) else of_thread
        assert multiplexes(ss) or not vars(local)
        local.line = self.rfile.readline()
        self.wfile.write(local.line.swapcase())

    server = make(
        ss.ThreadingTCPServer,
        handling(ss, handle),
        request_queue_size=128,
        daemon_threads=daemon,
        handle_error=lambda self, request, address: errors.append(address),
    )
    errors: list[Any] = []

    def client(name: str) -> int:
        return sum(
            ask(server, f"{name} {number}\n".encode()) == f"{name} {number}\n".swapcase().encode()
            for number in range(40)
        )

    with serving(server):
        clients = [Background(client, f"Client {number}") for number in range(50)]
        assert [client.result(25) for client in clients] == [40] * 50
    assert errors == []
