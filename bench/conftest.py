"""What the micro benchmarks share. ``ci/bench`` runs them.

Every benchmark is one source for both implementations and uses what is public in both. Times are
for reading, side by side and from one run; nothing fails on one. Some are of a whole block of
operations (the group says how many), where a single one cannot be prepared without being timed.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 10.0  # seconds, of every operation that waits
MOST_ROUNDS = 2000

Prepare = Callable[[], object]
Block = Callable[..., None]


@pytest.fixture(params=("socketserver", "fastsock"))
def ss(request: pytest.FixtureRequest) -> Any:
    """The implementation."""
    return importlib.import_module(request.param)


@pytest.fixture
def closing() -> Iterator[contextlib.ExitStack]:
    """Everything that a benchmark opens is entered here, and is closed behind it."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def block(request: pytest.FixtureRequest, benchmark: Any) -> Block:
    """block(group, work, prepare): times work(), each time after a prepare() that is not timed.

    For as long as --benchmark-max-time says, what is not timed included, and in no less than
    --benchmark-min-rounds rounds.
    """
    seconds = float(request.config.getoption("benchmark_max_time"))
    fewest = int(request.config.getoption("benchmark_min_rounds"))

    def run(group: str, work: Callable[[], object], prepare: Prepare = lambda: None) -> None:
        benchmark.group = group
        begin = time.perf_counter()
        tried = 0
        while tried == 0 or (tried < 10 and time.perf_counter() - begin < seconds / 10):
            prepare()
            work()
            tried += 1
        for_one = (time.perf_counter() - begin) / tried
        rounds = min(MOST_ROUNDS, max(fewest, int(seconds / for_one)))
        benchmark.pedantic(work, setup=lambda: prepare() and None, rounds=rounds)

    return run


@pytest.fixture
def serve(ss: Any, closing: contextlib.ExitStack) -> Callable[..., Any]:
    """serve(name of a server class, handler) -> such a server, which serves in a thread."""

    def start(name: str, handler: Any) -> Any:
        server_class = type(name, (getattr(ss, name),), {"request_queue_size": 128})
        server = closing.enter_context(server_class(("127.0.0.1", 0), handler))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        closing.callback(thread.join)
        closing.callback(server.shutdown)
        return server

    return start


@pytest.fixture
def listening(ss: Any, closing: contextlib.ExitStack) -> Callable[..., Any]:
    """listening(name, handler, **attributes) -> a Unix server of that name, which nobody serves."""
    folder = Path(tempfile.mkdtemp(prefix="fastsock-"))
    closing.callback(shutil.rmtree, folder)

    def make(name: str, handler: Any = None, **attributes: Any) -> Any:
        attributes.setdefault("request_queue_size", 256)
        server_class = type(name, (getattr(ss, name),), attributes)
        address = str(folder / f"{len(list(folder.iterdir()))}")
        return closing.enter_context(server_class(address, handler or ss.BaseRequestHandler))

    return make


@pytest.fixture
def connect(closing: contextlib.ExitStack) -> Callable[[Any], socket.socket]:
    """connect(server) -> the client's end of a connection that waits in the backlog."""

    def make(server: Any) -> socket.socket:
        client = closing.enter_context(socket.socket(socket.AF_UNIX, server.socket_type))
        client.settimeout(TIMEOUT)
        client.connect(server.server_address)
        return client

    return make


class Served(BaseException):
    """Leaves serve_forever(): the one way out of it that both have, from inside."""


@pytest.fixture
def serve_so_many() -> Callable[[Any, int], None]:
    """serve_so_many(server, count): serve_forever() until so many calls of service_actions().

    There is one after each request when all of them are there already.
    """

    def serve_forever(server: Any, count: int) -> None:
        left = count

        def service_actions() -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Served

        server.service_actions = service_actions
        with contextlib.suppress(Served):
            server.serve_forever()

    return serve_forever
