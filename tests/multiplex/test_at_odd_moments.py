"""Odd moments: ends, reports and finalizers, where the hub is in the middle of something."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, receive, wait_until
from talks import Served

from fastsock import multiplexing

Serve = Callable[..., Served]


@pytest.fixture(autouse=True)
def quick_collections() -> Iterator[None]:
    """What the tests before have left need not be looked at each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def fill(connection: Any) -> None:
    """Until the peer, which does not read, takes no more."""
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(bytes(65536))
    connection.setblocking(True)


def test_a_handler_ends_while_its_peer_does_not_read(serve: Serve) -> None:
    """With bytes held back, its own and another connection's: the other handlers go on."""
    full = threading.Event()
    silent: list[Any] = []

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"silent\n":
            silent.append(self.request)
            fill(self.request)
            full.set()
            self.wfile.write(b"mine\n")
        elif line == b"leave it some\n":
            silent[0].sendall(b"left\n")
        else:
            self.wfile.write(line)

    served = serve(handle)
    stuck = served.connect(b"silent\n")
    assert full.wait(TIMEOUT)
    leaver = served.connect(b"leave it some\n")
    for number in range(3):
        assert served.ask(b"%d\n" % number) == b"%d\n" % number
    assert receive(stuck).strip(b"\0") in (b"mine\n", b"mine\nleft\n", b"left\nmine\n")
    assert receive(leaver) == b""


def test_unwound_while_its_peer_does_not_read(serve: Serve) -> None:
    """It is not waited for; the handlers end, and the loop does."""
    full = threading.Event()
    ended: list[Any] = []

    def handle(self: Any) -> None:
        try:
            fill(self.request)
            full.set()
            self.wfile.write(b"held")
            self.rfile.readline()
        finally:
            ended.append(self)
            self.wfile.write(b"more")

    served = serve(handle, daemon_threads=True, handle_error=lambda *request: None)
    client = served.connect()
    assert full.wait(TIMEOUT)
    served.server.shutdown()
    served.loop.join(TIMEOUT)
    assert not served.loop.is_alive()
    client.close()
    wait_until(lambda: ended)


class Refused(Exception):
    """Of a logging handler."""


@pytest.mark.parametrize("where", ["waits", "gives way", "ends"])
def test_a_report_that_raises(
    fastsock_dir: str | None, time_limit: None, where: str, capsys: Any
) -> None:
    """A logger's filter: that is told, and nobody else's affair."""
    module = module_of("multiplexing", fastsock_dir)

    def refuse(record: logging.LogRecord) -> bool:
        if "has held the loop" in record.getMessage():
            refused.append(record)
            raise Refused
        return True

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"hold\n":
            end = time.monotonic() + 0.05
            while time.monotonic() < end:
                pass
            if where == "waits":
                self.wfile.write(self.rfile.readline())
            elif where == "gives way":
                multiplexing.sleep(0)
            self.wfile.write(b"held\n")
        else:
            self.wfile.write(line)

    refused: list[Any] = []
    logger = logging.getLogger("fastsock.multiplexing")
    logger.addFilter(refuse)
    try:
        served = Served(
            module, handle, slow_handler_threshold=0.01, handle_error=lambda *request: None
        )
        with served:
            holder = served.connect(b"hold\n")
            wait_until(lambda: refused)
            for number in range(3):
                assert served.ask(b"%d\n" % number) == b"%d\n" % number
            if where == "waits":
                holder.sendall(b"next\n")
            assert receive(holder) == (b"next\nheld\n" if where == "waits" else b"held\n")
            for number in range(3):
                assert served.ask(b"%d\n" % number) == b"%d\n" % number
    finally:
        logger.removeFilter(refuse)
    assert "Refused" in capsys.readouterr().err


class Knot:
    """Garbage, once it is tied, whose collection closes a file."""

    def __init__(self, file: Any) -> None:
        self.me = self
        weakref.finalize(self, file.close)


def test_a_file_that_a_collection_closes(serve: Serve) -> None:
    """Inside whatever task runs: that goes on."""

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"knot\n":
            file = self.request.makefile("wb")
            file.write(b"from the knot\n")
            Knot(file)
            del file
            self.wfile.write(b"tied\n")
            line = self.rfile.readline()
        if line == b"collect\n":
            self.wfile.write(b"before ")
            gc.collect()
            self.wfile.write(b"after\n")
            return
        self.wfile.write(line)

    gc.disable()
    try:
        served = serve(handle)
        client = served.connect(b"knot\n")
        with client.makefile("rb") as file:
            assert file.readline() == b"tied\n"
            assert served.ask(b"collect\n") == b"before after\n"
            assert file.readline() == b"from the knot\n"
            client.sendall(b"end\n")
            assert file.read() == b"end\n"
        assert served.ask(b"x\n") == b"x\n"
    finally:
        gc.enable()


