"""The thread of a request takes the next one by itself, and nobody can tell but by the speed."""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import resource
import socket
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import TIMEOUT, Background, ask, connect, ended, receive, wait_until

import fastsock

AWAY = 0.02  # seconds; a leader that nobody asks for resigns long before

#: the threads that have made a connection, while somebody wants to know
accepting: list[int] | None = None
#: what somebody wants done there
in_accept: Callable[[], Any] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "socket.__new__" and type(args[0]) is fastsock.Connection:
        if accepting is not None:
            accepting.append(_thread.get_ident())
        if in_accept is not None:
            in_accept()


sys.addaudithook(_audit)


class Upper(fastsock.StreamRequestHandler):
    """Answers a line in upper case, and does what it is told to by the line before that."""

    def handle(self) -> None:
        line = self.rfile.readline()
        server: Any = self.server
        server.tell(line)
        self.wfile.write(line.upper())


class Server(fastsock.ThreadingTCPServer):
    request_queue_size = 128

    def __init__(self, handler: Any = Upper) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.told: dict[bytes, Callable[[], Any]] = {}
        self.threads: list[int] = []  # of requests
        self.errors: list[BaseException | None] = []

    def tell(self, line: bytes) -> None:
        self.threads.append(threading.get_native_id())
        self.told.get(line.strip(), int)()

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(sys.exception() if sys.version_info >= (3, 11) else sys.exc_info()[1])


