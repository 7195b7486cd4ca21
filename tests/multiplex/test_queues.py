"""Queue, between tasks of one hub, of two, and threads."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import Any

import pytest
from crews import Cast, Crew
from greenlet import GreenletExit
from support import TIMEOUT, Background, wait_until

from fastsock import _hubs
from fastsock.multiplexing import Queue, sleep, spawn

SHORT = 0.03


@pytest.mark.parametrize("make", [queue.Queue, Queue])
def test_a_queue_by_itself(make: Any) -> None:
    items = make(2)
    assert (items.maxsize, items.qsize(), items.empty(), items.full()) == (2, 0, True, False)
    with pytest.raises(queue.Empty):
        items.get_nowait()
    with pytest.raises(queue.Empty):
        items.get(block=False)
    with pytest.raises(queue.Empty):
        items.get(timeout=0)
    items.put("a")
    items.put_nowait("b")
    assert (items.qsize(), items.empty(), items.full()) == (2, False, True)
    with pytest.raises(queue.Full):
        items.put_nowait("c")
    with pytest.raises(queue.Full):
        items.put("c", timeout=0)
    with pytest.raises(queue.Full):
        items.put("c", False, -1)
    for call in (lambda: items.put("c", timeout=-1), lambda: items.get(timeout=-1)):
        with pytest.raises(ValueError, match="'timeout' must be a non-negative number"):
            call()
    begin = time.monotonic()
    with pytest.raises(queue.Full):
        items.put("c", timeout=SHORT)
    assert time.monotonic() >= begin + SHORT
    assert [items.get(), items.get(timeout=1)] == ["a", "b"]
    begin = time.monotonic()
    with pytest.raises(queue.Empty):
        items.get(timeout=SHORT)
    assert time.monotonic() >= begin + SHORT
    assert items.unfinished_tasks == 2
    items.task_done()
    items.task_done()
    items.join()
    with pytest.raises(ValueError, match="called too many times"):
        items.task_done()
    assert make[int].__origin__ is make


@pytest.mark.parametrize("make", [queue.Queue, Queue])
@pytest.mark.parametrize("maxsize", [0, -1])
def test_a_queue_without_a_limit(make: Any, maxsize: int) -> None:
    items = make(maxsize)
    for number in range(10_000):
        items.put_nowait(number)
    assert not items.full()
    assert [items.get_nowait() for _ in range(10_000)] == list(range(10_000))


@pytest.mark.parametrize("maxsize", [0, 1, 3])
def test_many_producers_and_consumers(cast: Cast, maxsize: int) -> None:
    """Every item comes out once, and those of one producer in order."""
    items: Any = Queue(maxsize)

    def produce(producer: int) -> None:
        for number in range(100):
            items.put((producer, number))
            assert maxsize == 0 or items.qsize() <= maxsize

    def consume() -> list[Any]:
        found = []
        while (item := items.get()) is not None:
            found.append(item)
            items.task_done()
        return found

    consumers = [cast.start(consume) for _ in range(4)]
    for producer in [cast.start(produce, number) for number in range(4)]:
        producer.result()
    items.join()
    for _ in consumers:
        items.put(None)
    found = [consumer.result() for consumer in consumers]
    assert sorted(item for each in found for item in each) == [
        (p, n) for p in range(4) for n in range(100)
    ]
    for each in found:
        for producer in range(4):
            numbers = [number for which, number in each if which == producer]
            assert numbers == sorted(numbers)


def test_who_has_waited_longest_gets_the_item(cast: Cast) -> None:
    items: Any = Queue()
    jobs = cast.start_in_order(items, 8, lambda number: items.get())
    cast.start(lambda: [items.put(number) for number in range(8)]).result()
    assert [job.result() for job in jobs] == list(range(8))


def test_who_has_waited_longest_puts_its_item(cast: Cast) -> None:
    items: Any = Queue(1)
    items.put("first")
    jobs = cast.start_in_order(items, 8, lambda number: items.put(number))
    assert items.qsize() == 1
    found = cast.start(lambda: [items.get(timeout=TIMEOUT) for _ in range(9)]).result()
    assert found == ["first", *range(8)]
    for job in jobs:
        job.result()


def test_an_item_that_does_not_come_in_time(cast: Cast) -> None:
    """Who has given up takes none with him."""
    items: Any = Queue()

    def give_up() -> float:
        begin = time.monotonic()
        with pytest.raises(queue.Empty):
            items.get(timeout=SHORT)
        return time.monotonic() - begin

    for job in [cast.start(give_up) for _ in range(4)]:
        assert SHORT <= job.result() < TIMEOUT
    items.put("item")
    assert items.qsize() == 1
    assert cast.start(items.get).result() == "item"


def test_room_that_does_not_come_in_time(cast: Cast) -> None:
    """Nothing of those who have given up is put."""
    items: Any = Queue(1)
    items.put("item")

    def give_up() -> float:
        begin = time.monotonic()
        with pytest.raises(queue.Full):
            items.put("another", timeout=SHORT)
        return time.monotonic() - begin

    for job in [cast.start(give_up) for _ in range(4)]:
        assert SHORT <= job.result() < TIMEOUT
    assert [items.get(), items.qsize(), items.unfinished_tasks] == ["item", 0, 1]


def test_timeouts_and_items_at_the_same_time(cast: Cast) -> None:
    items: Any = Queue(2)
    taken: list[int] = []
    put: list[int] = []

    def produce(producer: int) -> None:
        for number in range(100):
            try:
                items.put((producer, number), timeout=number % 3 / 4000)
                put.append((producer, number))
            except queue.Full:
                pass

    def consume() -> None:
        for number in range(100):
            with contextlib.suppress(queue.Empty):
                taken.append(items.get(timeout=number % 4 / 4000))

    jobs = [cast.start(produce, number) for number in range(3)]
    for job in jobs + [cast.start(consume) for _ in range(3)]:
        job.result()
    while not items.empty():
        taken.append(items.get_nowait())
    assert sorted(taken) == sorted(put)
    assert items._waiting == 0


def test_join(cast: Cast) -> None:
    items: Any = Queue()
    items.put("one")
    items.put("two")
    jobs = cast.start_in_order(items, 4, lambda number: items.join())
    items.get()
    items.task_done()
    assert items._waiting == 4
    items.get()
    assert items._waiting == 4
    cast.start(items.task_done).result()
    for job in jobs:
        job.result()


def test_a_thousand_share_a_queue(crew: Crew) -> None:
    items: Any = Queue(10)
    found: list[int] = []

    def work() -> None:
        found.append(items.get())
        items.task_done()

    def handle() -> None:
        spawned = [spawn(work) for _ in range(1000)]
        for number in range(1000):
            items.put(number)
        items.join()
        assert all(each.join(TIMEOUT) for each in spawned)

    crew.run(handle)
    assert sorted(found) == list(range(1000))


def test_more_room_than_before(crew: Crew) -> None:
    """maxsize may be changed, as that of queue.Queue; it is looked at with the next get()."""
    items: Any = Queue(1)
    items.put(0)
    jobs = []
    for number in (1, 2):
        jobs.append(crew.start(items.put, number))
        wait_until(lambda number=number: items._waiting == number)
    items.maxsize = 5
    assert items.get() == 0
    for job in jobs:
        job.result()
    assert [items.get(), items.get()] == [1, 2]


# --- unwound


def test_killed_while_it_waits_for_an_item(tasks: Crew) -> None:
    items: Any = Queue()
    job = tasks.start(items.get)
    wait_until(lambda: items._waiting == 1)
    thread = Background(items.get)
    wait_until(lambda: items._waiting == 2)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    items.put("item")
    assert thread.result() == "item"


def test_killed_while_it_waits_for_room(tasks: Crew) -> None:
    items: Any = Queue(1)
    items.put("first")
    job = tasks.start(items.put, "never")
    wait_until(lambda: items._waiting == 1)
    thread = Background(items.put, "second")
    wait_until(lambda: items._waiting == 2)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    assert items.get() == "first"
    thread.result()
    assert items.get() == "second"
    assert items.empty()


def test_killed_while_it_waits_for_all_to_be_done(tasks: Crew) -> None:
    items: Any = Queue()
    items.put("item")
    job = tasks.start(items.join)
    wait_until(lambda: items._waiting == 1)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    assert items._waiting == 0


@pytest.mark.parametrize("somebody_waits", [True, False])
@pytest.mark.parametrize("killed_first", [True, False])
def test_killed_when_it_was_given_an_item(
    tasks: Crew, killed_first: bool, somebody_waits: bool
) -> None:
    """In the same breath: the item is the next one's, before those that come after it."""
    items: Any = Queue()
    doomed: list[Any] = []

    def killed() -> None:
        doomed.append(_hubs.here().current)
        items.get()

    def kill_and_put() -> None:
        if killed_first:
            _hubs.here().kill(doomed[0])
        items.put("first")
        if not killed_first:
            _hubs.here().kill(doomed[0])
        items.put("second")

    job = tasks.start(killed)
    wait_until(lambda: items._waiting == 1)
    others = []
    if somebody_waits:
        for number in (2, 3):
            others.append(tasks.start(items.get))
            wait_until(lambda number=number: items._waiting == number)
    tasks.run(kill_and_put)
    with pytest.raises(GreenletExit):
        job.result()
    if somebody_waits:
        assert {other.result() for other in others} == {"first", "second"}
    else:
        assert [items.get(timeout=1), items.get(timeout=1)] == ["first", "second"]
    assert items.empty()


def test_an_item_between_hubs_wakes_a_hub_that_sleeps(make_crew: Any) -> None:
    one, other = make_crew("multiplexing"), make_crew("multiplexing")
    there: Any = Queue()
    back: Any = Queue()

    def answer() -> None:
        for _ in range(100):
            back.put(there.get(timeout=TIMEOUT) + 1)

    def ask() -> int:
        number = 0
        for _ in range(100):
            there.put(number)
            number = back.get(timeout=TIMEOUT)
            sleep(0)
        return number

    job = one.start(answer)
    assert other.run(ask) == 100
    job.result()
