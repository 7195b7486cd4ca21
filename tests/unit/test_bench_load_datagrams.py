"""The load of datagram servers: lost, wrong, late and other people's answers."""

from __future__ import annotations

import os
import socket
import threading
from typing import Any

import hostile
import pytest
from hostile import datagrams, spoiling
from loads import LONG, needs_ipv6

from fastsock.bench import _load
from fastsock.bench._load import DatagramLoad

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")


def datagram_load(address: Any, connections: int = 1, size: int = 32, **options: Any) -> Any:
    load = DatagramLoad(address, connections, size, **{"timeout": 5, **options})
    load.open(LONG)
    return load


@pytest.mark.parametrize(
    "where", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6), "path", "name"]
)
@pytest.mark.parametrize("size", [0, 1, 8, 13, 1400, 8192])
@pytest.mark.parametrize("window", [1, 3])
def test_an_honest_datagram_server(where: str, size: int, window: int, folder: str) -> None:
    where = {"path": f"{folder}/s", "name": f"\0{folder}"}.get(where, where)
    with (
        datagrams(hostile.echo, where) as address,
        datagram_load(address, 3, size, window=window) as load,
    ):
        for count in (200, 57):
            load.run(LONG, count)
            assert (load.operations, load.errors) == (count, {})
            assert load.verified == count * size
            assert load.latency.count == count
            assert load.served == 3
        load.run(0.05)
        assert load.operations > 0 and load.errors == {}


@pytest.mark.parametrize("connections", [1, 40])
def test_more_datagrams_than_a_unix_queue_holds(connections: int, folder: str) -> None:
    with (
        datagrams(hostile.echo, f"{folder}/s") as address,
        datagram_load(address, connections, window=64 if connections == 1 else 4) as load,
    ):
        load.run(LONG, 3000)
        assert (load.operations, load.errors, load.served) == (3000, {}, connections)


def test_the_latency_of_datagrams() -> None:
    def late(sock: socket.socket, got: bytes, peer: Any) -> None:
        threading.Event().wait(0.05)
        sock.sendto(got, peer)

    with datagrams(late) as address, datagram_load(address) as load:
        load.run(LONG, 5)
        assert 0.050 <= load.latency.percentile(0.5) / 1e9 < 0.5


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (hostile.losing, "lost"),
        (hostile.from_elsewhere, "lost"),
        (hostile.shorter, "wrong length"),
        (hostile.longer, "wrong length"),
        (hostile.twisting(0), "corrupted"),
        (hostile.twisting(20), "corrupted"),
        (hostile.twisting(31), "corrupted"),
    ],
    ids=["lost", "from elsewhere", "shorter", "longer", "first byte", "a byte", "last byte"],
)
def test_each_wrong_datagram_is_counted(bad: Any, error: str) -> None:
    timeout = 0.3 if error == "lost" else LONG
    with (
        datagrams(spoiling(bad, 3, hostile.echo)) as address,
        datagram_load(address, timeout=timeout) as load,
    ):
        load.run(LONG, 10)
        assert (load.operations, load.errors) == (10, {error: 4})


def test_some_are_lost_of_many() -> None:
    """One in 20: 52 until 990 have come, of which 16 at most are not given up yet."""
    with (
        datagrams(spoiling(hostile.losing, 20, hostile.echo)) as address,
        datagram_load(address, 4, window=4, timeout=0.3) as load,
    ):
        load.run(LONG, 990)
        assert load.operations == 990
        assert load.errors.keys() == {"lost"}
        assert 36 <= load.errors["lost"] <= 52


def test_second_answers() -> None:
    with (
        datagrams(spoiling(hostile.doubling, 3, hostile.echo)) as address,
        datagram_load(address) as load,
    ):
        load.run(LONG, 10)
        assert (load.operations, load.errors) == (10, {"duplicate": 3})


def test_a_late_answer_is_lost_and_no_duplicate() -> None:
    held: list[Any] = []

    def hold(sock: socket.socket, got: bytes, peer: Any) -> None:
        held.append((got, peer))

    def release(sock: socket.socket, got: bytes, peer: Any) -> None:
        while held:
            sock.sendto(*held.pop())
        sock.sendto(got, peer)

    with (
        datagrams(spoiling(hold, 3, release)) as address,
        datagram_load(address, timeout=0.3) as load,
    ):
        load.run(LONG, 7)
        assert (load.operations, load.errors) == (7, {"lost": 3})


def test_disordered_answers() -> None:
    with datagrams(hostile.swapping()) as address, datagram_load(address, window=2) as load:
        load.run(LONG, 20)
        assert (load.operations, load.errors) == (20, {"disordered": 10})


def test_an_answer_to_another_socket() -> None:
    with (
        datagrams(hostile.crossing(10)) as address,
        datagram_load(address, 2, timeout=0.2) as load,
    ):
        load.run(LONG, 60)
        assert load.operations == 60
        assert load.errors["foreign"] >= 1
        assert load.errors.keys() <= {"foreign", "lost"}  # whose answer it was has none


def test_nobody_has_bound_the_address(folder: str) -> None:
    with bound_port() as address:
        pass
    with datagram_load(address, 2, timeout=0.1) as load:
        load.run(0.3)
        assert load.operations == 0
        assert load.errors.keys() == {"refused", "lost"}
        assert load.errors["refused"] < 60  # it does not spin
    with pytest.raises(TimeoutError, match="0 of 2 sockets were connected"):
        DatagramLoad(f"{folder}/none", 2, 8).open(0.1)


def test_a_unix_datagram_server_that_comes_again(folder: str) -> None:
    path = f"{folder}/s"
    with datagrams(hostile.echo, path) as address:
        load = datagram_load(address, 3, timeout=0.2)
        load.run(LONG, 20)
        assert (load.operations, load.errors) == (20, {})
    with load:
        load.run(0.4)
        assert load.errors["refused"] >= 3
        os.unlink(path)
        with datagrams(hostile.echo, path):
            load.run(LONG, 50)
            assert load.operations == 50
            load.run(LONG, 50)
            assert (load.operations, load.errors) == (50, {})


def test_too_many_wrong_datagrams() -> None:
    with datagrams(hostile.twisting(9)) as address, datagram_load(address, 2) as load:
        load.run(LONG)
        assert load.errors == {"corrupted": _load.MOST_ERRORS} and load.too_many_errors
        assert load.seconds < LONG


class bound_port:
    def __enter__(self) -> Any:
        self.sock = hostile.bound("127.0.0.1", socket.SOCK_DGRAM)
        return self.sock.getsockname()

    def __exit__(self, *_: object) -> None:
        self.sock.close()