class Serving:
    """serve_forever() in a thread, whose requests can be made to be led."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.accepted: list[int] = []
        self.start()

    def start(self) -> None:
        self.loop = Background(self.server.serve_forever, 30.0)
        ask(self.server)

    def is_led(self, ident: int) -> bool:
        return ident != self.loop.ident

    def lead(self) -> None:
        """Make requests until one is accepted by the thread of another."""
        global accepting
        deadline = time.monotonic() + TIMEOUT
        accepting = self.accepted = []
        try:
            while not any(map(self.is_led, self.accepted)):
                assert time.monotonic() < deadline, "no request was led"
                for _ in range(10):
                    assert ask(self.server) == b"HELLO\n"
        finally:
            accepting = None

    def accepts_alone(self) -> None:
        """Make requests, none of which is accepted by the thread of another."""
        global accepting
        ask(self.server)  # whoever leads finds that it may not any more
        accepting = self.accepted = []
        for _ in range(100):
            assert ask(self.server) == b"HELLO\n"
        accepting = None
        assert set(self.accepted) == {self.loop.ident}

    def stop(self) -> None:
        self.server.shutdown()
        self.loop.result()


@pytest.fixture
def led() -> Iterator[Serving]:
    with Server() as server:
        running = Serving(server)
        yield running
        if running.loop.is_alive():
            running.stop()


def test_a_thread_takes_the_next_request(led: Serving) -> None:
    led.lead()
    assert len(set(led.server.threads)) < len(led.server.threads)
    assert led.loop.native_id not in led.server.threads


def test_every_request_has_a_thread_of_its_own(led: Serving) -> None:
    seen: list[tuple[str, int, bool]] = []
    local = threading.local()

    def look() -> None:
        thread = threading.current_thread()
        seen.append((thread.name, id(thread), hasattr(local, "value")))
        kept.append(thread)
        local.value = thread.attribute = 1  # type: ignore[attr-defined]

    kept: list[threading.Thread] = []
    led.server.told[b"hello"] = look
    led.lead()
    assert len({name for name, _, _ in seen}) == len({number for _, number, _ in seen}) == len(seen)
    assert not any(has for _, _, has in seen)
    wait_until(lambda: not any(thread.is_alive() for thread in kept))


@pytest.mark.parametrize("count", [2, 30])
def test_handlers_that_wait_for_each_other(led: Serving, count: int) -> None:
    """A leader that does not come back does not keep the next connections waiting."""
    for _ in range(3):
        led.server.told.clear()
        led.lead()
        barrier = threading.Barrier(count)
        led.server.told[b"wait"] = lambda: barrier.wait(TIMEOUT)  # noqa: B023
        clients = [connect(led.server) for _ in range(count)]
        for client in clients:
            client.sendall(b"wait\n")
        for client in clients:
            assert receive(client) == b"WAIT\n"
            client.close()


def test_a_leader_that_is_never_idle_but_never_wants_the_gil(led: Serving) -> None:
    """Threads that sleep, one request after the other, leave time for others beside them."""
    beside = threading.Semaphore(0)
    most = Counter[str]()
    lock = threading.Lock()

    def sleep() -> None:
        with lock:
            most["now"] += 1
            if most["now"] > 1:
                beside.release()
        time.sleep(0.0005)
        with lock:
            most["now"] -= 1

    led.server.told[b"sleep"] = sleep
    led.lead()

    def keep_asking() -> None:
        while not over.is_set():
            ask(led.server, b"sleep\n")

    over = threading.Event()
    clients = [Background(keep_asking) for _ in range(4)]
    try:
        assert beside.acquire(timeout=TIMEOUT)
    finally:
        over.set()
        for client in clients:
            client.result()


def test_silent_clients(led: Serving) -> None:
    led.lead()
    silent = [connect(led.server) for _ in range(5)]
    for _ in range(5):
        assert ask(led.server) == b"HELLO\n"
        led.lead()
    for client in silent:
        client.close()


# --- shutdown


@pytest.mark.parametrize("times", range(10))
def test_nothing_is_accepted_after_shutdown(led: Serving, times: int) -> None:
    """It waits in the backlog for the next serve_forever()."""
    led.lead()
    led.stop()
    with connect(led.server) as client:
        client.sendall(b"hello\n")
        client.settimeout(AWAY)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(TIMEOUT)
        led.start()
        assert receive(client) == b"HELLO\n"


def test_shutdown_amid_requests() -> None:
    """What was accepted is served, by a thread that server_close() waits for."""
    for _ in range(20):
        served = []
        server = Server()
        server.told[b"hello"] = lambda: served.append(1)  # noqa: B023
        running = Serving(server)
        over = threading.Event()
        answers: list[bytes] = []

        def keep_asking() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():  # noqa: B023
                    answers.append(ask(server))  # noqa: B023

        clients = [Background(keep_asking) for _ in range(3)]
        running.lead()
        running.stop()
        server.server_close()
        count = len(served)
        over.set()
        for client in clients:
            client.result()
        assert len(served) == count
        assert set(answers) <= {b"HELLO\n", b""}


def test_shutdown_by_a_handler(led: Serving) -> None:
    led.server.told[b"stop"] = led.server.shutdown
    led.lead()
    assert ask(led.server, b"stop\n") == b"STOP\n"
    led.loop.result()


def test_the_listener_is_closed(led: Serving) -> None:
    led.lead()
    led.server.socket.close()
    with pytest.raises((OSError, ValueError)):
        led.loop.result()


def test_the_socket_is_replaced(led: Serving) -> None:
    led.lead()
    old = led.server.socket
    led.server.socket = socket.create_server(("127.0.0.1", 0))
    led.server.server_address = led.server.socket.getsockname()
    old.close()
    assert ask(led.server) == b"HELLO\n"


# --- what a program changes meanwhile


@pytest.mark.parametrize("where", ["instance", "class"])
@pytest.mark.parametrize(
    "hook", ["get_request", "verify_request", "process_request", "_handle_request_noblock"]
)
def test_a_hook_of_the_loop(
    led: Serving, hook: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs in the loop's thread from the next request on."""
    called: list[int] = []
    original = getattr(Server, hook)

    def counting(*args: Any) -> Any:
        called.append(_thread.get_ident())
        return original(*(args if where == "class" else (led.server, *args)))

    for _ in range(5):
        led.lead()
        with monkeypatch.context() as patch:
            patch.setattr(Server if where == "class" else led.server, hook, counting)
            called.clear()
            for count in range(1, 4):
                assert ask(led.server) == b"HELLO\n"
                assert len(called) >= count
            assert set(called) == {led.loop.ident}


