"""spawn()."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import pytest
from crews import Crew, module_of
from greenlet import GreenletExit
from support import TIMEOUT, connect, handling, receive, serving, wait_until

from fastsock.multiplexing import Event, sleep, spawn

SHORT = 0.03


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What threading.excepthook was called with."""
    reported: list[Any] = []

    def hook(arguments: Any) -> None:
        time.sleep(SHORT)  # who joins it waits for this as well
        reported.append((arguments.exc_type, arguments.exc_value, arguments.exc_traceback))

    monkeypatch.setattr(threading, "excepthook", hook)
    return reported


def test_it_runs_beside_the_caller(crew: Crew) -> None:
    there, back = Event(), Event()

    def beside(*args: Any, **keywords: Any) -> None:
        found.append((args, keywords))
        there.set()
        assert back.wait(TIMEOUT)

    def handle() -> None:
        spawned = spawn(beside, 1, function=2, name=3)
        assert there.wait(TIMEOUT)
        assert spawned.is_alive()
        assert spawned.join(0) is False
        begin = time.monotonic()
        assert spawned.join(SHORT) is False
        assert time.monotonic() - begin >= SHORT
        back.set()
        assert spawned.join(TIMEOUT) is True
        assert not spawned.is_alive()
        assert spawned.join() is True
        assert spawned.join(0) is True

    found: list[Any] = []
    crew.run(handle)
    assert found == [((1,), {"function": 2, "name": 3})]


def test_in_no_handler() -> None:
    found: list[Any] = []
    spawned = spawn(lambda: found.append(threading.current_thread()))
    assert spawned.join() is True
    assert found[0] is not threading.current_thread()
    assert not found[0].daemon
    assert "test_in_no_handler" in found[0].name


def test_where_it_runs(crew: Crew, each: str) -> None:
    def handle() -> Any:
        threads: list[Any] = []
        spawned = spawn(lambda: threads.append(threading.current_thread()))
        spawned.join()
        return threads[0], threading.current_thread()

    its, ours = crew.run(handle)
    assert (its is ours) == (each == "multiplexing")


@pytest.mark.parametrize("daemon_threads", [True, False])
def test_a_daemon_as_the_caller(make_crew: Any, daemon_threads: bool) -> None:
    crew = make_crew("threading", daemon_threads=daemon_threads)
    daemons: list[bool] = []

    def handle() -> None:
        spawn(lambda: daemons.append(threading.current_thread().daemon)).join()

    crew.run(handle)
    assert daemons == [daemon_threads]


def test_they_spawn_in_turn(crew: Crew) -> None:
    def grow(depth: int) -> None:
        if depth:
            spawned = [spawn(grow, depth - 1) for _ in range(3)]
            for each in spawned:
                each.join()
        leaves.append(depth)

    leaves: list[int] = []
    crew.run(grow, 4)
    assert len(leaves) == 1 + 3 + 9 + 27 + 81


def test_it_may_outlive_the_handler(crew: Crew) -> None:
    event, over = Event(), threading.Event()

    def beside() -> None:
        assert event.wait(TIMEOUT)
        over.set()

    spawned = crew.run(spawn, beside)
    assert spawned.is_alive()
    event.set()
    assert spawned.join(TIMEOUT)
    assert over.is_set()


def test_joined_from_anywhere(make_crew: Any) -> None:
    event = Event()
    one, other, threads = (
        make_crew(kind) for kind in ("multiplexing", "multiplexing", "threading")
    )
    for crew in (one, threads):
        event.clear()
        spawned = crew.run(spawn, event.wait, TIMEOUT)
        jobs = [each.start(spawned.join, TIMEOUT) for each in (one, other, threads)]
        for each in (one, other, threads):
            assert each.run(spawned.join, 0) is False
        event.set()
        assert [job.result() for job in jobs] == [True] * 3
        assert spawned.join(0) is True


def test_it_cannot_join_itself(crew: Crew, reported: list[Any]) -> None:
    def handle() -> None:
        def beside() -> None:
            assert ready.wait(TIMEOUT)
            spawned[0].join()

        ready, spawned = Event(), []
        spawned.append(spawn(beside))
        ready.set()
        spawned[0].join()

    crew.run(handle)
    assert [kind for kind, _, _ in reported] == [RuntimeError]
    assert "cannot join current t" in str(reported[0][1])


