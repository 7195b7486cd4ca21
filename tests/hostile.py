"""Servers that do on purpose what a load has to notice: in threads, with plain sockets.

What one of them does to a request is a function, of the connection (or socket) and of what came;
``spoiling`` has every nth request done in another way than the others. Nothing here sleeps to wait
for something: a silent server waits for the client to hang up.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from support import TIMEOUT

Answer = Callable[[socket.socket, bytes], bool]  # whether the connection goes on
AnswerDatagram = Callable[[socket.socket, bytes, Any], None]
Address = Any


def load_address(sock: socket.socket) -> Address:
    """As a load wants it."""
    if sock.family == socket.AF_UNIX:
        name = sock.getsockname()
        return os.fsdecode(name)
    return sock.getsockname()[:2]


def bound(where: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket at a literal address (and a free port), a path, or an abstract name."""
    if where[0] in "/\0":
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.bind(where)
    else:
        sock = socket.socket(socket.AF_INET6 if ":" in where else socket.AF_INET, kind)
        sock.bind((where, 0))
    return sock


def unused_port() -> int:
    with bound("127.0.0.1") as sock:
        return int(sock.getsockname()[1])


# --- streams


class Streams:
    """A thread for each connection; each reads one request after another and has it answered."""

    def __init__(
        self,
        answer: Answer,
        size: int | bytes,
        where: str | socket.socket = "127.0.0.1",
        *,
        lasting: bool = True,
    ) -> None:
        """``size``: how long a request is, or what is at its end. A socket becomes the server's."""
        self.answer, self.size, self.lasting = answer, size, lasting
        self.listener = bound(where) if isinstance(where, str) else where
        self.listener.listen(128)
        self.last: socket.socket | None = None  # that had a request
        self.address = load_address(self.listener)
        self.lock = threading.Lock()
        self.connections: set[socket.socket] = set()
        self.threads = [threading.Thread(target=self.accept)]
        self.closing = False
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(TIMEOUT)
            thread = threading.Thread(target=self.serve, args=(connection,))
            with self.lock:
                self.threads.append(thread)
                self.connections.add(connection)
                if self.closing:
                    shut(connection)
            thread.start()

    def request(self, connection: socket.socket) -> bytes:
        got = b""
        while not self.complete(got):
            most = self.size - len(got) if isinstance(self.size, int) else 1 << 16
            piece = connection.recv(most)
            if not piece:
                return b""
            got += piece
        return got

    def complete(self, got: bytes) -> bool:
        return len(got) == self.size if isinstance(self.size, int) else got.endswith(self.size)

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while request := self.request(connection):
                self.last = connection
                if not self.answer(connection, request) or not self.lasting:
                    break
        with self.lock:
            self.connections.discard(connection)

    def hang_up(self) -> None:
        """End all connections that there are."""
        with self.lock:
            for connection in self.connections:
                shut(connection)

    def close(self) -> None:
        with self.lock:
            self.closing = True
        shut(self.listener)
        self.listener.close()
        self.threads[0].join(TIMEOUT)
        self.hang_up()
        for thread in self.threads:
            thread.join(TIMEOUT)

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def honest(connection: socket.socket, request: bytes) -> bool:
    connection.sendall(request)
    return True


def corrupting_at(place: int) -> Answer:
    """One bit of one byte is another one."""

    def answer(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(request[:place] + bytes([request[place] ^ 1]) + request[place + 1 :])
        return True

    return answer


corrupting = corrupting_at(7)


def silent(connection: socket.socket, request: bytes) -> bool:
    connection.recv(1)  # the client hangs up
    return False


def dropping(connection: socket.socket, request: bytes) -> bool:
    return False


def partial(connection: socket.socket, request: bytes) -> bool:
    connection.sendall(request[: len(request) // 2])
    return False


def stalling(connection: socket.socket, request: bytes) -> bool:
    connection.sendall(request[:-1])
    return silent(connection, request)


def excessive(connection: socket.socket, request: bytes) -> bool:
    connection.sendall(request + b"!")
    return True


def resetting(connection: socket.socket, request: bytes) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def slow(seconds: float) -> Answer:
    def answer(connection: socket.socket, request: bytes) -> bool:
        time.sleep(seconds)
        return honest(connection, request)

    return answer


def constant(text: bytes, goes_on: bool = True) -> Answer:
    def answer(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(text)
        return goes_on

    return answer


def bytewise(text: bytes, goes_on: bool = True) -> Answer:
    """Each byte in a packet of its own."""

    def answer(connection: socket.socket, request: bytes) -> bool:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(text)):
            connection.send(text[at : at + 1])
        return goes_on

    return answer


def spoiling(bad: Any, every: int, good: Any = honest, *, first: int = 0) -> Any:
    """``bad`` for every nth request after the first ones, ``good`` for the others."""
    numbers, lock = itertools.count(1 - first), threading.Lock()

    def answer(*arguments: Any) -> Any:
        with lock:
            number = next(numbers)
        return (bad if number > 0 and number % every == 0 else good)(*arguments)

    return answer


# --- datagrams


@contextlib.contextmanager
def datagrams(answer: AnswerDatagram, where: str = "127.0.0.1") -> Iterator[Address]:
    """A thread that has each datagram answered; the address."""
    ended = threading.Event()

    def serve() -> None:
        while True:
            got, peer = sock.recvfrom(1 << 16)
            if ended.is_set():
                return
            with contextlib.suppress(ConnectionError):
                answer(sock, got, peer)

    with bound(where, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield load_address(sock)
        finally:
            ended.set()
            with socket.socket(sock.family, socket.SOCK_DGRAM) as waking:
                waking.sendto(b"", sock.getsockname())
            thread.join(TIMEOUT)


def echo(sock: socket.socket, got: bytes, peer: Any) -> None:
    sock.sendto(got, peer)


def losing(sock: socket.socket, got: bytes, peer: Any) -> None:
    pass


def doubling(sock: socket.socket, got: bytes, peer: Any) -> None:
    sock.sendto(got, peer)
    sock.sendto(got, peer)


def twisting(place: int) -> AnswerDatagram:
    """One bit of one byte is another one."""

    def answer(sock: socket.socket, got: bytes, peer: Any) -> None:
        sock.sendto(got[:place] + bytes([got[place] ^ 1]) + got[place + 1 :], peer)

    return answer


def shorter(sock: socket.socket, got: bytes, peer: Any) -> None:
    sock.sendto(got[:-1], peer)


def longer(sock: socket.socket, got: bytes, peer: Any) -> None:
    sock.sendto(got + b"!", peer)


def from_elsewhere(sock: socket.socket, got: bytes, peer: Any) -> None:
    with bound("127.0.0.1", socket.SOCK_DGRAM) as other:
        other.sendto(got, peer)


def swapping() -> AnswerDatagram:
    """Answers come in pairs, the later one first."""
    held: list[tuple[bytes, Any]] = []

    def answer(sock: socket.socket, got: bytes, peer: Any) -> None:
        held.append((got, peer))
        if len(held) == 2:
            while held:
                sock.sendto(*held.pop())

    return answer


def crossing(every: int) -> AnswerDatagram:
    """Every nth answer goes to the peer who asked before, if that is another one."""
    numbers = itertools.count(1)
    last: list[Any] = []

    def answer(sock: socket.socket, got: bytes, peer: Any) -> None:
        other = last[0] if last else peer
        last[:] = [peer]
        sock.sendto(got, other if next(numbers) % every == 0 else peer)

    return answer
