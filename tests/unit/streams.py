"""Two files on two connections with the same bytes: that of io, and fastsock's."""

from __future__ import annotations

import contextlib
import io
import random
import socket
from collections.abc import Iterator
from typing import Any

from support import outcome

from fastsock._channel import adopt
from fastsock._connection import Connection
from fastsock._reader import Reader
from fastsock._writer import writer_of

Step = tuple[str, tuple[Any, ...]]


class Side:
    """A file, the connection below it and the peer of that."""

    def __init__(self, which: str, native: bool, size: int, timeout: float | None) -> None:
        self.peer, sock = socket.socketpair()
        self.native = native
        self.sock: Any = adopt(Connection, sock) if native else sock
        self.sock.settimeout(timeout)
        self.file: Any
        if not native:
            self.file = self.sock.makefile(which, size)
        elif which == "rb":
            self.file = Reader(self.sock, size)
        else:
            self.file = writer_of(self.sock, size)

    def close(self) -> None:
        for each in (self.file, self.sock, self.peer):
            with contextlib.suppress(OSError, ValueError):
                each.close()

    def do(self, name: str, args: tuple[Any, ...]) -> Any:
        """The outcome of a step, in a form that can be compared."""
        kind, *rest = outcome(getattr(self, f"do_{name}", None) or self.call, name, *args)
        if isinstance(kind, type):
            text = str(rest[1])
            for ours, theirs in (("Reader", "BufferedReader"), ("Writer", "BufferedWriter")):
                text = text.replace(f"fastsock._{ours.lower()}.{ours}", f"_io.{theirs}")
            return kind, rest[0], text
        return kind, rest[0]

    def call(self, name: str, *args: Any) -> Any:
        return getattr(self.file, name)(*args)

    def do_readinto(self, name: str, size: Any) -> Any:
        if not isinstance(size, int):
            return getattr(self.file, name)(size)
        buffer = bytearray(b"." * size)
        count = getattr(self.file, name)(buffer)
        return count, bytes(buffer)

    do_readinto1 = do_readinto

    def do_attribute(self, name: str, which: str) -> Any:
        value = getattr(self.file, which)
        return value == self.sock.fileno() if which == "name" else value

    def do_raw(self, name: str) -> Any:
        raw = self.file.raw
        if raw is None:
            return None
        closed = raw.closed or (raw.readable(), raw.writable(), raw.fileno() == self.sock.fileno())
        return type(raw), raw.mode, closed, raw is self.file.raw

    def do_fileno(self, name: str) -> Any:
        return self.file.fileno() == self.sock.fileno()

    def do_enter(self, name: str) -> Any:
        return self.file.__enter__() is self.file

    def do_iter(self, name: str) -> Any:
        return iter(self.file) is self.file

    def do_next(self, name: str) -> Any:
        return next(self.file, "the end")

    def do_close_raw(self, name: str) -> Any:
        return self.file.raw.close()

    def do_detach(self, name: str) -> Any:
        self.raw = self.file.detach()
        return type(self.raw), self.raw.mode, self.raw.closed

    def do_isinstance(self, name: str, which: str) -> Any:
        return isinstance(self.file, getattr(io, which))

    def do_settimeout(self, name: str, timeout: float | None) -> Any:
        return self.sock.settimeout(timeout)

    def do_close_connection(self, name: str) -> Any:
        return self.sock.close(), self.sock._closed, self.sock._io_refs, self.sock.fileno() < 0

    def do_refs(self, name: str) -> Any:
        return self.sock._io_refs

    def do_feed(self, name: str, data: bytes) -> Any:
        return self.peer.send(data)

    def do_end(self, name: str) -> Any:
        return self.peer.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def sides(which: str, size: int, timeout: float | None) -> Iterator[tuple[Side, Side]]:
    made = [Side(which, native, size, timeout) for native in (True, False)]
    try:
        yield made[0], made[1]
    finally:
        for side in made:
            side.close()


# --- drawing

