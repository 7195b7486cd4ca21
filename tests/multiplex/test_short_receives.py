"""Receives that bring less than was asked for though there is more: no event follows of that.

The hub takes a short receive for "nothing more is there" where it means that.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import TIMEOUT, receive, wait_until
from talks import Served

from fastsock import multiplexing

Serve = Callable[..., Served]

STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET


class Meanwhile:
    """A handler has received something, and waits until the client has sent more."""

    def __init__(self) -> None:
        self.received = multiplexing.Event()
        self.sent = multiplexing.Event()

    def begin(self, request: Any) -> None:
        """Of the handler: it waits for its connection once, which is in the hub's epoll then."""
        request.sendall(b"ready\n")

    def say(self, client: socket.socket, what: bytes) -> None:
        assert client.recv(6) == b"ready\n"
        client.sendall(what)

    def handler_waits(self) -> None:
        self.received.set()
        assert self.sent.wait(TIMEOUT)
        multiplexing.sleep(0.01)  # the hub learns of it: the one event of all that is there

    def client_sends(self, *calls: Callable[[], Any]) -> None:
        assert self.received.wait(TIMEOUT)
        for call in calls:
            call()
        self.sent.set()


def whole(pieces: list[bytes], size: int) -> Callable[[], bool]:
    return lambda: len(b"".join(pieces)) >= size


@pytest.mark.parametrize("kind", [STREAM, SEQPACKET], ids=["stream", "packets"])
@pytest.mark.parametrize("call", ["recv", "recv_into", "recvmsg", "recvfrom", "recv_fds"])
@pytest.mark.parametrize("carrier", [0, 1, 2])
def test_descriptors_that_come_along(serve: Serve, kind: int, call: str, carrier: int) -> None:
    """A receive stops behind, or before, the bytes that they came with."""
    meanwhile, found = Meanwhile(), list[bytes]()

    def get(sock: socket.socket) -> bytes:
        if call == "recv_into":
            room = bytearray(100)
            return bytes(room[: sock.recv_into(room)])
        if call == "recv_fds":
            data, descriptors, *_ = socket.recv_fds(sock, 100, 3)
            for descriptor in descriptors:
                os.close(descriptor)
            return data
        result = getattr(sock, call)(100)
        return result if call == "recv" else result[0]

    def handle(self: Any) -> None:
        meanwhile.begin(self.request)
        assert self.request.recv(100) == b"go"
        meanwhile.handler_waits()
        while piece := get(self.request):
            found.append(piece)

    served = serve(handle, "UnixStream", "BaseRequestHandler", socket_type=kind)
    client = served.connect()
    meanwhile.say(client, b"go")
    parts = [b"one", b"two", b"three"]
    meanwhile.client_sends(
        *(
            lambda part=part, number=number: (
                socket.send_fds(client, [part], [0]) if number == carrier else client.send(part)
            )
            for number, part in enumerate(parts)
        )
    )
    wait_until(whole(found, 11))
    assert b"".join(found) == b"onetwothree"
    if kind == SEQPACKET:
        assert found == parts


def test_lines_with_descriptors(serve: Serve) -> None:
    def handle(self: Any) -> None:
        meanwhile.begin(self.request)
        while line := self.rfile.readline():
            if line == b"first\n":
                meanwhile.handler_waits()
            self.wfile.write(line)

    meanwhile = Meanwhile()
    with serve(handle, "UnixStream").connect() as client, client.makefile("rb") as file:
        meanwhile.say(client, b"first\n")
        meanwhile.client_sends(
            lambda: socket.send_fds(client, [b"second\n"], [0]), lambda: client.sendall(b"third\n")
        )
        assert [file.readline() for _ in range(3)] == [b"first\n", b"second\n", b"third\n"]


def test_credentials(serve: Serve) -> None:
    """SO_PASSCRED: bytes of different processes come by different receives."""

    def handle(self: Any) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.wfile.write(b"ready\n")
        while line := self.rfile.readline():
            if line == b"go\n":
                meanwhile.handler_waits()
            self.wfile.write(line)

    def send_as_another() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                client.sendall(b"child\n")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)

    meanwhile = Meanwhile()
    with serve(handle, "UnixStream").connect() as client, client.makefile("rb") as file:
        assert file.readline() == b"ready\n"
        client.sendall(b"go\n")
        meanwhile.client_sends(
            lambda: client.sendall(b"parent\n"), send_as_another, lambda: client.sendall(b"last\n")
        )
        found = [file.readline() for _ in range(4)]
    assert found == [b"go\n", b"parent\n", b"child\n", b"last\n"]


