"""Lock, between tasks of one hub, of two, and threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from crews import Cast, Crew, elapsed
from greenlet import GreenletExit
from support import TIMEOUT, Background, ask, handling, new, serving, wait_until

from fastsock import _hubs
from fastsock.multiplexing import Event, Lock, sleep, spawn

SHORT = 0.03


# --- Lock


@pytest.mark.parametrize("make", [threading.Lock, Lock])
def test_a_lock_by_itself(make: Any) -> None:
    lock = make()
    assert not lock.locked()
    assert lock.acquire() is True
    assert lock.locked()
    assert lock.acquire(False) is False
    assert lock.acquire(blocking=False) is False
    assert lock.acquire(timeout=0) is False
    result, seconds = elapsed(lock.acquire, True, SHORT)
    assert result is False
    assert SHORT <= seconds < TIMEOUT
    lock.release()
    assert not lock.locked()
    with lock as entered:
        assert entered is True
        assert lock.locked()
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        lock.release()
    with pytest.raises(ValueError, match="can't specify a timeout for a non-blocking call"):
        lock.acquire(False, 1)
    with pytest.raises(ValueError, match="timeout value must be"):
        lock.acquire(timeout=-2)
    with pytest.raises(OverflowError):
        lock.acquire(timeout=threading.TIMEOUT_MAX * 2)
    with pytest.raises(TypeError):
        lock.acquire(timeout=None)
    assert lock.acquire(timeout=threading.TIMEOUT_MAX) is True
    assert repr(lock).startswith("<locked ")


def test_one_at_a_time(cast: Cast) -> None:
    lock, inside, most, done = Lock(), 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(30):
            with lock:
                inside += 1
                most = max(most, inside)
                sleep(0)
                inside -= 1
                done += 1

    for job in [cast.start(work) for _ in range(8)]:
        job.result()
    assert (most, done) == (1, 240)
    assert not lock.locked()


def test_first_come_first_served(cast: Cast) -> None:
    lock, order = Lock(), []

    def work(number: int) -> None:
        with lock:
            order.append(number)

    with lock:
        jobs = cast.start_in_order(lock, 12, work)
    for job in jobs:
        job.result()
    assert order == list(range(12))
    assert not lock.locked()


def test_a_lock_is_handed_over(cast: Cast) -> None:
    """Who releases it and wants it again stands behind who has waited."""
    lock, order = Lock(), []

    def wait(number: int) -> None:
        with lock:
            order.append("waiting")

    lock.acquire()
    (job,) = cast.start_in_order(lock, 1, wait)

    def again() -> None:
        lock.release()
        assert lock.locked()
        with lock:
            order.append("again")

    cast.start(again).result()
    job.result()
    assert order == ["waiting", "again"]


def test_released_by_somebody_else(cast: Cast) -> None:
    lock = Lock()
    lock.acquire()
    (job,) = cast.start_in_order(lock, 1, lambda number: lock.acquire())
    cast.start(lock.release).result()
    assert job.result() is True
    assert lock.locked()


def test_a_lock_that_is_not_had_in_time(cast: Cast) -> None:
    """Neither too early nor for ever, and who has given up gets nothing."""
    lock, order = Lock(), []

    def give_up(number: int) -> Any:
        return elapsed(lock.acquire, timeout=SHORT)

    def wait(number: int) -> None:
        with lock:
            order.append(number)

    lock.acquire()
    first = cast.start_in_order(lock, 1, wait)
    second = [cast.start(give_up, number) for number in range(4)]
    for job in second:
        got, seconds = job.result()
        assert got is False
        assert SHORT <= seconds < TIMEOUT
    assert lock._waiting == 1
    third = cast.start_in_order(lock, 1, lambda number: wait(1))
    lock.release()
    for job in first + third:
        job.result()
    assert order == [0, 1]
    assert not lock.locked()


def test_a_lock_in_time(cast: Cast) -> None:
    lock = Lock()
    lock.acquire()
    jobs = cast.start_in_order(lock, 4, lambda number: lock.acquire(timeout=TIMEOUT))
    for job in jobs:
        lock.release()
        assert job.result() is True
    assert lock.locked()


def test_timeouts_and_releases_at_the_same_time(cast: Cast) -> None:
    """Whoever was given the lock has it, however late: it is never lost."""
    lock, got = Lock(), [0, 0]

    def work() -> None:
        for number in range(60):
            if lock.acquire(timeout=number % 4 / 4000):
                sleep(number % 3 / 4000)
                got[0] += 1
                lock.release()
            else:
                got[1] += 1

    for job in [cast.start(work) for _ in range(6)]:
        job.result()
    assert sum(got) == 360
    assert got[0] > 60
    assert lock.acquire(False)


@pytest.mark.parametrize("count", [1000])
def test_a_thousand_contend(crew: Crew, count: int) -> None:
    lock, total = Lock(), 0

    def add() -> None:
        nonlocal total
        for _ in range(3):
            with lock:
                before = total
                sleep(0)
                total = before + 1

    def handle() -> None:
        spawned = [spawn(add) for _ in range(count)]
        for each in spawned:
            assert each.join(TIMEOUT)

    crew.run(handle)
    assert total == 3 * count


def test_killed_while_it_waits_for_a_lock(tasks: Crew) -> None:
    """Those behind it are served; it has not got the lock."""
    lock, order, other = Lock(), [], Lock()
    lock.acquire()
    other.acquire()

    def killed() -> None:
        try:
            with lock:
                order.append("killed")
        finally:
            order.append("unwound")

    job = tasks.start(killed)
    wait_until(lambda: lock._waiting == 1)
    thread = Background(lock.acquire)
    wait_until(lambda: lock._waiting == 2)
    tasks.stop()
    assert order == ["unwound"]
    with pytest.raises(GreenletExit):
        job.result()
    assert lock._waiting == 1
    lock.release()
    assert thread.result() is True


@pytest.mark.parametrize("killed_first", [True, False])
def test_killed_when_it_was_given_the_lock(tasks: Crew, killed_first: bool) -> None:
    """In the same breath: it hands it on."""
    lock, doomed = Lock(), []
    lock.acquire()

    def killed() -> None:
        doomed.append(_hubs.here().current)
        lock.acquire()

    def kill_and_release() -> None:
        if killed_first:
            _hubs.here().kill(doomed[0])
            lock.release()
        else:
            lock.release()
            _hubs.here().kill(doomed[0])
        assert lock.locked()

    first = tasks.start(killed)
    wait_until(lambda: lock._waiting == 1)
    second = tasks.start(lock.acquire)
    wait_until(lambda: lock._waiting == 2)
    tasks.run(kill_and_release)
    with pytest.raises(GreenletExit):
        first.result()
    assert second.result() is True
    lock.release()
    assert not lock.locked()


def test_a_doomed_task_may_take_what_is_free(tasks: Crew) -> None:
    lock, seen = Lock(), []

    def killed() -> None:
        try:
            sleep(TIMEOUT)
        finally:
            with lock:
                seen.append(lock.locked())
            lock.acquire()
            try:
                with lock:
                    seen.append("never")
            finally:
                lock.release()

    def also_killed() -> None:
        begun.set()
        killed()

    begun = threading.Event()
    job = tasks.start(also_killed)
    assert begun.wait(TIMEOUT)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    assert seen == [True]
    assert not lock.locked()


def test_a_hook_waits_for_a_handler(each: str, module: Any, time_limit: None) -> None:
    """The handler goes on, though the loop's thread is in the hook."""
    lock, event, seen = Lock(), Event(), []

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        if event.is_set():
            seen.append(lock.acquire(timeout=0.001))
            seen.append(lock.acquire(timeout=TIMEOUT))
            lock.release()
        return True

    def handle(self: Any) -> None:
        if not event.is_set():
            with lock:
                event.set()
                wait_in_handler(lambda: seen)
        self.wfile.write(b"done")

    server_class = new("Server", module.ThreadingTCPServer, verify_request=verify_request)
    with server_class(("127.0.0.1", 0), handling(module, handle)) as server, serving(server):
        first = Background(ask, server)
        wait_until(event.is_set)
        assert ask(server) == b"done"
        assert first.result() == b"done"
    assert seen == [False, True]


def wait_in_handler(predicate: Callable[[], Any]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not predicate():
        assert time.monotonic() < deadline
        sleep(0.0005)
