"""Event, between tasks of one hub, of two, and threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from crews import Cast, Crew, elapsed
from greenlet import GreenletExit
from support import TIMEOUT, wait_until

from fastsock.multiplexing import Event

SHORT = 0.03


@pytest.mark.parametrize("make", [threading.Event, Event])
def test_an_event_by_itself(make: Any) -> None:
    event = make()
    assert not event.is_set()
    assert event.wait(0) is False
    assert event.wait(-1) is False
    result, seconds = elapsed(event.wait, SHORT)
    assert result is False
    assert SHORT <= seconds < TIMEOUT
    event.set()
    event.set()
    assert event.is_set()
    assert event.wait() is True
    assert event.wait(0) is True
    event.clear()
    event.clear()
    assert not event.is_set()
    assert event.wait(timeout=0) is False


def test_all_who_wait_are_woken(cast: Cast) -> None:
    event = Event()
    jobs = cast.start_in_order(event, 8, lambda number: event.wait(None if number % 2 else TIMEOUT))
    cast.start(event.set).result()
    assert [job.result() for job in jobs] == [True] * 8
    assert event._waiting == 0


def test_set_and_clear_at_once(cast: Cast) -> None:
    """Who has waited for it goes on, though it is not set any more."""
    event = Event()
    jobs = cast.start_in_order(event, 4, lambda number: event.wait())
    event.set()
    event.clear()
    assert [job.result() for job in jobs] == [True] * 4
    assert not event.is_set()


def test_an_event_that_is_not_set_in_time(cast: Cast) -> None:
    event = Event()
    jobs = [cast.start(lambda: elapsed(event.wait, SHORT)) for _ in range(4)]
    for job in jobs:
        result, seconds = job.result()
        assert result is False
        assert SHORT <= seconds < TIMEOUT
    assert event._waiting == 0


def test_ping_pong(cast: Cast) -> None:
    """No wake-up is lost."""
    events, count = [Event(), Event()], []

    def play(mine: int) -> None:
        for _ in range(300):
            assert events[mine].wait(TIMEOUT)
            events[mine].clear()
            count.append(mine)
            events[1 - mine].set()

    jobs = [cast.start(play, mine) for mine in (0, 1)]
    events[0].set()
    for job in jobs:
        job.result()
    assert count == [0, 1] * 300


def test_killed_while_it_waits_for_an_event(tasks: Crew) -> None:
    event, unwound = Event(), []

    def killed() -> None:
        try:
            event.wait(TIMEOUT)
        finally:
            unwound.append(True)

    jobs = [tasks.start(killed) for _ in range(3)]
    wait_until(lambda: event._waiting == 3)
    tasks.stop()
    assert unwound == [True] * 3
    assert event._waiting == 0
    event.set()
    for job in jobs:
        with pytest.raises(GreenletExit):
            job.result()


def test_a_timer_sets_an_event(crew: Crew) -> None:
    """From a thread that knows of no hub."""
    event = Event()

    def handle() -> bool:
        threading.Timer(SHORT, event.set).start()
        return event.wait(TIMEOUT)

    assert crew.run(handle) is True