@pytest.mark.parametrize("way", ["rfile", "recv", "recv_into"])
@pytest.mark.parametrize("inline", [False, True])
def test_urgent_data(serve: Serve, way: str, inline: bool) -> None:
    """A receive stops at its mark, with what follows it in the kernel."""
    meanwhile = Meanwhile()

    def get(self: Any) -> bytes:
        if way == "rfile":
            return bytes(self.rfile.readline())
        if way == "recv":
            return bytes(self.request.recv(100))
        room = bytearray(100)
        return bytes(room[: self.request.recv_into(room)])

    def handle(self: Any) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        self.wfile.write(b"ready\n")
        got = get(self)
        assert got == b"go\n"
        meanwhile.handler_waits()
        got = b"" if inline else self.request.recv(1, socket.MSG_OOB)
        while not got.endswith(b"\n"):
            got += get(self)
        self.wfile.write(got)

    with serve(handle).connect() as client, client.makefile("rb") as file:
        assert file.readline() == b"ready\n"
        client.sendall(b"go\n")
        meanwhile.client_sends(
            lambda: client.sendall(b"abc"),
            lambda: client.send(b"!", socket.MSG_OOB),
            lambda: client.sendall(b"def\n"),
        )
        assert file.readline() == (b"abc!def\n" if inline else b"!abcdef\n")


def test_urgent_data_comes_while_the_handler_waits(serve: Serve) -> None:
    """It alone is nothing to receive: the handler goes on waiting, and the next bytes come."""

    def handle(self: Any) -> None:
        self.wfile.write(b"ready\n")
        self.wfile.write(self.rfile.readline())
        self.wfile.write(self.rfile.readline())

    with serve(handle).connect() as client, client.makefile("rb") as file:
        assert file.readline() == b"ready\n"
        for _ in range(3):
            client.send(b"!", socket.MSG_OOB)
        client.sendall(b"a\n")
        assert file.readline() == b"a\n"
        client.send(b"!", socket.MSG_OOB)
        client.sendall(b"b\n")
        assert receive(client) == b"b\n"


# --- packets


def test_packets_are_not_merged(serve: Serve) -> None:
    meanwhile = Meanwhile()

    def handle(self: Any) -> None:
        meanwhile.begin(self.request)
        self.request.recv(100)
        meanwhile.handler_waits()
        while packet := self.request.recv(100):
            self.request.sendall(packet)
            self.request.sendall(b"|")
            self.request.send(b"-")

    served = serve(handle, "UnixStream", "BaseRequestHandler", socket_type=SEQPACKET)
    with served.connect() as client:
        meanwhile.say(client, b"go")
        meanwhile.client_sends(lambda: client.send(b"one"), lambda: client.send(b"two"))
        found = [client.recv(100) for _ in range(6)]
    assert found == [b"one", b"|", b"-", b"two", b"|", b"-"]


@pytest.mark.parametrize("size", [5, 2000])
def test_packets_by_files(serve: Serve, size: int) -> None:
    """What rfile reads of packets, of which nothing is lost, and the packets that wfile writes."""
    meanwhile = Meanwhile()

    def handle(self: Any) -> None:
        meanwhile.begin(self.request)
        assert self.rfile.readline() == b"go\n"
        meanwhile.handler_waits()
        for _ in range(2):
            self.wfile.write(self.rfile.readline())
        self.wfile.write(self.rfile.read(size))
        self.wfile.write(self.rfile.read())

    served = serve(handle, "UnixStream", socket_type=SEQPACKET)
    text = (bytes(range(32, 127)) * 300)[: 6 * size]
    first, second, third, rest = text[:size], text[size:][:size], text[:size], text
    packets = [first[:1], first[1:] + b"\n" + second[:2], second[2:] + b"\n" + third[:2]]
    packets += [third[2:] + rest[:2], *(rest[at : at + size] for at in range(2, len(rest), size))]
    expected = [first + b"\n", second + b"\n", third, rest]
    with served.connect() as client:
        meanwhile.say(client, b"go\n")
        meanwhile.client_sends(
            lambda: [client.send(packet) for packet in packets],
            lambda: client.shutdown(socket.SHUT_WR),
        )
        found = [client.recv(2 * len(text)) for _ in range(4)]
    assert list(map(len, found)) == list(map(len, expected))
    assert found == expected


