"""What a task sends: in time, whole, in order, and not for ever."""

from __future__ import annotations

import itertools
import os
import select
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import TIMEOUT, multiplexes, receive
from talks import Served

from fastsock import multiplexing

Serve = Callable[..., Served]
LONG = 8 << 20  # bytes, more than the kernel takes


@pytest.fixture
def tasks_only(ss: ModuleType) -> None:
    if not multiplexes(ss):
        pytest.skip("about tasks: nothing is promised of two threads")


def test_a_send_that_is_not_taken_in_time(serve: Serve) -> None:
    found: list[Any] = []
    tried = threading.Event()

    def handle(self: Any) -> None:
        self.request.settimeout(0.1)
        try:
            self.request.sendall(bytes(LONG))
        except OSError as error:
            found.append(type(error))
        tried.set()

    with serve(handle).connect():  # who reads nothing
        assert tried.wait(TIMEOUT)
    assert found == [TimeoutError]


def test_long_sends_of_two(tasks_only: None, serve: Serve) -> None:
    """One after the other, in the order in which they were begun."""
    begun = threading.Event()

    def handle(self: Any) -> None:
        both = [multiplexing.spawn(self.request.sendall, part * LONG) for part in (b"a", b"b")]
        for _ in range(3):
            multiplexing.sleep(0)
        begun.set()
        for each in both:
            each.join()

    with serve(handle).connect() as client:
        assert begun.wait(TIMEOUT)
        whole = receive(client)
    assert [(part, len(list(run))) for part, run in itertools.groupby(whole)] == [
        (ord("a"), LONG),
        (ord("b"), LONG),
    ]


def test_a_short_write_amid_a_long_one(tasks_only: None, serve: Serve) -> None:
    """It waits for its turn, though there is room in the kernel at that moment."""
    begun, has_read = threading.Event(), threading.Event()

    def handle(self: Any) -> None:
        long = multiplexing.spawn(self.request.sendall, b"x" * LONG)
        multiplexing.sleep(0)
        begun.set()
        assert has_read.wait(TIMEOUT)  # nobody else runs
        self.wfile.write(b"!")
        self.wfile.flush()
        long.join()

    with serve(handle).connect() as client:
        assert begun.wait(TIMEOUT)
        first = client.recv(1 << 20, socket.MSG_WAITALL)
        has_read.set()
        assert first + receive(client) == b"x" * LONG + b"!"


def test_small_writes_are_held_back(tasks_only: None, serve: Serve) -> None:
    """Until the handler waits, or is done."""
    clients: list[socket.socket] = []
    early: list[Any] = []
    written = threading.Event()

    def handle(self: Any) -> None:
        self.rfile.readline()
        for part in (b"a", b"b", b"c"):
            self.wfile.write(part)
            early.extend(select.select(clients, [], [], 0)[0])
        written.set()

    served = serve(handle)
    clients.append(served.connect())
    clients[0].sendall(b"\n")
    assert written.wait(TIMEOUT)
    assert receive(clients[0]) == b"abc"
    assert not early


def test_one_whose_bytes_are_always_taken(serve: Serve) -> None:
    """Others run meanwhile."""
    over = threading.Event()
    reader: list[socket.socket] = []

    def handle(self: Any) -> None:
        if self.rfile.readline() != b"send\n":
            over.set()
            return
        while not over.is_set():
            self.request.sendall(bytes(8192))
            reader[0].recv(8192, socket.MSG_WAITALL)

    served = serve(handle)
    reader.append(served.connect())
    reader[0].sendall(b"send\n")
    served.connect(b"over\n")
    assert over.wait(TIMEOUT)


@pytest.mark.parametrize(
    "close",
    [lambda request: request._real_close(), lambda request: os.close(request.detach())],
    ids=["close", "detach"],
)
def test_closed_by_a_thread_while_bytes_are_held_back(
    serve: Serve, close: Callable[[Any], None]
) -> None:
    """They leave all the same."""
    requests: list[Any] = []
    closed = threading.Event()

    def handle(self: Any) -> None:
        self.wfile.write(b"held")
        requests.append(self.request)
        written.set()
        assert closed.wait(TIMEOUT)  # nobody else runs

    written = threading.Event()
    with serve(handle, handle_error=lambda *request: None).connect() as client:
        assert written.wait(TIMEOUT)
        close(requests.pop())
        closed.set()
        assert receive(client) == b"held"
