"""A forking server learns of the end of its children without waiting for its next occasion."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import Background, connect, serving_seldom, wait_until

import fastsock

MANY = 20  # more than are asked one by one


class Handler(fastsock.StreamRequestHandler):
    """Says its process and what descriptors of pidfds and epolls it has; ends with its client."""

    def handle(self) -> None:
        foreign = [link for link in descriptors() if "pidfd" in link or "eventpoll" in link]
        self.wfile.write(f"{os.getpid()} {len(foreign)}\n".encode())
        self.rfile.readline()


def descriptors() -> Iterator[str]:
    """What each is, as in "anon_inode:[eventpoll]"."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that the list was read from
            yield os.readlink(f"/proc/self/fd/{name}")


class Server(fastsock.ForkingTCPServer):
    request_queue_size = 128
    max_children = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)


class Begun:
    """A request whose child waits for its client."""

    def __init__(self, server: Any) -> None:
        self.client = connect(server)

    def look(self) -> tuple[int, int]:
        pid, foreign = self.client.recv(100).split()
        self.pid = int(pid)
        return self.pid, int(foreign)

    def end(self) -> None:
        """Return when the child has ended, collected or not."""
        self.client.shutdown(socket.SHUT_WR)
        assert self.client.recv(1) == b""
        self.client.close()
        wait_until(self.has_ended)

    def has_ended(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
        except ChildProcessError:
            return True


def begin(server: Any) -> Begun:
    begun = Begun(server)
    begun.look()
    return begun


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
        for pid in server.active_children or ():
            os.kill(pid, signal.SIGKILL)


def watched(server: Any) -> set[int]:
    children = vars(server).get("_fastsock_children")
    return set() if children is None else set(children.pids)


@pytest.mark.parametrize("count", [1, 3, MANY])
def test_an_idle_loop_collects_at_once(server: Server, count: int) -> None:
    """With an interval of a minute and no other request."""
    with serving_seldom(server):
        begun = [begin(server) for _ in range(count)]
        wait_until(lambda: watched(server) == {each.pid for each in begun})
        for number, each in enumerate(begun):
            each.end()
            wait_until(lambda: len(server.active_children or ()) == count - number - 1)  # noqa: B023
        assert not watched(server)


def test_what_has_ended_before_the_loop_sleeps_is_not_watched(server: Server) -> None:
    with serving_seldom(server):
        for _ in range(10):
            begin(server).end()
        wait_until(lambda: not server.active_children)
    assert not watched(server)


def test_a_loop_of_handle_request(server: Server) -> None:
    """Collects what has ended, with few children and with many that stay."""
    begun = []
    for _ in range(MANY):
        each = Begun(server)
        server.handle_request()
        each.look()
        begun.append(each)
    assert server.active_children == {each.pid for each in begun}
    assert len(watched(server)) >= MANY - 16
    for each in begun[:-1]:
        each.end()
    last = Begun(server)
    server.handle_request()
    last.look()
    assert server.active_children == {begun[-1].pid, last.pid}
    for each in (begun[-1], last):
        each.end()


def test_a_child_has_no_copies(server: Server) -> None:
    with serving_seldom(server):
        first = begin(server)
        wait_until(lambda: watched(server) == {first.pid})
        second = Begun(server)
        assert second.look()[1] == 0
        first.end()
        second.end()
    server.server_close()
    assert server.active_children == set()


@pytest.mark.parametrize("where", ["overridden", "patched"])
def test_collect_children_is_the_programs(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is collected over its head, however the children end."""
    calls = []

    def collect_children(self: Any, *, blocking: bool = False) -> None:
        calls.append(blocking)

    owner = Server if where == "overridden" else fastsock.ForkingMixIn
    monkeypatch.setattr(owner, "collect_children", collect_children)
    with Server() as server, serving_seldom(server):
        pids = set()
        for _ in range(6):
            begun = begin(server)
            begun.end()
            pids.add(begun.pid)
        assert server.active_children == pids
    assert calls[-1] is True
    for pid in pids:
        assert os.waitpid(pid, 0)[0] == pid


# --- beside the loop


def test_a_full_house_empties_before_the_loop_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is polled in the listener's place is let go right then."""
    before_sleep = fastsock._mixins._before_sleep

    def late(server: Any) -> None:
        for pid in server.active_children:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        before_sleep(server)

    monkeypatch.setattr(fastsock._mixins, "_before_sleep", late)
    with Server() as server:
        server.max_children = 1
        server.RequestHandlerClass = fastsock.BaseRequestHandler
        with serving_seldom(server):
            for _ in range(20):
                with connect(server) as client:
                    assert client.recv(1) == b""


def test_another_thread_lets_the_loop_go_on() -> None:
    """It has collected the child that the loop waits for."""
    for _ in range(10):
        with Server() as server, serving_seldom(server):
            server.max_children = 1
            first = begin(server)
            beside = Background(server.collect_children)
            first.end()
            beside.result()
            begin(server).end()  # the listener is looked at again, at once


def test_two_threads_collect(server: Server) -> None:
    over = threading.Event()

    def collect() -> None:
        while not over.is_set():
            server.collect_children()

    with serving_seldom(server):
        collecting = Background(collect)
        try:
            for _ in range(100):
                begin(server).end()
        finally:
            over.set()
            collecting.result()
        wait_until(lambda: not server.active_children)
    assert not watched(server)


@pytest.mark.parametrize("name", ["pidfd_open", "epoll"])
def test_pidfds_are_refused(server: Server, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children are then asked at the usual times."""
    calls = []

    def refuse(*args: Any) -> int:
        calls.append(args)
        raise PermissionError(1, "not permitted")

    monkeypatch.setattr(f"{'os' if name == 'pidfd_open' else 'select'}.{name}", refuse)
    with serving_seldom(server):
        begun = [begin(server) for _ in range(3)]
        for each in begun:
            each.end()
        last = begin(server)
        last.end()
        ask_again = begin(server)
        wait_until(lambda: server.active_children == {ask_again.pid})
        assert calls
        ask_again.end()