# --- flags and sizes


def test_all_that_was_asked_for(serve: Serve) -> None:
    """MSG_WAITALL"""

    def handle(self: Any) -> None:
        self.request.sendall(b"ready")
        room = bytearray(10)
        self.request.sendall(self.request.recv(10, socket.MSG_WAITALL))
        count = self.request.recv_into(room, 10, socket.MSG_WAITALL)
        self.request.sendall(room[:count])
        self.request.sendall(self.request.recv(10, socket.MSG_WAITALL))

    with serve(handle, "TCP", "BaseRequestHandler").connect() as client:
        assert client.recv(10) == b"ready"
        for piece in (b"abc", b"def", b"ghij"):
            client.sendall(piece)
        assert client.recv(10, socket.MSG_WAITALL) == b"abcdefghij"
        for piece in (b"k", b"lmnopqr", b"st"):
            client.sendall(piece)
        assert client.recv(10, socket.MSG_WAITALL) == b"klmnopqrst"
        client.sendall(b"uvw")
        client.shutdown(socket.SHUT_WR)
        assert receive(client) == b"uvw"


@pytest.mark.parametrize("call", ["recv", "recv_into", "recvfrom", "recvmsg"])
def test_peek(serve: Serve, call: str) -> None:
    """What was looked at, in part or as a whole, is there to be received."""

    def look(self: Any, size: int) -> bytes:
        flag = socket.MSG_PEEK
        if call == "recv_into":
            room = bytearray(size)
            return bytes(room[: self.request.recv_into(room, size, flag)])
        if call == "recvmsg":
            return bytes(self.request.recvmsg(size, 0, flag)[0])
        found = getattr(self.request, call)(size, flag)
        return bytes(found if call == "recv" else found[0])

    def handle(self: Any) -> None:
        self.wfile.write(b"ready\n")
        for size in (3, 100, 6):
            found.append(look(self, size))
        found.append(self.request.recv(2))
        found.append(look(self, 100))
        found.append(self.request.recv(100))
        found.append(look(self, 100))
        self.wfile.write(self.request.recv(100))

    found: list[bytes] = []
    with serve(handle).connect() as client:
        assert client.recv(10) == b"ready\n"
        client.sendall(b"abcdef")
        wait_until(lambda: len(found) == 6)
        client.sendall(b"more")
        assert receive(client) == b"more"
    assert found == [b"abc", b"abcdef", b"abcdef", b"ab", b"cdef", b"cdef", b"more"]


def test_nothing_asked_for(serve: Serve) -> None:
    """recv(0), and recv_into() an empty buffer, return when something has come, or at once."""

    def handle(self: Any) -> None:
        self.wfile.write(b"ready\n")
        self.request.recv(1)
        found.append(self.request.recv(0))
        found.append(self.request.recv_into(bytearray()))
        found.append(self.rfile.read(0))
        found.append(self.rfile.readinto(bytearray()))
        self.wfile.write(self.rfile.readline())

    found: list[Any] = []
    with serve(handle).connect() as client:
        assert client.recv(10) == b"ready\n"
        client.sendall(b"?line\n")
        assert receive(client) == b"line\n"
    assert found == [b"", 0, b"", 0]


@pytest.mark.parametrize("way", ["recv", "readline", "select"])
def test_the_fewest_bytes_to_wake_for(serve: Serve, way: str) -> None:
    """SO_RCVLOWAT: a blocking receive waits for so many; and for the rest, or the end."""

    def handle(self: Any) -> None:
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 8)
        self.wfile.write(b"ready\n")
        if way == "select":
            assert multiplexing.wait(self.request, read=True, timeout=TIMEOUT)
        if way == "readline":
            found.append(self.rfile.readline())
        else:
            found.append(self.request.recv(100))
        over.set()
        self.wfile.write(self.request.recv(100))

    found: list[bytes] = []
    over = threading.Event()
    with serve(handle).connect() as client:
        assert client.recv(10) == b"ready\n"
        client.sendall(b"abc")
        assert not select.select([client], [], [], 0.05)[0]  # it may have come, and waits
        client.sendall(b"defghij\n")
        assert over.wait(TIMEOUT)
        client.sendall(b"short")
        client.shutdown(socket.SHUT_WR)
        assert receive(client) == b"short"
    assert found == [b"abcdefghij\n"]
