"""Datagrams that wait, and who serves them: loops of the program's own, threads, processes."""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import socket
import threading
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    MANY,
    DatagramKind,
    Make,
    arrived,
    datagrams,
    echoing,
    handler,
    nothing_more,
    noting,
    numbered,
    receive_all,
    send_all,
    serve,
    serve_until,
)
from support import (
    ESCAPED,
    TIMEOUT,
    Background,
    about_threads,
    connect,
    event,
    new,
    serving,
    wait_until,
)


def readable(server: Any) -> bool:
    return bool(select.select([server], [], [], 0)[0])


# --- without serve_forever()


@datagrams()
def test_handle_request_takes_one(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """The others stay in the kernel, where select() sees them."""
    seen: list[bytes] = []
    server = make(kind.server(ss), noting(ss, seen), timeout=0)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        for number in range(len(packets)):
            assert readable(server) and readable(server.socket)
            server.handle_request()
            assert seen == packets[: number + 1]
    assert not readable(server)
    server.handle_request()
    assert seen == packets


@datagrams()
def test_handle_request_from_another_process(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    """Nothing is received ahead of time: a child with the same socket gets its share."""
    seen: list[bytes] = []
    server = make(kind.server(ss), echoing(ss, seen), timeout=0)
    packets = numbered(6)
    with connect(server) as client:
        send_all(client, packets)
        server.handle_request()
        pid = os.fork()
        if not pid:
            try:
                server.handle_request()
                server.handle_request()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        server.handle_request()
        assert receive_all(client, 4) == packets[:4]
    assert seen == [b"0", b"3"]


@datagrams()
@pytest.mark.parametrize("step", ["handle_request", "_handle_request_noblock"])
def test_own_loop(ss: ModuleType, kind: DatagramKind, make: Make, step: str) -> None:
    """A selector, and one request for each time that it says so."""
    seen: list[bytes] = []
    server = make(kind.server(ss), echoing(ss, seen))
    packets = numbered(kind.many)
    with connect(server) as client, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        send_all(client, packets)
        for number in range(len(packets)):
            assert selector.select(TIMEOUT)
            getattr(server, step)()
            assert seen == packets[: number + 1]
        assert not selector.select(0)
        assert receive_all(client, len(packets)) == packets


@datagrams()
def test_own_loop_after_serve_forever(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """And serve_forever() after that; each takes up where the other has ended."""
    seen: list[bytes] = []
    server = make(kind.server(ss), noting(ss, seen), timeout=0)
    with connect(server) as client:
        send_all(client, numbered(4))
        serve(server, seen, numbered(4))
        send_all(client, numbered(4, 4))
        for number in range(4, 8):
            assert readable(server)
            server.handle_request()
            assert seen == numbered(number + 1)
        send_all(client, numbered(4, 8))
        serve(server, seen, numbered(12))


@datagrams()
def test_handle_request_within_a_handler(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """It serves the next one, at once."""
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] in (b"1", b"2", b"5"):
            self.server.handle_request()
            seen.append(b"after " + self.request[0])

    server = make(kind.server(ss), handler(ss, handle))
    expected = [b"0", b"1", b"2", b"3", b"after 2", b"after 1", b"4", b"5", b"6", b"after 5", b"7"]
    with connect(server) as client:
        send_all(client, numbered(8))
        serve(server, seen, expected)


# --- shutdown()


@datagrams(flavours=("", "Threading"))
def test_shutdown_in_the_middle(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """Each is served before shutdown() has returned or by the next serve_forever(), and once."""
    seen: list[bytes] = []
    calls: list[Background] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"2":
            calls.append(Background(self.server.shutdown))
            if not kind.flavour:
                wait_until(lambda: self.server._BaseServer__shutdown_request)

    server = make(kind.server(ss), handler(ss, handle))
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        server.serve_forever()
        (shutdown,) = wait_until(lambda: calls)
        shutdown.result()
        served = len(seen)
        if not kind.flavour:
            assert seen == packets[:served]
        serve_until(server, lambda: len(seen) >= len(packets))
        assert (sorted(seen, key=int) if kind.flavour else seen) == packets
        assert nothing_more(server.socket)


@datagrams()
@pytest.mark.fastsock_only(reason="shutdown() in the loop's own thread does not wait")
def test_shutdown_by_the_handler_itself(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] in (b"2", b"3"):
            self.server.shutdown()

    server = make(kind.server(ss), handler(ss, handle))
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        server.serve_forever()
        assert seen == packets[: len(seen)]
        assert len(seen) >= 3
        while len(seen) < 4:
            server.serve_forever()
        serve_until(server, lambda: len(seen) >= len(packets))
        assert seen == packets


@datagrams()
def test_shutdown_waits_for_the_handler(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """From another thread, while one of several is being served."""
    seen: list[bytes] = []
    reached, go_on = threading.Event(), threading.Event()

    def handle(self: Any) -> None:
        if self.request[0] == b"2":
            reached.set()
            assert go_on.wait(TIMEOUT)
        seen.append(self.request[0])

    server = make(kind.server(ss), handler(ss, handle))
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        serving_thread = Background(server.serve_forever)
        assert reached.wait(TIMEOUT)
        shutdown = Background(server.shutdown)
        wait_until(lambda: server._BaseServer__shutdown_request)
        assert shutdown.is_alive() and serving_thread.is_alive()
        assert seen == packets[:2]
        go_on.set()
        shutdown.result()
        serving_thread.result()
        assert seen[:3] == packets[:3]
        serve_until(server, lambda: len(seen) >= len(packets))
        assert seen == packets


@datagrams()
def test_many_short_runs(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """serve_forever() that is stopped after whatever it had, again and again."""
    seen: list[bytes] = []
    base = kind.server(ss)

    def service_actions(self: Any) -> None:
        self._BaseServer__shutdown_request = True

    server = make(base, noting(ss, seen), service_actions=service_actions)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        for _ in packets:
            if len(seen) < len(packets):
                server.serve_forever()
    assert seen == packets


# --- threads


@about_threads("its handlers wait for each other in a threading.Barrier")
@datagrams("UDP", "UnixDatagram", flavours=("Threading",))
def test_handlers_wait_for_each_other(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    run_together(ss, kind, make, 8)


@about_threads("its handlers wait for each other in a threading.Barrier")
@datagrams("UDP", flavours=("Threading",))
def test_very_many_handlers_wait_for_each_other(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    run_together(ss, kind, make, 200)


def run_together(ss: ModuleType, kind: DatagramKind, make: Make, count: int) -> None:
    barrier = threading.Barrier(count)

    def handle(self: Any) -> None:
        barrier.wait(TIMEOUT)
        self.wfile.write(self.packet)

    server = make(kind.server(ss), new("Handler", ss.DatagramRequestHandler, handle=handle))
    with connect(server) as client:
        for sock in (client, server.socket):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        send_all(client, numbered(count))
        with serving(server):
            answers = receive_all(client, count)
    assert sorted(answers, key=int) == numbered(count)


@datagrams("UDP", "UnixDatagram", flavours=("Threading",))
def test_a_handler_that_blocks(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """It does not keep the others waiting."""
    go_on = event(ss)

    def handle(self: Any) -> None:
        if self.packet == b"0":
            assert go_on.wait(TIMEOUT)
        self.wfile.write(self.packet)

    server = make(kind.server(ss), new("Handler", ss.DatagramRequestHandler, handle=handle))
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            assert sorted(receive_all(client, len(packets) - 1), key=int) == packets[1:]
            assert nothing_more(client)
            go_on.set()
            assert client.recv(100) == b"0"


@about_threads("max_threads")
@datagrams("UDP", flavours=("Threading",))
@pytest.mark.parametrize("waiting_together", [3, 1])
@pytest.mark.fastsock_only(reason="max_threads is not in the standard library")
def test_max_threads(ss: ModuleType, kind: DatagramKind, make: Make, waiting_together: int) -> None:
    """At most so many at a time, and all in the end."""
    lock = threading.Lock()
    counts = {"now": 0, "most": 0}
    barrier = threading.Barrier(waiting_together)

    def handle(self: Any) -> None:
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts.values())
        barrier.wait(TIMEOUT)
        with lock:
            counts["now"] -= 1
        self.wfile.write(self.packet)

    handled = new("Handler", ss.DatagramRequestHandler, handle=handle)
    server = make(kind.server(ss), handled, max_threads=waiting_together)
    with connect(server) as client:
        send_all(client, numbered(39))
        with serving(server):
            assert sorted(receive_all(client, 39), key=int) == numbered(39)
    assert counts["most"] == waiting_together


# --- processes


@datagrams("UDP", "UnixDatagram")
@pytest.mark.parametrize("wait", [True, False], ids=["waits", "goes on"])
def test_fork_in_a_handler(ss: ModuleType, kind: DatagramKind, make: Make, wait: bool) -> None:
    """Parent and child answer each datagram once between them, whoever gets which."""
    children: list[int] = []

    def handle(self: Any) -> None:
        packet, sock = self.request
        if packet == b"2":
            children.append(os.fork())
            if not children[0]:
                status = ESCAPED
                try:
                    with contextlib.suppress(BlockingIOError):
                        for _ in range(3):
                            taken, address = sock.recvfrom(100, socket.MSG_DONTWAIT)
                            sock.sendto(taken, address)
                    status = 0
                finally:
                    os._exit(status)
            if wait:
                assert os.waitpid(children[0], 0)[1] == 0
        sock.sendto(packet, self.client_address)

    server = make(kind.server(ss), handler(ss, handle))
    packets = numbered(kind.many)
    answers: list[bytes] = []
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            answers = receive_all(client, len(packets))
        if not wait:
            assert os.waitpid(children[0], 0)[1] == 0
        answers += arrived(client)
    assert sorted(answers, key=int) == packets


@datagrams("UDP", "UnixDatagram", flavours=("Forking",))
def test_forking(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """A child for each, and what one has received ahead is not another's."""
    packets = numbered(20 if kind.transport == "UDP" else 8)
    pids: set[int] = set()

    def handle(self: Any) -> None:
        self.wfile.write(b"%s %d" % (self.packet, os.getpid()))

    server = make(kind.server(ss), new("Handler", ss.DatagramRequestHandler, handle=handle))
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            answers = receive_all(client, len(packets))
        server.server_close()
        answers += arrived(client)
    taken = [answer.split()[0] for answer in answers]
    pids = {int(answer.split()[1]) for answer in answers}
    assert sorted(taken, key=int) == packets
    assert len(pids) == len(packets) and os.getpid() not in pids


@datagrams("UDP", "UnixDatagram", flavours=("Forking",))
def test_children_receive_nothing_twice(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """A child that takes the next one itself: each is answered once, by whomever."""
    packets = numbered(MANY if kind.transport == "UDP" else 8)

    def handle(self: Any) -> None:
        packet, sock = self.request
        sock.sendto(packet, self.client_address)
        with contextlib.suppress(BlockingIOError):
            following, address = sock.recvfrom(100, socket.MSG_DONTWAIT)
            sock.sendto(following, address)

    server = make(kind.server(ss), handler(ss, handle), max_children=100)
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            answers = receive_all(client, len(packets))
        server.server_close()
        answers += arrived(client)
    assert sorted(answers, key=int) == packets
