"""What a program may do with rfile and wfile besides reading and writing."""

from __future__ import annotations

import gc
import io
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from streams import Side
from support import TIMEOUT, Background, outcome

import fastsock
from fastsock._channel import adopt
from fastsock._connection import Connection
from fastsock._reader import Reader
from fastsock._writer import writer_of

each_implementation = pytest.mark.parametrize("native", [True, False], ids=["fastsock", "io"])


@pytest.fixture
def side(native: bool) -> Iterator[Side]:
    side = Side("rb", native, 8192, TIMEOUT)
    yield side
    side.close()


@pytest.fixture
def writing(native: bool) -> Iterator[Side]:
    side = Side("wb", native, 8192, TIMEOUT)
    yield side
    side.close()


# --- what they are


@each_implementation
def test_classes(side: Side, writing: Side) -> None:
    for file, cls in (side.file, io.BufferedReader), (writing.file, io.BufferedWriter):
        assert isinstance(file, cls) and isinstance(file, io.BufferedIOBase)
        assert isinstance(file, io.IOBase) and not isinstance(file, (io.RawIOBase, io.TextIOBase))
        assert file.__class__ is cls
        assert repr(file) == f"<_io.{cls.__name__} name={file.fileno()}>"


@each_implementation
def test_every_name_is_there(side: Side, writing: Side) -> None:
    for file, cls in (side.file, io.BufferedReader), (writing.file, io.BufferedWriter):
        internal = {"_dealloc_warn", "_finalizing", "__getstate__", "__setstate__", "__module__"}
        internal |= {"__annotations_cache__", "__annotate_func__"}  # of classes, since 3.15
        assert not [name for name in set(dir(cls)) - internal if not hasattr(file, name)]


@each_implementation
def test_attributes_and_references(side: Side, writing: Side) -> None:
    for file in side.file, writing.file:
        file.mine = 3
        assert file.mine == 3 and vars(file) == {"mine": 3}
        assert weakref.ref(file)() is file
        assert {file: 1}[file] == 1
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            with pytest.raises(TypeError, match="cannot pickle"):
                pickle.dumps(file, protocol)
        with pytest.raises((AttributeError, TypeError)):
            file.closed = True


@each_implementation
@pytest.mark.parametrize("size", [0, -1])
def test_no_buffer(native: bool, size: int) -> None:
    here, there = socket.socketpair()
    with here, there:
        if native:
            connection = adopt(Connection, here)
            with connection:
                for make in Reader, writer_of:
                    with pytest.raises(ValueError, match="must be strictly positive"):
                        make(connection, size)
                assert connection._io_refs == 0
        else:
            with pytest.raises(ValueError, match="must be strictly positive"):
                io.BufferedReader(io.BytesIO(), size)  # type: ignore[arg-type]


@each_implementation
def test_dropped_without_close(native: bool) -> None:
    """The reference to the connection is given back, and what wfile held back is sent."""
    for which in "rb", "wb":
        side = Side(which, native, 100, None)
        if which == "wb":
            side.file.write(b"held back")
        assert side.sock._io_refs == 1
        side.sock.close()
        assert side.sock.fileno() >= 0
        del side.file
        gc.collect()
        assert (side.sock._io_refs, side.sock.fileno()) == (0, -1)
        assert side.peer.recv(100) == (b"held back" if which == "wb" else b"")
        side.peer.close()


@each_implementation
def test_dropped_in_a_cycle(native: bool) -> None:
    side = Side("rb", native, 100, None)
    side.file.itself = side.file
    side.sock.close()
    del side.file
    gc.collect()
    assert side.peer.recv(1) == b""
    side.peer.close()


@each_implementation
def test_everything_dropped(native: bool) -> None:
    """A request and its files, forgotten together: one warning, the descriptor is closed."""
    side = Side("rb", native, 100, None)
    side.file.raw  # noqa: B018
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del side.file, side.sock
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert side.peer.recv(1) == b""
    side.peer.close()


# --- amounts


@each_implementation
def test_long_lines(side: Side) -> None:
    """A line of 1 MB, after a short one and before another, with and without a limit."""
    long = b"x" * 1_000_000 + b"\n"
    sending = Background(side.peer.sendall, b"a\n" + long + b"b\n" + long + b"c\n")
    assert side.file.readline() == b"a\n"
    assert side.file.readline() == long
    assert side.file.readline() == b"b\n"
    assert side.file.readline(65537) == b"x" * 65537
    assert side.file.readline() == long[65537:]
    assert side.file.readline() == b"c\n"
    sending.result()