@pytest.mark.parametrize(
    "hook", ["finish_request", "process_request_thread", "shutdown_request", "close_request"]
)
def test_a_hook_of_the_request(led: Serving, hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    original = getattr(led.server, hook)

    def counting(*args: Any) -> None:
        called.append(_thread.get_ident())
        original(*args)

    led.lead()
    monkeypatch.setattr(led.server, hook, counting)
    led.lead()
    assert called
    assert led.loop.ident not in called


def test_service_actions(led: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    led.lead()
    monkeypatch.setattr(led.server, "service_actions", lambda: called.append(_thread.get_ident()))
    for _ in range(20):
        assert ask(led.server) == b"HELLO\n"
    assert len(called) >= 19
    assert set(called) == {led.loop.ident}


def test_max_threads(led: Serving) -> None:
    led.lead()
    led.server.max_threads = 1
    led.accepts_alone()  # where there is somebody to wait for a free thread
    go_on = threading.Semaphore(0)
    begun: list[int] = []

    def hold() -> None:
        begun.append(1)
        assert go_on.acquire(timeout=TIMEOUT)

    led.server.told[b"hold"] = hold
    clients = [connect(led.server) for _ in range(3)]
    for client in clients:
        client.sendall(b"hold\n")
    for count in range(1, 4):
        wait_until(lambda: len(begun) == count)  # noqa: B023
        go_on.release()
    for client in clients:
        assert receive(client) == b"HOLD\n"
        client.close()


@pytest.mark.parametrize("daemon", [True, False])
def test_daemon_threads(led: Serving, daemon: bool) -> None:
    seen: list[bool] = []
    led.server.told[b"look"] = lambda: seen.append(threading.current_thread().daemon)
    for changed in (daemon, not daemon):
        led.lead()
        led.server.daemon_threads = changed
        assert ask(led.server, b"look\n") == b"LOOK\n"
        assert seen.pop() is changed


def test_new_threads(led: Serving) -> None:
    led.lead()
    led.server.reuse_threads = False
    kinds: list[type] = []
    led.server.told[b"look"] = lambda: kinds.append(type(threading.current_thread()))
    assert ask(led.server, b"look\n") == b"LOOK\n"
    assert kinds == [threading.Thread]


def test_a_stack_size(led: Serving) -> None:
    led.lead()
    before = set(led.server.threads)
    threading.stack_size(512 * 1024)
    try:
        led.server.threads.clear()
        assert ask(led.server) == b"HELLO\n"
    finally:
        threading.stack_size(0)
    assert before.isdisjoint(led.server.threads)


# --- what goes wrong


def test_a_handler_that_ends_its_thread(led: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    hooked: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: hooked.append(args.exc_type))

    def end() -> None:
        raise KeyboardInterrupt

    led.server.told[b"end"] = end
    for _ in range(5):
        led.lead()
        with connect(led.server) as client:
            client.sendall(b"end\n")
            assert ended(client)
    assert ask(led.server) == b"HELLO\n"
    assert hooked == [KeyboardInterrupt] * 5


def test_a_handler_that_raises(led: Serving) -> None:
    def fail() -> None:
        raise ValueError("boom")

    led.server.told[b"fail"] = fail
    led.lead()
    for _ in range(20):
        with connect(led.server) as client:
            client.sendall(b"fail\n")
            assert ended(client)
    wait_until(lambda: len(led.server.errors) == 20)
    assert {str(error) for error in led.server.errors} == {"boom"}


def test_descriptors_run_out(led: Serving) -> None:
    """The loop pauses as ever, and goes on."""
    led.lead()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket()
    client.settimeout(TIMEOUT)
    resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(client.fileno()))
        client.connect(led.server.server_address)
        wait_until(lambda: led.server._fastsock.accept_errors)  # type: ignore[attr-defined]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)
    client.sendall(b"hello\n")
    assert receive(client) == b"HELLO\n"
    client.close()
    led.lead()


def test_a_handler_that_forks(led: Serving) -> None:
    """The child's copy of the handler answers and ends; the parent goes on."""
    ended: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    led.server.told[b"fork"] = fork
    led.lead()
    for _ in range(5):
        assert ask(led.server, b"fork\n") == b"FORK\n"
    assert ended == [7] * 5
    led.accepts_alone()  # a child may have kept the listener, and be first to accept


def test_a_listener_of_somebody_else(led: Serving) -> None:
    """Where another process may be first to accept, the call blocks: only the loop makes it."""
    ours = led.server.socket
    led.server.socket = ours.dup()
    led.accepts_alone()
    ours.close()


def test_handle_request_beside_the_loop(led: Serving) -> None:
    led.lead()
    led.server.timeout = 0.001
    beside = [Background(led.server.handle_request) for _ in range(20)]
    for _ in range(20):
        assert ask(led.server) == b"HELLO\n"
    for call in beside:
        call.result()
    led.lead()


def test_handle_request_beside_loops_that_come_and_go() -> None:
    """Whoever has dismissed the leader, nobody is in its way when the loop ends."""
    with Server() as server:
        server.timeout = 0.001
        over = threading.Event()

        def keep_asking() -> None:
            with contextlib.suppress(OSError):
                while not over.is_set():
                    ask(server)

        def keep_handling() -> None:
            while not over.is_set():
                server.handle_request()
                over.wait(0.002)

        others = [Background(keep_asking), Background(keep_asking), Background(keep_handling)]
        try:
            for _ in range(60):
                loops = [Background(server.serve_forever, 30.0) for _ in range(2)]
                wait_until(lambda: server.threads)
                server.threads.clear()
                wait_until(lambda: len(server.threads) > 20)
                for loop in loops:
                    while loop.is_alive():
                        server.shutdown()
                        loop.join(0.001)
                    loop.result()
        finally:
            over.set()
            with contextlib.suppress(OSError):
                connect(server).close()
            for other in others:
                while other.is_alive():
                    server.handle_request()
                    other.join(0.001)
                other.result()


def test_a_server_is_no_garbage_for_the_collector() -> None:
    """In whatever order it ends."""
    gc.collect()
    gc.disable()
    try:
        for closes_first in (False, True):
            server = Server()
            alive = weakref.ref(server)
            running = Serving(server)
            running.lead()
            if closes_first:
                server.server_close()
            running.server.shutdown()
            running.loop.join()
            server.server_close()
            running.loop.call = int
            del server, running
            wait_until(lambda: alive() is None)  # noqa: B023
    finally:
        gc.enable()


def test_handle_request_where_the_leader_takes_a_request(led: Serving) -> None:
    global in_accept
    called: list[int] = []
    led.server.timeout = 0

    def handle_request() -> None:
        called.append(1)
        if len(called) == 1:
            led.server.handle_request()

    led.lead()
    with connect(led.server) as client:
        in_accept = handle_request
        try:
            assert ask(led.server) == b"HELLO\n"
            client.sendall(b"hello\n")
            assert receive(client) == b"HELLO\n"
        finally:
            in_accept = None
    assert called


def test_a_thread_that_cannot_be_started() -> None:
    """handle_request() does not wait for it."""
    with Server() as server:
        for size in (0, 1 << 46):  # bytes of stack that no machine has
            before = threading.stack_size(size)
            try:
                with connect(server) as client:
                    client.sendall(b"hello\n")
                    server.handle_request()
                    assert receive(client) == (b"" if size else b"HELLO\n")
            finally:
                threading.stack_size(before)
        assert [str(error) for error in server.errors] == ["can't start new thread"]


def test_shutdown_where_the_leader_takes_a_request(led: Serving) -> None:
    """As where the loop does: it returns."""
    global in_accept
    led.lead()
    in_accept = led.server.shutdown
    try:
        assert ask(led.server) == b"HELLO\n"
    finally:
        in_accept = None
    led.loop.result()


def test_locals_of_the_loop(led: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a property leaves in a threading.local is not seen by requests."""
    local = threading.local()
    seen: list[bool] = []

    def daemon_threads(server: Any) -> bool:
        local.value = 1
        return False

    led.server.told[b"hello"] = lambda: seen.append(hasattr(local, "value"))
    monkeypatch.setattr(Server, "daemon_threads", property(daemon_threads), raising=False)
    led.lead()
    assert set(seen) == {False}


def test_locals_of_what_a_handler_leaves(led: Serving) -> None:
    """Nor what a finalizer does there that runs when the request is over."""
    local = threading.local()
    seen: list[bool] = []

    class Leaves:
        def __del__(self) -> None:
            local.value = 1

    def look() -> None:
        seen.append(hasattr(local, "value"))
        threading.current_thread().leaves = Leaves()  # type: ignore[attr-defined]

    led.server.told[b"hello"] = look
    led.lead()
    for _ in range(50):
        ask(led.server)
    assert set(seen) == {False}


def test_a_leader_with_a_long_request_is_not_looked_at_for_ever(led: Serving) -> None:
    """The loop goes back to sleep."""

    def switches() -> int:
        with open(f"/proc/self/task/{led.loop.native_id}/status") as status:
            return sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)

    led.lead()
    silent = connect(led.server)
    begun = time.monotonic()
    while True:
        before = switches()
        time.sleep(0.05)
        if switches() - before < 5:
            break
        assert time.monotonic() - begun < TIMEOUT
    silent.close()


def test_no_thread_is_left(led: Serving) -> None:
    led.lead()
    led.stop()
    led.server.server_close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Dummy")]
