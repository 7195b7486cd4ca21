"""What a TLS connection does is the same in a thread and in a greenlet."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPSConnection
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from support import TIMEOUT, load_implementation, serving, wait_until
from tls_support import (
    WAYS,
    client_context,
    connected,
    exactly,
    handler,
    server_context,
    silent,
    text_of_timeout,
    wrapping,
)

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
MIB = bytes(range(256)) * 4096


@pytest.fixture(params=["threading", "multiplexing"])
def kind(request: pytest.FixtureRequest, fastsock_dir: str | None) -> Any:
    """socketserver, and a module with its names whose threads are greenlets."""
    spec = {"threading": "stdlib", "multiplexing": "multiplex"}[request.param]
    return load_implementation(spec, fastsock_dir)


@pytest.fixture
def serve(kind: Any, time_limit: None) -> Iterator[Callable[..., Any]]:
    """serve(handle, way, **attributes of the handler): a server that runs."""
    with contextlib.ExitStack() as stack:

        def serve(handle: Callable[[Any], Any], way: str = "setup", **attributes: Any) -> Any:
            base = wrapping(kind.ThreadingTCPServer, way, attributes.get("context"))
            made = handler(kind.StreamRequestHandler, handle, way, **attributes)
            server = base(("127.0.0.1", 0), made)
            stack.callback(server.server_close)
            stack.enter_context(serving(server))
            return server

        yield serve


def outcomes() -> tuple[list[Any], Callable[[Callable[[], Any]], None]]:
    """A list, and a function that notes what a call does in it."""
    found: list[Any] = []

    def note(call: Callable[[], Any]) -> None:
        try:
            found.append(call())
        except Exception as error:
            found.append(error)

    return found, note


# --- to and fro


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("way", WAYS)
def test_a_mebibyte_both_ways(serve: Any, way: str, version: ssl.TLSVersion) -> None:
    def handle(self: Any) -> None:
        data = exactly(self.request, len(MIB))
        self.request.sendall(data[::-1])

    server = serve(handle, way, context=server_context(version))
    with connected(server) as client:
        assert client.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        client.sendall(MIB)
        assert exactly(client, len(MIB)) == MIB[::-1]
        assert client.recv(1) == b""
    assert server.failures == []


@pytest.mark.parametrize("way", WAYS)
def test_lines(serve: Any, way: str) -> None:
    def handle(self: Any) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())

    with connected(serve(handle, way)) as client, client.makefile("rwb") as stream:
        for number in range(100):
            stream.write(b"line %d\n" % number)
            stream.flush()
            assert stream.readline() == b"LINE %d\n" % number


def test_many_at_a_time(serve: Any) -> None:
    """Nobody is served before all have shaken hands."""
    count = 0

    def handle(self: Any) -> None:
        nonlocal count
        count += 1
        self.wfile.write(self.rfile.readline())

    server = serve(handle)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(50)]
        wait_until(lambda: count == 50)
        for number, client in reversed(list(enumerate(clients))):
            client.sendall(b"%d\n" % number)
            assert exactly(client, 100) == b"%d\n" % number


def test_sendfile(serve: Any, tmp_path: Any) -> None:
    path = tmp_path / "file"
    path.write_bytes(MIB)

    def handle(self: Any) -> None:
        with path.open("rb") as file:
            sent = self.request.sendfile(file, 100, len(MIB) - 200)
        self.wfile.write(b"%d" % sent)

    with connected(serve(handle)) as client:
        assert exactly(client, len(MIB) - 200) == MIB[100:-100]
        assert int(exactly(client, 100)) == len(MIB) - 200


def test_http(kind: Any, time_limit: None) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[::-1])

        def log_message(self, *args: Any) -> None:
            pass

    with wrapping(kind.ThreadingTCPServer, "listener")(("127.0.0.1", 0), Handler) as server:
        port = server.server_address[1]
        with serving(server):
            client = HTTPSConnection("localhost", port, context=client_context(), timeout=TIMEOUT)
            for size in (0, 10, len(MIB)):
                client.request("POST", "/", MIB[:size])
                assert client.getresponse().read() == MIB[:size][::-1]
            client.close()
        assert server.failures == []


def test_starttls(serve: Any) -> None:
    """What was written before the handshake arrives before it."""

    def handle(self: Any) -> None:
        self.wfile.write(b"ready\n")
        self.request = server_context().wrap_socket(self.request, server_side=True)
        self.request.sendall(b"secret " + self.request.recv(100))
        self.request.close()

    server = serve(handle, "not at all")
    with silent(server) as plain:
        assert exactly(plain, 6) == b"ready\n"
        with client_context().wrap_socket(plain, server_hostname="localhost") as client:
            client.sendall(b"hello")
            assert exactly(client, 100) == b"secret hello"


# --- the end of TLS, and of one direction


def test_unwrap(serve: Any) -> None:
    found, note = outcomes()

    def handle(self: Any) -> None:
        plain = self.request.unwrap()
        note(lambda: plain is self.request)
        note(lambda: exactly(plain, len(MIB)) == MIB)
        plain.sendall(MIB)
        plain.settimeout(0.02)
        note(lambda: plain.recv(1))
        note(lambda: plain.recv_into(bytearray(1)))

    server = serve(handle)
    with connected(server) as client:
        plain = client.unwrap()
        plain.sendall(MIB)
        assert exactly(plain, len(MIB)) == MIB
        wait_until(lambda: len(found) == 4)
    assert found[:2] == [True, True]
    assert [(type(error), str(error)) for error in found[2:]] == [(TimeoutError, "timed out")] * 2


def test_unwrap_waits_for_the_peer(serve: Any) -> None:
    found, note = outcomes()

    def handle(self: Any) -> None:
        note(lambda: self.request.unwrap())

    with connected(serve(handle, timeout=0.02)) as client:
        wait_until(lambda: found)
        assert client.recv(1) == b""
    assert (type(found[0]), str(found[0])) == (TimeoutError, "The read operation timed out")


def test_the_client_says_no_more_and_is_answered(serve: Any) -> None:
    def handle(self: Any) -> None:
        data = self.rfile.read()
        self.wfile.write(b"%d" % len(data))

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with silent(serve(handle)) as sock:

        def do(call: Callable[..., Any], *arguments: Any) -> Any:
            while True:
                with contextlib.suppress(ssl.SSLWantReadError):
                    return call(*arguments)
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(1 << 16))

        do(client.do_handshake)
        client.write(b"x" * 10_000)
        with pytest.raises(ssl.SSLWantReadError):
            client.unwrap()
        assert do(client.read, 100) == b"10000"


def test_the_server_says_no_more(serve: Any) -> None:
    """From shutdown() on the bytes are as they come, as ever."""
    found, note = outcomes()

    def handle(self: Any) -> None:
        self.request.shutdown(socket.SHUT_WR)
        note(lambda: self.request.recv(1))
        note(lambda: self.request.pending())

    with connected(serve(handle)) as client:
        os.write(client.fileno(), b"?")
        assert client.recv(1) == b""
        wait_until(lambda: len(found) == 2)
    assert found == [b"?", 0]


# --- timeouts


def test_the_timeout_of_a_handshake(serve: Any) -> None:
    server = serve(lambda self: None, timeout=0.02)
    with silent(server) as client:
        assert client.recv(1) == b""
    wait_until(lambda: server.failures)
    (error,) = server.failures
    assert (type(error), str(error)) == (TimeoutError, text_of_timeout("do_handshake"))


@pytest.mark.parametrize("way", ["get_request", "listener"])
def test_the_timeout_of_a_handshake_in_the_loop(kind: Any, time_limit: None, way: str) -> None:
    errors = []

    class Server(wrapping(kind.ThreadingTCPServer, way)):  # type: ignore[misc]
        def get_request(self) -> Any:
            try:
                return super().get_request()
            except OSError as error:
                errors.append(error)
                raise

    def handle(self: Any) -> None:
        self.wfile.write(b"welcome")

    before = socket.getdefaulttimeout()
    with Server(("127.0.0.1", 0), handler(kind.StreamRequestHandler, handle, way)) as server:
        socket.setdefaulttimeout(0.02)  # of what is accepted
        try:
            with serving(server):
                with silent(server) as client:
                    assert client.recv(1) == b""
                socket.setdefaulttimeout(TIMEOUT)
                with connected(server) as good:
                    assert exactly(good, 100) == b"welcome"
        finally:
            socket.setdefaulttimeout(before)
    assert [str(error) for error in errors] == [text_of_timeout("do_handshake")]


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("recv", (10,)),
        ("recv_into", (bytearray(10),)),
        ("read", (10,)),
        ("send", (MIB * 8,)),
        ("sendall", (MIB * 8,)),
        ("write", (MIB * 8,)),
    ],
)
def test_the_timeouts_of_reads_and_writes(serve: Any, call: str, arguments: Any) -> None:
    found, note = outcomes()

    def handle(self: Any) -> None:
        note(self.request.gettimeout)
        note(lambda: getattr(self.request, call)(*arguments))

    with connected(serve(handle, timeout=0.05)):
        wait_until(lambda: len(found) == 2)
    assert found[0] == 0.05
    assert (type(found[1]), str(found[1])) == (TimeoutError, text_of_timeout(call, *arguments))


def test_a_read_after_a_timeout(serve: Any) -> None:
    found, note = outcomes()

    def handle(self: Any) -> None:
        self.request.settimeout(0.02)
        note(lambda: self.request.recv(10))
        begun = time.monotonic()
        note(lambda: self.request.recv(10))
        note(lambda: time.monotonic() - begun)
        self.request.settimeout(None)
        note(lambda: self.request.recv(10))

    with connected(serve(handle)) as client:
        wait_until(lambda: len(found) == 3)
        client.sendall(b"late")
        wait_until(lambda: len(found) == 4)
    assert [type(error) for error in found[:2]] == [TimeoutError] * 2
    assert found[2] >= 0.02
    assert found[3] == b"late"


def test_a_timeout_within_which_it_comes(serve: Any) -> None:
    begun = threading.Event()

    def handle(self: Any) -> None:
        begun.set()
        self.wfile.write(self.rfile.readline())

    with connected(serve(handle, timeout=TIMEOUT)) as client:
        assert begun.wait(TIMEOUT)
        client.sendall(b"in time\n")
        assert exactly(client, 100) == b"in time\n"


def test_a_connection_that_does_not_block(serve: Any) -> None:
    found, note = outcomes()

    def handle(self: Any) -> None:
        request = self.request
        request.setblocking(False)
        note(lambda: request.recv(1))
        note(lambda: request.recv_into(bytearray(1)))
        note(lambda: (request.gettimeout(), request.timeout, request.getblocking()))
        with contextlib.suppress(ssl.SSLWantWriteError):
            while True:
                request.send(MIB)
        found.append("full")
        request.setblocking(True)
        note(lambda: (request.gettimeout(), request.timeout, request.getblocking()))

    with connected(serve(handle)):
        wait_until(lambda: len(found) == 5)
    assert [type(error) for error in found[:2]] == [ssl.SSLWantReadError] * 2
    assert found[2:] == [(0.0, 0.0, False), "full", (None, None, True)]


@pytest.mark.parametrize("value", ["soon", -1, float("nan"), 1e30])
def test_what_is_no_timeout(serve: Any, value: Any) -> None:
    found, note = outcomes()

    def handle(self: Any) -> None:
        self.request.settimeout(7)
        note(lambda: self.request.settimeout(value))
        note(self.request.gettimeout)
        note(lambda: self.request.recv(10))

    with socket.socket() as plain, connected(serve(handle)) as client:
        client.sendall(b"go on")
        wait_until(lambda: len(found) == 3)
        with pytest.raises(type(found[0])) as caught:
            plain.settimeout(value)
    assert found[0].args == caught.value.args
    assert found[1:] == [7.0, b"go on"]


# --- peers that go away


def reset(sock: Any) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize("way", ["get_request", "setup"])
@pytest.mark.parametrize("end", [reset, socket.socket.close])
@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.0\r\n\r\n"])
def test_a_client_that_leaves_amid_the_handshake(
    serve: Any, way: str, end: Callable[[Any], None], said: bytes
) -> None:
    def handle(self: Any) -> None:
        self.wfile.write(self.rfile.readline())

    server = serve(handle, way)
    with silent(server) as client:
        client.sendall(said)
        end(client)
    with connected(server) as good:
        good.sendall(b"still there\n")
        assert exactly(good, 100) == b"still there\n"
    if way == "setup":
        wait_until(lambda: server.failures)
    assert all(isinstance(error, OSError) for error in server.failures), server.failures


def test_a_client_that_leaves_amid_a_read(serve: Any) -> None:
    found, note = outcomes()
    reading = threading.Event()

    def handle(self: Any) -> None:
        assert self.request.recv(10) == b"begin"
        reading.set()
        note(lambda: self.request.recv(10))

    server = serve(handle)
    for end in (reset, socket.socket.close):
        reading.clear()
        with connected(server) as client:
            client.sendall(b"begin")
            assert reading.wait(TIMEOUT)
            end(client)
        wait_until(lambda: found)
        ended = found.pop()  # which of the two depends on the versions of Python and OpenSSL
        assert ended == b"" or isinstance(ended, ConnectionResetError)
