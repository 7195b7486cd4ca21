"""to_thread()."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import threading
import time
import traceback
import weakref
from typing import Any

import pytest
from crews import Crew, handling
from greenlet import GreenletExit
from support import TIMEOUT, Background, ask, connect, new, receive, serving, wait_until

from fastsock import _offload
from fastsock.multiplexing import Event, Queue, sleep, spawn, to_thread

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")


def workers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("fastsock to_thread")]


def test_result(crew: Crew) -> None:
    def function(*args: Any, **keywords: Any) -> Any:
        return args, keywords

    result = crew.run(lambda: to_thread(function, 1, 2, function=3, self=4))
    assert result == ((1, 2), {"function": 3, "self": 4})


def test_in_no_handler() -> None:
    assert to_thread(threading.get_ident) == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        to_thread(lambda: 1 / 0)


def test_it_is_another_thread(tasks: Crew) -> None:
    idents = tasks.run(lambda: (to_thread(threading.get_ident), threading.get_ident()))
    assert idents[0] != idents[1] == tasks.loop.ident


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), OSError(5, "x"), KeyboardInterrupt()])
def test_exception(crew: Crew, error: BaseException) -> None:
    def fails() -> None:
        raise error

    def handle() -> Any:
        try:
            to_thread(fails)
        except BaseException as caught:
            return caught, traceback.extract_tb(caught.__traceback__)

    caught, frames = crew.run(handle)
    assert caught is error
    assert [frame.name for frame in frames][-1] == "fails"


def test_nothing_is_kept(crew: Crew) -> None:
    """Neither the result nor the exception, nor what its traceback refers to."""

    class Thing(Exception):
        pass

    def returns() -> Any:
        thing = Thing()
        references.append(weakref.ref(thing))
        return thing

    def raises() -> Any:
        raise returns()

    def handle() -> None:
        assert type(to_thread(returns)) is Thing
        with contextlib.suppress(Thing):
            to_thread(raises)

    references: list[Any] = []
    gc.disable()
    try:
        crew.run(handle)
        wait_until(lambda: [reference() for reference in references] == [None, None])
    finally:
        gc.enable()


def test_others_run_meanwhile(crew: Crew) -> None:
    let_go = threading.Event()
    jobs = [crew.start(to_thread, let_go.wait, TIMEOUT) for _ in range(3)]
    assert crew.run(lambda: "another") == "another"
    assert not any(job.over.is_set() for job in jobs)
    let_go.set()
    assert [job.result() for job in jobs] == [True] * 3


def test_context_variables(crew: Crew) -> None:
    """Seen there, and not changed from there."""

    def function() -> str:
        before = variable.get()
        variable.set("changed")
        return before

    def handle(value: str) -> Any:
        variable.set(value)
        found = [to_thread(function)]
        sleep(0)
        return [*found, variable.get(), to_thread(variable.get)]

    jobs = [crew.start(handle, f"value {number}") for number in range(5)]
    for number, job in enumerate(jobs):
        assert job.result() == [f"value {number}"] * 3
    assert variable.get() == "none"


def test_threads_are_used_again(tasks: Crew) -> None:
    idents = {tasks.run(to_thread, threading.get_ident) for _ in range(20)}
    assert len(idents) == 1
    assert len(workers()) == 1


def test_only_a_few_at_a_time(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_offload, "STUCK", TIMEOUT)
    monkeypatch.setattr(_offload, "FEW", 3)
    running, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal running, most
        with guard:
            running += 1
            most = max(most, running)
        time.sleep(0.001)
        with guard:
            running -= 1

    def handle() -> None:
        spawned = [spawn(to_thread, work) for _ in range(50)]
        assert all(each.join(TIMEOUT) for each in spawned)

    # The fourth one watches; it would be left behind, asleep.
    monkeypatch.setattr(_offload.Pool, "watch", lambda self: watching.wait(TIMEOUT))
    watching = threading.Event()
    tasks.run(handle)
    watching.set()
    assert 1 < most <= 3


def test_calls_that_wait_for_each_other(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many: there are more threads when none gets on."""
    monkeypatch.setattr(_offload, "STUCK", 0.002)
    count = 4 * _offload.FEW
    barrier = threading.Barrier(count)

    def handle() -> None:
        spawned = [spawn(to_thread, barrier.wait, TIMEOUT) for _ in range(count)]
        assert all(each.join(TIMEOUT) for each in spawned)

    tasks.run(handle)
    assert not barrier.broken
    assert len(workers()) >= count


