"""first_byte_timeout, idle_timeout, request_timeout, write_timeout: of a handler's connection."""

from __future__ import annotations

import contextlib
import importlib
import logging
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from living import Living, echo, until_end
from support import TIMEOUT, wait_until

Live = Callable[..., Living]
SOON = 0.2  # a deadline
LATER = 2.0  # by then it has been met
FAR = 30.0
MUCH = 1 << 24  # more than the kernel holds for a peer that does not read
HERE = ("sync", "threading", "multiplexing")  # whose handlers and counts are in this process
FIRST, IDLE, WHOLE, WRITE = (
    "first_byte_timeout", "idle_timeout", "request_timeout", "write_timeout",
)  # fmt: skip


@pytest.fixture(params=HERE)
def here(request: pytest.FixtureRequest) -> str:
    if request.param == "multiplexing":
        pytest.importorskip("greenlet")
    return str(request.param)


def error_class() -> Any:
    return importlib.import_module("fastsock").DeadlineError


class Attempts:
    """What a handler's calls have met: (which deadline, seconds), or what they returned."""

    def __init__(self) -> None:
        self.met: list[Any] = []
        self.over = threading.Event()

    def attempt(self, call: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        try:
            result = call()
        except error_class() as error:
            assert isinstance(error, TimeoutError)
            result = error.which
        except OSError as error:
            result = f"{type(error).__name__}: {error}"
        self.met.append((result, time.monotonic() - begin))
        return result

    def results(self) -> list[Any]:
        assert self.over.wait(TIMEOUT)
        return [result for result, _ in self.met]

    def seconds(self) -> list[float]:
        assert self.over.wait(TIMEOUT)
        return [seconds for _, seconds in self.met]


Try = Callable[[Callable[[], Any]], Any]


def attempting(
    live: Live, flavour: str, steps: Callable[[Any, Try], Any], *args: Any, **deadlines: Any
) -> tuple[Living, Attempts]:
    """A server whose handler takes steps(handler, attempt)."""
    attempts = Attempts()

    def handle(handler: Any) -> None:
        try:
            steps(handler, attempts.attempt)
        finally:
            attempts.over.set()

    living = live(flavour, handle, *args)
    for name, value in deadlines.items():
        setattr(living.handler, name, value)
    return living, attempts


def soon(seconds: float) -> bool:
    """By a clock that is read when the handler has begun: the deadline may run from before that."""
    return SOON / 2 <= seconds < LATER


#: how a handler may receive
RECEIVES: dict[str, Callable[[Any], Any]] = {
    "recv": lambda handler: handler.request.recv(100),
    "recv much": lambda handler: handler.request.recv(100_000),
    "recv waitall": lambda handler: handler.request.recv(100, socket.MSG_WAITALL),
    "recv peek": lambda handler: handler.request.recv(100, socket.MSG_PEEK),
    "recv_into": lambda handler: handler.request.recv_into(bytearray(100)),
    "readline": lambda handler: handler.rfile.readline(),
    "readline(n)": lambda handler: handler.rfile.readline(100),
    "next": lambda handler: next(handler.rfile),
    "readlines": lambda handler: handler.rfile.readlines(),
    "read": lambda handler: handler.rfile.read(),
    "read(n)": lambda handler: handler.rfile.read(100),
    "read(more)": lambda handler: handler.rfile.read(100_000),
    "read1": lambda handler: handler.rfile.read1(100),
    "readinto": lambda handler: handler.rfile.readinto(bytearray(100)),
    "readinto more": lambda handler: handler.rfile.readinto(bytearray(100_000)),
    "readinto1": lambda handler: handler.rfile.readinto1(bytearray(100)),
    "peek": lambda handler: handler.rfile.peek(),
    "raw": lambda handler: handler.rfile.raw.read(100),
    "makefile": lambda handler: handler.request.makefile("rb").readline(),
    "unbuffered": lambda handler: handler.request.makefile("rb", 0).readline(),
    "text": lambda handler: handler.request.makefile("r").readline(),
    "handed over": lambda handler: (handler.request.getpeername(), handler.request.recv(10)),
}


@pytest.mark.parametrize(
    ("receive", "which"),
    [
        *((receive, IDLE) for receive in RECEIVES),
        *((receive, which) for receive in ("recv", "readline", "read") for which in (FIRST, WHOLE)),
    ],
)
@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_whatever_receives(live: Live, flavour: str, receive: str, which: str) -> None:
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")
    living, attempts = attempting(
        live, flavour, lambda handler, attempt: attempt(lambda: RECEIVES[receive](handler)),
        **{which: 0.05},
    )  # fmt: skip
    assert until_end(living.connect()) == b""
    assert attempts.results() == [which]
    # The time runs from before the handler's own clock does.
    assert 0.01 <= attempts.seconds()[0] < LATER
    assert living.server._fastsock.ledger.timed_out == {which: 1}


def test_a_client_that_says_nothing(live: Live, flavour: str) -> None:
    """In a child process as well."""
    living, _ = attempting(
        live, flavour, lambda handler, attempt: handler.rfile.readline(), first_byte_timeout=SOON
    )
    begin = time.monotonic()
    assert until_end(living.connect()) == b""
    assert soon(time.monotonic() - begin)


def test_the_first_byte_is_enough(live: Live, here: str) -> None:
    living, attempts = attempting(
        live, here, lambda handler, attempt: attempt(handler.rfile.readline),
        first_byte_timeout=SOON,
    )  # fmt: skip
    client = living.connect(b"h")
    time.sleep(1.5 * SOON)
    client.sendall(b"ello\n")
    assert attempts.results() == [b"hello\n"]


@pytest.mark.parametrize("raw", [False, True])
def test_who_drips_does_not_renew_the_time_of_the_request(live: Live, here: str, raw: bool) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        if raw:
            while (data := attempt(lambda: handler.request.recv(100))) and data == b"x":
                pass
        else:
            attempt(handler.rfile.readline)

    living, attempts = attempting(live, here, steps, request_timeout=SOON, idle_timeout=FAR)
    client = living.connect()
    begin = time.monotonic()
    over = False
    while not over:
        assert time.monotonic() - begin < TIMEOUT
        over = bool(select.select([client], [], [], 0.02)[0])
        with contextlib.suppress(OSError):
            client.sendall(b"x")
    assert soon(time.monotonic() - begin)
    assert attempts.results()[-1] == WHOLE
    assert living.server._fastsock.ledger.timed_out == {WHOLE: 1}


def test_the_request_ends_though_bytes_are_there(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        while attempt(lambda: handler.request.recv(1)) == b"x":
            pass
        attempt(lambda: handler.request.recv(1))
        attempt(lambda: handler.request.sendall(b"x"))

    living, attempts = attempting(live, here, steps, request_timeout=SOON)
    client = living.connect()
    with contextlib.suppress(OSError):
        while not attempts.over.is_set():
            client.sendall(b"x" * 10_000)
    assert attempts.results()[-3:] == [WHOLE] * 3  # whoever goes on meets it again
    assert living.server._fastsock.ledger.timed_out == {WHOLE: 1}


# --- between messages


def test_idle_is_between_messages(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        while (line := attempt(handler.rfile.readline)) not in (IDLE, b""):
            handler.wfile.write(line)

    living, attempts = attempting(live, here, steps, idle_timeout=SOON)
    client = living.connect()
    for _ in range(4):
        time.sleep(SOON / 2)
        assert living.ask(client, b"hello\n") == b"hello\n"
    client.sendall(b"begun")
    time.sleep(1.5 * SOON)  # within a message
    assert living.ask(client, b"!\n") == b"be"
    assert client.recv(10) == b"gun!\n"
    begin = time.monotonic()
    assert until_end(client) == b""
    assert soon(time.monotonic() - begin)
    assert attempts.results()[-1] == IDLE


@pytest.mark.parametrize(
    "receive",
    ["readline", "next", "read(n)", "read(more)", "read", "readinto", "readinto more"],
)
@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_not_within_one(live: Live, flavour: str, receive: str) -> None:
    """Whatever the size of it, and of the buffer; and what comes after is not within it."""
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")

    def steps(handler: Any, attempt: Try) -> None:
        attempt(lambda: RECEIVES[receive](handler))
        attempt(lambda: handler.request.recv(1))
        attempt(lambda: handler.request.recv(1))

    living, attempts = attempting(live, flavour, steps, idle_timeout=0.1)
    client = living.connect(b"beg")
    if receive == "read":
        time.sleep(0.15)
        client.sendall(b"in\n")
        time.sleep(0.15)
        client.shutdown(socket.SHUT_WR)
        assert attempts.results()[0] == b"begin\n"
        return
    time.sleep(0.15)
    client.sendall(b"in")
    time.sleep(0.15)
    size = {"read(n)": 100, "read(more)": 100_000, "readinto": 100, "readinto more": 100_000}
    client.sendall(b"!" * (size.get(receive, 6) - 6) + b"\n")
    wait_until(lambda: attempts.met)
    client.sendall(b"x")
    results = attempts.results()
    assert results[0] not in (IDLE, FIRST)
    assert results[1:] == [b"x", IDLE]
    assert 0.05 <= attempts.seconds()[2] < LATER


def test_a_read_that_was_begun_within_another_begins_idle(live: Live, here: str) -> None:
    """Nothing is buffered, so the rest of a message that the handler waits for is not known."""
    living, attempts = attempting(
        live, here,
        lambda handler, attempt: (
            attempt(handler.rfile.readline),
            attempt(lambda: handler.rfile.read(5)),
        ),
        idle_timeout=SOON,
    )  # fmt: skip
    living.connect(b"head\n")
    assert attempts.results() == [b"head\n", IDLE]


def test_what_is_sent_counts_too(live: Live, here: str) -> None:
    """A handler that sends now and then is not idle."""

    def steps(handler: Any, attempt: Try) -> None:
        for _ in range(3):
            time.sleep(SOON / 2)
            handler.wfile.write(b"tick\n")
        begin.append(time.monotonic())
        attempt(handler.rfile.readline)

    begin: list[float] = []
    living, attempts = attempting(live, here, steps, idle_timeout=SOON)
    assert until_end(living.connect()) == b"tick\n" * 3
    assert attempts.results() == [IDLE]
    assert attempts.seconds()[0] >= SOON * 0.9


def test_what_has_come_is_read_though_it_is_late(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        attempt(lambda: handler.request.recv(2))
        handler.gate.wait()
        attempt(lambda: handler.request.recv(2))
        attempt(lambda: handler.request.recv(2))

    living, attempts = attempting(live, here, steps, idle_timeout=SOON, first_byte_timeout=SOON)
    client = living.connect(b"ab")
    living.gate.await_one()
    client.sendall(b"cd")
    time.sleep(1.5 * SOON)
    living.gate.open()
    assert attempts.results() == [b"ab", b"cd", IDLE]


def test_who_goes_on_has_the_time_again(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        for _ in range(2):
            attempt(lambda: handler.request.recv(10))
        handler.gate.wait()
        for _ in range(3):
            attempt(lambda: handler.request.recv(10))

    living, attempts = attempting(
        live, here, steps, first_byte_timeout=SOON / 2, idle_timeout=2 * SOON
    )
    client = living.connect()
    living.gate.await_one()
    client.sendall(b"late")
    living.gate.open()
    assert attempts.results() == [FIRST, FIRST, b"late", IDLE, IDLE]
    seconds = attempts.seconds()
    assert min(seconds[0], seconds[1]) >= SOON / 4
    assert seconds[4] >= SOON
    assert living.server._fastsock.ledger.timed_out == {FIRST: 1}  # the connection, once


OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "sends": lambda server, request: request.sendall(b"tick"),
    "broadcasts": lambda server, request: server.broadcast(b"tick"),
}


@pytest.mark.parametrize("receive", ["readline", "recv", "recv_into", "raw"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_what_others_send_meanwhile_counts_too(
    live: Live, flavour: str, other: str, receive: str
) -> None:
    """A chat's client which says nothing, and is told something now and then."""
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")

    def steps(handler: Any, attempt: Try) -> None:
        requests.append(handler.request)
        attempt(lambda: RECEIVES[receive](handler))

    requests: list[Any] = []
    living, attempts = attempting(live, flavour, steps, idle_timeout=2 * SOON)
    client = living.connect()
    living.await_state("idle")
    for _ in range(3):
        time.sleep(SOON)
        OTHERS[other](living.server, requests[0])
    assert attempts.results() == [IDLE]
    assert attempts.seconds()[0] >= 4 * SOON
    assert client.recv(100) == b"tick" * 3


@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_what_others_receive_meanwhile_is_a_first_byte(live: Live, flavour: str) -> None:
    """And the socket's own timeout is what it was."""
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")

    def steps(handler: Any, attempt: Try) -> None:
        requests.append(handler.request)
        handler.request.settimeout(3 * SOON)
        attempt(lambda: handler.request.recv(10))

    requests: list[Any] = []
    living, attempts = attempting(live, flavour, steps, first_byte_timeout=SOON)
    living.connect()
    living.await_state("idle")
    importlib.import_module("fastsock._post").count(requests[0], 1, 0)  # as by recvmsg()
    assert attempts.results() == ["TimeoutError: timed out"]
    assert 3 * SOON <= attempts.seconds()[0] < LATER


# --- with the socket's timeout


@pytest.mark.parametrize("which", [FIRST, IDLE, WHOLE])
def test_the_socket_s_own_timeout_is_sooner(live: Live, here: str, which: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        handler.request.settimeout(0.05)
        attempt(lambda: handler.request.recv(10))
        handler.request.getsockname()  # the socket object has the timeout now
        attempt(lambda: handler.request.recv(10))
        handler.request.settimeout(None)
        attempt(lambda: handler.request.recv(10))

    living, attempts = attempting(live, here, steps, **{which: 2 * SOON})
    living.connect()
    assert attempts.results() == ["TimeoutError: timed out"] * 2 + [which]
    assert max(attempts.seconds()[:2]) < SOON
    assert sum(attempts.seconds()) >= 2 * SOON * 0.99


@pytest.mark.parametrize("which", [FIRST, IDLE, WHOLE])
def test_the_socket_s_own_timeout_is_later(live: Live, here: str, which: str) -> None:
    living, attempts = attempting(
        live, here, lambda handler, attempt: attempt(handler.rfile.readline),
        timeout=FAR, **{which: SOON},
    )  # fmt: skip
    living.connect()
    assert attempts.results() == [which]
    assert soon(attempts.seconds()[0])


def test_what_does_not_wait(live: Live, here: str) -> None:
    """Non-blocking connections and calls are as ever; the time of the request holds for them."""

    def steps(handler: Any, attempt: Try) -> None:
        request = handler.request
        attempt(lambda: request.recv(10, socket.MSG_DONTWAIT))
        request.sendall(b"x", socket.MSG_DONTWAIT)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 10 * MUCH:
                sent += request.send(bytes(100_000), socket.MSG_DONTWAIT)
        attempt(lambda: request.send(b"x" * 100_000, socket.MSG_DONTWAIT))
        request.setblocking(False)
        attempt(lambda: request.recv(10))
        attempt(lambda: request.send(b"x" * 100_000))
        handler.gate.wait()
        attempt(lambda: request.recv(10))

    living, attempts = attempting(
        live, here, steps, request_timeout=2 * SOON, idle_timeout=FAR, write_timeout=FAR
    )
    living.connect()
    living.gate.await_one()
    time.sleep(2 * SOON)
    living.gate.open()
    again = "BlockingIOError: [Errno 11] Resource temporarily unavailable"
    assert attempts.results() == [again] * 4 + [WHOLE]
    assert max(attempts.seconds()) < SOON


def test_urgent_data_is_not_waited_for(live: Live) -> None:
    living, attempts = attempting(
        live, "threading",
        lambda handler, attempt: attempt(lambda: handler.request.recv(1, socket.MSG_OOB)),
        idle_timeout=FAR,
    )  # fmt: skip
    living.connect()
    assert attempts.results()[0].startswith("OSError: [Errno 22]")


def test_all_of_it(live: Live, here: str) -> None:
    """MSG_WAITALL brings as much as was asked for, in as many pieces as it comes."""

    def steps(handler: Any, attempt: Try) -> None:
        attempt(lambda: handler.request.recv(10, socket.MSG_WAITALL))
        attempt(lambda: handler.request.recv(10, socket.MSG_WAITALL | socket.MSG_PEEK)[:2])
        attempt(lambda: handler.request.recv(10, socket.MSG_WAITALL))  # part of it, late
        attempt(lambda: handler.request.recv(10, socket.MSG_WAITALL))

    living, attempts = attempting(live, here, steps, idle_timeout=SOON)
    client = living.connect(b"abcde")
    wait_until(lambda: living.server.stats().bytes_in == 5)
    client.sendall(b"fghijKL")
    assert attempts.results() == [b"abcdefghij", b"KL", b"KL", IDLE]
    assert attempts.seconds()[2] >= 0.9 * SOON


# --- writing


def sends_in_pieces(handler: Any) -> None:
    for _ in range(MUCH // 1000):
        handler.wfile.write(bytes(1000))


WRITES: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "sendall": (0, lambda handler: handler.request.sendall(bytes(MUCH))),
    "send": (0, lambda handler: [handler.request.send(bytes(MUCH)) for _ in range(2)]),
    "send little": (0, lambda handler: [handler.request.send(bytes(999)) for _ in range(MUCH)]),
    "wfile": (0, lambda handler: handler.wfile.write(bytes(MUCH))),
    "wfile little": (0, sends_in_pieces),
    "buffered": (-1, lambda handler: handler.wfile.write(bytes(MUCH))),
    "buffered little": (-1, sends_in_pieces),
    "makefile": (0, lambda handler: handler.request.makefile("wb").write(bytes(MUCH))),
    "makefile, unbuffered": (
        0,
        lambda handler: [handler.request.makefile("wb", 0).write(bytes(MUCH)) for _ in range(2)],
    ),
}


@pytest.mark.parametrize("which", [WRITE, WHOLE])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_a_peer_that_does_not_read(live: Live, flavour: str, write: str, which: str) -> None:
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")
    wbufsize, call = WRITES[write]
    living, attempts = attempting(
        live, flavour, lambda handler, attempt: attempt(lambda: call(handler)),
        wbufsize=wbufsize, **{which: SOON},
    )  # fmt: skip
    client = living.connect()
    begin = time.monotonic()
    assert attempts.results() == [which]
    assert attempts.seconds()[0] >= SOON / 2
    # The end of the handler does not wait for the peer once more.
    wait_until(lambda: living.server._fastsock.ledger.active == 0)
    assert time.monotonic() - begin < LATER
    assert living.server._fastsock.ledger.timed_out == {which: 1}
    client.close()


@pytest.mark.parametrize("timeout", [None, FAR])
@pytest.mark.parametrize("wbufsize", [0, -1])
def test_one_that_drips_does_not_renew_the_time_of_a_write(
    live: Live, here: str, wbufsize: int, timeout: float | None
) -> None:
    """However many system calls it takes."""

    def steps(handler: Any, attempt: Try) -> None:
        # or it would not be ready for the next one within that time
        handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        attempt(lambda: handler.wfile.write(bytes(MUCH)))

    living, attempts = attempting(
        live, here, steps, wbufsize=wbufsize, timeout=timeout, write_timeout=2 * SOON
    )
    with living.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        while not attempts.over.is_set():
            client.recv(30_000)
            time.sleep(0.005)
    assert attempts.results() == [WRITE]
    assert attempts.seconds()[0] < LATER


def test_the_time_of_the_request_is_sooner_than_that_of_a_write(live: Live, here: str) -> None:
    living, attempts = attempting(
        live,
        here,
        lambda handler, attempt: attempt(lambda: handler.request.sendall(bytes(MUCH))),
        write_timeout=FAR,
        request_timeout=SOON,
    )
    living.connect()
    assert attempts.results() == [WHOLE]


def test_each_write_has_its_time(live: Live, here: str) -> None:
    """And one that waits for nothing but to read has all of it."""

    def steps(handler: Any, attempt: Try) -> None:
        for _ in range(4):
            attempt(lambda: handler.wfile.write(bytes(100_000)))
            time.sleep(SOON)

    living, attempts = attempting(live, here, steps, write_timeout=SOON)
    client = living.connect()
    assert len(until_end(client)) == 400_000
    assert attempts.results() == [100_000] * 4


def test_who_was_late_is_not_waited_for_until_he_has_caught_up(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        attempt(lambda: handler.request.sendall(bytes(MUCH)))
        attempt(lambda: handler.request.sendall(bytes(MUCH)))
        handler.gate.wait()
        attempt(lambda: handler.request.sendall(b"now"))
        attempt(lambda: handler.request.sendall(bytes(MUCH)))
        attempt(lambda: handler.request.sendall(bytes(MUCH)))

    living, attempts = attempting(live, here, steps, write_timeout=SOON)
    client = living.connect()
    living.gate.await_one()
    client.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.recv(1 << 20)
    time.sleep(0.1)
    with contextlib.suppress(BlockingIOError):
        while True:
            client.recv(1 << 20)
    living.gate.open()
    results, seconds = attempts.results(), attempts.seconds()
    assert results == [WRITE, WRITE, None, WRITE, WRITE]
    assert soon(seconds[0])
    assert seconds[1] < SOON
    assert soon(seconds[3]) or here == "multiplexing"
    assert seconds[4] < SOON


def test_the_next_call_meets_what_gathered_bytes_have_met(live: Live) -> None:
    """Small writes of a task leave when it waits; that is when the peer may not take them."""
    pytest.importorskip("greenlet")

    def steps(handler: Any, attempt: Try) -> None:
        handler.request.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                handler.request.send(bytes(100_000))
        handler.request.setblocking(True)
        handler.wfile.write(b"held")
        attempt(lambda: handler.request.recv(10))
        attempt(lambda: handler.wfile.flush())

    living, attempts = attempting(live, "multiplexing", steps, write_timeout=SOON)
    living.connect()
    results = attempts.results()
    assert results[0] == WRITE
    assert results[1] is None


def test_what_is_held_back_is_taken_late(live: Live) -> None:
    """Small writes of a task leave when it waits, and it is idle from when the peer takes them."""
    pytest.importorskip("greenlet")

    def steps(handler: Any, attempt: Try) -> None:
        fill(handler.request)
        handler.gate.wait()
        handler.wfile.write(b"held")
        attempt(handler.rfile.readline)

    living, attempts = attempting(live, "multiplexing", steps, idle_timeout=2 * SOON)
    client = living.connect()
    living.gate.await_one()
    living.gate.open()
    time.sleep(3 * SOON)
    client.setblocking(False)
    while not attempts.over.is_set():
        if select.select([client], [], [], 0.05)[0]:
            client.recv(1 << 20)
    assert attempts.results() == [IDLE]
    assert attempts.seconds()[0] >= 4 * SOON


def fill(connection: Any) -> None:
    """Send until the kernel takes no more."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(bytes(100_000))
    connection.setblocking(True)


def empty(client: socket.socket) -> None:
    """Receive all that was sent."""
    while select.select([client], [], [], 0.1)[0]:
        client.recv(1 << 20)


def test_small_writes_that_are_taken_make_up_for_one_that_was_late(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        attempt(lambda: handler.request.sendall(bytes(MUCH)))
        handler.gate.wait()
        handler.wfile.write(b"now")
        handler.wfile.flush()
        attempt(lambda: handler.request.sendall(bytes(MUCH)))

    living, attempts = attempting(live, here, steps, write_timeout=SOON)
    client = living.connect()
    living.gate.await_one()
    empty(client)
    living.gate.open()
    assert attempts.results() == [WRITE, WRITE]
    assert soon(attempts.seconds()[1])


def test_the_socket_s_own_timeout_is_that_of_each_send(live: Live, here: str) -> None:
    """Of a file that holds bytes back, too, as in the standard library."""

    def steps(handler: Any, attempt: Try) -> None:
        fill(handler.request)
        handler.request.settimeout(3 * SOON)
        handler.gate.wait()
        attempt(lambda: handler.wfile.write(bytes(MUCH)))

    living, attempts = attempting(live, here, steps, wbufsize=1000, write_timeout=FAR)
    client = living.connect()
    living.gate.await_one()
    living.gate.open()
    while not attempts.over.is_set():
        time.sleep(2 * SOON)
        for _ in range(40):
            client.recv(100_000)
    assert attempts.results() == [MUCH]
    assert attempts.seconds()[0] > 3 * SOON


# --- rfile afterwards


@pytest.mark.parametrize("which", [FIRST, IDLE, WHOLE])
def test_a_file_that_has_timed_out(live: Live, here: str, which: str) -> None:
    """As the files of io: it cannot be read from any more, but the connection can."""

    def steps(handler: Any, attempt: Try) -> None:
        attempt(handler.rfile.readline)
        attempt(handler.rfile.readline)
        attempt(lambda: handler.rfile.read(3))
        attempt(lambda: handler.request.recv(3))

    living, attempts = attempting(live, here, steps, **{which: 0.1})
    living.connect()
    results = attempts.results()
    assert results == [which, *["OSError: cannot read from timed out object"] * 2, which]


def test_a_file_whose_time_is_over_before_it_is_read(live: Live, here: str) -> None:
    def steps(handler: Any, attempt: Try) -> None:
        time.sleep(0.1)
        attempt(handler.rfile.readline)
        attempt(handler.rfile.readline)

    living, attempts = attempting(live, here, steps, request_timeout=0.05)
    living.connect(b"hello\n")
    assert attempts.results() == [WHOLE, "OSError: cannot read from timed out object"]


# --- who has them


def test_others_are_not_held_up(live: Live) -> None:
    """Of a multiplexing server: each has its own time."""
    pytest.importorskip("greenlet")

    def handle(handler: Any) -> None:
        for line in handler.rfile:
            handler.wfile.write(line)

    living = live("multiplexing", handle)
    living.handler.request_timeout = 2 * SOON
    living.handler.idle_timeout = SOON
    good = living.connect()
    silent = [living.connect() for _ in range(20)]
    begin = time.monotonic()
    while time.monotonic() - begin < 1.5 * SOON:
        assert living.ask(good, b"hello\n") == b"hello\n"
    assert [until_end(client) for client in silent] == [b""] * 20
    assert until_end(good) == b""
    assert living.server._fastsock.ledger.timed_out == {IDLE: 20, WHOLE: 1}


def test_a_handler_whose_constructor_is_its_own(live: Live, here: str) -> None:
    """It has deadlines from when the constructor here is called, if ever."""
    met = []

    def init(handler: Any, request: Any, client_address: Any, server: Any) -> None:
        first = request.recv(1)
        if first == b"b":
            type(handler).__mro__[1].__init__(handler, request, client_address, server)
        elif request.recv(1) == b"x":
            request.sendall(b"done")

    def handle(handler: Any) -> None:
        try:
            handler.rfile.readline()
        except TimeoutError as error:
            met.append(error.which)  # type: ignore[attr-defined]

    living = live(here, handle)
    living.handler.__init__ = init
    living.handler.idle_timeout = 0.1
    client = living.connect(b"a")
    time.sleep(0.2)
    client.sendall(b"x")
    assert until_end(client) == b"done"
    assert until_end(living.connect(b"b")) == b""
    assert met == [IDLE]


def test_a_handler_that_is_none_of_ours(live: Live, here: str) -> None:
    class Handler:
        idle_timeout = request_timeout = first_byte_timeout = 0.05

        def __init__(self, request: Any, client_address: Any, server: Any) -> None:
            request.sendall(request.recv(10))

    living = live(here, echo)
    living.server.RequestHandlerClass = Handler
    client = living.connect()
    time.sleep(0.15)
    assert living.ask(client, b"hello\n") == b"hello\n"


def test_a_handler_within_another(live: Live, here: str) -> None:
    """One without deadlines does not take them away."""

    def handle(handler: Any) -> None:
        handler.module.BaseRequestHandler(handler.request, handler.client_address, handler.server)
        handler.rfile.readline()

    living = live(here, handle)
    living.handler.module = living.module
    living.handler.idle_timeout = SOON
    assert until_end(living.connect()) == b""
    assert living.server._fastsock.ledger.timed_out == {IDLE: 1}


NOT = ["soon", 0, -1, 0.0, True, float("nan"), float("inf"), object(), [1], 10**400, None]


def test_what_is_no_deadline(live: Live, here: str) -> None:
    """A program may have attributes of these names for itself."""
    living = live(here, echo)
    for value in NOT:
        for name in (FIRST, IDLE, WHOLE, WRITE):
            setattr(living.handler, name, value)
        with living.connect() as client:
            time.sleep(0.002)
            assert living.ask(client, b"hello\n") == b"hello\n"


def test_properties(live: Live, here: str) -> None:
    """They are asked; one that fails is the program's own."""

    def fails(handler: Any) -> float:
        raise LookupError("not set up yet")

    living = live(here, echo)
    living.handler.write_timeout = property(fails)
    living.handler.request_timeout = property(fails)
    living.handler.idle_timeout = property(lambda handler: SOON if handler.server else None)
    begin = time.monotonic()
    assert until_end(living.connect()) == b""
    assert soon(time.monotonic() - begin)


def test_the_instance_s_own_attribute_is_the_program_s(live: Live, here: str) -> None:
    def setup(handler: Any) -> None:
        handler.idle_timeout = handler.request_timeout = 0.05
        super(type(handler), handler).setup()

    living = live(here, echo)
    living.handler.setup = setup
    client = living.connect()
    time.sleep(0.15)
    assert living.ask(client, b"hello\n") == b"hello\n"


@pytest.mark.parametrize("transport", ["TCP", "UnixStream"])
def test_a_connection_of_another_loop_s_task(live: Live, transport: str) -> None:
    """A task of one hub that uses a connection of another one's: it waits by its own hub."""
    pytest.importorskip("greenlet")
    lent: list[Any] = []

    def lends(handler: Any) -> None:
        lent.append(handler.request)
        handler.gate.wait()

    def steps(handler: Any, attempt: Try) -> None:
        attempt(lambda: lent[0].recv(1, socket.MSG_DONTWAIT))
        attempt(lambda: lent[0].recv(10, socket.MSG_WAITALL))
        attempt(lambda: lent[0].recv(10))
        attempt(lambda: lent[0].sendall(bytes(MUCH)))
        attempt(lambda: lent[0].sendall(bytes(MUCH)))

    lender = live("multiplexing", lends, transport)
    lender.handler.idle_timeout = SOON
    lender.handler.write_timeout = SOON
    client = lender.connect()
    wait_until(lambda: lent)
    living, attempts = attempting(live, "multiplexing", steps)
    living.connect()
    wait_until(lambda: len(attempts.met) == 1)
    client.sendall(b"abcde")
    time.sleep(0.05)
    client.sendall(b"fghij")
    results, seconds = attempts.results(), attempts.seconds()
    assert results[0].startswith("BlockingIOError")
    assert results[1:] == [b"abcdefghij", IDLE, WRITE, WRITE]
    assert soon(seconds[2]) and soon(seconds[3])
    assert seconds[4] < SOON
    lender.gate.open()


def test_a_connection_of_another_loop_s_task_to_which_others_send(live: Live) -> None:
    pytest.importorskip("greenlet")
    lent: list[Any] = []

    def lends(handler: Any) -> None:
        lent.append(handler.request)
        handler.gate.wait()

    lender = live("multiplexing", lends)
    lender.handler.idle_timeout = 2 * SOON
    lender.connect()
    wait_until(lambda: lent)
    living, attempts = attempting(
        live, "multiplexing", lambda handler, attempt: attempt(lambda: lent[0].recv(10))
    )
    living.connect()
    time.sleep(SOON)
    lent[0].sendall(b"tick")
    assert attempts.results() == [IDLE]
    assert attempts.seconds()[0] >= 2 * SOON
    lender.gate.open()


def test_a_connection_in_a_thread_without_tasks(live: Live) -> None:
    pytest.importorskip("greenlet")
    from fastsock import multiplexing

    living, attempts = attempting(
        live, "multiplexing",
        lambda handler, attempt: multiplexing.to_thread(
            lambda: attempt(lambda: handler.request.recv(10))
        ),
        idle_timeout=SOON,
    )  # fmt: skip
    living.connect()
    assert attempts.results() == [IDLE]


# --- what the server does


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    caplog.set_level(logging.DEBUG, "fastsock")
    yield lambda: [
        record.getMessage() for record in caplog.records if record.name.startswith("fastsock")
    ]


def test_a_line_and_no_traceback(
    live: Live, here: str, told: Callable[[], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    living = live(here, echo)
    living.handler.idle_timeout = 0.05
    client = living.connect()
    assert until_end(client) == b""
    wait_until(told)
    assert told() == [f"idle_timeout of {client.getsockname()} is over"]
    assert capfd.readouterr().err == ""
    assert living.server.stats().failed == 0
    assert until_end(living.connect()) == b""


def test_the_record(live: Live, here: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fastsock")
    living = live(here, echo)
    living.handler.idle_timeout = 0.05
    client = living.connect()
    assert until_end(client) == b""
    wait_until(lambda: caplog.records)
    (record,) = caplog.records
    found: Any = record
    assert (found.name, found.levelname, found.event) == (
        "fastsock.deadlines",
        "DEBUG",
        "timed_out",
    )
    assert (found.deadline, found.peer) == (IDLE, client.getsockname())
    assert found.server_address == living.server.server_address


def test_the_hook(live: Live, here: str) -> None:
    called: list[Any] = []

    def handle_timeout_error(server: Any, request: Any, address: Any, which: str) -> None:
        error: Any = sys.exc_info()[1]
        called.append((request.fileno() >= 0, address, which))
        called.append(error.which)

    def handle_error(server: Any, request: Any, address: Any) -> None:
        called.append("error")

    living = live(here, echo, handle_timeout_error=handle_timeout_error, handle_error=handle_error)
    living.handler.first_byte_timeout = 0.05
    client = living.connect()
    assert until_end(client) == b""
    assert called == [(True, client.getsockname(), FIRST), FIRST]


def test_other_timeouts_are_errors(live: Live, here: str) -> None:
    """The socket's own, one that a handler makes of it, and one of something else."""
    called = []

    def handle(handler: Any) -> None:
        try:
            handler.rfile.readline()
        except TimeoutError as error:
            raise ValueError("too late") from error

    living = live(
        here,
        handle,
        handle_timeout_error=lambda server, *args: called.append("timeout"),
        handle_error=lambda server, *args: called.append("error"),
    )
    living.handler.idle_timeout = 0.05
    assert until_end(living.connect()) == b""
    living.handler.idle_timeout, living.handler.timeout = None, 0.05
    living.handler.handle = lambda handler: handler.rfile.readline()
    assert until_end(living.connect()) == b""
    assert called == ["error", "error"]


def test_hook_of_a_child_process(live: Live, folder: str) -> None:
    def handle_timeout_error(server: Any, request: Any, address: Any, which: str) -> None:
        request.sendall(which.encode())

    living = live("forking", echo, handle_timeout_error=handle_timeout_error)
    living.handler.idle_timeout = 0.05
    assert until_end(living.connect()) == b"idle_timeout"


def test_what_it_is() -> None:
    error: Any = error_class()("timed out", which="idle_timeout")
    assert isinstance(error, TimeoutError)
    assert (str(error), error.which, error.errno) == ("timed out", "idle_timeout", None)
    assert error_class().__module__ == "fastsock"
