"""The handler classes: files, buffer sizes, timeouts, what happens at the end."""

from __future__ import annotations

import array
import fcntl
import io
import socket
import termios
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Trace,
    ask,
    connect,
    handling,
    receive,
    recording,
    serving,
    wait_until,
)

Make = Callable[..., Any]
each_wbufsize = pytest.mark.parametrize("wbufsize", [0, 1024, -1])


# --- the base class


@pytest.mark.parametrize(
    ("failing", "expected"),
    [
        (None, ["setup", "handle", "finish"]),
        ("setup", ["setup"]),
        ("handle", ["setup", "handle", "finish"]),
        ("finish", ["setup", "handle", "finish"]),
    ],
)
@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()], ids=repr)
def test_order(
    ss: ModuleType, trace: Trace, failing: str | None, expected: list[str], error: BaseException
) -> None:
    raising = {failing: error} if failing else {}
    handler = recording(ss.BaseRequestHandler, trace, raising)
    if failing:
        with pytest.raises(type(error)) as caught:
            handler("request", "address", "server")
        assert caught.value is error
        error.__traceback__ = None
    else:
        handler("request", "address", "server")
    assert trace.names() == ["Handler", *expected]


def test_attributes(ss: ModuleType) -> None:
    """Set before setup() runs; whatever they are."""
    seen = []

    class Handler(ss.BaseRequestHandler):
        def setup(self) -> None:
            seen.append((self.request, self.client_address, self.server))

    request, address, server = object(), object(), object()
    handler = Handler(request, address, server)
    assert seen == [(request, address, server)]
    assert vars(handler) == {"request": request, "client_address": address, "server": server}
    Handler(request=request, client_address=address, server=server)


# --- streams


@each_wbufsize
def test_files(ss: ModuleType, pair: Any, wbufsize: int) -> None:
    client, request = pair
    handlers = []

    def handle(self: Any) -> None:
        handlers.append(self)
        assert self.request is self.connection is request
        assert isinstance(self.rfile, io.BufferedIOBase)
        assert isinstance(self.wfile, io.BufferedIOBase)
        assert self.rfile.readable() and not self.rfile.writable()
        assert self.wfile.writable() and not self.wfile.readable()
        assert not self.rfile.seekable() and not self.wfile.seekable()
        assert self.rfile.fileno() == self.wfile.fileno() == request.fileno()
        assert not self.rfile.closed and not self.wfile.closed
        assert self.wfile.write(b"one\n") == 4
        self.wfile.writelines([b"two\n", b"three\n"])
        print("four", file=io.TextIOWrapper(self.wfile, write_through=True, newline="\n"))

    handling(ss, handle, wbufsize=wbufsize)(request, None, None)
    assert client.recv(100) == b"one\ntwo\nthree\nfour\n"
    (handler,) = handlers
    assert handler.rfile.closed and handler.wfile.closed
    assert request.fileno() != -1  # the server ends the request, not the handler
    request.close()
    assert request.fileno() == -1
    assert receive(client) == b""  # no file keeps it open


@each_wbufsize
def test_closed_is_a_bool(ss: ModuleType, make: Make, wbufsize: int) -> None:
    seen: list[Any] = []

    def handle(self: Any) -> None:
        for file in (self.rfile, self.wfile):
            seen.append(file.closed)
            file.close()
            seen.append(file.closed)

    server = make(ss.TCPServer, handling(ss, handle, wbufsize=wbufsize))
    with serving(server), connect(server) as client:
        assert receive(client) == b""
    assert [(type(each), each) for each in seen] == [(bool, False), (bool, True)] * 2


def test_closing_wfile_flushes_it(ss: ModuleType, make: Make) -> None:
    """Once, by the method that it has, be it the program's own."""
    closed_by_then: list[bool] = []

    def handle(self: Any) -> None:
        self.wfile.flush = lambda: closed_by_then.append(self.wfile.closed)
        self.wfile.write(b"x")
        self.wfile.close()
        self.wfile.close()
        assert self.wfile.closed

    server = make(ss.TCPServer, handling(ss, handle))
    with serving(server), connect(server) as client:
        assert receive(client) == b"x"
    assert closed_by_then == [False]