@each_implementation
def test_body_after_headers(side: Side) -> None:
    """Lines, then read(Content-Length), on a connection that stays open."""
    body = os.urandom(300_000)
    sending = Background(
        lambda: [side.peer.sendall(b"POST\r\n\r\n" + body + b"GET\r\n\r\n") for _ in range(3)]
    )
    for _ in range(3):
        assert [side.file.readline() for _ in range(2)] == [b"POST\r\n", b"\r\n"]
        assert side.file.read(len(body)) == body
        assert [next(side.file) for _ in range(2)] == [b"GET\r\n", b"\r\n"]
    sending.result()


@pytest.mark.parametrize("native", [True])
@pytest.mark.parametrize("call", ["read", "readline", "peek"])
def test_announced_but_not_sent(side: Side, call: str) -> None:
    """read(n) of a huge n takes memory for what comes, not for n."""
    side.peer.sendall(b"little")
    side.peer.shutdown(socket.SHUT_WR)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20), limits[1]))
    try:
        assert getattr(side.file, call)(1 << 40) == b"little"
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@each_implementation
def test_read_to_the_end(side: Side) -> None:
    data = os.urandom(3_000_000)
    sending = Background(lambda: side.peer.sendall(data) or side.peer.close())
    assert side.file.peek(10)[:10] == data[:10]
    assert side.file.read() == data
    assert side.file.read() == b"" == side.file.readline() == side.file.read1()
    sending.result()


@each_implementation
def test_timeout_within_a_line(side: Side) -> None:
    """What was read of the line is lost, and nothing more is received: as in io."""
    side.peer.sendall(b"one\ntwo\nthr")
    assert side.file.readline() == b"one\n"
    side.sock.settimeout(0.01)
    assert side.file.readline() == b"two\n"
    with pytest.raises(TimeoutError, match=r"^timed out$"):
        side.file.readline()
    side.peer.sendall(b"ee\nfour\n")
    side.sock.settimeout(TIMEOUT)
    for call in side.file.readline, side.file.read, side.file.peek, side.file.read1:
        with pytest.raises(OSError, match=r"^cannot read from timed out object$"):
            call()
    assert side.sock.recv(100) == b"ee\nfour\n"


@each_implementation
def test_flush_again_after_a_timeout(writing: Side) -> None:
    """What a flush() could not send stays, and the next one goes on behind what was sent."""
    data = os.urandom(8000)
    writing.sock.settimeout(0)
    with pytest.raises(BlockingIOError):
        while True:
            writing.sock.send(b"." * 1000)
    writing.sock.settimeout(0.01)
    assert writing.file.write(data) == 8000
    for _ in range(3):
        with pytest.raises(TimeoutError):
            writing.file.flush()
    received = bytearray()

    def drain() -> None:
        while not received.endswith(data):
            received.extend(writing.peer.recv(1 << 16))

    draining = Background(drain)
    writing.sock.settimeout(TIMEOUT)
    writing.file.flush()
    draining.result()
    assert bytes(received).lstrip(b".") == data.lstrip(b".")


# --- threads, signals


@pytest.mark.parametrize("native", [True])
def test_several_threads_read_lines(side: Side) -> None:
    """Every line goes to one of them, whole. (io reads lines without its lock.)"""
    lines = [b"%d %s\n" % (number, b"x" * (number % 300)) for number in range(5000)]
    threads = [Background(lambda: [*iter(side.file.readline, b"")]) for _ in range(4)]
    side.peer.sendall(b"".join(lines))
    side.peer.shutdown(socket.SHUT_WR)
    found = [line for thread in threads for line in thread.result()]
    assert sorted(found) == sorted(lines)


@each_implementation
def test_several_threads_write(writing: Side) -> None:
    lines = [[b"%d %d\n" % (thread, number) for number in range(3000)] for thread in range(4)]
    threads = [
        Background(lambda mine=mine: [writing.file.write(line) for line in mine] and None)
        for mine in lines
    ]

    def receive() -> bytes:
        received = bytearray()
        while chunk := writing.peer.recv(1 << 16):
            received += chunk
        return bytes(received)

    receiving = Background(receive)
    for thread in threads:
        thread.result()
    writing.file.close()
    writing.sock.close()
    found = receiving.result().splitlines(keepends=True)
    assert sorted(found) == sorted(line for mine in lines for line in mine)
    for number, mine in enumerate(lines):
        assert [line for line in found if line.startswith(b"%d " % number)] == mine


