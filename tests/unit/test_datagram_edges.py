"""Datagrams at the edges of what is received ahead: other loops and processes, sizes, patches."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import struct
import threading
import time
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    DatagramKind,
    Make,
    Waiting,
    datagrams,
    handler,
    noting,
    numbered,
    receive_all,
    send_all,
    serve,
    serve_until,
)
from support import TIMEOUT, Background, about_threads, connect, fresh_address, new, wait_until

unix = datagrams("UnixDatagram")


def copy_of(sock: socket.socket) -> socket.socket:
    """Another socket on the same open file, which knows of nothing that was received ahead."""
    return socket.socket(fileno=os.dup(sock.fileno()))


@pytest.fixture
def waiting(ss: ModuleType, kind: DatagramKind, make: Make):
    waiting = Waiting(ss, kind, make)
    yield waiting
    waiting.client.close()


@datagrams("UDP", "UDP6")
def test_the_error_queue(waiting: Waiting) -> None:
    result = waiting.act(
        lambda sock: sock.recv(100, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT), [b"act", b"2"]
    )
    assert result[0] is BlockingIOError
    assert waiting.seen == [b"act", b"2"]


@unix
@pytest.mark.parametrize("later", [False, True])
def test_very_large_requests(ss: ModuleType, kind: DatagramKind, make: Make, later: bool) -> None:
    seen: list[bytes] = []
    server = make(
        new("S", kind.server(ss)), noting(ss, seen), max_packet_size=100 if later else 1 << 20
    )
    with connect(server) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)  # which is doubled
        if later:
            client.send(b"1")
            serve_until(server, lambda: len(seen) == 1)
            type(server).max_packet_size = 1 << 20
        sending = Background(client.send, b"x" * 400_000)
        serve_until(server, lambda: len(seen) == 1 + later)
        sending.result()
    assert len(seen[-1]) == 400_000


@unix
def test_descriptors_in_a_later_batch(waiting: Waiting) -> None:
    waiting.act(lambda sock: 0, [b"act", b"1", b"2", b"3"])
    reading, writing = os.pipe()

    def action(sock: Any) -> Any:
        return len(socket.recv_fds(sock, 100, 10)[1])

    waiting.action = action
    waiting.client.send(b"act")
    waiting.seen.clear()
    socket.send_fds(waiting.client, [b"second"], [writing])
    os.close(writing)
    result = waiting.act(
        lambda sock: [os.close(fd) for fd in socket.recv_fds(sock, 100, 10)[1]], [b"third"]
    )
    os.close(reading)
    assert result == ("returned", [None])


@datagrams("UDP")
@pytest.mark.fastsock_only(reason="the standard library blocks, or loses them")
def test_a_loop_beside(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """It serves the next ones while the other is busy."""
    seen: list[bytes] = []
    go_on = threading.Event()

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"0":
            send_all(client, [b"1", b"2", b"3"])
        if self.request[0] == b"1":
            assert go_on.wait(TIMEOUT)

    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        loops = [Background(server.serve_forever, 30.0) for _ in range(2)]
        time.sleep(0.1)  # both wait
        client.send(b"0")
        try:
            wait_until(lambda: len(seen) == 4)
        finally:
            go_on.set()
            while any(loop.is_alive() for loop in loops):
                server.shutdown()
                time.sleep(0.01)
            for loop in loops:
                loop.result()


@datagrams("UDP")
def test_handle_request_beside_a_loop(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """While it serves one, the loop leaves the others in the kernel."""
    seen: list[bytes] = []
    readable: list[bool] = []
    go_on = threading.Event()
    beside: list[Any] = []

    def handle(self: Any) -> None:
        packet = self.request[0]
        seen.append(packet)
        if packet == b"0":
            client.send(b"a")
            beside.append(Background(self.server.handle_request))
            wait_until(lambda: b"a" in seen)
            send_all(client, [b"b", b"c", b"d"])
        elif packet == b"a":
            assert go_on.wait(TIMEOUT)
        else:
            readable.append(bool(select.select([copy], [], [], 0)[0]))

    server = make(kind.server(ss), handler(ss, handle))
    with copy_of(server.socket) as copy, connect(server) as client:
        client.send(b"0")
        serve_until(server, lambda: len(readable) == 3)
        go_on.set()
        beside[0].result()
    assert readable == [True, True, False]


@datagrams("UDP", "UnixDatagram")
def test_processes_share_a_socket(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """One that is busy with a datagram has not received the next ones."""
    reading, writing = os.pipe()

    def handle(self: Any) -> None:
        packet, sock = self.request
        if packet == b"0":
            os.read(reading, 1)
        sock.sendto(packet, self.client_address)

    server = make(kind.server(ss), handler(ss, handle))
    pids = []
    with connect(server) as client:
        send_all(client, numbered(4))
        try:
            for _ in range(2):
                pid = os.fork()
                if not pid:
                    try:
                        server.serve_forever(30.0)
                    finally:
                        os._exit(0)
                pids.append(pid)
            assert receive_all(client, 3) == numbered(3, 1)
            os.write(writing, b"x")
            assert client.recv(100) == b"0"
        finally:
            for pid in pids:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
            os.close(reading)
            os.close(writing)


@datagrams("UDP")
@pytest.mark.parametrize("why", ["fileno", "process_request", "max_threads", "own"])
def test_the_others_stay_in_the_kernel(
    ss: ModuleType, kind: DatagramKind, make: Make, why: str
) -> None:
    seen: list[bytes] = []
    readable: list[bool] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"0" and why == "fileno":
            assert self.request[1].fileno() >= 0
        if self.request[0] in (b"2", b"100"):
            readable.append(bool(select.select([copy], [], [], 0)[0]))
            if self.request[0] == b"2" and why == "fileno":
                readable.clear()
                send_all(client, numbered(4, 100))

    base = DatagramKind("Threading" if why == "max_threads" else "", "UDP").server(ss)
    attributes: dict[str, Any] = {}
    if why == "process_request":
        attributes["process_request"] = lambda self, *args: base.process_request(self, *args)
    if why == "own":
        attributes["fileno"] = lambda self: self.socket.fileno()
    if why == "max_threads":
        attributes["max_threads"] = 1
    server = make(base, handler(ss, handle), **attributes)
    copy = copy_of(server.socket)
    with copy, connect(server) as client:
        send_all(client, numbered(6))
        count = 10 if why == "fileno" else 6
        serve_until(server, lambda: len(seen) >= count)
    assert readable == [True]


@datagrams()
@pytest.mark.fastsock_only(reason="shutdown() in the loop's own thread does not wait")
def test_a_stop_by_the_handler(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"2":
            self.server.shutdown()

    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        send_all(client, numbered(6))
        server.serve_forever()
        assert seen == numbered(3)
        serve(server, seen, numbered(6))


@datagrams()
@pytest.mark.fastsock_only(reason="the standard library leaves them in the kernel")
def test_a_stop_by_another_thread(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """What was received along with the request is served before shutdown() returns."""
    seen: list[bytes] = []
    calls: list[Background] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"2":
            calls.append(Background(self.server.shutdown))
            wait_until(lambda: self.server._BaseServer__shutdown_request)

    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        send_all(client, numbered(6))
        server.serve_forever()
        calls[0].result()
        assert seen == numbered(6)


@datagrams()
def test_large_requests_of_a_plain_socket(
    ss: ModuleType, kind: DatagramKind, make: Make, folder: str
) -> None:
    seen: list[bytes] = []
    base = kind.server(ss)
    server = make(base, noting(ss, seen), max_packet_size=60_000)
    server.socket.close()
    server.socket = socket.socket(base.address_family, socket.SOCK_DGRAM)
    server.socket.bind(fresh_address(base, folder))
    server.server_address = server.socket.getsockname()
    with connect(server) as client:
        client.send(b"x" * 50_000)
        serve_until(server, lambda: seen)
    assert seen == [b"x" * 50_000]


def test_netlink(ss: ModuleType, make: Make) -> None:
    found: list[Any] = []
    with contextlib.closing(socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)):
        pass
    server = make(
        new("S", ss.UDPServer, address_family=socket.AF_NETLINK),
        handler(ss, lambda self: found.append(self.client_address)),
        address=(0, 0),
    )
    server.socket.sendto(struct.pack("=IHHIIB3x", 20, 18, 0x301, 1, 0, 0), (0, 0))
    serve_until(server, lambda: found)
    assert found[0] == (0, 0)


@about_threads("no thread is started")
@datagrams("UDP", flavours=("Threading",))
@pytest.mark.fastsock_only(reason="the standard library blocks, or loses them")
def test_no_thread_for_a_moment(
    ss: ModuleType, kind: DatagramKind, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of a batch fails, the next ones wait until threads can be started again."""
    seen: list[bytes] = []
    failed: list[bytes] = []
    start = threading.Thread.start
    begun: list[float] = []

    def failing(self: Any) -> None:
        if "process_request_thread" not in self.name:
            return start(self)
        begun.append(time.monotonic())
        if begun[-1] - begun[0] < 0.005:
            raise RuntimeError("can't start new thread")
        start(self)

    base = kind.server(ss)
    server = make(
        base,
        noting(ss, seen),
        handle_error=lambda self, request, address: failed.append(request[0]),
    )
    with connect(server) as client:
        send_all(client, numbered(4))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", failing)
            serve_until(server, lambda: len(seen) + len(failed) == 4)
    assert failed == [b"0"]


