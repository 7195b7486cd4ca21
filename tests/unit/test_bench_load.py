"""The load of stream servers: what it counts, and that it notices whatever a server does wrong."""

from __future__ import annotations

import random
import socket
import threading

import hostile
import pytest
from hostile import Streams, spoiling
from loads import LINE, LONG, descriptors, each_kind, echoing, needs_ipv6, opened

from fastsock.bench import _load
from fastsock.bench._load import StreamLoad

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

# --- honest servers


@each_kind
@pytest.mark.parametrize("connections", [1, 7])
def test_what_an_honest_server_answers_is_counted(kind: str, connections: int) -> None:
    with echoing(hostile.honest, kind) as server, opened(server.address, kind, connections) as load:
        load.run(LONG, 100)
        assert load.operations == 100
        # an answer comes in one piece, but its end may not have come
        assert 0 <= load.verified - 100 * len(LINE) <= (connections - 1) * len(LINE)
        assert load.errors == {} and not load.too_many_errors
        assert load.latency.count == 100
        assert 0 < load.latency.percentile(0.5) <= load.latency.max() < LONG * 1e9
        assert 0 < load.seconds < LONG
        assert load.served == 0 if kind == "once" else 1 <= load.served <= connections


def test_connections_that_were_served() -> None:
    """None has its answer before all have asked."""
    together = threading.Barrier(7)

    def answer(connection: socket.socket, request: bytes) -> bool:
        try:
            together.wait(LONG)
        except threading.BrokenBarrierError:  # the test ends
            return False
        return hostile.honest(connection, request)

    with echoing(answer, "lines") as server, opened(server.address, "lines", 7) as load:
        for count, served in ((21, 7), (3, 3), (4, 4)):
            load.run(LONG, count)
            assert (load.operations, load.served) == (count, served)
        together.abort()


@each_kind
def test_time_ends_a_run(kind: str) -> None:
    with echoing(hostile.honest, kind) as server, opened(server.address, kind, 3) as load:
        load.run(0.1)
        assert 0.1 <= load.seconds < LONG
        assert load.operations > 0 and load.errors == {}
        # what is under way has been answered in part at most
        assert 0 <= load.verified - load.operations * len(LINE) < 3 * len(LINE)


@each_kind
def test_each_run_counts_from_zero(kind: str) -> None:
    with echoing(hostile.honest, kind) as server, opened(server.address, kind, 2) as load:
        for count in (5, 50, 3):
            load.run(LONG, count)
            assert (load.operations, load.latency.count) == (count, count)


def test_the_first_rounds_of_lasting_connections_are_those_of_open() -> None:
    with echoing(hostile.honest, "lines") as server, opened(server.address, "lines", 5) as load:
        assert load.operations == load.latency.count == 5
        assert load.verified == 5 * len(LINE)
        assert load.errors == {}


def test_single_requests_are_not_begun_by_open() -> None:
    with echoing(hostile.honest, "once") as server, opened(server.address, "once", 5) as load:
        assert (load.operations, load.errors, server.connections) == (0, {}, set())


@pytest.mark.parametrize("depth", [2, 16, 500])
def test_a_batch_counts_each_of_its_requests(depth: int) -> None:
    with (
        echoing(hostile.honest, "lines") as server,
        opened(server.address, "lines", 2, depth=depth) as load,
    ):
        load.run(LONG, 10 * depth)
        assert load.operations == load.latency.count == 10 * depth
        assert load.verified >= 10 * depth * len(LINE)
        assert load.errors == {}
        load.run(LONG, depth + 1)
        assert load.operations == 2 * depth  # whole batches


def test_more_may_be_under_way_than_both_buffers_hold() -> None:
    line = b"x" * 99_999 + b"\n"
    with Streams(hostile.honest, len(line)) as server:
        load = StreamLoad(server.address, "lines", 2, line, depth=200)
        with load:
            load.open(LONG)
            load.run(LONG, 400)
            assert (load.operations, load.errors) == (400, {})


@pytest.mark.parametrize("size", [1, 2, 1000, 300_000])
@each_kind
def test_any_size(kind: str, size: int) -> None:
    request = random.Random(size).randbytes(size)
    with (
        Streams(hostile.honest, size, lasting=kind == "lines") as server,
        StreamLoad(server.address, kind, 3, request) as load,
    ):
        load.open(LONG)
        load.run(LONG, 30)
        assert (load.operations, load.errors) == (30, {})
        assert load.verified >= 30 * size - (3 * size)  # a part was in the run before


@each_kind
@pytest.mark.parametrize("connections", [2, 400])
def test_unix_paths_and_names(kind: str, connections: int, folder: str) -> None:
    """With 400, more connections are wanted than the backlog has room for."""
    for where in (f"{folder}/s", f"\0{folder}"):
        with (
            echoing(hostile.honest, kind, where) as server,
            opened(where, kind, connections) as load,
        ):
            assert server.address == where
            load.run(LONG, 2 * connections)
            assert (load.operations, load.errors) == (2 * connections, {})


