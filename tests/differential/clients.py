"""The clients of a program: each does what it does on its own at once, and is then followed."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any

from .program import Client
from .trace import Note, brief

MUCH = 50_000  # bytes that may not be sent in one segment
LIMIT = 5.0  # seconds for a connect that does not block


class Sender:
    """A client of either sort; `act` is done without the server's help, `pump` never blocks."""

    def __init__(self, number: int, spec: Client, family: int, kind: int, address: Any) -> None:
        self.number = number
        self.spec = spec
        self.address = address
        self.gate = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.steps = 0  # of the loop, before this client came
        self.taken = False  # from the backlog, and has been seen to be
        self.end: str | None = None
        self.closed = False
        self.received: list[bytes] = []
        self.sock = socket.socket(family, kind)
        self.descriptor = self.sock.fileno()
        self.inode = os.fstat(self.descriptor).st_ino

    def bind(self, path: str) -> None:
        """Take an address of our own, by which the server's side tells the client."""
        self.sock.bind(path if self.sock.family == socket.AF_UNIX else (self.address[0], 0))

    def port(self) -> int | None:
        return None if self.sock.family == socket.AF_UNIX else self.sock.getsockname()[1]

    def open_gate(self) -> None:
        os.eventfd_write(self.gate, 1)

    def close(self) -> None:
        self.closed = True
        self.sock.close()

    def release(self) -> None:
        self.close()
        if self.gate >= 0:
            os.close(self.gate)
            self.gate = -1

    def child_forgets(self) -> None:
        """In a forked process: a copy of the descriptor would keep the connection open.

        Not self.sock.close(): the fork may have come in the middle of that.
        """
        with contextlib.suppress(OSError):
            if os.fstat(self.descriptor).st_ino == self.inode:
                os.close(self.descriptor)

    def act(self) -> None:
        raise NotImplementedError

    def pump(self) -> None:
        raise NotImplementedError

    def outcome(self, lenient: bool) -> Note:
        raise NotImplementedError


class StreamClient(Sender):
    sent = 0  # pieces
    shut = False

    def act(self) -> None:
        self.sock.settimeout(LIMIT)
        try:
            self.sock.connect(self.address)
            self.sock.settimeout(None)  # with a timeout, recv(MSG_DONTWAIT) would wait
        except OSError as error:
            self.end = f"connect: {type(error).__name__}"
            self.close()
            return
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(1 if self.spec.talk else len(self.spec.pieces))
        if self.spec.kind in ("empty", "reset"):
            if self.spec.kind == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close()
        elif self.spec.kind == "request" and not self.spec.talk and self.spec.half_close:
            self.shut_down()
        self.open_gate()

    def send(self, upto: int) -> None:
        with contextlib.suppress(OSError):  # the server may have ended the connection
            while self.sent < upto:
                self.sent += 1
                self.sock.sendall(self.spec.pieces[self.sent - 1])

    def shut_down(self) -> None:
        if not self.shut:
            self.shut = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def go_on(self) -> None:
        """The next piece of a conversation, when the reply to the last has come."""
        if self.spec.talk and not self.closed:
            expected = sum(len(piece) for piece in self.spec.pieces[: self.sent])
            if sum(map(len, self.received)) >= expected:
                if self.sent < len(self.spec.pieces):
                    self.send(self.sent + 1)
                else:
                    self.shut_down()

    def pump(self) -> None:
        while not self.closed and self.end is None:
            try:
                data = self.sock.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                self.end = type(error).__name__
                return
            if data:
                self.received.append(data)
            else:
                self.end = "EOF"
        self.go_on()

    def outcome(self, lenient: bool) -> Note:
        end, data = self.end, b"".join(self.received)
        if lenient:
            if end == "ConnectionResetError":
                end = "EOF"
            if self.sock.family != socket.AF_UNIX and len(data) > MUCH:
                data = data[:4] + b"..."  # what had not been sent yet is lost in a reset
        return (brief(data), end or ("closed" if self.closed else "open"))


class DatagramClient(Sender):
    sent = 0
    mark = b""

    def act(self) -> None:
        while self.next() and self.spec.kind == "vanish":
            pass

    def next(self) -> bool:
        """Send the next datagram; false when there is none left."""
        if self.closed or self.sent == len(self.spec.pieces):
            return False
        piece = self.spec.pieces[self.sent]
        self.sent += 1
        try:
            self.sock.sendto(self.mark + piece, self.address)
        except OSError as error:
            self.end = f"send: {type(error).__name__}"
            return False
        last = self.sent == len(self.spec.pieces)
        if self.spec.kind == "vanish" and last:
            self.close()
        if self.spec.kind != "vanish" or last:
            self.open_gate()
        return True

    def pump(self) -> None:
        while not self.closed:
            try:
                self.received.append(self.sock.recv(1 << 17, socket.MSG_DONTWAIT))
            except OSError:
                break

    def outcome(self, lenient: bool) -> Note:
        return (tuple(brief(data) for data in self.received), self.end)