def test_such_a_file_whose_peer_does_not_read(serve: Serve) -> None:
    """The task that collects waits for it; the others go on."""
    full, collecting = threading.Event(), threading.Event()

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"knot\n":
            file = self.request.makefile("wb")
            fill(self.request)
            file.write(b"from the knot\n")
            Knot(file)
            del file
            full.set()
            self.rfile.readline()
        elif line == b"collect\n":
            collecting.set()
            gc.collect()
            self.wfile.write(b"collected\n")
        else:
            self.wfile.write(line)

    gc.disable()
    try:
        served = serve(handle)
        client = served.connect(b"knot\n")
        assert full.wait(TIMEOUT)
        collector = served.connect(b"collect\n")
        assert collecting.wait(TIMEOUT)
        for number in range(3):
            assert served.ask(b"%d\n" % number) == b"%d\n" % number
        with client.makefile("rb") as file:
            assert file.readline().strip(b"\0") == b"from the knot\n"
        client.sendall(b"end\n")
        assert receive(client) == b""
        assert receive(collector) == b"collected\n"
    finally:
        gc.enable()


@pytest.mark.fastsock_only("io's files may be finalized after what is below them")
@pytest.mark.parametrize("size", [10, 5_000_000])
def test_a_handler_that_is_garbage(serve: Serve, size: int) -> None:
    """Its wfile, which nobody has closed, is flushed by a collection inside another task."""
    gone: list[Any] = []
    tied: list[Any] = []

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"knot\n":
            self.me = self
            weakref.finalize(self, gone.append, True)
            self.wfile.write(bytes(size - 1) + b"\n")
        elif line == b"collect\n":
            gc.collect()
            self.wfile.write(b"collected\n")
        else:
            self.wfile.write(line)

    def finish(self: Any) -> None:
        if not hasattr(self, "me"):
            self.wfile.flush()

    def shutdown_request(self: Any, request: Any) -> None:
        tied.append(True)

    gc.disable()
    try:
        handler = {"wbufsize": size, "finish": finish}
        with pytest.warns(ResourceWarning):
            served = serve(handle, handler=handler, shutdown_request=shutdown_request)
            client = served.connect(b"knot\n")
            wait_until(lambda: tied)
            collector = served.connect(b"collect\n")
            assert served.ask(b"x\n") == b"x\n"
            assert len(receive(client)) == size
            with collector.makefile("rb") as file:
                assert file.readline() == b"collected\n"
            assert gone
            gc.collect()
    finally:
        gc.enable()


@pytest.mark.parametrize("when", ["reader", "writer", "both"])
def test_closed_by_a_collection_while_somebody_waits(serve: Serve, when: str) -> None:
    """Files in a cycle with a task that waits by them are no garbage; a dead handler's are."""
    waiting = threading.Event()

    def handle(self: Any) -> None:
        self.me = self  # a cycle that its end leaves behind
        line = self.rfile.readline()
        if line == b"wait\n":
            if when != "writer":
                self.reader = self.request.makefile("rb")
            if when != "reader":
                self.writer = self.request.makefile("wb")
            self.wfile.write(b"waiting\n")
            waiting.set()
            self.wfile.write(getattr(self, "reader", self.rfile).readline())
        else:
            gc.collect()
            self.wfile.write(line)

    served = serve(handle)
    client = served.connect(b"wait\n")
    assert waiting.wait(TIMEOUT)
    for number in range(5):
        assert served.ask(b"%d\n" % number) == b"%d\n" % number
    client.sendall(b"come\n")
    with client.makefile("rb") as file:
        assert [file.readline(), file.readline()] == [b"waiting\n", b"come\n"]
    gc.collect()


def test_sockets_of_the_end(serve: Serve) -> None:
    """shutdown() of a connection by another task while its own waits."""
    kept: list[socket.socket] = []

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"keep\n":
            kept.append(self.request)
            self.wfile.write(b"kept\n")
            self.wfile.write(self.rfile.readline() or b"ended\n")
        else:
            kept[0].shutdown(socket.SHUT_RD)
            self.wfile.write(line)

    served = serve(handle)
    with served.connect(b"keep\n") as client, client.makefile("rb") as file:
        assert file.readline() == b"kept\n"
        assert served.ask(b"x\n") == b"x\n"
        assert file.read() == b"ended\n"