# --- exceptions


def test_an_exception_is_reported(crew: Crew, reported: list[Any]) -> None:
    error = ZeroDivisionError()

    def fails() -> None:
        raise error

    assert crew.run(lambda: spawn(fails).join()) is True
    ((kind, value, trace),) = reported
    assert (kind, value) == (ZeroDivisionError, error)
    while trace.tb_next is not None:
        trace = trace.tb_next
    assert trace.tb_frame.f_code is fails.__code__
    reported.clear()
    del trace
    assert crew.run(lambda: "goes on") == "goes on"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """shown(): what has been written to stderr, by the hook that pytest has replaced."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    return lambda: capsys.readouterr().err


def test_an_exception_is_shown(crew: Crew, shown: Any) -> None:
    def fails() -> None:
        raise ZeroDivisionError("shown")

    crew.run(lambda: spawn(fails).join())
    text = shown()
    assert text.startswith("Exception in thread ")
    assert text.endswith("ZeroDivisionError: shown\n")


def test_a_quiet_end(crew: Crew, shown: Any) -> None:
    def ends() -> None:
        raise SystemExit(1)

    assert crew.run(lambda: spawn(ends).join()) is True
    assert shown() == ""
    assert crew.run(lambda: "goes on") == "goes on"


def test_a_hook_that_fails(
    tasks: Crew, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hook(arguments: Any) -> None:
        raise LookupError("the hook")

    def fails() -> None:
        raise ZeroDivisionError("the task")

    monkeypatch.setattr(threading, "excepthook", hook)
    assert tasks.run(lambda: spawn(fails).join()) is True
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: the task" in shown
    assert shown.endswith("LookupError: the hook\n")


# --- the server's end


def test_the_end_waits_for_it(make_crew: Any) -> None:
    crew = make_crew("multiplexing")
    event, ended = Event(), threading.Event()

    def beside() -> None:
        event.wait()
        sleep(SHORT)
        ended.set()

    crew.run(spawn, beside)
    crew.server._BaseServer__shutdown_request = True
    event.set()
    crew.loop.result()
    crew.server.server_close()
    assert ended.is_set()


def test_the_end_unwinds_it(tasks: Crew, reported: list[Any]) -> None:
    event, unwound = Event(), []

    def beside() -> None:
        try:
            event.wait()
        except GreenletExit:
            unwound.append(True)
            raise

    spawned = tasks.run(lambda: [spawn(beside) for _ in range(3)])
    wait_until(lambda: event._waiting == 3)
    tasks.stop()
    assert unwound == [True] * 3
    assert not any(each.is_alive() for each in spawned)
    assert reported == []


def test_spawned_while_it_is_unwound(tasks: Crew) -> None:
    """It is not begun."""
    event, called = Event(), []

    def handle() -> None:
        try:
            event.wait()
        finally:
            spawned.append(spawn(called.append, True))

    spawned: list[Any] = []
    job = tasks.start(handle)
    wait_until(lambda: event._waiting == 1)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    assert called == []
    assert not spawned[0].is_alive()


def test_the_end_of_others_while_it_sends(folder: str, time_limit: None) -> None:
    """A handler that waits for all others learns of it, though it was sending at that moment."""
    event, joining = Event(), threading.Event()

    def handle(self: Any) -> None:
        if self.rfile.readline() == b"other\n":
            event.wait()
            return
        self.request.settimeout(0)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.request.send(bytes(size))
        self.request.settimeout(None)
        self.request.sendall(bytes(3000))  # is held back until it waits, and then there is no room
        joining.set()
        self.server._fastsock_tasks.join()

    module = module_of("multiplexing")
    server = module.ThreadingUnixStreamServer(f"{folder}/socket", handling(module, handle))
    with server, serving(server), connect(server) as other, connect(server) as client:
        other.sendall(b"other\n")
        wait_until(lambda: event._waiting)
        client.sendall(b"client\n")
        assert joining.wait(TIMEOUT)
        tasks = server._fastsock_tasks
        wait_until(lambda: tasks.hub.asleep)
        event.set()
        assert other.recv(1) == b""
        wait_until(lambda: len(tasks.running) == 1)
        assert len(receive(client)) > 3000