def test_threads_with_nothing_to_do_end(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_offload, "IDLE", 0.01)
    before = tasks.run(to_thread, threading.current_thread)
    before.join(TIMEOUT)
    assert not before.is_alive()
    assert tasks.run(to_thread, threading.current_thread) is not before


def test_calls_and_ends_at_the_same_time(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is about to end is given nothing, or does it."""
    monkeypatch.setattr(_offload, "IDLE", 0.0002)

    def handle() -> int:
        total = 0
        for number in range(300):
            total += to_thread(int, number)
            sleep(number % 5 / 10000)
        return total

    jobs = [tasks.start(handle) for _ in range(3)]
    for job in jobs:
        assert job.result() == sum(range(300))


def test_given_something_to_do_when_it_is_about_to_end(
    tasks: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does it, and then rests as before."""
    genuine, calls = _offload.Pool.retire, []

    def retire(self: Any, thread: Any) -> bool:
        if not calls:
            calls.append(_offload._Call(threading.current_thread))
            self._submit(calls[0])
            assert thread.call is calls[0]
        monkeypatch.setattr(_offload, "IDLE", TIMEOUT)
        return genuine(self, thread)

    monkeypatch.setattr(_offload, "IDLE", 0.001)
    monkeypatch.setattr(_offload.Pool, "retire", retire)
    first = tasks.run(to_thread, threading.current_thread)
    wait_until(lambda: calls and calls[0].done.is_set())
    assert calls[0].result is first
    for _ in range(3):
        assert tasks.run(to_thread, threading.current_thread) is first


def test_they_end_with_the_hub(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = _offload._Thread.run

    def run(self: Any) -> None:
        genuine(self)
        time.sleep(0.05)  # the end waits for them

    monkeypatch.setattr(_offload._Thread, "run", run)
    tasks.run(to_thread, int)
    assert len(workers()) == 1
    assert workers()[0].daemon
    tasks.stop()
    assert workers() == []


def test_several_times(make_crew: Any) -> None:
    """A thread that serves again has threads again."""
    for _ in range(2):
        crew = make_crew("multiplexing")
        assert crew.run(to_thread, int) == 0
        crew.stop()


def test_no_thread_to_be_had(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    let_go = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(_offload._Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            tasks.run(to_thread, int)
    first = tasks.start(to_thread, let_go.wait, TIMEOUT)
    wait_until(workers)
    with monkeypatch.context() as patched:
        patched.setattr(_offload._Thread, "start", start)
        second = tasks.start(to_thread, int)
        assert tasks.run(lambda: "another") == "another"
        let_go.set()
        assert (first.result(), second.result()) == (True, 0)


# --- unwound


def test_killed_while_it_waits(tasks: Crew) -> None:
    """The work goes on, what comes of it is dropped; the hub's end does not wait for it."""
    begun, let_go, ended = threading.Event(), threading.Event(), threading.Event()

    class Result:
        pass

    def work() -> Any:
        begun.set()
        assert let_go.wait(TIMEOUT)
        result = Result()
        references.append(weakref.ref(result))
        ended.set()
        return result

    references: list[Any] = []
    job = tasks.start(to_thread, work)
    assert begun.wait(TIMEOUT)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    assert len(workers()) == 1
    let_go.set()
    assert ended.wait(TIMEOUT)
    wait_until(lambda: references[0]() is None)
    wait_until(lambda: workers() == [])


def test_killed_before_it_has_begun(tasks: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not done at all."""
    monkeypatch.setattr(_offload, "FEW", 1)
    monkeypatch.setattr(_offload, "STUCK", TIMEOUT)
    begun, let_go, called = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        assert let_go.wait(TIMEOUT)

    monkeypatch.setattr(_offload.Pool, "watch", lambda self: let_go.wait(TIMEOUT))
    first = tasks.start(to_thread, work)
    assert begun.wait(TIMEOUT)
    second = tasks.start(to_thread, called.append, "called")
    wait_until(lambda: len(workers()) == 2)
    tasks.stop()
    let_go.set()
    for job in (first, second):
        with pytest.raises(GreenletExit):
            job.result()
    wait_until(lambda: workers() == [])
    assert called == []


def test_it_talks_to_tasks(tasks: Crew) -> None:
    """The work may use the primitives: it is a thread."""
    there: Any = Queue()
    back: Any = Queue()
    event = Event()

    def work() -> int:
        event.set()
        total = 0
        while (item := there.get(timeout=TIMEOUT)) is not None:
            total += item
            back.put(total)
        return total

    def handle() -> Any:
        def feed() -> list[int]:
            assert event.wait(TIMEOUT)
            found = []
            for number in range(10):
                there.put(number)
                found.append(back.get(timeout=TIMEOUT))
            there.put(None)
            return found

        sums: list[int] = []
        spawned = spawn(lambda: sums.extend(feed()))
        total = to_thread(work)
        spawned.join()
        return total, sums

    assert tasks.run(handle) == (45, [0, 1, 3, 6, 10, 15, 21, 28, 36, 45])


def test_in_a_hook(module: Any, time_limit: None) -> None:
    """Handlers go on meanwhile: one of them may be what the hook waits for."""
    go_on, in_handler = threading.Event(), threading.Event()

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        return not in_handler.is_set() or bool(to_thread(go_on.wait, TIMEOUT))

    def handle(self: Any) -> None:
        if self.rfile.readline() == b"first\n":
            in_handler.set()
            self.rfile.readline()
            go_on.set()
        self.wfile.write(b"done")

    server_class = new("Server", module.ThreadingTCPServer, verify_request=verify_request)
    with (
        server_class(("127.0.0.1", 0), handling(module, handle)) as server,
        serving(server),
        connect(server) as first,
    ):
        first.sendall(b"first\n")
        assert in_handler.wait(TIMEOUT)
        second = Background(ask, server, b"second\n")
        first.sendall(b"go on\n")
        assert receive(first) == b"done"
        assert second.result() == b"done"


def test_the_program_ends_while_work_is_done(programs: Any) -> None:
    """The threads are daemons."""
    found = programs.run_script(
        """
        import socket, threading, time
        from fastsock import BaseRequestHandler
        from fastsock.multiplexing import MultiplexingTCPServer, to_thread

        class Handler(BaseRequestHandler):
            def handle(self):
                to_thread(work)

        def work():
            server._BaseServer__shutdown_request = True
            time.sleep(1000)

        with MultiplexingTCPServer(("127.0.0.1", 0), Handler) as server:
            server.daemon_threads = True
            with socket.create_connection(server.server_address):
                server.serve_forever()
        print("over")
        """
    )
    assert (found.status, found.out, found.err) == (0, "over\n", "")


@pytest.mark.parametrize("end", ["return", "raise KeyError('of the child')", "sys.exit(3)"])
def test_a_child_that_it_forks(programs: Any, end: str) -> None:
    """It ends with the thread that has forked, as it does of a threading.Thread."""
    fails = end.startswith("raise")
    found = programs.run_script(
        f"""
        import os, socket, sys, threading
        from fastsock import StreamRequestHandler
        from fastsock.multiplexing import MultiplexingTCPServer, sleep, to_thread

        def fork():
            children.append(os.fork())
            if children[-1] == 0:
                os.write(1, b"child\\n")
                {end}

        def wait():
            for _ in range(2000):
                if (ended := os.waitpid(children[-1], os.WNOHANG))[0]:
                    return ended[1]
                sleep(0.01)
            os.kill(children[-1], 9)

        class Handler(StreamRequestHandler):
            def handle(self):
                for _ in range(2):
                    to_thread(fork)
                    print(wait(), flush=True)
                print(to_thread(int, 7), flush=True)
                server._BaseServer__shutdown_request = True

        children = []
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        print(wait(), flush=True)
        with MultiplexingTCPServer(("127.0.0.1", 0), Handler) as server:
            with socket.create_connection(server.server_address):
                server.serve_forever()
        """
    )
    assert (found.status, found.out.split()) == (0, ["child", "0"] * 3 + ["7"]), found
    assert found.err.count("Traceback") == found.err.count("\nKeyError") == 3 * fails
    assert found.err.count("Exception in thread fastsock to_thread") == 2 * fails
