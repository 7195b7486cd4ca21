"""broadcast(): to all, all of it or nothing, never in the middle of something, never waiting."""

from __future__ import annotations

import gc
import re
import socket
import threading
import time
from typing import Any

import pytest
from books import echo, exactly, flavours, line_of, live, served, stats_when, talk
from support import TIMEOUT, Background, connect, hang_up, receive

import fastsock
from fastsock import _post

SEVERAL = ("threading", "multiplexing")


def chat(self: Any) -> None:
    for line in self.rfile:
        self.server.results.append(self.server.broadcast(line))


@flavours(*SEVERAL)
@pytest.mark.parametrize("transport", ["TCP", "UnixStream"])
def test_from_a_handler(flavour: str, transport: str, folder: str) -> None:
    address: Any = ("127.0.0.1", 0) if transport == "TCP" else f"{folder}/s"
    with served(flavour, chat, transport, address, results=[]) as server:
        clients = [connect(server) for _ in range(5)]
        live(server, 5)
        clients[2].sendall(b"hello\n")
        assert [line_of(client) for client in clients] == [b"hello\n"] * 5
        stats_when(server, lambda stats: len(server.results) == 1)
        (result,) = server.results
        assert (result.sent, result.skipped) == (5, ())
        assert server.stats().bytes_out == 30
        assert all(each.bytes_out == 6 for each in server.connections)
        for client in clients:
            hang_up(client)


@flavours()
def test_from_another_thread(flavour: str) -> None:
    with served(flavour, echo) as server:
        clients = [talk(server) for _ in range(1 if flavour == "sync" else 3)]
        result = server.broadcast(b"all\n")
        if flavour == "forking":  # it is the children's to write to
            assert result.sent == 0
            assert {each.client_address for each in result.skipped} == {
                client.getsockname() for client in clients
            }
        else:
            assert (result.sent, result.skipped) == (len(clients), ())
            assert [client.recv(100) for client in clients] == [b"all\n"] * len(clients)
        for client in clients:
            hang_up(client)


@flavours(*SEVERAL)
def test_all_but_one(flavour: str) -> None:
    def handle(self: Any) -> None:
        for line in self.rfile:
            self.server.broadcast(line, exclude=self.request)

    with served(flavour, handle) as server:
        clients = [connect(server) for _ in range(3)]
        live(server, 3)
        clients[0].sendall(b"first\n")
        assert [line_of(client) for client in clients[1:]] == [b"first\n"] * 2
        clients[1].sendall(b"second\n")
        assert [line_of(client) for client in clients[::2]] == [b"second\n"] * 2
        for client in clients:
            hang_up(client)


@flavours(*SEVERAL)
def test_from_a_handler_of_another_server(flavour: str) -> None:
    """Whose hub is another thread's."""
    with (
        served(flavour, echo) as one,
        served(flavour, lambda self: one.broadcast(self.rfile.readline())) as other,
    ):
        clients = [talk(one) for _ in range(3)]
        with connect(other) as client:
            client.sendall(b"over there\n")
            assert [line_of(each) for each in clients] == [b"over there\n"] * 3
        for each in clients:
            hang_up(each)


def test_all_but_one_that_is_no_connection() -> None:
    """Nobody can write to it, but it is not skipped either: it was not to get them."""
    found: list[Any] = []

    def get_request(self: Any) -> Any:
        accepted, address = self.socket.accept()
        return socket.socket(fileno=accepted.detach()), address

    def handle(self: Any) -> None:
        for exclude in (None, self.request):
            result = self.server.broadcast(b"x", exclude=exclude)
            found.append((result.sent, len(result.skipped)))

    with (
        served("threading", handle, get_request=get_request) as server,
        connect(server) as client,
    ):
        assert receive(client) == b""
        assert found == [(0, 1), (0, 0)]


def test_what_it_takes() -> None:
    with served("threading", echo) as server:
        client = talk(server)
        for data in (b"1", bytearray(b"2"), memoryview(b"xx34xx")[2:4]):
            assert server.broadcast(data).sent == 1
        assert exactly(client, 4) == b"1234"
        with pytest.raises(TypeError):
            server.broadcast("text")
        assert server.broadcast(b"").sent == 1
        hang_up(client)
        stats_when(server, lambda stats: stats.active == 0)
        assert server.broadcast(b"nobody") == server.broadcast(b"")
        assert server.broadcast(b"nobody").sent == 0


