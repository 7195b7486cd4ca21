"""ThreadingUDPServer: who has served a datagram takes the next one of the batch by itself."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import TIMEOUT, Background, wait_until

import fastsock

BURST = 30


class Reply(fastsock.DatagramRequestHandler):
    """Answers with what came, and does what it is told to by it before that."""

    def handle(self) -> None:
        server: Any = self.server
        server.served.append((self.packet, threading.get_native_id()))
        server.told.get(self.packet, int)()
        self.wfile.write(self.packet)


class Server(fastsock.ThreadingUDPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Reply)
        self.told: dict[bytes, Callable[[], Any]] = {}
        self.served: list[tuple[bytes, int]] = []
        self.errors: list[Any] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(request[0])


class Serving:
    """serve_forever() in a thread, and a client."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.client.settimeout(TIMEOUT)
        self.client.connect(server.server_address)
        self.sent = 0
        self.start()

    def start(self) -> None:
        self.loop = Background(self.server.serve_forever, 30.0)

    def send(self, count: int = BURST) -> list[bytes]:
        packets = [b"%d" % number for number in range(self.sent, self.sent + count)]
        self.sent += count
        for packet in packets:
            self.client.send(packet)
        return packets

    def burst(self) -> list[int]:
        """Who served each of a burst, all of which are answered."""
        before = len(self.server.served)
        packets = self.send()
        assert sorted(self.client.recv(100) for _ in packets) == sorted(packets)
        served = self.server.served[before:]
        assert sorted(packet for packet, _ in served) == sorted(packets)
        return [ident for _, ident in served]

    def lead(self) -> None:
        """Send bursts until one is served by a few threads."""
        wait_until(lambda: len(set(self.burst())) <= 4)

    def stop(self) -> None:
        self.server.shutdown()
        self.loop.result()

    def close(self) -> None:
        if self.loop.is_alive():
            self.stop()
        self.client.close()


@pytest.fixture
def led() -> Iterator[Serving]:
    with Server() as server:
        serving = Serving(server)
        try:
            serving.lead()
            yield serving
        finally:
            serving.close()


def test_a_few_threads_serve_a_burst(led: Serving) -> None:
    assert led.loop.native_id not in dict.fromkeys(ident for _, ident in led.server.served)
    led.stop()
    led.start()  # and a second loop of the same server
    led.lead()


def test_a_thread_for_each(led: Serving) -> None:
    """Threads are told apart, and find no locals of each other's."""
    names: list[str] = []
    local = threading.local()

    def look() -> None:
        assert not vars(local)
        local.value = 1
        names.append(threading.current_thread().name)

    for number in range(led.sent, led.sent + BURST):
        led.server.told[b"%d" % number] = look
    led.burst()
    assert len(set(names)) == BURST
    assert not led.server.errors


@pytest.mark.parametrize("count", [2, 20, BURST])
def test_handlers_that_wait_for_each_other(led: Serving, count: int) -> None:
    barrier = threading.Barrier(count)
    for number in range(led.sent, led.sent + count):
        led.server.told[b"%d" % number] = lambda: barrier.wait(TIMEOUT)
    begun = time.monotonic()
    led.burst()
    assert not led.server.errors
    assert time.monotonic() - begun < TIMEOUT / 2


def test_a_handler_that_blocks_delays_nobody(led: Serving) -> None:
    go_on = threading.Event()
    led.server.told[b"%d" % led.sent] = lambda: go_on.wait(TIMEOUT)
    first, *others = led.send()
    assert sorted(led.client.recv(100) for _ in others) == sorted(others)
    go_on.set()
    assert led.client.recv(100) == first


def test_shutdown_from_another_thread(led: Serving) -> None:
    """Each is served by this loop or the next, and once."""
    for _ in range(10):
        before = len(led.server.served)
        packets = led.send()
        led.stop()
        led.start()
        assert sorted(led.client.recv(100) for _ in packets) == sorted(packets)
        served = Counter(packet for packet, _ in led.server.served[before:])
        assert served == Counter(packets)


def test_shutdown_by_a_handler(led: Serving) -> None:
    led.server.told[b"%d" % (led.sent + 5)] = led.server.shutdown
    packets = led.send()
    led.loop.result()
    led.start()
    assert sorted(led.client.recv(100) for _ in packets) == sorted(packets)


@pytest.mark.parametrize("hook", ["verify_request", "shutdown_request", "finish_request"])
def test_a_hook(led: Serving, hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is put into the class while a leader is at work is called for all that follow."""
    called: list[bytes] = []
    original = getattr(Server, hook)

    def recorded(self: Any, request: Any, *args: Any) -> Any:
        called.append(request[0])
        return original(self, request, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Server, hook, recorded)
        packets = led.send()
        for _ in packets:
            led.client.recv(100)
        wait_until(lambda: len(called) >= len(packets))
    assert sorted(called) == sorted(packets)


@pytest.mark.parametrize("name", ["process_request", "get_request", "service_actions"])
def test_a_hook_of_the_loop(led: Serving, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on the loop's own thread takes the requests."""
    threads: list[int] = []
    original = getattr(Server, name)

    def recorded(self: Any, *args: Any) -> Any:
        threads.append(threading.get_native_id())
        return original(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Server, name, recorded)
        led.burst()  # some of which had been received by then
        threads.clear()
        led.burst()
        assert len(threads) >= BURST
        assert set(threads) == {led.loop.native_id}


def test_the_socket_is_replaced(led: Serving) -> None:
    """By a handler, in the middle: what had come stays with the old one."""
    old = led.server.socket
    new = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    new.bind(("127.0.0.1", 0))
    gone = threading.Event()

    def replace() -> None:
        led.server.socket = new
        gone.set()

    led.server.told[b"%d" % led.sent] = replace
    before = len(led.server.served)
    packets = led.send()
    assert gone.wait(TIMEOUT)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(TIMEOUT)
        client.connect(new.getsockname())
        client.send(b"to the new one")
        assert client.recv(100) == b"to the new one"
    old.settimeout(TIMEOUT)
    served = [packet for packet, _ in led.server.served[before:] if packet in packets]
    left = [old.recv(100) for _ in range(len(packets) - len(served))]
    assert sorted(served + left) == sorted(packets)
    old.close()


def test_a_handler_that_forks(led: Serving) -> None:
    """The child has none of what the parent goes on to serve."""
    statuses: list[int] = []

    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            led.server.socket.setblocking(False)
            try:
                led.server.socket.recv(100)
            except BlockingIOError:
                os._exit(0)
            os._exit(1)
        statuses.append(os.waitpid(pid, 0)[1])

    led.server.told[b"%d" % led.sent] = fork
    packets = led.send(1)
    assert led.client.recv(100) == packets[0]
    assert statuses == [0]
    led.server.socket.setblocking(True)  # the mode is the open file's, which the child shares
    led.burst()
    assert not led.server.errors


def test_no_thread_is_left(led: Serving) -> None:
    led.stop()
    led.server.server_close()
    assert led.server.socket.fileno() == -1
    wait_until(lambda: threading.active_count() == 1)