@datagrams()
def test_sendto_is_patched_by_a_handler(
    ss: ModuleType, kind: DatagramKind, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    original = socket.socket.sendto

    def sendto(self: Any, *args: Any) -> int:
        sent.append(args)
        return original(self, *args)

    def handle(self: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "sendto", sendto)
            self.request[1].sendto(self.request[0], self.client_address)

    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        send_all(client, numbered(4))
        serve_until(server, lambda: len(sent) == 4)
        assert sent == [(packet, client.getsockname()) for packet in numbered(4)]
        assert receive_all(client, 4) == numbered(4)


@datagrams("UDP")
def test_very_many_peers(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """What is sent to another than those who have sent something gets there."""
    with contextlib.ExitStack() as stack:

        def bound() -> socket.socket:
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(TIMEOUT)
            return sock

        others = [bound() for _ in range(40)]
        seen: list[bytes] = []

        def handle(self: Any) -> None:
            seen.append(self.request[0])
            if self.request[0] == b"last":
                for number, other in enumerate(others):
                    self.request[1].sendto(b"%d" % number, other.getsockname())

        server = make(kind.server(ss), handler(ss, handle))
        server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        clients = [bound() for _ in range(300)]
        for client in clients:
            client.sendto(b"x", server.server_address)
        client.sendto(b"last", server.server_address)
        serve_until(server, lambda: len(seen) == 301)
        assert [other.recv(100) for other in others] == numbered(40)


@datagrams("UDP")
def test_getattribute(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    seen: list[bytes] = []
    verified: list[bytes] = []

    def __getattribute__(self: Any, name: str) -> Any:
        if name == "verify_request":
            return lambda request, address: verified.append(request[0]) or True
        return object.__getattribute__(self, name)

    server = make(kind.server(ss), noting(ss, seen), __getattribute__=__getattribute__)
    with connect(server) as client:
        send_all(client, numbered(4))
        serve(server, seen, numbered(4))
    assert verified == numbered(4)


@datagrams("UDP", flavours=("Threading",))
@pytest.mark.fastsock_only(reason="its own way of receiving")
def test_a_stop_beside_a_leader(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """What shutdown() leaves is in the kernel: nothing has been received and not served."""
    seen: list[bytes] = []
    stops: list[Background] = []
    stopping = False

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if stopping and self.request[0] == b"8":
            stops.append(Background(self.server.shutdown))
            wait_until(lambda: self.server._BaseServer__shutdown_request or not loop.is_alive())

    server = make(kind.server(ss), handler(ss, handle))
    with copy_of(server.socket) as copy, connect(server) as client:
        copy.setblocking(False)
        for _ in range(20):
            loop = Background(server.serve_forever, 30.0)
            for _ in range(5):  # until one of the threads leads
                seen.clear()
                send_all(client, numbered(30))
                wait_until(lambda: len(seen) == 30)
            seen.clear()
            stopping = True
            send_all(client, numbered(30))
            stopping = wait_until(lambda: stops) is None
            stops.pop().result()
            loop.result()
            left = []
            with contextlib.suppress(BlockingIOError):
                while True:
                    left.append(copy.recv(100))
            wait_until(lambda left=left: len(seen) + len(left) >= 30)
            assert sorted(seen + left, key=int) == numbered(30)


@unix
@pytest.mark.fastsock_only(reason="gather_replies is not in the standard library")
def test_gathered_replies_wait_for_room(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    errors: list[Any] = []
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        self.wfile.write(self.packet)
        seen.append(self.packet)
        if self.packet == b"%d" % queue:
            assert go_on.wait(TIMEOUT)

    go_on = threading.Event()
    server = make(
        kind.server(ss),
        new("Handler", ss.DatagramRequestHandler, handle=handle),
        gather_replies=True,
        handle_error=lambda self, request, address: errors.append(request[0]),
    )
    with open("/proc/sys/net/unix/max_dgram_qlen") as file:
        queue = int(file.read()) + 1
    loop = Background(server.serve_forever, 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.bind("")
        late.settimeout(TIMEOUT)
        for packet in numbered(queue):
            late.sendto(packet, server.server_address)
        wait_until(lambda: len(seen) == queue)
        late.sendto(b"%d" % queue, server.server_address)
        wait_until(lambda: len(seen) == queue + 1)
        for packet in numbered(5, queue + 1):
            late.sendto(packet, server.server_address)
        go_on.set()  # the reply to the first, which came alone, waits for room
        assert late.recv(100) == b"0"
        wait_until(lambda: len(seen) == queue + 6)
        time.sleep(0.05)
        received = [late.recv(100) for _ in range(queue + 5 - len(errors))]
        assert (received, errors) == (numbered(queue + 5, 1), [])
        server.shutdown()
        loop.result()


# a DatagramSocket cannot be sent to a process
@datagrams()
def test_sent_to_a_process(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    server = make(kind.server(ss))
    try:
        with pickle.loads(bytes(ForkingPickler.dumps(server.socket))) as copy:
            assert copy.getsockname() == server.server_address
    finally:
        resource_sharer.stop(5)