def test_rfile_is_a_buffered_reader(ss: ModuleType, pair: Any) -> None:
    client, request = pair
    client.sendall(b"line\nmore lines\nand\nbytes" + b"x" * 100_000)
    client.shutdown(socket.SHUT_WR)

    def handle(self: Any) -> None:
        file = self.rfile
        assert file.readline() == b"line\n"
        assert file.peek(1)[:4] == b"more"
        assert file.readline(4) == b"more"
        assert next(file) == b" lines\n"
        assert file.readlines(1) == [b"and\n"]
        assert file.read(2) == b"by"
        assert file.read1(1) == b"t"
        buffer = bytearray(2)
        assert file.readinto(buffer) == 2
        assert buffer == b"es"
        assert file.readinto1(buffer) == 2
        assert file.read(0) == b""
        assert len(file.read(50_000)) == 50_000
        assert len(file.read()) == 49_998
        assert (file.read(), file.read(1), file.readline(), list(file)) == (b"", b"", b"", [])

    handling(ss, handle)(request, None, None)


def test_rbufsize(ss: ModuleType, pair: Any) -> None:
    """0: nothing is read beyond what is asked for. By default a whole buffer may be."""
    client, request = pair
    lines = []

    def handle(self: Any) -> None:
        lines.append(self.rfile.readline())
        if self.rbufsize == 0:
            lines.append(self.connection.recv(100))
        else:
            assert self.rfile.peek(6) == b"second"
            lines.append(self.rfile.read(6))

    for rbufsize in (0, -1, 4096):
        client.sendall(b"first\nsecond")
        handling(ss, handle, rbufsize=rbufsize)(request, None, None)
    assert lines == [b"first\n", b"second"] * 3


@pytest.mark.parametrize("rbufsize", [-1, 512, 1024, 1025, 3000])
@pytest.mark.parametrize("size", [100, 1023, 1024, 1025, 5000, 8192, 9000])
def test_how_far_rfile_reads_ahead(ss: ModuleType, make: Make, rbufsize: int, size: int) -> None:
    """As much as has come, up to the size of the buffer."""
    seen: list[Any] = []

    def waiting(sock: socket.socket) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(sock, termios.FIONREAD, count)
        return count[0]

    def handle(self: Any) -> None:
        wait_until(lambda: waiting(self.connection) == size)
        seen.append((self.rfile.readline(), waiting(self.connection)))
        seen.append((len(self.rfile.peek(1)), waiting(self.connection)))
        seen.append((len(self.rfile.read1(65536)), waiting(self.connection)))

    server = make(ss.TCPServer, handling(ss, handle, rbufsize=rbufsize))
    with serving(server), connect(server) as client:
        client.sendall(b"\n" + b"x" * (size - 1))
        assert receive(client) == b""
    ahead = min(size, rbufsize if rbufsize > 0 else io.DEFAULT_BUFFER_SIZE)
    assert seen == [(b"\n", size - ahead), (ahead - 1, size - ahead), (ahead - 1, size - ahead)]


@pytest.mark.parametrize("rbufsize", [-1, 1024, 1025, 3000])
@pytest.mark.parametrize("size", [1023, 1024, 1025, 1026, 3000, 8193])
def test_a_line_that_comes_in_one_piece(
    ss: ModuleType, make: Make, rbufsize: int, size: int
) -> None:
    """It is there as soon as its end has come, however the buffer grows."""
    seen: list[Any] = []

    def handle(self: Any) -> None:
        seen.append(self.rfile.readline())
        self.wfile.write(b"x")
        seen.append(self.rfile.read(size))
        seen.append(self.rfile.read(2))
        self.wfile.write(b"y")

    line = b"l" * (size - 1) + b"\n"
    server = make(ss.TCPServer, handling(ss, handle, rbufsize=rbufsize))
    with serving(server), connect(server) as client:
        client.sendall(line)
        assert client.recv(1) == b"x"
        client.sendall(b"r" * size + b"ab")
        assert client.recv(1) == b"y"
    assert seen == [line, b"r" * size, b"ab"]


