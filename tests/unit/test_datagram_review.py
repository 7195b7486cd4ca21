"""What a review of receiving ahead has found, on both implementations where there is one answer."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    DatagramKind,
    Make,
    datagrams,
    handler,
    noting,
    numbered,
    receive_all,
    send_all,
    serve_until,
)
from support import TIMEOUT, Background, about_threads, connect, new, serving, wait_until


@pytest.fixture
def collecting() -> Iterator[None]:
    """The collector runs at nearly every object that is made."""
    before = gc.get_threshold()
    gc_is_over.clear()
    gc.set_threshold(2)
    yield
    gc.set_threshold(*before)
    gc_is_over.set()


class Cycle:
    """Garbage for the collector; what is to be done when it goes."""

    def __init__(self, last_words: Any) -> None:
        self.me = self
        self.last_words = last_words

    def __del__(self) -> None:
        if not gc_is_over.is_set():
            self.last_words()


gc_is_over = threading.Event()


@datagrams("UDP", flavours=("", "Threading"))
def test_a_finalizer_that_receives(
    ss: ModuleType, kind: DatagramKind, make: Make, collecting: None
) -> None:
    """Whenever the collector runs, each datagram is somebody's, and once."""
    seen: list[bytes] = []
    kept: list[Any] = []

    def receive() -> None:
        try:
            packet = server.socket.recvfrom(100, socket.MSG_DONTWAIT)[0]
        except BlockingIOError:
            return
        seen.append(packet)

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        kept.append(self.client_address)
        Cycle(receive)

    server = make(kind.server(ss), handler(ss, handle))
    # Or else the standard library blocks for what select() has announced and a finalizer taken.
    server.socket.setblocking(False)
    clients = [connect(server) for _ in range(300)]  # more than there are places for addresses
    with serving(server):
        for number in range(1500):
            clients[number % 300].send(b"%d" % number)
            if number % 30 == 29:
                wait_until(lambda expected=number: len(seen) > expected)
    assert sorted(map(int, seen)) == list(range(1500))
    for client in clients:
        client.close()


@about_threads("its handlers wait in a threading.Event, and two threads serve")
@pytest.mark.fastsock_only(reason="the standard library has a thread for each")
@pytest.mark.parametrize("beside", ["handle_request", "serve_forever"])
def test_many_threads_and_two_that_begin_them(ss: ModuleType, make: Make, beside: str) -> None:
    """Both may wait for a worker that rests, and neither for ever."""
    go_on = threading.Event()
    blocked: list[int] = []
    quick: list[bytes] = []

    def handle(self: Any) -> None:
        if self.request[0] == b"block":
            blocked.append(1)
            go_on.wait(TIMEOUT)
        else:
            quick.append(self.request[0])

    server = make(ss.ThreadingUDPServer, handler(ss, handle), receive_buffer_size=1 << 20)
    loop = Background(server.serve_forever, 0.05)
    with connect(server) as client:
        send_all(client, [b"block"] * 66)
        wait_until(lambda: len(blocked) == 66)

        def others() -> None:
            server.timeout = 0.01
            while not go_on.is_set():
                server.handle_request()

        other = Background(others if beside == "handle_request" else server.serve_forever)
        for burst in range(40):
            send_all(client, numbered(50))
            wait_until(lambda expected=50 * (burst + 1): len(quick) >= expected)
        go_on.set()
    # One call ends one of the two loops, whichever has looked first.
    wait_until(lambda: server.shutdown() or not (loop.is_alive() or other.is_alive()))
    loop.result()
    other.result()


def test_a_stream_in_the_place_of_the_socket(ss: ModuleType, make: Make) -> None:
    """recvfrom() of a connection gets its bytes."""
    seen: list[Any] = []
    server = make(ss.UDPServer, noting(ss, seen))
    original = server.socket
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), TIMEOUT) as client,
    ):
        server.socket, _ = listener.accept()
        client.sendall(b"hello over TCP")
        server.handle_request()
    assert seen == [b"hello over TCP"]
    server.socket.close()
    original.close()


@datagrams("UnixDatagram")
def test_descriptors_come_along_again(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """Peers cannot have a server hold descriptors that none of its handlers has received."""
    opened: list[bool] = []

    def handle(self: Any) -> None:
        with open(os.devnull) as file:
            opened.append(bool(file))

    server = make(kind.server(ss), handler(ss, handle))
    reading, writing = os.pipe()
    with connect(server) as client:
        socket.send_fds(client, [b"once"], [reading])
        client.send(b"and one more")
        serve_until(server, lambda: len(opened) == 2)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (writing + 40, limit[1]))
        try:
            client.send(b"1")
            for _ in range(3):
                socket.send_fds(client, [b"2"], [reading] * 100)
            serve_until(server, lambda: len(opened) == 6)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    os.close(reading)
    os.close(writing)


