"""sleep() and wait()."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crews import Crew, module_of
from greenlet import GreenletExit
from support import TIMEOUT, Background, connect, handling, receive, serving, wait_until

from fastsock import _hubs
from fastsock.multiplexing import Event, sleep, spawn, wait

SHORT = 0.03

Pair = tuple[socket.socket, socket.socket]


# --- sleep


def test_sleep(crew: Crew) -> None:
    begin = time.monotonic()
    jobs = [crew.start(sleep, SHORT) for _ in range(20)]
    for job in jobs:
        assert job.result() is None
    assert SHORT <= time.monotonic() - begin < 20 * SHORT


def test_sleep_in_no_handler() -> None:
    begin = time.monotonic()
    sleep(SHORT)
    assert time.monotonic() - begin >= SHORT
    sleep(0)


@pytest.mark.parametrize("seconds", [-1, float("nan"), None, "1"])
def test_what_is_no_time_to_sleep(crew: Crew, seconds: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        time.sleep(seconds)
    with pytest.raises(expected.type):
        crew.run(sleep, seconds)


def test_others_run_meanwhile(tasks: Crew) -> None:
    order = []

    def handle() -> None:
        def other() -> None:
            order.append("other")
            sleep(0)
            order.append("other again")

        spawned = spawn(other)
        order.append("first")
        sleep(0)
        sleep(0)
        sleep(0)
        order.append("last")
        spawned.join()

    tasks.run(handle)
    assert order[0] == "first"
    assert order.index("other") < order.index("last")


def test_a_timeout_is_counted_from_its_own_wait(crew: Crew) -> None:
    """Not from that of an earlier one, which has not come."""
    limit = 10 * SHORT

    def handle() -> float:
        event, never = Event(), Event()

        def release() -> None:
            sleep(SHORT)
            event.set()

        spawned = spawn(release)
        while not event.wait(limit):
            pass
        begin = time.monotonic()
        assert not never.wait(limit)
        spawned.join()
        return time.monotonic() - begin

    assert crew.run(handle) >= limit


def test_a_wake_up_that_is_not_meant_for_it(tasks: Crew) -> None:
    """sleep() sleeps as long as it was told to."""
    event = Event()

    def sleeper() -> float:
        found.append(_hubs.here().current)
        begin = time.monotonic()
        event.set()
        sleep(SHORT)
        return time.monotonic() - begin

    def waker() -> None:
        event.wait()
        _hubs.here().wake(found[0])

    found: list[Any] = []
    jobs = [tasks.start(sleeper), tasks.start(waker)]
    jobs[1].result()
    assert jobs[0].result() >= SHORT


# --- wait


def test_wait_until_there_is_something_to_read(crew: Crew, pair: Pair) -> None:
    near, far = pair
    job = crew.start(lambda: (wait(near, read=True, timeout=TIMEOUT), near.recv(1)))
    assert not crew.run(wait, near, True, False, 0)
    assert not job.over.is_set()
    far.sendall(b"x")
    assert job.result() == (True, b"x")


def test_wait_until_there_is_room_to_write(crew: Crew, pair: Pair) -> None:
    near, far = pair
    fill(near)
    job = crew.start(lambda: wait(near, write=True, timeout=TIMEOUT))
    assert not crew.run(wait, near, False, True, 0)
    assert not job.over.is_set()
    drain(far)
    assert job.result() is True


def test_wait_for_either(crew: Crew, pair: Pair) -> None:
    near, far = pair
    fill(near)
    assert crew.run(wait, near, True, True, SHORT) is False
    far.sendall(b"x")
    assert crew.run(wait, near, True, True, TIMEOUT) is True
    near.recv(1)
    assert crew.run(wait, near, True, True, SHORT) is False
    drain(far)
    assert crew.run(wait, near, True, True, TIMEOUT) is True


def test_ready_at_once(crew: Crew, pair: Pair) -> None:
    near, far = pair
    far.sendall(b"x")
    for timeout in (None, 0, -1, TIMEOUT):
        assert crew.run(wait, near, True, False, timeout) is True
        assert crew.run(wait, near, False, True, timeout) is True


def test_the_end_of_a_stream_can_be_read(crew: Crew, pair: Pair) -> None:
    near, far = pair
    job = crew.start(wait, near, True)
    far.shutdown(socket.SHUT_WR)
    assert job.result() is True


def test_an_error_ends_the_wait(crew: Crew) -> None:
    """Of a pipe that nobody reads from any more."""
    near, far = os.pipe()
    try:
        os.set_blocking(far, False)
        with pytest.raises(BlockingIOError):
            while True:
                os.write(far, bytes(65536))
        job = crew.start(wait, far, False, True)
        assert not crew.run(wait, far, False, True, 0)
    finally:
        os.close(near)
    assert job.result() is True
    os.close(far)


def test_who_never_has_to_wait_lets_others_run(crew: Crew, pair: Pair) -> None:
    one, other = pair
    other.sendall(b"x")
    over = Event()

    def polls() -> None:
        while not over.is_set():
            assert wait(one, read=True, timeout=TIMEOUT)

    job = crew.start(polls)
    crew.start(over.set)
    job.result()


def test_not_ready_in_time(crew: Crew, pair: Pair) -> None:
    def timed() -> float:
        begin = time.monotonic()
        assert wait(pair[0], read=True, timeout=SHORT) is False
        return time.monotonic() - begin

    for job in [crew.start(timed) for _ in range(5)]:
        assert SHORT <= job.result() < TIMEOUT


def test_many_wait_for_the_same(crew: Crew, pair: Pair) -> None:
    """Each in its own way, and what one waits for does not disturb another."""
    near, far = pair
    fill(near)
    readers = [crew.start(wait, near.fileno(), True) for _ in range(3)]
    writers = [crew.start(wait, near, False, True) for _ in range(3)]
    assert crew.run(wait, near, True, True, SHORT) is False
    assert not any(job.over.is_set() for job in readers + writers)
    far.sendall(b"x")
    assert [job.result() for job in readers] == [True] * 3
    assert not any(job.over.is_set() for job in writers)
    drain(far)
    assert [job.result() for job in writers] == [True] * 3


def test_regular_files_are_always_ready(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("r+b") as file:
        for what in (file, file.fileno()):
            assert crew.run(wait, what, True) is True
            assert crew.run(wait, what, False, True) is True


def test_an_object_with_fileno(crew: Crew, pair: Pair) -> None:
    near, far = pair
    far.sendall(b"x")
    with near.makefile("rb") as file:
        assert crew.run(wait, file, True, False, TIMEOUT) is True


def test_what_cannot_be_waited_for(crew: Crew, pair: Pair) -> None:
    with pytest.raises(ValueError, match="neither read nor write"):
        crew.run(wait, pair[0])
    for what in ("0", None, 1.0):
        with pytest.raises(TypeError, match="fileno"):
            crew.run(wait, what, True)


def test_closed_ones(crew: Crew) -> None:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.close()
    for what in (near, 1_000_000, -1):
        with pytest.raises(OSError, match="Bad file descriptor"):
            crew.run(wait, what, True)


def test_closed_while_somebody_waits(tasks: Crew) -> None:
    """It goes on to wait for what it was, whatever has its number now."""
    near, far = socket.socketpair()
    with far:
        descriptor = near.fileno()
        job = tasks.start(wait, descriptor, True, False, TIMEOUT)
        wait_until(lambda: tasks.server._fastsock_tasks.hub.foreign_waits)
        near.close()
        with open(os.devnull, "rb") as file:
            assert file.fileno() == descriptor
            assert tasks.run(wait, descriptor, True) is True
        assert not job.over.is_set()
        far.sendall(b"x")
        assert job.result() is True
    assert not tasks.server._fastsock_tasks.hub.foreign_waits


def test_in_no_handler(pair: Pair) -> None:
    near, far = pair
    assert wait(near, read=True, timeout=0) is False
    assert wait(near, read=True, timeout=SHORT) is False
    thread = Background(wait, near, True)
    far.sendall(b"x")
    assert thread.result() is True
    with pytest.raises(ValueError, match="neither"):
        wait(near)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wait(-1, read=True)


def test_killed_while_it_waits(tasks: Crew, pair: Pair) -> None:
    jobs = [tasks.start(wait, pair[0], True) for _ in range(3)]
    wait_until(lambda: tasks.server._fastsock_tasks.hub.foreign_waits == 3)
    tasks.stop()
    for job in jobs:
        with pytest.raises(GreenletExit):
            job.result()


# --- the connection of the handler


@pytest.fixture
def talk(each: str, fastsock_dir: str | None, time_limit: None) -> Callable[..., Any]:
    """talk(handle, client): a handler, and a function that gets the client's end."""
    module = module_of(each, fastsock_dir)

    def talk(handle: Callable[[Any], Any], client: Callable[[socket.socket], Any]) -> Any:
        found: list[Any] = []

        def note(self: Any) -> None:
            try:
                found.append(handle(self))
            except Exception as error:
                found.append(error)

        server = module.ThreadingTCPServer(("127.0.0.1", 0), handling(module, note))
        with server, serving(server):
            with connect(server) as sock:
                client(sock)
            wait_until(lambda: found)
        (result,) = found
        if isinstance(result, Exception):
            raise result
        return result

    return talk


