"""ThreadingMixIn: handlers that fork, start processes and have pools; forks between requests."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
from inside import Inside
from support import (
    ESCAPED,
    TIMEOUT,
    WORKER_NAME,
    Background,
    FakeRequest,
    about_threads,
    ask,
    new,
    serving,
)

Make = Callable[..., Any]


@pytest.fixture
def inside(ss: ModuleType, make: Make) -> Inside:
    return Inside(ss, make)


def in_child(function: Callable[[], Any]) -> Any:
    """What the function returns in a forked child, by way of JSON; a child that hangs is ended."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = ESCAPED
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(int(TIMEOUT))
            os.write(writer, json.dumps(function()).encode())
            status = 0
        except BaseException as error:
            os.write(writer, json.dumps(repr(error)).encode())
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert (os.waitstatus_to_exitcode(status), text != "") == (0, True), text
    return json.loads(text)


def is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def threads_of_a_child() -> Any:
    current = threading.current_thread()
    thread = Background(lambda: threading.active_count())
    return {
        "main": is_main(),
        "ident": current.ident == threading.get_ident(),
        "alive": current.is_alive(),
        "count": thread.result(),
        "threads": [thread is current for thread in threading.enumerate()],
    }


GOOD = {
    "main": True,
    "ident": True,
    "alive": True,
    "count": 2,
    "threads": [True],
}


def test_fork_in_a_handler(inside: Inside) -> None:
    """The child's only thread is its main thread; it can start others."""
    names = []
    for _ in range(3):
        name, found = inside(
            lambda: (
                threading.current_thread().name,
                in_child(lambda: (threading.current_thread().name, threads_of_a_child())),
            )
        )
        assert found[1] == GOOD
        assert inside.multiplexes or WORKER_NAME.fullmatch(name)
        names.append(name)
    assert len(set(names)) == (1 if inside.multiplexes else 3)


@about_threads("joining the threads of other requests")
def test_fork_while_others_run(inside: Inside) -> None:
    """In the child the other requests' threads have ended, and can be joined."""
    go_on = threading.Event()
    calls = [inside.start(lambda: go_on.wait(TIMEOUT)) for _ in range(3)]

    def look() -> Any:
        for call in calls:
            call.thread.join()
        return threads_of_a_child(), [call.thread.is_alive() for call in calls]

    try:
        assert inside(lambda: in_child(look)) == [GOOD, [False] * 3]
        assert in_child(look) == [GOOD, [False] * 3]
        assert all(call.thread.is_alive() for call in calls)
    finally:
        go_on.set()
    for call in calls:
        call.result()


@about_threads("the state of a thread")
def test_fork_of_a_thread_that_has_ended(inside: Inside) -> None:
    calls = [inside.start(lambda: None) for _ in range(3)]
    for call in calls:
        call.result()
    assert in_child(lambda: [call.thread.is_alive() for call in calls]) == [False] * 3
    assert in_child(lambda: [call.thread.join() for call in calls]) == [None] * 3
    assert in_child(lambda: ["stopped" in repr(call.thread) for call in calls]) == [True] * 3


@about_threads("_threads, and process_request() without a loop that lets a greenlet run")
def test_serve_in_a_child(inside: Inside) -> None:
    """A child, of a handler or of the serving thread, may go on with the server itself."""

    def serve() -> Any:
        server = inside.server
        before = len(server._threads)
        for _ in range(3):
            request = FakeRequest()
            inside.next.append(new("Nothing", run=staticmethod(lambda: None)))
            server.process_request(request, None)
            server._threads[-1].join(TIMEOUT)
            assert "close" in request.calls
        server._threads.reap()
        return before > 0, threading.active_count()

    inside(lambda: None)
    assert in_child(serve) == [True, 1]
    assert inside(lambda: in_child(serve)) == [True, 1]
    assert inside(lambda: 1) == 1


def test_server_close_in_a_child(ss: ModuleType, make: Make) -> None:
    """It waits for nobody: the threads are the parent's, however far they had come."""
    go_on = threading.Semaphore(0)
    handler = new("Handler", ss.BaseRequestHandler, handle=lambda self: go_on.acquire(timeout=10))
    for _ in range(10):
        server = make(ss.ThreadingTCPServer, handler)
        for _ in range(3):
            server.process_request(FakeRequest(), None)
        assert in_child(server.server_close) is None
        go_on.release(3)
        server.server_close()


@pytest.mark.parametrize(
    "how",
    [
        "return",
        "raise",
        pytest.param("thread", marks=about_threads("the child ends with its greenlet")),
    ],
)
def test_child_leaves_the_handler(inside: Inside, how: str) -> None:
    """The end of its thread is the end of the process, unless it has started others."""
    if how == "thread" and not inside.reuses and sys.version_info >= (3, 14):
        pytest.skip("the standard library's child never sees the end of its first thread")
    reader, writer = os.pipe()

    def fork() -> Any:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(TIMEOUT))
        os.close(2)
        if how == "raise":
            raise SystemExit(5)
        if how == "thread":
            main = threading.current_thread()
            threading.Thread(target=lambda: (main.join(), os.write(writer, b"last"))).start()
        return None

    for _ in range(2):
        assert inside(fork) == 0
        assert inside(lambda: 1) == 1
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert pipe.read() == ("last" * 2 if how == "thread" else "")


def work_in_a_process() -> None:
    found = threads_of_a_child()
    with ThreadPoolExecutor(2) as executor:
        good = found == GOOD and list(executor.map(abs, range(-9, 0))) == list(range(9, 0, -1))
    sys.exit(7 if good else found)


def test_multiprocessing(inside: Inside) -> None:
    """A process of the fork context ends as it should, threads and all."""
    context = multiprocessing.get_context("fork")

    def start() -> Any:
        process = context.Process(target=work_in_a_process)
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
        process.join(TIMEOUT)
        code = process.exitcode
        process.close()
        return code

    for _ in range(3):
        assert inside(start) == 7


def test_process_pool(inside: Inside) -> None:
    def work() -> Any:
        with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
            return executor.submit(abs, -1).result(TIMEOUT)

    for _ in range(2):
        assert inside(work) == 1


def test_thread_pool(inside: Inside) -> None:
    """One for the request, and one that outlives it."""
    with ThreadPoolExecutor(2) as lasting:

        def work() -> Any:
            with ThreadPoolExecutor(2) as executor:
                own = list(executor.map(abs, (-1, -2, -3)))
            return own, lasting.submit(abs, -4).result(TIMEOUT)

        for _ in range(3):
            assert inside(work) == ([1, 2, 3], 4)


def test_subprocess(inside: Inside) -> None:
    def run() -> Any:
        return subprocess.run(["/bin/echo", "hello"], stdout=subprocess.PIPE, timeout=TIMEOUT)

    for _ in range(3):
        assert inside(run).stdout == b"hello\n"


def test_forked_handlers_under_load(ss: ModuleType, make: Make) -> None:
    """Handlers that fork while others begin and end: every child ends, every answer is right."""

    def handle(self: Any) -> None:
        number = int(self.rfile.readline())
        if number % 4 == 0:
            number = in_child(lambda: number if is_main() else -1)
        self.wfile.write(b"%d" % number)

    handler = new("Handler", ss.StreamRequestHandler, handle=handle)
    server = make(ss.ThreadingTCPServer, handler, request_queue_size=64)

    def client(start: int) -> list[int]:
        return [int(ask(server, b"%d\n" % number)) for number in range(start, start + 10)]

    with serving(server):
        clients = [Background(client, start) for start in range(0, 100, 10)]
        assert [number for client in clients for number in client.result(25)] == [*range(100)]