@flavours(*SEVERAL)
@pytest.mark.parametrize("transport", ["TCP", "UnixStream"])
@pytest.mark.parametrize("size", [10, 1000, 20_000, 100_000])  # the last not in one piece
def test_who_does_not_read_is_skipped(flavour: str, transport: str, size: int, folder: str) -> None:
    """And gets whole messages only, once it does."""
    address: Any = ("127.0.0.1", 0) if transport == "TCP" else f"{folder}/s"

    def handle(self: Any) -> None:
        self.wfile.write(self.rfile.readline())
        if not self.server.stats().finished and self.server.stats().accepted == 1:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(60_000, 2 * size))
        echo(self)

    with (
        served(flavour, handle, transport, address) as server,
        talk(server) as slow,
        talk(server) as good,
    ):
        slow_one = server.connections[1]
        sent = 0
        for number in range(20_000_000 // size):
            message = b"%d:" % number
            message += b"." * (size - len(message) - 1) + b"\n"
            result = server.broadcast(message)
            assert exactly(good, size) == message
            if result.skipped:
                break
            assert result.sent == 2
            sent += 1
        assert result.sent == 1
        assert [each._view for each in result.skipped] == [slow_one._view]
        assert sent > 1
        received = exactly(slow, sent * size)
        lines = received.splitlines(keepends=True)
        assert [len(line) for line in lines] == [size] * sent
        assert [int(line.partition(b":")[0]) for line in lines] == list(range(sent))
        assert server.broadcast(b"again\n").sent == 2
        for client in (slow, good):
            assert exactly(client, 6) == b"again\n"


PIECES = re.compile(rb"<(\d+)>|(\[(\d+)a*\])")


def untorn(data: bytes, size: int) -> tuple[list[int], list[int]]:
    """The numbers of broadcasts and of the handler's messages, of which none has a stranger in."""
    posts, messages, end = [], [], 0
    for match in PIECES.finditer(data):
        assert match.start() == end, data[end - 20 : end + 40]
        end = match.end()
        if match[1]:
            posts.append(int(match[1]))
        else:
            assert len(match[2]) == size
            messages.append(int(match[3]))
    assert end == len(data), data[end - 20 : end + 40]
    return posts, messages


def send_all(self: Any, data: bytes) -> None:
    self.request.sendall(data)


def send_buffered(self: Any, data: bytes) -> None:
    for place in range(0, len(data), 5000):  # more than one of which the buffer does not hold
        self.wfile.write(data[place : place + 5000])
    self.wfile.flush()


def send_message(self: Any, data: bytes) -> None:
    sent = self.request.sendmsg([data])
    assert sent == len(data)


def send_file(self: Any, data: bytes) -> None:
    self.file.seek(0)
    self.file.truncate()
    self.file.write(data)
    self.file.flush()
    self.file.seek(0)
    assert self.request.sendfile(self.file) == len(data)


WAYS = {
    "sendall": (send_all, 0),
    "wfile": (lambda self, data: self.wfile.write(data), 0),
    "buffered wfile": (send_buffered, 8192),
    "sendmsg": (send_message, 0),
    "sendfile": (send_file, 0),
}


@flavours(*SEVERAL)
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("size", [100, 20_000, 300_000])
@pytest.mark.parametrize("slow", [False, True], ids=["reads", "reads slowly"])
def test_nothing_is_torn(flavour: str, way: str, size: int, slow: bool, tmp_path: Any) -> None:
    """A handler writes its messages, while others broadcast as fast as they can."""
    write, wbufsize = WAYS[way]
    if way == "buffered wfile" and size == 100:
        pytest.skip("what fits is sent by a flush")
    count = max(10, min(200, 3_000_000 // size))
    over = threading.Event()

    def handle(self: Any) -> None:
        self.rfile.readline()
        if slow:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        with open(tmp_path / "file", "w+b") as self.file:
            for number in range(count):
                head = b"[%d" % number
                write(self, head + b"a" * (size - len(head) - 1) + b"]")
                if flavour == "multiplexing":
                    from fastsock.multiplexing import sleep

                    sleep(0)
        over.set()

    def post(server: Any) -> list[int]:
        got = []
        number = 0
        while not over.is_set():
            if server.broadcast(b"<%d>" % number).sent:
                got.append(number)
            number += 1
            time.sleep(0.0001)
        return got

    with served(flavour, handle, handler={"wbufsize": wbufsize}) as server:
        with connect(server) as client:
            live(server, 1)
            posting = Background(post, server)
            client.sendall(b"go\n")
            chunks = []
            while chunk := client.recv(1 << 16):
                chunks.append(chunk)
                if slow and len(chunks) < 100:
                    time.sleep(0.001)
            told = posting.result()
        posts, messages = untorn(b"".join(chunks), size)
        assert messages == list(range(count))
        # All that were told to be sent came, but for those behind which the handler had ended.
        assert posts == told[: len(posts)]
        assert len(told) - len(posts) <= 3
        assert server.stats().failed == 0


@flavours(*SEVERAL)
def test_behind_what_is_being_written(flavour: str) -> None:
    with served(flavour, echo) as server:
        client = talk(server)
        (record,) = server._fastsock.ledger.records()
        requests: list[Any] = [
            each for each in gc.get_objects() if type(each) is fastsock.Connection
        ]
        (request,) = [each for each in requests if _post.is_of(record, each)]
        _post.begin_write(request)
        assert server.broadcast(b"behind\n").sent == 1
        assert server.broadcast(b"it\n").sent == 1
        assert server.broadcast(b"x" * 70_000).sent == 0
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(100)
        client.settimeout(TIMEOUT)
        _post.end_write(request)
        assert exactly(client, 10) == b"behind\nit\n"
        assert server.broadcast(b"after\n").sent == 1
        assert client.recv(100).endswith(b"after\n")
        hang_up(client)


def test_behind_bytes_that_are_held_back() -> None:
    """Of the task that runs, whoever it is that broadcasts."""

    def handle(self: Any) -> None:
        for line in self.rfile:
            self.wfile.write(b"1 " + line)
            assert self.server.broadcast(b"2\n").sent == 2
            self.wfile.write(b"3\n")
            if line == b"thread\n":
                thread = Background(self.server.broadcast, b"4\n")
                assert thread.result().sent == 2  # while this task holds the loop
                self.wfile.write(b"5\n")

    with served("multiplexing", handle) as server:
        client, other = connect(server), connect(server)
        live(server, 2)
        client.sendall(b"task\n")
        assert exactly(client, 9) == b"1 task\n2\n"
        assert exactly(client, 2) == b"3\n"
        client.sendall(b"thread\n")
        assert exactly(client, 17) == b"1 thread\n2\n3\n4\n5\n"
        assert exactly(other, 6) == b"2\n2\n4\n"
        for each in (client, other):
            hang_up(each)


def test_a_task_is_not_suspended_by_it() -> None:
    """Though its own client does not read."""

    def handle(self: Any) -> None:
        self.rfile.readline()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        hub_switches: list[int] = []
        from fastsock import _hubs

        hub: Any = _hubs.here()
        self.wfile.write(b"held back")
        before = hub.switches
        while self.server.broadcast(b"x" * 1000).sent:
            hub_switches.append(hub.switches)
        self.server.switches = [number - before for number in hub_switches]

    with served("multiplexing", handle, switches=None) as server, connect(server) as client:
        client.sendall(b"go\n")
        stats_when(server, lambda stats: server.switches is not None)
        assert set(server.switches) == {0}
        assert receive(client).startswith(b"held backx")


def test_a_client_that_is_gone() -> None:
    with served("threading", echo) as server:
        gone, there = talk(server), talk(server)
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
        for _ in range(100):
            server.broadcast(b"x")
        hang_up(there)
        stats = stats_when(server, lambda stats: stats.active == 0)
        assert stats.finished == 2


def test_one_that_has_ended_is_somebody_elses() -> None:
    """Though its descriptor is open: shutdown_request() has handed it to somebody."""
    kept: list[Any] = []

    def handle(self: Any) -> None:
        kept.append(self.request)
        self.rfile.readline()

    with (
        served("threading", handle, shutdown_request=lambda *arguments: None) as server,
        connect(server) as client,
    ):
        live(server, 1)
        (record,) = server._fastsock.ledger.records()
        client.sendall(b"go\n")
        stats_when(server, lambda stats: stats.finished == 1)
        assert not _post.post(record, b"x")
        with kept.pop() as request:
            request.sendall(b"mine")
        assert receive(client) == b"mine"


def test_what_has_been_detached_is_skipped() -> None:
    left: list[int] = []
    go_on = threading.Event()

    def handle(self: Any) -> None:
        left.append(self.request.detach())
        assert go_on.wait(TIMEOUT)

    with served("threading", handle) as server, connect(server) as client:
        stats_when(server, lambda stats: left)
        (skipped,) = server.broadcast(b"x").skipped
        assert skipped.client_address == client.getsockname()
        go_on.set()
        socket.socket(fileno=left.pop()).close()


@flavours(*SEVERAL)
def test_one_that_the_socket_object_owns(flavour: str) -> None:
    def handle(self: Any) -> None:
        self.request.getpeername()
        echo(self)

    with served(flavour, handle) as server:
        client = talk(server)
        assert server.broadcast(b"hello\n").sent == 1
        assert client.recv(10) == b"hello\n"
        hang_up(client)