@needs_ipv6
@each_kind
def test_ipv6(kind: str) -> None:
    with echoing(hostile.honest, kind, "::1") as server, opened(server.address, kind, 2) as load:
        load.run(LONG, 20)
        assert (load.operations, load.errors) == (20, {})


def test_another_address_of_loopback() -> None:
    with (
        echoing(hostile.honest, "once", "127.1.2.3") as server,
        opened(server.address, "once") as load,
    ):
        load.run(LONG, 20)
        assert (load.operations, load.errors) == (20, {})


@each_kind
def test_latency_is_that_of_the_server(kind: str) -> None:
    with echoing(hostile.slow(0.05), kind) as server, opened(server.address, kind, 3) as load:
        load.run(LONG, 12)
        assert 0.050 <= load.latency.percentile(0.5) / 1e9 < 0.5
        assert load.latency.percentile(0.0) / 1e9 >= 0.050
        assert load.errors == {}


def test_the_time_between_two_runs_is_nobodys() -> None:
    with (
        echoing(hostile.honest, "lines") as server,
        opened(server.address, "lines", timeout=1) as load,
    ):
        load.run(LONG, 5)
        threading.Event().wait(1.3)
        load.run(LONG, 5)
        assert load.errors == {}
        assert load.latency.max() / 1e9 < 1


# --- hostile servers


WRONG = {
    "corrupted": hostile.corrupting,
    "early end": hostile.dropping,
    "too many bytes": hostile.excessive,
    "reset": hostile.resetting,
    "timeout": hostile.silent,
}


@each_kind
@pytest.mark.parametrize("error", WRONG)
def test_each_wrong_answer_is_counted_and_the_load_goes_on(kind: str, error: str) -> None:
    """Of three answers the last is wrong; with one connection, ten right ones need four of them."""
    answer = spoiling(WRONG[error], 3, first=kind == "lines")
    timeout = 0.3 if error == "timeout" else LONG
    with echoing(answer, kind) as server, opened(server.address, kind, timeout=timeout) as load:
        load.run(LONG, 10)
        assert (load.operations, load.errors) == (10, {error: 4})
        assert load.latency.count == 10
        assert not load.too_many_errors
        load.run(LONG, 2)
        assert (load.operations, load.errors) == (2, {error: 1})


