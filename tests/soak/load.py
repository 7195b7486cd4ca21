"""One process of clients: each connection behaves in its own way, and checks what it gets.

What a connection sends is one block of random lines, from an offset of its own on, again and again:
bytes of another connection, lost, doubled or moved ones are seen at once. Whatever it has sent it
must get back, unless it resets the connection.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import random
import select
import socket
import struct
import sys
import time

BLOCK = 1 << 20
#: seconds in which an answer must have begun to move
STUCK = 60.0


def block(seed: int) -> bytes:
    """Random lines of 1 to 3000 bytes, twice, so that a slice never has to wrap."""
    dice = random.Random(seed)
    lines: list[bytes] = []
    size = 0
    while size < BLOCK:
        line = dice.randbytes(dice.choice((1, 10, 40, 100, 400, 3000))).replace(b"\n", b"_") + b"\n"
        lines.append(line)
        size += len(line)
    whole = b"".join(lines)[:BLOCK]
    return whole + whole


class Failure(Exception):
    """What a client got is not what it has sent."""


class Connection:
    """A client; ``sent`` and ``got`` count bytes of its own stream."""

    behaviour = ""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.number = number
        self.dice = random.Random(f"{load.options.seed} {number}")
        self.start = self.dice.randrange(BLOCK)
        self.sent = self.got = 0
        self.wanted = 0  # bytes that it would have sent
        self.shut = self.closed = self.reading = False
        self.moved = time.monotonic()
        self.acts = 0
        self.most = self.dice.choice((2, 4, 8, 16))  # actions, then it ends
        self.sock = sock = socket.socket()
        if self.slow_reader:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.bind((f"127.0.0.{1 + number % 50}", 0))
        sock.settimeout(30)
        sock.connect(("127.0.0.1", load.options.port))
        sock.settimeout(None)
        sock.setblocking(False)
        self.file = sock.fileno()
        load.connections[self.file] = self
        load.poller.register(self.file, 0)
        self.watch()
        self.open()

    slow_reader = False

    def open(self) -> None:
        """Right after the connection has been made."""

    def act(self) -> None:
        """Now and then."""
        raise NotImplementedError

    def send(self, count: int) -> None:
        """Send so many bytes more, as far as they are taken now; the rest when they are."""
        self.wanted += count
        self.push()

    def push(self) -> None:
        before = self.sent
        while self.sent < self.wanted:
            at = (self.start + self.sent) % BLOCK
            piece = self.load.block[at : at + min(self.wanted - self.sent, 1 << 16)]
            try:
                self.sent += self.sock.send(piece)
            except BlockingIOError:
                break
        if self.sent != before:
            self.moved = time.monotonic()
        self.watch()

    def watch(self) -> None:
        events = select.POLLOUT if self.sent < self.wanted else 0
        if not self.slow_reader or self.reading or self.shut:
            events |= select.POLLIN
        self.load.poller.modify(self.file, events)

    def line(self) -> int:
        """How many bytes there are to the end of the line that comes next."""
        at = (self.start + self.wanted) % BLOCK
        return self.load.block.index(b"\n", at) + 1 - at

    def ready(self, events: int) -> None:
        if events & select.POLLOUT:
            self.push()
        if events & ~select.POLLOUT:
            self.take(1 << 16)

    def take(self, count: int) -> None:
        try:
            data = self.sock.recv(count)
        except BlockingIOError:
            return
        at = (self.start + self.got) % BLOCK
        if data != self.load.block[at : at + len(data)]:
            self.fail(f"wrong bytes after {self.got}: {data[:60]!r}")
        self.got += len(data)
        self.load.bytes += len(data)
        self.moved = time.monotonic()
        if self.got > self.sent:
            self.fail(f"{self.got} bytes of {self.sent}")
        if data:
            self.received()
        elif not self.shut:
            self.fail(f"closed by the server after {self.got} of {self.sent}")
        elif self.got != self.sent:
            self.fail(f"the end after {self.got} of {self.sent}")
        else:
            self.close()

    def received(self) -> None:
        pass

    def fail(self, what: str) -> None:
        raise Failure(f"{type(self).__name__} {self.number} at {self.sock.getsockname()}: {what}")

    def check_moving(self, now: float) -> None:
        waits = self.got < self.sent or self.shut
        if waits and (not self.slow_reader or self.shut) and now - self.moved > STUCK:
            self.fail(f"stuck for {STUCK} s after {self.got} of {self.sent}, shut {self.shut}")

    def half_close(self) -> None:
        if not self.shut and self.sent == self.wanted:
            self.shut = True
            self.moved = time.monotonic()
            self.sock.shutdown(socket.SHUT_WR)
            self.watch()

    def close(self, reset: bool = False) -> None:
        if not self.closed:
            self.closed = True
            self.load.poller.unregister(self.file)
            del self.load.connections[self.file]
            if reset:
                linger = struct.pack("ii", 1, 0)
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.sock.close()
            self.load.ended[type(self).__name__] += 1
            self.load.wanted.append(type(self))  # so that the mixture stays what it is


class Talker(Connection):
    """One line, its echo, the next line."""

    def act(self) -> None:
        if self.got == self.sent:
            if self.acts > self.most:
                self.half_close()
            else:
                self.send(self.line())


class Pipeliner(Connection):
    """Many lines in one piece."""

    def act(self) -> None:
        if self.got == self.wanted:
            if self.acts > self.most:
                self.half_close()
            for _ in range(self.dice.choice((5, 20, 60)) if not self.shut else 0):
                self.wanted += self.line()
            self.push()


class SlowWriter(Connection):
    """A line, or half of one, in pieces."""

    def act(self) -> None:
        if self.acts > self.most and self.sent == self.wanted:
            self.half_close()  # perhaps within a line
        elif not self.shut:
            self.send(1 + self.dice.randrange(self.line()))


class SlowReader(Connection):
    """Sends more than the buffers hold, and reads little by little."""

    slow_reader = True

    def act(self) -> None:
        if self.shut:
            return
        if self.wanted < (1 << 18):
            self.send(1 << 17)
        else:
            self.reading = True
            self.take(1 << 14)
            self.reading = False
        if self.got > (1 << 17) or self.acts > 200:
            self.wanted = self.sent
            self.half_close()


class HalfCloser(Connection):
    """Sends, shuts down for writing at once, and reads to the end."""

    def act(self) -> None:
        if not self.shut and not self.wanted:
            self.send(self.dice.choice((0, 1, 500, 5000, 50_000)))
        self.half_close()


class Resetter(Connection):
    """Goes away in the middle of something."""

    def act(self) -> None:
        self.send(self.dice.choice((1, 500, 5000, 200_000)))
        if self.acts > self.dice.randrange(4):
            self.close(reset=True)


class Leaver(Connection):
    """Closes as it likes, with or without having read everything."""

    def act(self) -> None:
        self.send(self.dice.choice((1, 500, 5000)))
        if self.acts > self.dice.randrange(6):
            self.close()


class Idler(Connection):
    """Once at its beginning, and seldom later."""

    def open(self) -> None:
        self.send(self.line())

    def act(self) -> None:
        if self.dice.randrange(10) == 0 and self.got == self.sent:
            self.send(self.line())


#: of so many each
SHARES: dict[type[Connection], int] = {
    Idler: 45,
    Talker: 20,
    Pipeliner: 10,
    SlowWriter: 10,
    SlowReader: 4,
    HalfCloser: 4,
    Resetter: 4,
    Leaver: 3,
}
KINDS = [kind for kind, share in SHARES.items() for _ in range(share)]


class Load:
    """All of the process's."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.block = block(options.seed)
        self.dice = random.Random(options.seed)
        self.poller = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.ended = {kind.__name__: 0 for kind in SHARES}
        self.wanted: list[type[Connection]] = []
        self.bytes = self.acted = 0
        self.made = options.first
        self.due: list[tuple[float, int, Connection]] = []
        self.gap = options.connections / options.rate  # seconds between two actions of one

    def add(self) -> None:
        self.made += 1
        kind = self.wanted.pop() if self.wanted else self.dice.choice(KINDS)
        made = kind(self, self.made)
        self.plan(made, time.monotonic())

    def plan(self, connection: Connection, now: float) -> None:
        wait = self.gap * (0.2 + 1.6 * self.dice.random())
        heapq.heappush(self.due, (now + wait, connection.number, connection))

    def run(self) -> None:
        begin = last = time.monotonic()
        end = begin + self.options.seconds
        most = max(20, self.options.connections // 100)  # new ones in one pass
        while (now := time.monotonic()) < end:
            for _ in range(min(most, self.options.connections - len(self.connections))):
                self.add()
            self.act(now)
            self.events(0.01)
            if now - last > 1:
                last = now
                for connection in list(self.connections.values()):
                    connection.check_moving(now)
                self.tell()
        self.finish()
        self.tell()

    def act(self, now: float) -> None:
        budget = 200  # so that what has come is read in between
        while self.due and self.due[0][0] <= now and budget:
            budget -= 1
            connection = heapq.heappop(self.due)[2]
            if not connection.closed:
                connection.acts += 1
                self.acted += 1
                connection.act()
                self.plan(connection, now)

    def events(self, timeout: float) -> None:
        for file, events in self.poller.poll(timeout, 500):
            connection = self.connections.get(file)
            if connection is not None:
                try:
                    connection.ready(events)
                except ConnectionError as error:
                    connection.fail(repr(error))

    def finish(self) -> None:
        """Every connection ends in order: what it has sent comes back, then the end."""
        deadline = time.monotonic() + 2 * STUCK
        while self.connections:
            for connection in list(self.connections.values()):
                if not connection.shut:
                    connection.push()
                    connection.wanted = connection.sent
                    connection.half_close()
            self.events(0.05)
            if time.monotonic() > deadline:
                next(iter(self.connections.values())).fail("not ended")

    def tell(self) -> None:
        print(
            json.dumps(
                {
                    "open": len(self.connections),
                    "made": self.made - self.options.first,
                    "acted": self.acted,
                    "bytes": self.bytes,
                    "ended": self.ended,
                }
            ),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("port", "connections", "seed", "first", "rate"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--seconds", type=float)
    load = Load(parser.parse_args())
    with contextlib.suppress(OSError):
        os.nice(5)
    try:
        load.run()
    except Failure as error:
        print(f"FAILED {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
