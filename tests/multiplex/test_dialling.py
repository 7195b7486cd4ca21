"""create_connection()."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crews import Crew
from greenlet import GreenletExit
from support import TIMEOUT, Background, receive, wait_until

import fastsock
from fastsock import _cooperative, _hubs
from fastsock.multiplexing import create_connection, sleep

SHORT = 0.05


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A listener whose backlog is full: a further client is left waiting."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.1)
            try:
                client.connect(listener.getsockname())
            except TimeoutError:
                break
        yield listener


@pytest.fixture
def refused() -> Any:
    """An address at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_conversation(crew: Crew, listener: socket.socket) -> None:
    """The handler is the client: whatever it waits for, others go on."""

    def handle() -> Any:
        with create_connection(listener.getsockname()) as sock:
            assert type(sock) is fastsock.Connection
            assert sock.getpeername() == listener.getsockname()
            assert (sock.family, sock.type) == (socket.AF_INET, socket.SOCK_STREAM)
            assert sock.gettimeout() is None
            assert os.get_blocking(sock.fileno())
            assert not os.get_inheritable(sock.fileno())
            sock.sendall(b"question")
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                return file.read()

    jobs = [crew.start(handle) for _ in range(5)]
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(listener.accept()[0]) for _ in jobs]
        for peer in reversed(peers):
            assert receive(peer) == b"question"
        for peer in reversed(peers):
            peer.sendall(b"answer")
    assert [job.result() for job in jobs] == [b"answer"] * 5


def test_in_no_handler(listener: socket.socket) -> None:
    with create_connection(listener.getsockname(), TIMEOUT) as sock:
        assert type(sock) is fastsock.Connection
        with listener.accept()[0] as peer:
            peer.sendall(b"x")
            assert sock.recv(1) == b"x"


def test_a_large_transfer_both_ways(crew: Crew, listener: socket.socket) -> None:
    def handle() -> int:
        with create_connection(listener.getsockname(), TIMEOUT) as sock:
            sock.sendall(bytes(1 << 24))
            sock.shutdown(socket.SHUT_WR)
            return len(receive(sock))

    job = crew.start(handle)
    with listener.accept()[0] as peer:
        peer.sendall(receive(peer))
    assert job.result() == 1 << 24


def test_refused(crew: Crew, refused: Any) -> None:
    before = descriptors()
    for timeout in (None, TIMEOUT):
        with pytest.raises(ConnectionRefusedError) as caught:
            crew.run(create_connection, refused, timeout)
        assert caught.value.errno == errno.ECONNREFUSED
    wait_until(lambda: descriptors() <= before + 4)  # both ends of the clients


def test_not_in_time(crew: Crew, full: socket.socket) -> None:
    def handle() -> float:
        begin = time.monotonic()
        with pytest.raises(TimeoutError, match="timed out"):
            create_connection(full.getsockname(), SHORT)
        return time.monotonic() - begin

    jobs = [crew.start(handle) for _ in range(10)]
    for job in jobs:
        assert SHORT <= job.result() < TIMEOUT


def test_it_waits_while_the_backlog_is_full(crew: Crew, full: socket.socket) -> None:
    """Others run meanwhile; the kernel tries again after a second."""
    job = crew.start(create_connection, full.getsockname(), TIMEOUT)
    assert crew.run(lambda: "another") == "another"
    assert not job.over.is_set()
    while not job.over.is_set():
        full.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            full.accept()[0].close()
    with job.result() as sock:
        assert sock.getpeername() == full.getsockname()