@pytest.mark.parametrize(("wbufsize", "arrival"), [(0, b"ab"), (1024, b"ba"), (-1, b"ba")])
def test_wbufsize(ss: ModuleType, pair: Any, wbufsize: int, arrival: bytes) -> None:
    """0: every write is sent at once. Otherwise writes are held back until flush or the end."""
    client, request = pair

    def handle(self: Any) -> None:
        self.wfile.write(b"a")
        self.request.sendall(b"b")

    def handle_flushing(self: Any) -> None:
        self.wfile.write(b"a")
        self.wfile.flush()
        self.request.sendall(b"b")

    handling(ss, handle, wbufsize=wbufsize)(request, None, None)
    assert client.recv(100) == arrival
    handling(ss, handle_flushing, wbufsize=wbufsize)(request, None, None)
    assert client.recv(100) == b"ab"


def test_wbufsize_is_a_limit(ss: ModuleType, pair: Any) -> None:
    client, request = pair

    def handle(self: Any) -> None:
        for _ in range(3):
            self.wfile.write(b"x" * 40)
        assert client.recv(1000)  # more than the buffer holds: some of it has gone

    handling(ss, handle, wbufsize=100)(request, None, None)


@pytest.mark.parametrize("wbufsize", [0, 1024])
@pytest.mark.parametrize(
    ("data", "size"),
    [
        (bytearray(b"abcd"), 4),
        (memoryview(b"abcd")[1:3], 2),
        (array.array("I", [1, 2]), 8),
        (memoryview(array.array("Q", [1])), 8),
        (b"", 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_write_takes_bytes_likes(
    ss: ModuleType, pair: Any, wbufsize: int, data: Any, size: int
) -> None:
    """write() returns the number of bytes, not of items."""
    client, request = pair
    written = []

    def handle(self: Any) -> None:
        written.append(self.wfile.write(data))

    handling(ss, handle, wbufsize=wbufsize)(request, None, None)
    assert written == [size]
    request.close()
    assert receive(client) == bytes(data)


@pytest.mark.parametrize("data", ["text", None, 5], ids=repr)
@each_wbufsize
def test_write_takes_nothing_else(ss: ModuleType, pair: Any, wbufsize: int, data: Any) -> None:
    def handle(self: Any) -> None:
        with pytest.raises(TypeError):
            self.wfile.write(data)

    handling(ss, handle, wbufsize=wbufsize)(pair[1], None, None)


@each_wbufsize
def test_large_write(ss: ModuleType, make: Make, wbufsize: int) -> None:
    """All of it arrives, also with a timeout (which makes the socket non-blocking inside)."""
    size = 4_000_000

    def handle(self: Any) -> None:
        self.rfile.readline()
        self.wfile.write(b"x" * size)

    server = make(ss.TCPServer, handling(ss, handle, wbufsize=wbufsize, timeout=TIMEOUT))
    with serving(server):
        assert len(ask(server)) == size


def test_timeout(ss: ModuleType, pair: Any) -> None:
    """Applied to the connection; None leaves it alone."""
    _, request = pair
    seen = []

    def handle(self: Any) -> None:
        seen.append(self.connection.gettimeout())
        if self.timeout == 0.01:
            with pytest.raises(TimeoutError):
                self.rfile.readline()

    request.settimeout(3)
    for timeout in (None, 0.01, 7):
        handling(ss, handle, timeout=timeout)(request, None, None)
    assert seen == [3, 0.01, 7]


def test_timeout_ends_the_request(ss: ModuleType, make: Make) -> None:
    """A silent client: handle() fails with TimeoutError."""
    errors = []

    def handle(self: Any) -> None:
        try:
            self.rfile.readline()
        except OSError as error:
            errors.append(type(error))

    server = make(ss.TCPServer, handling(ss, handle, timeout=0.01))
    with connect(server) as client:
        server.handle_request()
        assert errors == [TimeoutError]
        assert receive(client) == b""


class FakeSocket:
    """As tests of handlers use them: it offers makefile and sendall, and no more."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.sent: list[bytes] = []
        self.opened: list[Any] = []
        self.files: list[io.BytesIO] = []

    def makefile(self, mode: str, bufsize: int) -> io.BytesIO:
        self.opened.append((mode, bufsize))
        self.files.append(io.BytesIO(self.data if "r" in mode else b""))
        return self.files[-1]

    def sendall(self, data: bytes) -> None:
        self.sent.append(bytes(data))


def echo(self: Any) -> None:
    for line in self.rfile:
        self.wfile.write(line)


def test_fake_socket(ss: ModuleType) -> None:
    fake = FakeSocket(b"one\ntwo\n")
    handling(ss, echo)(fake, None, None)
    assert fake.sent == [b"one\n", b"two\n"]
    assert fake.opened == [("rb", -1)]
    assert fake.files[0].closed


def test_fake_socket_with_buffer_sizes(ss: ModuleType) -> None:
    fake = FakeSocket(b"one\n")
    handling(ss, echo, rbufsize=7, wbufsize=9)(fake, None, None)
    assert fake.sent == []
    assert fake.opened == [("rb", 7), ("wb", 9)]
    assert all(file.closed for file in fake.files)


@pytest.mark.parametrize("name", ["timeout", "disable_nagle_algorithm", "neither"])
def test_setup_touches_the_connection_only_when_asked(ss: ModuleType, name: str) -> None:
    calls = []

    class Fake(FakeSocket):
        def settimeout(self, value: float) -> None:
            calls.append(("settimeout", value))

        def setsockopt(self, *args: Any) -> None:
            calls.append(("setsockopt", *args))

    attributes = {"timeout": {"timeout": 2.5}, "disable_nagle_algorithm": {name: True}}
    handling(ss, echo, **attributes.get(name, {}))(Fake(b""), None, None)
    no_delay = ("setsockopt", socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    expected = {"timeout": [("settimeout", 2.5)], "disable_nagle_algorithm": [no_delay]}
    assert calls == expected.get(name, [])


def test_disable_nagle_algorithm(ss: ModuleType, make: Make) -> None:
    seen = []

    def handle(self: Any) -> None:
        seen.append(self.connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    server = make(ss.TCPServer, handling(ss, handle, disable_nagle_algorithm=True))
    with connect(server):
        server.handle_request()
    assert seen and seen[0]


class Own:
    """What a program mixes in, behind the handler class, with names that mean something to it."""

    first_byte_timeout = 0.001
    idle_timeout = request_timeout = write_timeout = "never"
    max_line_size = reply_if_empty = "own"


@pytest.mark.parametrize(
    "kind", ["BaseRequestHandler", "StreamRequestHandler", "DatagramRequestHandler"]
)
def test_names_of_a_base_that_comes_later(ss: ModuleType, kind: str) -> None:
    base = getattr(ss, kind)
    handler = type("Handler", (base, Own), {})
    further = type("Further", (handler,), {"idle_timeout": "ever"})
    for cls in (handler, further, type("Furthest", (further,), {})):
        for name in vars(Own):
            if not name.startswith("__"):
                expected = (
                    "ever" if name == "idle_timeout" and cls is not handler else vars(Own)[name]
                )
                assert getattr(cls, name) == expected


def test_a_mix_in_that_asks_for_keywords(ss: ModuleType) -> None:
    class Asks:
        def __init_subclass__(cls, mark: int, **keywords: Any) -> None:
            super().__init_subclass__(**keywords)
            cls.mark = mark  # type: ignore[attr-defined]

    first = type("First", (Asks, ss.StreamRequestHandler), {}, mark=1)
    last = type("Last", (ss.StreamRequestHandler, Asks), {}, mark=2)
    assert (first.mark, last.mark) == (1, 2)
    with pytest.raises(TypeError):
        type("Neither", (ss.StreamRequestHandler,), {}, mark=3)
