"""Requests in threads, under signals, in other processes; sendfile() and TCP_NODELAY."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accepted import Make, bring_into, each_state, each_stream, fresh, take, taking
from support import TIMEOUT, Background, Kind, handling, kinds, outcome, receive, serving

HERE = str(Path(__file__).resolve().parent)
MUCH = 8 << 20  # bytes: more than the buffers of a connection hold
SMALL = 1000


# --- threads


@each_stream
@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_one_thread_receives_one_sends(
    ss: ModuleType, make: Make, kind: Kind, timeout: float | None
) -> None:
    data = os.urandom(MUCH // 2)
    with fresh(ss, make, kind) as (request, client):
        request.settimeout(timeout)

        def receive_all(sock: Any) -> bytes:
            received = bytearray()
            while len(received) < len(data):
                received += sock.recv(70_000)
            return bytes(received)

        threads = [Background(receive_all, sock) for sock in (request, client)]
        threads += [Background(sock.sendall, data) for sock in (request, client)]
        for thread in threads[:2]:
            assert thread.result() == data
        for thread in threads[2:]:
            thread.result()


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
@each_state
def test_shut_down_and_closed_by_another_thread(
    ss: ModuleType, make: Make, timeout: float | None, state: str
) -> None:
    """The thread that waits in recv() sees the end of the stream."""
    with fresh(ss, make) as (request, client):
        bring_into(state, request, client)
        request.settimeout(timeout)
        entered = threading.Event()
        waiting = Background(lambda: entered.set() or request.recv(10))
        assert entered.wait(TIMEOUT)
        wait_until_asleep(waiting)
        request.shutdown(socket.SHUT_RDWR)
        assert waiting.result() == b""
        request.close()
        assert client.recv(1) == b""


def wait_until_asleep(thread: threading.Thread) -> None:
    """Wait until a thread has waited in the kernel for a while, without a GIL to wait for."""
    path = f"/proc/self/task/{thread.native_id}/stat"
    seen, deadline = 0, time.monotonic() + TIMEOUT
    while seen < 5:
        assert time.monotonic() < deadline
        with open(path) as file:
            seen = seen + 1 if file.read().rpartition(")")[2].split()[0] == "S" else 0
        time.sleep(0.001)


@each_state
def test_descriptor_reused_under_a_waiting_thread(ss: ModuleType, make: Make, state: str) -> None:
    """A thread that waits with a timeout never reads from a later owner of the number."""
    with fresh(ss, make) as (request, client):
        bring_into(state, request, client)
        request.settimeout(TIMEOUT)
        waiting = Background(outcome, request.recv, 10)
        ours, theirs = socket.socketpair()
        wait_until_asleep(waiting)
        number = request.fileno()
        request.close()
        with ours, theirs:
            os.dup2(ours.fileno(), number)
            theirs.sendall(b"secret")
            client.sendall(b"x")  # wakes the thread
            result = waiting.result()
            os.close(number)
            assert result[:2] == (OSError, 9)
            assert ours.recv(10) == b"secret"


# --- signals in the main thread


class Raised(Exception):
    pass


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[..., Any]], None]]:
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda handler: signal.signal(signal.SIGUSR1, handler) and None
    signal.signal(signal.SIGUSR1, before)


def interrupt() -> None:
    """Signal the main thread once it waits in the kernel."""
    wait_until_asleep(threading.main_thread())
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)


each_wait = pytest.mark.parametrize("timeout", [None, TIMEOUT])


@each_wait
@each_state
@pytest.mark.parametrize("call", ["recv(10)", "recv_into(bytearray(10))", "recv(3, 2)"])
def test_signals_while_receiving(
    ss: ModuleType, make: Make, on_signal: Any, timeout: float | None, state: str, call: str
) -> None:
    """The handler runs, and may use the connection; the wait goes on."""
    with fresh(ss, make) as (request, client):
        bring_into(state, request, client)
        request.settimeout(timeout)
        seen: list[Any] = []
        on_signal(lambda *_: seen.append(request.send(b"!")))

        def others() -> None:
            for _ in range(3):
                interrupt()
                assert client.recv(1) == b"!"
            client.sendall(b"abc")

        thread = Background(others)
        assert eval(f"request.{call}", {"request": request}) in (b"abc", 3)
        thread.result()
        assert seen == [1] * 3


@each_wait
@each_state
def test_signal_handler_raises_while_receiving(
    ss: ModuleType, make: Make, on_signal: Any, timeout: float | None, state: str
) -> None:
    def handler(*_: Any) -> None:
        raise Raised

    with fresh(ss, make) as (request, client):
        bring_into(state, request, client)
        request.settimeout(timeout)
        on_signal(handler)
        thread = Background(interrupt)
        with pytest.raises(Raised):
            request.recv(10)
        thread.result()
        client.sendall(b"abc")
        assert request.recv(10) == b"abc"


@each_wait
@each_state
def test_signal_handler_closes_while_receiving(
    ss: ModuleType, make: Make, on_signal: Any, timeout: float | None, state: str
) -> None:
    with fresh(ss, make) as (request, client):
        bring_into(state, request, client)
        request.settimeout(timeout)
        on_signal(lambda *_: request.close())
        thread = Background(interrupt)
        assert outcome(request.recv, 10)[:2] == (OSError, 9)
        thread.result()
        assert client.recv(1) == b""


@each_wait
@pytest.mark.parametrize("raising", [False, True])
@pytest.mark.parametrize("size", [30_000, MUCH])
def test_signals_while_sending(
    ss: ModuleType, make: Make, on_signal: Any, timeout: float | None, raising: bool, size: int
) -> None:
    """sendall() goes on behind the byte where it was interrupted, or is left by the exception."""
    seen: list[int] = []

    def handler(*_: Any) -> None:
        seen.append(1)
        if raising:
            raise Raised

    data = os.urandom(size)
    with fresh(ss, make) as (request, client):
        request.settimeout(0)
        filled = 0
        while outcome(request.send, b"." * 4096)[0] == "returned":
            filled += 1  # in part, perhaps
        request.settimeout(timeout)
        on_signal(handler)

        def others() -> bytes:
            for _ in range(1 if raising else 3):
                interrupt()
                if not raising:
                    assert set(client.recv(1000)) == {ord(".")}
            return b"" if raising else receive(client)

        thread = Background(others)
        if raising:
            with pytest.raises(Raised):
                request.sendall(data)
            thread.result()
            request.shutdown(socket.SHUT_WR)
            received = receive(client)
            assert data.startswith(received[filled * 4096 :].lstrip(b".")[:100])
        else:
            request.sendall(data)
            request.shutdown(socket.SHUT_WR)
            assert thread.result().endswith(data)
        assert len(seen) == (1 if raising else 3)


# --- sendfile, TCP_NODELAY


@pytest.mark.fastsock_only(reason="sendfile() sends what wfile holds back first")
@pytest.mark.parametrize("wbufsize", [0, 100, -1])
def test_sendfile_after_wfile(ss: ModuleType, make: Make, wbufsize: int) -> None:
    def handle(self: Any) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(b"file")
            file.seek(0)
            self.wfile.write(b"head ")
            assert self.connection.sendfile(file, 0) == 4
            self.wfile.write(b" tail")
            self.wfile.flush()
            if wbufsize:
                self.wfile.detach()
                self.connection.sendfile(file, 0)

    server = make(ss.TCPServer, handling(ss, handle, wbufsize=wbufsize))
    with serving(server), socket.create_connection(server.server_address, TIMEOUT) as client:
        assert receive(client) == b"head file tail" + (b"file" if wbufsize else b"")


@pytest.mark.fastsock_only(reason="TCP_NODELAY is set on the listener, unless tcp_nodelay is False")
@kinds(flavours=("", "Threading"), transports=("TCP",))
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("wanted", [True, False])
def test_tcp_nodelay(ss: ModuleType, make: Make, kind: Kind, family: int, wanted: bool) -> None:
    server = make(taking(ss, kind, tcp_nodelay=wanted, address_family=family))
    request, client = take(server)
    with request, client:
        assert request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == wanted


# --- programs of their own


def test_sent_to_a_spawned_process(script: Callable[..., Any]) -> None:
    """As an argument of a Process, through a pipe, through a queue."""
    process = script(f"""