@each_kind
def test_half_an_answer(kind: str) -> None:
    answer = spoiling(hostile.partial, 2, first=kind == "lines")
    with echoing(answer, kind) as server, opened(server.address, kind) as load:
        load.run(LONG, 5)
        assert (load.operations, load.errors) == (5, {"early end": 4})
        assert load.verified == 5 * len(LINE) + 4 * (len(LINE) // 2)


@each_kind
def test_an_answer_whose_last_byte_never_comes(kind: str) -> None:
    answer = spoiling(hostile.stalling, 2, first=kind == "lines")
    with echoing(answer, kind) as server, opened(server.address, kind, timeout=0.3) as load:
        load.run(LONG, 3)
        assert (load.operations, load.errors) == (3, {"timeout": 2})


def test_the_answer_without_the_end() -> None:
    """Of a connection per request: the server keeps it."""

    def keep(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(request)
        return hostile.silent(connection, request)

    with (
        echoing(spoiling(keep, 2), "once") as server,
        opened(server.address, "once", timeout=0.3) as load,
    ):
        load.run(LONG, 3)
        assert (load.operations, load.errors) == (3, {"timeout": 2})


@pytest.mark.parametrize("place", [0, 15, 16, 31])
def test_any_byte_of_a_batch_is_compared(place: int) -> None:
    answer = spoiling(hostile.corrupting_at(place), 3, first=1)
    with (
        Streams(answer, 2 * len(LINE)) as server,
        opened(server.address, "lines", depth=2) as load,
    ):
        load.run(LONG, 20)
        assert (load.operations, load.errors) == (20, {"corrupted": 4})


@each_kind
def test_too_many_errors_end_a_run(kind: str) -> None:
    answer = spoiling(hostile.corrupting, 1, first=4 * (kind == "lines"))
    with echoing(answer, kind) as server, opened(server.address, kind, 4) as load:
        load.run(LONG)
        assert load.seconds < LONG
        assert load.too_many_errors
        assert load.errors == {"corrupted": _load.MOST_ERRORS}
        assert load.operations == 0


@each_kind
def test_nobody_listens(kind: str) -> None:
    load = StreamLoad(("127.0.0.1", hostile.unused_port()), kind, 2, LINE)
    if kind == "lines":
        with pytest.raises(TimeoutError, match=r"0 of 2 connections were served within 0\.1 s"):
            load.open(0.1)
    else:
        with load:
            load.open(0.1)
            load.run(0.1)
            assert load.operations == 0
            assert load.errors.keys() == {"refused"}
            assert load.errors["refused"] < 50  # it does not spin


def test_nobody_listens_on_a_path(folder: str) -> None:
    with StreamLoad(f"{folder}/none", "once", 2, LINE) as load:
        load.open(1)
        load.run(0.1)
        assert load.errors.keys() == {"connect"}  # ENOENT
    hostile.bound(f"{folder}/s").close()
    with StreamLoad(f"{folder}/s", "once", 2, LINE) as load:
        load.open(1)
        load.run(0.1)
        assert load.errors.keys() == {"refused"}


def test_a_server_that_comes_later() -> None:
    port = hostile.unused_port()
    load = StreamLoad(("127.0.0.1", port), "once", 3, LINE)
    with load:
        load.open(1)
        load.run(0.05)
        assert load.operations == 0 and load.errors["refused"] >= 3
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        with Streams(hostile.honest, len(LINE), listener, lasting=False):
            load.run(LONG, 10)
            assert load.operations == 10
            load.run(LONG, 10)
            assert (load.operations, load.errors) == (10, {})


@pytest.mark.parametrize("kind", ["once", "lines"])
def test_a_full_backlog_of_a_unix_listener_is_an_error_in_the_end(kind: str, folder: str) -> None:
    listener = hostile.bound(f"{folder}/s")
    listener.listen(0)
    with listener, StreamLoad(f"{folder}/s", kind, 4, LINE, timeout=0.1) as load:
        if kind == "lines":
            with pytest.raises(TimeoutError, match=r"0 of 4 .*connect"):
                load.open(0.5)
            return
        load.open(1)
        load.run(0.4)
        assert load.operations == 0
        assert load.errors.keys() == {"timeout", "connect"}  # one has a place


@pytest.mark.parametrize("answers", [0, 3])
def test_open_gives_up_in_time(answers: int) -> None:
    good = hostile.honest
    answer = spoiling(hostile.silent, 1, good, first=answers)
    before = descriptors()
    with echoing(answer, "lines") as server:
        load = StreamLoad(server.address, "lines", 5, LINE)
        with pytest.raises(
            TimeoutError, match=rf"{answers} of 5 connections were served within 0\.3 s"
        ):
            load.open(0.3)
        with pytest.raises(RuntimeError, match="not open"):
            load.run(1)
    assert descriptors() == before


def test_open_tries_again() -> None:
    """Each second connection is dropped instead of its first answer."""
    answer = spoiling(hostile.dropping, 2)
    with echoing(answer, "lines") as server, opened(server.address, "lines", 6) as load:
        assert load.operations == 6
        assert load.errors.keys() == {"early end"}


def test_open_may_be_tried_again() -> None:
    answer = spoiling(hostile.honest, 1, hostile.silent, first=2)
    with echoing(answer, "lines") as server:
        load = StreamLoad(server.address, "lines", 2, LINE)
        with pytest.raises(TimeoutError):
            load.open(0.1)
        load.open(LONG)
        with load:
            load.run(LONG, 10)
            assert (load.operations, load.errors) == (10, {})


# --- idle connections


@pytest.mark.parametrize("idle", [1, 300])
def test_idle_connections_exchange_one_round_and_are_held(idle: int) -> None:
    requests: list[int] = []

    def answer(connection: socket.socket, request: bytes) -> bool:
        requests.append(connection.fileno())
        return hostile.honest(connection, request)

    with echoing(answer, "lines") as server, opened(server.address, "lines", 2, idle=idle) as load:
        assert load.operations == len(requests) == len(set(requests)) == 2 + idle
        load.run(LONG, 50)
        assert (load.operations, load.errors) == (50, {})
        assert 1 <= load.served <= 2
        assert len(set(requests)) == 2 + idle and len(requests) >= 52 + idle
        assert len(server.connections) == 2 + idle


def test_an_idle_connection_that_ends() -> None:
    with (
        echoing(hostile.honest, "lines") as server,
        opened(server.address, "lines", 1, idle=3) as load,
    ):
        load.run(LONG, 10)
        assert load.errors == {}
        for end in server.connections - {server.last}:
            hostile.shut(end)
        load.run(0.2)
        assert load.errors == {"ended": 3} and load.operations > 0
        load.run(LONG, 10)
        assert (load.operations, load.errors) == (10, {})


def test_an_idle_connection_that_talks() -> None:
    def answer(connection: socket.socket, request: bytes) -> bool:
        connections.append(connection)
        return hostile.honest(connection, request)

    connections: list[socket.socket] = []
    with echoing(answer, "lines") as server, opened(server.address, "lines", 1, idle=1) as load:
        load.run(LONG, 10)
        (silent,) = (one for one in {*connections} if connections.count(one) == 1)
        silent.sendall(b"?")
        load.run(0.1)
        assert load.errors == {"too many bytes": 1}


def test_all_connections_end() -> None:
    """Busy ones are dialled anew."""
    with echoing(hostile.honest, "lines") as server, opened(server.address, "lines", 3) as load:
        load.run(LONG, 10)
        server.hang_up()
        load.run(LONG, 30)
        assert load.operations == 30
        assert sum(load.errors.values()) == 3
        assert load.errors.keys() <= {"early end", "reset"}
