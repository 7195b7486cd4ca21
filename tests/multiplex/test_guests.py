"""Requests that are no Connections: what waits on them, under threads and in greenlets."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.reduction
import multiprocessing.resource_sharer
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, connect, handling, serving, wait_until

MUCH = 8_000_000


class Own(socket.socket):
    """A program's own class of sockets."""

    received = 0

    def recv(self, *arguments: Any) -> bytes:
        data = super().recv(*arguments)
        self.received += len(data)
        return data


@pytest.fixture(params=["stdlib", "threading", "multiplexing"])
def implementation(request: pytest.FixtureRequest, fastsock_dir: str | None) -> Any:
    return socketserver if request.param == "stdlib" else module_of(request.param, fastsock_dir)


def plain(server: Any) -> Any:
    return server.socket.accept()


def own(server: Any) -> Any:
    accepted, address = server.socket.accept()
    made = Own(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
    return made, address


@pytest.fixture(params=[None, plain, own], ids=["default", "plain", "own"])
def get_request(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def serve(
    implementation: Any, get_request: Any, time_limit: None, nothing_left_over: None
) -> Iterator[Callable[..., Any]]:
    """serve(handle, **attributes of the server)"""
    with contextlib.ExitStack() as stack:

        def start(handle: Callable[[Any], None], **attributes: Any) -> Any:
            if get_request is not None:
                attributes.setdefault("get_request", get_request)
            base = implementation.ThreadingTCPServer
            server_class = type("Server", (base,), attributes)
            server = server_class(("127.0.0.1", 0), handling(implementation, handle))
            stack.callback(server.server_close)
            stack.enter_context(serving(server))
            return server

        yield start


def read_all(client: socket.socket, size: int) -> bytes:
    pieces = []
    while size > 0 and (piece := client.recv(min(size, 1 << 20))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


RECEIVERS: dict[str, Callable[[Any], bytes]] = {
    "recv": lambda request: request.recv(10),
    "recv_into": lambda request: _into(request.recv_into),
    "recvfrom": lambda request: request.recvfrom(10)[0],
    "recvfrom_into": lambda request: _into(lambda buffer: request.recvfrom_into(buffer)[0]),
    "recvmsg": lambda request: request.recvmsg(10)[0],
    "recvmsg_into": lambda request: _into(lambda buffer: request.recvmsg_into([buffer])[0]),
    "makefile": lambda request: request.makefile("rb").readline(),
    "dup": lambda request: _by_dup(request),
}


def _into(receive: Callable[[bytearray], int]) -> bytes:
    buffer = bytearray(10)
    return bytes(buffer[: receive(buffer)])


def _by_dup(request: Any) -> bytes:
    with request.dup() as copy:
        received: bytes = copy.recv(10)
        return received


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
@pytest.mark.parametrize("name", RECEIVERS)
def test_a_silent_client_keeps_nobody_waiting(serve: Any, name: str, timeout: float | None) -> None:
    entered = threading.Semaphore(0)

    def handle(self: Any) -> None:
        self.request.settimeout(timeout)
        entered.release()
        self.request.sendall(RECEIVERS[name](self.request))

    server = serve(handle)
    with connect(server) as silent, connect(server) as client:
        assert entered.acquire(timeout=TIMEOUT)
        assert entered.acquire(timeout=TIMEOUT)
        client.sendall(b"hello\n")
        assert client.recv(10) == b"hello\n"
        silent.sendall(b"late\n")
        assert silent.recv(10) == b"late\n"


SENDERS: dict[str, Callable[[Any, bytes], int | None]] = {
    "send": lambda request, data: request.send(data),
    "sendall": lambda request, data: request.sendall(data),
    "sendmsg": lambda request, data: request.sendmsg([data[:10], data[10:]]),
}


@pytest.mark.parametrize("name", ["send", "sendall", "sendmsg"])
def test_all_is_sent_to_a_peer_that_reads_late(serve: Any, name: str) -> None:
    data = os.urandom(1000) * (MUCH // 1000)
    results = []

    def handle(self: Any) -> None:
        if self.request.recv(1) == b"m":
            results.append(SENDERS[name](self.request, data))
        else:
            self.request.sendall(b"here")

    server = serve(handle)
    with connect(server) as slow, connect(server) as client:
        slow.sendall(b"m")
        assert slow.recv(1, socket.MSG_PEEK)  # it is in the middle of sending
        client.sendall(b"x")
        assert client.recv(10) == b"here"
        assert read_all(slow, len(data)) == data
        assert slow.recv(1) == b""
    assert results == [None if name == "sendall" else len(data)]


@pytest.mark.parametrize("name", [name for name in RECEIVERS if name != "dup"])
def test_timeouts_hold(serve: Any, name: str) -> None:
    def handle(self: Any) -> None:
        self.request.settimeout(0.05)
        try:
            RECEIVERS[name](self.request)
        except TimeoutError as error:
            self.request.sendall(repr(error).encode())

    with connect(serve(handle)) as client:
        assert client.recv(100) == b"TimeoutError('timed out')"


def test_a_socket_that_does_not_block_says_so(serve: Any) -> None:
    def handle(self: Any) -> None:
        self.request.setblocking(False)
        try:
            self.request.recv(1)
        except BlockingIOError:
            self.request.send(b"nothing")

    with connect(serve(handle)) as client:
        assert client.recv(100) == b"nothing"


def test_the_mode_of_the_descriptor_is_what_it_was(serve: Any) -> None:
    def handle(self: Any) -> None:
        modes = [os.get_blocking(self.request.fileno())]
        self.request.recv(1)
        modes.append(os.get_blocking(self.request.fileno()))
        self.request.settimeout(TIMEOUT)
        self.request.recv(1)
        modes.append(os.get_blocking(self.request.fileno()))
        self.request.sendall(repr(modes).encode())

    with connect(serve(handle)) as client:
        client.sendall(b"ab")
        assert client.recv(100) == b"[True, True, False]"


def test_a_verification_may_read(serve: Any) -> None:
    peeked = threading.Event()

    def verify_request(self: Any, request: Any, address: Any) -> bool:
        peeked.set()
        return bool(request.recv(1, socket.MSG_PEEK) == b"a")

    def handle(self: Any) -> None:
        while data := self.request.recv(10):
            self.request.sendall(data)

    server = serve(handle, verify_request=verify_request)
    with connect(server) as client:
        client.sendall(b"a")
        assert client.recv(10) == b"a"
        peeked.clear()
        with connect(server):
            assert peeked.wait(TIMEOUT)
            client.sendall(b"again")
            assert client.recv(10) == b"again"


def test_what_a_request_is(serve: Any, get_request: Any) -> None:
    def handle(self: Any) -> None:
        cls = type(self.request)
        name = cls.__name__
        self.request.sendall(repr((name, isinstance(self.request, socket.socket))).encode())

    with connect(serve(handle)) as client:
        name = {None: None, plain: "socket", own: "Own"}[get_request]
        got = client.recv(100)
        assert name is None or got == repr((name, True)).encode()


def test_ones_own_methods_are_called(implementation: Any, time_limit: None) -> None:
    def handle(self: Any) -> None:
        self.request.recv(10)
        self.request.sendall(b"%d" % self.request.received)

    base = implementation.ThreadingTCPServer
    server_class = type("Server", (base,), {"get_request": own})
    with server_class(("127.0.0.1", 0), handling(implementation, handle)) as server:
        with serving(server), connect(server) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"5"


def test_a_request_can_be_sent_to_another_process(implementation: Any, time_limit: None) -> None:
    def handle(self: Any) -> None:
        multiprocessing.reduction.ForkingPickler.dumps(self.request)
        multiprocessing.resource_sharer.stop(TIMEOUT)
        self.request.sendall(b"pickled")

    base = implementation.ThreadingTCPServer
    server_class = type("Server", (base,), {"get_request": plain})
    with server_class(("127.0.0.1", 0), handling(implementation, handle)) as server:
        with serving(server), connect(server) as client:
            assert client.recv(10) == b"pickled"


def test_a_file_made_before_waits_as_well(implementation: Any, time_limit: None) -> None:
    files: dict[Any, Any] = {}
    entered = threading.Semaphore(0)

    def get_request(self: Any) -> Any:
        accepted, address = self.socket.accept()
        files[address] = accepted.makefile("rb")
        return accepted, address

    def handle(self: Any) -> None:
        entered.release()
        with files.pop(self.client_address) as file:
            self.request.sendall(file.readline())

    base = implementation.ThreadingTCPServer
    server_class = type("Server", (base,), {"get_request": get_request})
    with server_class(("127.0.0.1", 0), handling(implementation, handle)) as server:
        with serving(server), connect(server) as silent, connect(server) as client:
            assert entered.acquire(timeout=TIMEOUT)
            assert entered.acquire(timeout=TIMEOUT)
            client.sendall(b"hello\n")
            assert client.recv(10) == b"hello\n"
            silent.sendall(b"x\n")
            assert silent.recv(10) == b"x\n"


def test_closed_by_another_it_wakes_who_waits(fastsock_dir: str | None, time_limit: None) -> None:
    module = module_of("multiplexing", fastsock_dir)
    waiting: list[Any] = []
    results: list[Any] = []

    def handle(self: Any) -> None:
        if not waiting:
            waiting.append(self)
            try:
                self.request.recv(1)
            except OSError as error:
                results.append(error.errno)
        else:
            waiting[0].rfile.close()  # they keep the socket open
            waiting[0].wfile.close()
            waiting[0].request.close()

    server_class = type("Server", (module.ThreadingTCPServer,), {"get_request": plain})
    with server_class(("127.0.0.1", 0), handling(module, handle)) as server:
        with serving(server), connect(server), contextlib.ExitStack() as stack:
            wait_until(lambda: bool(waiting))
            stack.enter_context(connect(server))
            wait_until(lambda: bool(results))
    assert results == [errno.EBADF]


def test_one_read_in_get_request_keeps_handlers_going(fastsock_dir: str | None) -> None:
    """What waits there delays other accepts, and no handler."""
    module = module_of("multiplexing", fastsock_dir)
    reading = threading.Event()

    class Server(module.ThreadingTCPServer):
        def get_request(self) -> Any:
            request, address = super().get_request()
            if self.asks:
                reading.set()
                assert request.recv(1) == b"?"
            return request, address

        asks = False

    def handle(self: Any) -> None:
        for line in self.rfile:
            self.wfile.write(line)

    with Server(("127.0.0.1", 0), handling(module, handle)) as server, serving(server):
        with connect(server) as client, client.makefile("rb") as answers:
            client.sendall(b"before\n")
            assert answers.readline() == b"before\n"
            server.asks = True
            with connect(server) as silent:
                assert reading.wait(TIMEOUT)
                client.sendall(b"meanwhile\n")
                assert answers.readline() == b"meanwhile\n"
                silent.sendall(b"?at last\n")
                assert silent.recv(100) == b"at last\n"