import multiprocessing, multiprocessing.resource_sharer, os, sys
sys.path.insert(0, {HERE!r})
from accepted import greet, take, taking

if __name__ == "__main__":
    spawn = multiprocessing.get_context("spawn")
    ss.BaseRequestHandler.handle = None
    with taking(ss)(("127.0.0.1", 0), ss.BaseRequestHandler) as server:
        request, client = take(server)
        child = spawn.Process(target=greet, args=(request,))
        child.start()
        client.sendall(b"spawned ")
        request.close()
        print(client.recv(100).decode(), client.recv(100))
        child.join()

        request, client = take(server)
        here, there = multiprocessing.Pipe()
        here.send(request)
        received = there.recv()
        request.close()
        received.sendall(b"piped")
        received.close()
        print(client.recv(100), client.recv(100), child.exitcode)
        multiprocessing.resource_sharer.stop(5)
""")
    out, err = process.communicate(timeout=TIMEOUT)
    assert out == "SPAWNED socket b''\nb'piped' b'' 0\n", err


def test_audit_events(script: Callable[..., Any]) -> None:
    """One "socket.__new__" for each accepted connection, with its family, type and protocol.

    fastsock raises it again when the socket object underneath takes over.
    """
    process = script(f"""
import sys
sys.path.insert(0, {HERE!r})
from accepted import take, taking
events = []
sys.addaudithook(lambda name, args: events.append((name, args))
                 if name == "socket.__new__" else None)
with taking(ss)(("127.0.0.1", 0), ss.BaseRequestHandler) as server:
    for first in "recv", "getpeername", "close":
        events.clear()
        request, client = take(server)
        mine = [args for name, args in events if args[0] is request]
        print(first, len(mine), *map(int, mine[0][1:]))
        client.sendall(b"x")
        getattr(request, first)(*[9][: first == "recv"])
        count = sum(args[0] is request for _, args in events)
        assert count == 1 or first == "getpeername" and ss.__name__ == "fastsock"
        request.close()
        client.close()
""")
    out, err = process.communicate(timeout=TIMEOUT)
    assert out == "recv 1 2 1 0\ngetpeername 1 2 1 0\nclose 1 2 1 0\n", err