SIZES = [1, 2, 3, 8, 16, 100, 8192]
COUNTS: list[Any] = [-1, None, 0, 1, 1, 2, 3, 5, 8, 9, 15, 16, 17, 40, 100, 1000, 100_000]
ODD = [-2, -100, "x", 2.5, 10**30, b"", [], object]
LITTLE = [
    *(("attribute", (name,)) for name in ("closed", "name", "mode")),
    *((name, ()) for name in ("fileno", "readable", "writable", "seekable", "isatty", "tell")),
    *((name, ()) for name in ("raw", "flush", "truncate", "refs", "iter", "enter", "close")),
    *(("seek", args) for args in ((0,), (0, 1), (0, 5), ("x",))),
    *(("truncate", (3,)), ("isinstance", ("BufferedIOBase",)), ("isinstance", ("IOBase",))),
    *(("isinstance", (name,)) for name in ("RawIOBase", "BufferedReader", "BufferedWriter")),
    *((f"_check{what}", ()) for what in ("Closed", "Readable", "Writable", "Seekable")),
]
RARE = [("close", ()), ("close_raw", ()), ("detach", ()), ("close_connection", ())]
READS = ("read", "read1", "readline", "readlines", "readline", "peek", "readinto", "readinto1")


def text_of(drawing: random.Random, length: int) -> bytes:
    """Random bytes with lines of all lengths in them."""
    frequency = drawing.choice([0.001, 0.01, 0.05, 0.3])
    return bytes(
        10 if drawing.random() < frequency else drawing.randrange(33, 127) for _ in range(length)
    )


def reading(drawing: random.Random) -> Step:
    name = drawing.choice(READS)
    if name.startswith("readinto"):
        sizes: list[Any] = [0, 1, 2, 7, 8, 9, 30, 1000, b"bytes", "str", None, memoryview(b"x")]
        return name, (drawing.choice(sizes[:8] if drawing.random() < 0.95 else sizes),)
    if name == "peek":
        return name, (drawing.choice([0, 1, 100]),)
    if drawing.random() < 0.3:
        return ("next", ()) if drawing.random() < 0.5 else (name, ())
    if drawing.random() < 0.03:
        return name, (drawing.choice(ODD),)
    count = drawing.choice(COUNTS)
    return name, (1 if name == "read1" and count is None else count,)


def of_reader(drawing: random.Random, length: int) -> list[Step]:
    steps = [("feed", (text_of(drawing, drawing.choice([1, 5, 50, 500, 20_000])),))]
    waiting = drawing.choice([None, 0, 0.002])
    if waiting is None:  # only what does not wait: all bytes are there, and the end
        steps += [("feed", (text_of(drawing, drawing.randrange(1, 100)),)), ("end", ())]
    else:
        steps.append(("settimeout", (waiting,)))
    for _ in range(length):
        drawn = drawing.random()
        if drawn < 0.65:
            steps.append(reading(drawing))
        elif drawn < 0.8:
            steps.append(drawing.choice(LITTLE[:-5] if drawn < 0.79 else LITTLE))
        elif drawn < 0.98:
            if waiting is not None:
                fed = text_of(drawing, drawing.randrange(1, 60))
                if drawing.random() < 0.2:  # a line that is longer than the first buffer
                    fed = b"l" * drawing.randrange(900, 3000) + b"\n"
                steps.append(("feed", (fed,)))
        elif drawn < 0.99:
            odd = drawing.choice(["write", "writelines", "nothing", "__len__"])
            arguments = {"writelines": ([b"x"],), "write": (b"x",)}
            steps.append((odd, arguments.get(odd, ())))
        elif waiting is not None and drawn < 0.995:
            steps.append(("end", ()))
        else:
            steps.append(drawing.choice(RARE))
    return steps


def of_writer(drawing: random.Random, length: int) -> list[Step]:
    steps: list[Step] = []
    for _ in range(length):
        drawn = drawing.random()
        if drawn < 0.6:
            data: Any = text_of(drawing, drawing.choice([0, 1, 2, 3, 7, 8, 9, 16, 50, 300, 9000]))
            if drawn < 0.1:
                data = drawing.choice([bytearray, memoryview])(data)
            elif drawn < 0.12:
                data = drawing.choice(["x", None, 3, memoryview(b"abcdef")[::2]])
            steps.append(("write", (data,)))
        elif drawn < 0.7:
            steps.append(("flush", ()))
        elif drawn < 0.75:
            lines = [text_of(drawing, drawing.randrange(9)) for _ in range(4)]
            steps.append(("writelines", (lines if drawn < 0.745 else drawing.choice([3, "x"]),)))
        elif drawn < 0.97:
            steps.append(drawing.choice(LITTLE[:-5] if drawn < 0.965 else LITTLE))
        elif drawn < 0.98:
            odd = ["read", "read1", "readline", "readlines", "next", "readinto", "nothing"]
            name = drawing.choice(odd)
            steps.append((name, (2,) if name == "readinto" else ()))
        else:
            steps.append(drawing.choice(RARE))
    return steps