@each_implementation
def test_closed_while_another_thread_reads(side: Side) -> None:
    """close() waits for the reader, who gets what comes."""
    entered = threading.Event()
    reading = Background(lambda: entered.set() or side.file.readline())
    assert entered.wait(TIMEOUT)
    time.sleep(0.01)  # so that it probably waits; without that the test would prove less
    closing = [Background(side.file.close) for _ in range(3)]
    side.peer.sendall(b"line\n")
    result = outcome(reading.result)
    assert result == ("returned", b"line\n") or result[0] is ValueError
    for thread in closing:
        thread.result()
    assert side.file.closed and side.sock._io_refs == 0


@each_implementation
def test_reentered_by_a_signal_handler(side: Side) -> None:
    results: list[Any] = []

    def handler(*_: Any) -> None:
        results.append(outcome(side.file.readline))
        side.peer.sendall(b"line\n")

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        main = threading.main_thread().ident or 0
        thread = Background(lambda: time.sleep(0.05) or signal.pthread_kill(main, signal.SIGUSR1))
        assert side.file.readline() == b"line\n"
        thread.result()
    finally:
        signal.signal(signal.SIGUSR1, before)
    text = f"reentrant call inside <_io.BufferedReader name={side.sock.fileno()}>"
    assert results == [(RuntimeError, None, (text,))]


# --- the connection goes first


@each_implementation
@pytest.mark.parametrize("end", ["close", "detach", "shutdown", "detach and close"])
def test_connection_ended_under_the_reader(side: Side, end: str) -> None:
    side.peer.sendall(b"one\ntwo\n")
    assert side.file.readline() == b"one\n"
    assert isinstance(side.sock._io_refs, int)
    if end == "shutdown":
        side.sock.shutdown(socket.SHUT_RD)
    elif end == "close":
        side.sock.close()
    else:
        number = side.sock.detach()
        if end == "detach and close":
            os.close(number)
    assert side.file.readline() == b"two\n"  # from the buffer
    begin = time.monotonic()
    result = outcome(side.file.read, 1) if end != "close" else None
    assert time.monotonic() - begin < TIMEOUT / 2
    if end == "shutdown":
        assert result == ("returned", b"")
    elif result is not None:
        assert result[:2] == (OSError, 9)
    side.file.close()
    if end == "detach":
        os.close(number)


@each_implementation
@pytest.mark.parametrize("end", ["close", "detach", "peer"])
def test_connection_ended_under_the_writer(writing: Side, end: str) -> None:
    writing.file.write(b"held back")
    if end == "peer":
        writing.peer.close()
    elif end == "close":
        writing.sock.close()
    else:
        os.close(writing.sock.detach())
    result = outcome(writing.file.close)
    expected = {"close": ("returned", None), "detach": (OSError, 9), "peer": (BrokenPipeError, 32)}
    assert result[:2] == expected[end]
    assert writing.file.closed
    assert outcome(writing.file.close) == ("returned", None)
    if end == "close":
        assert writing.peer.recv(100) == b"held back" and writing.sock.fileno() == -1


# --- on a server


@pytest.mark.parametrize(("rbufsize", "wbufsize"), [(-1, 0), (1, 1), (0, -1), (16, 16), (-5, 100)])
def test_files_of_a_handler(rbufsize: int, wbufsize: int) -> None:
    """Which files a StreamRequestHandler opens; they are the standard library's where it says."""
    files: list[Any] = []

    class Handler(fastsock.StreamRequestHandler):
        def handle(self) -> None:
            files[:] = self.rfile, self.wfile
            self.rfile.mine = self.wfile.mine = 1  # type: ignore[attr-defined]
            self.wfile.write(self.rfile.readline().upper())

    Handler.rbufsize, Handler.wbufsize = rbufsize, wbufsize
    with (
        fastsock.TCPServer(("127.0.0.1", 0), Handler) as server,
        socket.create_connection(server.server_address[:2], TIMEOUT) as client,
    ):
        client.sendall(b"hello\n")
        server.handle_request()
        assert client.recv(100) == b"HELLO\n"
        assert client.recv(100) == b""
    rfile, wfile = files
    assert rfile.closed and (wfile.closed or wbufsize == 0)
    assert isinstance(rfile, socket.SocketIO if rbufsize == 0 else io.BufferedReader)
    assert isinstance(wfile, io.BufferedWriter) == (wbufsize != 0)
    assert sys.getrefcount(rfile) < 10
