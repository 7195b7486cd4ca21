"""max_line_size: a longer line of rfile is an error in the handler, and does not fill memory."""

from __future__ import annotations

import importlib
import io
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import Living, echo, until_end
from support import TIMEOUT, Background, wait_until

sys.path.append(str(Path(__file__).resolve().parent.parent / "multiplex"))

Live = Callable[..., Living]
MOST = 100
SIZES = {"native": -1, "native, small": 10, "unbuffered": 0}

READS: dict[str, Callable[[Any], Any]] = {
    "readline()": lambda file: file.readline(),
    "readline(None)": lambda file: file.readline(None),
    "readline(-1)": lambda file: file.readline(-1),
    "readline(more)": lambda file: file.readline(MOST + 1),
    "next": lambda file: next(file),
    "iter": lambda file: next(iter(file)),
    "readlines": lambda file: file.readlines(),
    "readlines(hint)": lambda file: file.readlines(10),
}


def error_class() -> Any:
    return importlib.import_module("fastsock").LineTooLongError


def reading(
    live: Live, flavour: str, read: Callable[[Any], Any], rbufsize: int = -1, most: Any = MOST
) -> Living:
    """A server whose handler writes what read(rfile) returns or raises."""

    def handle(handler: Any) -> None:
        try:
            found = read(handler.rfile)
        except error_class() as error:
            found = str(error)
        handler.request.sendall(repr(found).encode())
        handler.request.shutdown(socket.SHUT_WR)
        while handler.request.recv(1 << 16):  # or the reply would be lost
            pass

    living = live(flavour, handle)
    living.handler.max_line_size = most
    living.handler.rbufsize = rbufsize
    return living


def tell(living: Living, *pieces: bytes) -> str:
    with living.connect() as client:
        for piece in pieces:
            client.sendall(piece)
        client.shutdown(socket.SHUT_WR)
        return until_end(client).decode()


LONG = "'a line is longer than 100 bytes (max_line_size)'"


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("read", READS)
def test_a_line_that_is_too_long(live: Live, flavour: str, read: str, sizes: str) -> None:
    living = reading(live, flavour, READS[read], SIZES[sizes])
    for line in (b"x" * MOST + b"\n", b"x" * (MOST + 1), b"x" * 50_000, b"x" * 50_000 + b"\n"):
        assert tell(living, line) == LONG
    for line in (b"x" * (MOST - 1) + b"\n", b"x" * MOST, b"\n", b"short"):
        expected = [line] if "lines" in read else line
        assert tell(living, line) == repr(expected)
    wait_until(lambda: living.server.stats().active == 0)
    assert (living.server.stats().finished, living.server.stats().failed) == (8, 0)


@pytest.mark.parametrize("sizes", SIZES)
def test_after_others(live: Live, flavour: str, sizes: str) -> None:
    """In the same buffer, and in pieces."""

    def read(file: Any) -> Any:
        found = []
        try:
            for line in file:
                found.append(line)
        except error_class():
            found.append("long")
        return found

    living = reading(live, flavour, read, SIZES[sizes])
    lines = [b"x" * (MOST - 1) + b"\n", b"\n", b"y" * 30 + b"\n"] * 20
    assert tell(living, *lines, b"z" * 200) == repr([*lines, "long"])
    assert tell(living, b"".join(lines), b"z" * 200 + b"\nmore\n") == repr([*lines, "long"])