@datagrams("UnixDatagram")
def test_a_child_keeps_no_descriptor(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """What lies received in the parent is not held open by the child of a handler."""
    children: list[Any] = []
    done = multiprocessing.get_context("fork").Event()

    def handle(self: Any) -> None:
        if not children:
            child = multiprocessing.get_context("fork").Process(target=done.wait, args=(TIMEOUT,))
            child.start()
            children.append(child)
        served.append(self.request[0])

    served: list[bytes] = []
    server = make(kind.server(ss), handler(ss, handle))
    reading, writing = os.pipe()
    with connect(server) as client:
        client.send(b"1")
        socket.send_fds(client, [b"2"], [writing])
        os.close(writing)
        serve_until(server, lambda: len(served) == 2)
        with open(reading, "rb") as pipe:
            assert Background(pipe.read).result() == b""
    done.set()
    children[0].join(TIMEOUT)


@pytest.mark.fastsock_only(reason="several servers in one loop")
def test_servers_take_turns(ss: ModuleType, make: Make) -> None:
    """A batch of one is not served before what came to the other."""
    order: list[str] = []
    first = make(ss.UDPServer, handler(ss, lambda self: order.append("first")))
    second = make(ss.UDPServer, handler(ss, lambda self: order.append("second")))
    with connect(first) as one, connect(second) as two:
        send_all(one, numbered(20))
        send_all(two, numbered(2))
        loop = Background(ss.serve_forever, first, second)
        wait_until(lambda: len(order) == 22)
        first.shutdown()
        second.shutdown()
        loop.result()
    assert order.index("second") < 4
    assert order[:8].count("second") == 2


def test_servers_that_share_a_socket(ss: ModuleType, make: Make) -> None:
    """Each in a thread of its own: handlers that wait for each other do not wait for ever."""
    barrier = threading.Barrier(4)
    served: list[bytes] = []

    def handle(self: Any) -> None:
        barrier.wait(TIMEOUT)
        served.append(self.request[0])

    servers = [make(ss.UDPServer, handler(ss, handle)) for _ in range(4)]
    originals = [server.socket for server in servers[1:]]
    for server in servers[1:]:
        server.socket = servers[0].socket
    for server in servers:
        server.timeout = 0.05
    with connect(servers[0]) as client:
        send_all(client, numbered(16))
        loops = [Background(server.serve_forever, 0.01) for server in servers]
        wait_until(lambda: len(served) == 16)
        for server in servers:
            server.shutdown()
        for loop in loops:
            loop.result()
    for original in originals:
        original.close()


@pytest.mark.fastsock_only(reason="handle_truncated() is not in the standard library")
def test_handle_truncated_runs_in_the_loop(ss: ModuleType, make: Make) -> None:
    threads: list[int] = []

    def handle_truncated(self: Any, *args: Any) -> bool:
        threads.append(threading.get_native_id())
        return True

    served: list[bytes] = []
    server = make(
        ss.ThreadingUDPServer,
        noting(ss, served),
        max_packet_size=1,
        handle_truncated=handle_truncated,
    )
    with connect(server) as client, serving(server) as loop:
        for burst in range(1, 21):
            send_all(client, [b"xx"] * 20)
            wait_until(lambda expected=20 * burst: len(served) == expected)
        assert set(threads) == {loop.native_id}


@about_threads("_threads: there are none to keep")
def test_borrowed_methods(ss: ModuleType, make: Make) -> None:
    """A class that borrows a method need not have what fastsock has added."""

    class Odd(ss.BaseServer):
        server_bind = ss.UDPServer.server_bind
        allow_reuse_address = allow_reuse_port = False
        address_family = socket.AF_INET

    odd = Odd(("127.0.0.1", 0), ss.BaseRequestHandler)
    odd.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    odd.server_bind()
    assert odd.server_address == odd.socket.getsockname()
    odd.socket.close()

    class Handler(ss.BaseRequestHandler):
        setup = ss.DatagramRequestHandler.setup
        finish = ss.DatagramRequestHandler.finish

    borrowing = new(
        "Borrowing",
        ss.UDPServer,
        process_request=ss.ThreadingMixIn.process_request,
        process_request_thread=ss.ThreadingMixIn.process_request_thread,
        daemon_threads=True,
        block_on_close=False,
        _threads=ss.ThreadingMixIn._threads,
    )
    server = make(borrowing, Handler)
    with connect(server) as client, serving(server):
        send_all(client, [b"1", b"2"])
        assert receive_all(client, 2) == [b"", b""]


@datagrams("UDP")
@pytest.mark.fastsock_only(reason="the length of what waits, without reading past a buffer")
def test_the_length_of_the_next(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    lengths: list[int] = []

    def handle(self: Any) -> None:
        if not lengths:
            peek = socket.MSG_PEEK | socket.MSG_TRUNC
            lengths.append(len(self.request[1].recv(1, peek)))
            lengths.append(len(self.request[1].recvfrom(1, peek)[0]))
        served.append(self.request[0])

    served: list[bytes] = []
    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        send_all(client, [b"1", b"x" * 50])
        serve_until(server, lambda: len(served) == 2)
    assert lengths == [50, 50]


@datagrams()
def test_a_duplicate_in_a_handler(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """It receives what comes next, as the socket itself would."""
    served: list[bytes] = []

    def handle(self: Any) -> None:
        served.append(self.request[0])
        if self.request[0] == b"0":
            with self.request[1].dup() as duplicate:
                served.append(duplicate.recv(100))

    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        send_all(client, numbered(4))
        serve_until(server, lambda: len(served) == 4)
    assert served == numbered(4)
