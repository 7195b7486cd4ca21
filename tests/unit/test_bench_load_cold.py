"""A load whose lasting connections are made while it is counted."""

from __future__ import annotations

import socket
import threading

import hostile
import pytest
from loads import LINE, LONG, echoing, opened

from fastsock.bench._load import StreamLoad

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")


def test_open_makes_no_connection_and_run_makes_all() -> None:
    with (
        echoing(hostile.honest, "lines") as server,
        opened(server.address, "lines", 3, cold=True) as load,
    ):
        assert (load.operations, server.connections) == (0, set())
        load.run(LONG, 300)
        assert (load.operations, load.latency.count) == (300, 300)
        assert load.verified >= 300 * len(LINE)
        assert load.errors == {}
        first = set(server.connections)
        assert len(first) == 3
        load.run(LONG, 300)  # on the same ones
        assert (load.operations, load.errors) == (300, {})
        assert server.connections == first


def test_all_are_there_from_the_beginning() -> None:
    """None has its answer before all have asked: they don't come one behind another."""
    together = threading.Barrier(5)

    def answer(connection: socket.socket, request: bytes) -> bool:
        try:
            together.wait(LONG)
        except threading.BrokenBarrierError:  # the test ends
            return False
        return hostile.honest(connection, request)

    with echoing(answer, "lines") as server, opened(server.address, "lines", 5, cold=True) as load:
        load.run(LONG, 5)
        assert (load.operations, load.served) == (5, 5)
        together.abort()


def test_no_idle_ones() -> None:
    with pytest.raises(ValueError, match="idle connections are made by open"):
        StreamLoad(("127.0.0.1", 1), "lines", 3, LINE, idle=1, cold=True)