def test_without_waiting(crew: Crew, full: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        crew.run(create_connection, full.getsockname(), 0)


def test_the_timeout_holds(crew: Crew, listener: socket.socket) -> None:
    """Of the connection, from then on."""

    def handle() -> float:
        with create_connection(listener.getsockname(), SHORT) as sock:
            assert sock.gettimeout() == SHORT
            assert not os.get_blocking(sock.fileno())
            begin = time.monotonic()
            with pytest.raises(TimeoutError, match="timed out"):
                sock.recv(1)
            return time.monotonic() - begin

    assert SHORT <= crew.run(handle) < TIMEOUT


def test_the_default_timeout(crew: Crew, listener: socket.socket) -> None:
    def handle(*timeout: Any) -> Any:
        socket.setdefaulttimeout(TIMEOUT)
        try:
            sock = create_connection(listener.getsockname(), *timeout)
        finally:
            socket.setdefaulttimeout(None)
        with sock:
            return sock.gettimeout(), os.get_blocking(sock.fileno())

    assert crew.run(handle) == (TIMEOUT, False)
    assert crew.run(handle, None) == (None, True)
    assert crew.run(handle, 1.5) == (1.5, False)


@pytest.mark.parametrize("timeout", [-1, "1", float("nan")])
def test_what_is_no_timeout(crew: Crew, listener: socket.socket, timeout: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        socket.create_connection(listener.getsockname(), timeout)
    with pytest.raises(expected.type):
        crew.run(create_connection, listener.getsockname(), timeout)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", ""])
def test_source_address(crew: Crew, listener: socket.socket, host: str) -> None:
    def handle() -> Any:
        with create_connection(listener.getsockname(), TIMEOUT, (host, 0)) as sock:
            return sock.getsockname()

    job = crew.start(handle)
    peer, address = listener.accept()
    with peer:
        assert job.result() == address


def test_a_source_that_is_a_name(
    tasks: Crew, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked up in another thread, as that of the peer."""
    genuine, names = _cooperative.to_thread, []

    def to_thread(function: Any, *arguments: Any) -> Any:
        names.append(function.__name__)
        return genuine(function, *arguments)

    monkeypatch.setattr(_cooperative, "to_thread", to_thread)
    address = ("localhost", listener.getsockname()[1])
    tasks.run(create_connection, address, TIMEOUT, ("localhost", 0)).close()
    # Each address of the peer's name has a socket of its own to be bound: ::1 may be the first.
    found = [entry[4] for entry in socket.getaddrinfo(*address, 0, socket.SOCK_STREAM)]
    tried = found.index(listener.getsockname()) + 1
    assert names == ["getaddrinfo", *["bind"] * tried]


def test_a_source_address_that_is_not_ours(crew: Crew, listener: socket.socket) -> None:
    with pytest.raises(OSError) as caught:
        crew.run(create_connection, listener.getsockname(), TIMEOUT, ("192.0.2.1", 0))
    assert caught.value.errno == errno.EADDRNOTAVAIL


# --- names


def test_a_name(crew: Crew, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with crew.run(create_connection, ("localhost", port), TIMEOUT) as sock:
        assert sock.getpeername() == ("127.0.0.1", port)


def test_a_name_that_nobody_knows(crew: Crew) -> None:
    with pytest.raises(socket.gaierror):
        crew.run(create_connection, ("name.invalid", 80), TIMEOUT)


def test_no_name_at_all(crew: Crew) -> None:
    for address, error in ((("a" * 64 + ".b", 80), UnicodeError), ((1, 2), TypeError)):
        with pytest.raises(error):
            crew.run(create_connection, address, TIMEOUT)


def test_nobody_waits_for_the_lookup_of_another(
    crew: Crew, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, let_go = socket.getaddrinfo, threading.Event()

    def getaddrinfo(host: Any, *arguments: Any) -> Any:
        if host == "slow.example":
            if arguments[-1] & socket.AI_NUMERICHOST and len(arguments) > 3:
                raise socket.gaierror(socket.EAI_NONAME, "not numeric")
            assert let_go.wait(TIMEOUT)
            host = "127.0.0.1"
        return genuine(host, *arguments)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    port = listener.getsockname()[1]
    job = crew.start(create_connection, ("slow.example", port), TIMEOUT)
    with crew.run(create_connection, ("127.0.0.1", port), TIMEOUT) as sock:
        assert sock.getpeername() == ("127.0.0.1", port)
    assert not job.over.is_set()
    let_go.set()
    with job.result() as sock:
        assert sock.getpeername() == ("127.0.0.1", port)


def test_numbers_need_no_thread(
    tasks: Crew, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Any:
        pytest.fail("a thread")

    monkeypatch.setattr(_cooperative, "to_thread", refuse)
    address = listener.getsockname()
    with tasks.run(create_connection, address, TIMEOUT, ("127.0.0.1", 0)) as sock:
        assert sock.getpeername() == address


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """several(addresses...): those of the host "several"."""
    genuine = socket.getaddrinfo

    def several(*addresses: Any) -> None:
        def getaddrinfo(host: Any, *arguments: Any) -> Any:
            if host == "several":
                kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
                return [(*kind, address) for address in addresses]
            return genuine(host, *arguments)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    return several


def test_one_address_after_another(
    crew: Crew, listener: socket.socket, refused: Any, full: socket.socket, several: Any
) -> None:
    several(refused, full.getsockname(), listener.getsockname())
    with crew.run(create_connection, ("several", 1), SHORT) as sock:
        assert sock.getpeername() == listener.getsockname()


def test_the_last_error(crew: Crew, refused: Any, full: socket.socket, several: Any) -> None:
    several(full.getsockname(), refused)
    with pytest.raises(ConnectionRefusedError):
        crew.run(create_connection, ("several", 1), SHORT)
    several(refused, full.getsockname())
    with pytest.raises(TimeoutError):
        crew.run(create_connection, ("several", 1), SHORT)


def test_no_address(crew: Crew, several: Any) -> None:
    several()
    with pytest.raises(OSError, match="returns an empty list"):
        crew.run(create_connection, ("several", 1), SHORT)


def test_all_errors(crew: Crew, refused: Any, full: socket.socket, several: Any) -> None:
    several(full.getsockname(), refused)

    def handle() -> Any:
        return create_connection(("several", 1), SHORT, all_errors=True)

    if sys.version_info < (3, 11):
        with pytest.raises(ValueError, match="ExceptionGroup"):
            crew.run(handle)
        return
    with pytest.raises(ExceptionGroup) as caught:  # noqa: F821
        crew.run(handle)
    kinds = [type(error) for error in caught.value.exceptions]
    assert kinds == [TimeoutError, ConnectionRefusedError]


# --- unwound


def test_killed_while_it_connects(tasks: Crew, full: socket.socket) -> None:
    jobs = [tasks.start(create_connection, full.getsockname()) for _ in range(3)]
    wait_until(lambda: tasks.server._fastsock_tasks.hub.foreign_waits == 3)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        tasks.stop()
        for job in jobs:
            with pytest.raises(GreenletExit):
                job.result()
        gc.collect()
    assert [str(warning.message) for warning in warned] == []  # "unclosed <socket.socket ...>"


def test_killed_while_a_name_is_looked_up(
    tasks: Crew, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, let_go = threading.Event(), threading.Event()

    def getaddrinfo(host: Any, port: int, *arguments: Any) -> Any:
        if arguments[-1] != socket.SOCK_STREAM:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        begun.set()
        assert let_go.wait(TIMEOUT)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname())]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    job = tasks.start(create_connection, ("some.name", 1), TIMEOUT)
    assert begun.wait(TIMEOUT)
    tasks.stop()
    with pytest.raises(GreenletExit):
        job.result()
    let_go.set()


def test_unwound_while_it_receives(tasks: Crew, listener: socket.socket) -> None:
    """The connection is the program's: it closes it."""

    def handle() -> None:
        with create_connection(listener.getsockname()) as sock:
            sock.recv(1)

    job = tasks.start(handle)
    with listener.accept()[0] as peer:
        peer.settimeout(TIMEOUT)
        tasks.run(sleep, 0)
        tasks.stop()
        with pytest.raises(GreenletExit):
            job.result()
        assert peer.recv(1) == b""


def test_used_by_a_thread(tasks: Crew, listener: socket.socket) -> None:
    """A connection that a task has made waits in a thread as any other."""
    sock = tasks.run(create_connection, listener.getsockname(), TIMEOUT)
    with sock, listener.accept()[0] as peer:
        assert _hubs.here() is None
        thread = Background(sock.recv, 1)
        peer.sendall(b"x")
        assert thread.result() == b"x"