@pytest.mark.parametrize("number_only", [False, True])
def test_ones_own_connection(talk: Any, number_only: bool) -> None:
    def handle(self: Any) -> Any:
        what = self.request.fileno() if number_only else self.request
        found = [wait(what, read=True, timeout=SHORT), wait(what, write=True)]
        self.wfile.write(b"go\n")
        found += [wait(what, read=True, timeout=TIMEOUT), self.request.recv(10)]
        found += [wait(what, read=True, timeout=SHORT), wait(what, True, True)]
        self.wfile.write(b"on\n")
        found += [wait(what, read=True, timeout=TIMEOUT), self.request.recv(10)]
        return found

    def client(sock: socket.socket) -> None:
        with sock.makefile("rb") as file:
            assert file.readline() == b"go\n"
            sock.sendall(b"one")
            assert file.readline() == b"on\n"

    assert talk(handle, client) == [False, True, True, b"one", False, True, True, b""]


def test_another_receives_meanwhile(talk: Any) -> None:
    """From the handler's connection, which somebody waits for."""

    def handle(self: Any) -> Any:
        found: list[Any] = []

        def waiter() -> None:
            found.append(wait(self.request, read=True, timeout=TIMEOUT))

        spawned = spawn(waiter)
        sleep(0)
        self.wfile.write(b"go\n")
        found.append(self.rfile.readline())
        spawned.join()
        return sorted(found, key=str)

    def client(sock: socket.socket) -> None:
        assert sock.recv(10) == b"go\n"
        sock.sendall(b"one\n")
        sock.shutdown(socket.SHUT_WR)
        assert receive(sock) == b""

    assert talk(handle, client) == [True, b"one\n"]


def test_another_sends_meanwhile(talk: Any) -> None:
    """More than the peer takes, while somebody waits to read."""

    def handle(self: Any) -> Any:
        def waiter() -> Any:
            found.append(wait(self.request, read=True, timeout=TIMEOUT))

        found: list[Any] = []
        spawned = spawn(waiter)
        self.request.sendall(bytes(1 << 24))
        self.request.shutdown(socket.SHUT_WR)
        spawned.join()
        return found

    def client(sock: socket.socket) -> None:
        assert len(receive(sock)) == 1 << 24

    assert talk(handle, client) == [True]


# ---


def fill(sock: socket.socket) -> None:
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def drain(sock: socket.socket) -> None:
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            sock.recv(1 << 20)