FURTHER: dict[str, Callable[[Any], Any]] = {
    **READS,
    "readline(less)": lambda file: file.readline(7),
    "read": lambda file: file.read(),
    "read(n)": lambda file: file.read(3),
    "read1": lambda file: file.read1(3),
    "readinto": lambda file: file.readinto(bytearray(3)),
    "readinto1": lambda file: file.readinto1(bytearray(3)),
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("further", FURTHER)
def test_nothing_is_read_behind_it(live: Live, flavour: str, further: str, sizes: str) -> None:
    """It would be the rest of that line."""

    def read(file: Any) -> Any:
        with pytest.raises(error_class()):
            file.readline()
        return FURTHER[further](file)

    living = reading(live, flavour, read, SIZES[sizes])
    assert tell(living, b"x" * 300 + b"\nmore\nand more\n") == LONG


@pytest.mark.parametrize("sizes", SIZES)
def test_who_asks_for_less_gets_it(live: Live, flavour: str, sizes: str) -> None:
    def read(file: Any) -> Any:
        return [file.readline(MOST), file.readline(7), file.readline(0), file.read(3)]

    living = reading(live, flavour, read, SIZES[sizes])
    expected = [b"x" * MOST, b"x" * 7, b"", b"xxx"]
    assert tell(living, b"x" * 1000 + b"\n") == repr(expected)


@pytest.mark.parametrize("sizes", SIZES)
def test_other_reads_have_no_limit(live: Live, flavour: str, sizes: str) -> None:
    buffer = bytearray(5000)

    def read(file: Any) -> Any:
        first = file.read(3000)
        while len(first) < 3000:  # of a SocketIO
            first += file.read(3000 - len(first))
        count = file.readinto(buffer)
        return len(first), bytes(buffer[:count]) == b"x" * count

    living = reading(live, flavour, read, SIZES[sizes])
    assert tell(living, b"x" * 9000) == repr((3000, True))


@pytest.mark.parametrize("sizes", SIZES)
def test_whoever_goes_on_meets_it_again(live: Live, flavour: str, sizes: str) -> None:
    """What follows is never taken for a line of its own."""

    def read(file: Any) -> Any:
        met = 0
        for _ in range(3):
            try:
                file.readline()
            except error_class():
                met += 1
        return met

    living = reading(live, flavour, read, SIZES[sizes])
    assert tell(living, b"x" * 150 + b"\nGET / HTTP/1.1\n") == "3"


def test_memory_is_bounded(live: Live, flavour: str) -> None:
    """A client that sends without end and without a newline."""
    living = reading(live, flavour, lambda file: file.readline(), most=100_000)
    with living.connect() as client:
        sending = Background(send_without_end, client)
        assert b"longer than 100000 bytes" in until_end(client)
        client.shutdown(socket.SHUT_RDWR)
        assert sending.result() > 100_000


def send_without_end(client: socket.socket) -> int:
    sent = 0
    try:
        while True:
            sent += client.send(b"x" * 10_000)
    except OSError:
        return sent


@pytest.mark.parametrize("most", [None, 0, -1, "many", 5.0, True, object()], ids=str)
@pytest.mark.parametrize("sizes", SIZES)
def test_what_is_no_limit(live: Live, sizes: str, most: Any) -> None:
    """A program may have an attribute of that name for itself."""
    living = reading(live, "threading", lambda file: len(file.readline()), SIZES[sizes], most)
    assert tell(living, b"x" * 100_000 + b"\n") == "100001"


def test_great_ones(live: Live) -> None:
    for most in (1 << 31, 1 << 32, 1 << 40, 1 << 70, 10**5 + 1):
        living = reading(live, "threading", lambda file: len(file.readline()), most=most)
        assert tell(living, b"x" * 100_000 + b"\n") == "100001"


def test_of_the_instance(live: Live) -> None:
    """Set in setup(), before that of the standard library, or a property."""

    def setup(handler: Any) -> None:
        handler.max_line_size = 10
        super(type(handler), handler).setup()

    living = reading(live, "threading", lambda file: file.readline(), most=None)
    living.handler.setup = setup
    assert "longer than 10 bytes" in tell(living, b"x" * 11)
    living = reading(live, "threading", lambda file: file.readline(), most=property(lambda h: 20))
    assert "longer than 20 bytes" in tell(living, b"x" * 21)


def test_a_setup_that_is_borrowed(live: Live) -> None:
    """By a handler which has no such attribute."""
    living = live("threading", echo)
    module = living.module

    class Handler(module.BaseRequestHandler):  # type: ignore[name-defined,misc]
        rbufsize, wbufsize, timeout, disable_nagle_algorithm = -1, 0, None, False
        setup = module.StreamRequestHandler.setup
        handle = echo

    living.server.RequestHandlerClass = Handler
    assert tell(living, b"hello\n") == "hello\n"


def test_files_are_what_they_are(live: Live) -> None:
    """With a limit as without; the one that stands before an unbuffered one is a file too."""

    def read(file: Any) -> Any:
        assert isinstance(file, io.BufferedIOBase)
        assert file.readable() and not file.closed and file.fileno() >= 0
        assert file.name == file.fileno()
        file.flush()
        found = [file.readinto(bytearray(2)), file.read(1)]
        file.close()
        assert file.closed
        return found

    for size in SIZES.values():
        assert tell(reading(live, "threading", read, size), b"hello\n") == "[2, b'l']"
    living = reading(live, "threading", lambda file: (file.peek(1), file.read1(3), file.detach()))
    assert "b'hel'" in tell(living, b"hello\n")


@pytest.mark.parametrize("sizes", SIZES)
def test_what_a_buffered_file_can(live: Live, sizes: str) -> None:
    """That which stands before an unbuffered one, too: others build on it."""

    def read(file: Any) -> Any:
        buffer = bytearray(2)
        found = [file.read1(2), file.readinto1(buffer), bytes(buffer)]
        text = io.TextIOWrapper(file, "ascii")
        return [*found, text.readline(), text.read()]

    living = reading(live, "threading", read, SIZES[sizes])
    expected = [b"he", 2, b"ll", "o\n", "you\n"]
    assert tell(living, b"hello\nyou\n") == repr(expected)
    living = reading(live, "threading", lambda file: file.read1(), SIZES[sizes])
    assert tell(living, b"hello") == repr(b"hello")


@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_tls(live: Live, flavour: str, tmp_path: Path) -> None:
    if flavour == "multiplexing":
        pytest.importorskip("greenlet")
    tls_material = pytest.importorskip("tls_material")
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = tmp_path / "certificate"
    certificate.write_text(tls_material.CERTIFICATE + tls_material.KEY)
    server_side.load_cert_chain(certificate)

    def get_request(server: Any) -> Any:
        request, address = server.socket.accept()
        return server_side.wrap_socket(request, server_side=True), address

    def handle(handler: Any) -> None:
        try:
            for line in handler.rfile:
                handler.wfile.write(line)
        except error_class():
            handler.wfile.write(b"too long\n")

    living = live(flavour, handle, get_request=get_request)
    living.handler.max_line_size = MOST
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(living.server.server_address, TIMEOUT)
    with context.wrap_socket(plain) as client:
        client.sendall(b"hello\n")
        assert client.recv(6) == b"hello\n"
        client.sendall(b"x" * 101)
        assert client.recv(100) == b"too long\n"


def test_what_it_is() -> None:
    assert issubclass(error_class(), ValueError)
    assert error_class().__module__ == "fastsock"
