"""rfile and wfile against the buffered files of io: the same steps, the same outcomes."""

from __future__ import annotations

import io
import os
import random
import socket
from typing import Any

import pytest
from streams import SIZES, Side, Step, of_reader, of_writer, sides
from support import Background

SEQUENCES = int(os.environ.get("FASTSOCK_SEQUENCES", "300"))
FIRST_SEED = int(os.environ.get("FASTSOCK_SEED", "1"))
BATCHES = 10
each_batch = pytest.mark.parametrize("batch", range(BATCHES))


def seeds(batch: int) -> range:
    return range(FIRST_SEED + batch, FIRST_SEED + SEQUENCES, BATCHES)


def failed(seed: int, size: int, steps: list[Step], results: Any, why: str = "differ") -> str:
    shown = [f"{name}{args if len(repr(args)) < 200 else (len(args[0]),)}" for name, args in steps]
    found, expected = (repr(each)[:1000] for each in results)
    return (
        f"{why}: FASTSOCK_SEQUENCES=1 FASTSOCK_SEED={seed}, buffer of {size}\n  "
        + "\n  ".join(shown)
        + f"\n   found: {found}\nexpected: {expected}"
    )


# --- reading


def brought_level(found: Side, expected: Side, name: str, results: list[Any]) -> bool:
    """Whether both are right to have read different amounts; then have both read the longer one.

    What one call brings depends on the buffer, and ours grows with the lines.
    """
    if name not in ("read1", "peek", "readinto1") or any(r[0] != "returned" for r in results):
        return False
    values = [result[1] for result in results]
    if name == "readinto1":
        values = [None if value[0] is None else value[1][: value[0]] for value in values]
    if not all(values) or len({value[0] for value in values}) > 1:
        return False
    shorter, longer = sorted(values, key=len)
    if not longer.startswith(shorter):
        return False
    if name != "peek":
        side = found if values[0] is shorter else expected
        missing = longer[len(shorter) :]
        return bool(side.file.read(len(missing)) == missing)
    return True


def check_reader(seed: int) -> None:
    drawing = random.Random(seed)
    size = drawing.choice(SIZES)
    steps = of_reader(drawing, drawing.choice([5, 20, 60]))
    with sides("rb", size, None) as (found, expected):
        for number, (name, args) in enumerate(steps):
            results = [side.do(name, args) for side in (found, expected)]
            done = steps[: number + 1]
            if (name, *(r[0] for r in results)) == ("readinto1", "returned", TimeoutError):
                break  # that of io waits for more than it has
            if results[0] != results[1] and not brought_level(found, expected, name, results):
                pytest.fail(failed(seed, size, done, results), pytrace=False)
            if name in ("close_raw", "detach") and results[0][0] == "returned":
                break  # what is left in the buffers then is not the same
        else:
            results = [side.do("close", ()) for side in (found, expected)]
            assert results[0] == results[1], failed(seed, size, steps, results)
        refs = [(side.sock._io_refs, side.sock.fileno() < 0) for side in (found, expected)]
        assert refs[0] == refs[1], failed(seed, size, steps, refs, "references")


@each_batch
def test_reader(batch: int) -> None:
    for seed in seeds(batch):
        check_reader(seed)


# --- writing


def drained(side: Side) -> bytes:
    side.peer.setblocking(False)
    chunks = []
    try:
        while chunk := side.peer.recv(1 << 20):
            chunks.append(chunk)
    except BlockingIOError:
        pass
    return b"".join(chunks)


def check_writer(seed: int) -> None:
    drawing = random.Random(seed)
    size = drawing.choice(SIZES)
    steps = of_writer(drawing, drawing.choice([5, 20, 60]))
    received = [b"", b""]
    with sides("wb", size, None) as both:
        for number, (name, args) in enumerate(steps):
            done = steps[: number + 1]
            results = [side.do(name, args) for side in both]
            if results[0] != results[1]:
                pytest.fail(failed(seed, size, done, results), pytrace=False)
            received = [before + drained(side) for before, side in zip(received, both)]
            # Ours sends what overflows the buffer along with it, so one may be ahead.
            shorter, longer = sorted(received, key=len)
            assert longer.startswith(shorter), failed(seed, size, done, received)
            if name in ("flush", "truncate", "detach", "close") and results[0][0] == "returned":
                assert received[0] == received[1], failed(seed, size, done, received)
            if name in ("close_raw", "detach") and results[0][0] == "returned":
                break
        else:
            results = [side.do("close", ()) for side in both]
            assert results[0] == results[1], failed(seed, size, steps, results)
            received = [before + drained(side) for before, side in zip(received, both)]
            assert received[0] == received[1], failed(seed, size, steps, received)
        refs = [(side.sock._io_refs, side.sock.fileno() < 0) for side in both]
        assert refs[0] == refs[1], failed(seed, size, steps, refs, "references")


@each_batch
def test_writer(batch: int) -> None:
    for seed in seeds(batch):
        check_writer(seed)


@pytest.mark.parametrize("native", [True, False])
@each_batch
def test_writer_that_would_block(batch: int, native: bool) -> None:
    """Whatever write() says it has taken arrives, once and in order."""
    for seed in list(seeds(batch))[: max(3, SEQUENCES // 100)]:
        drawing = random.Random(seed)
        side = Side("wb", native, drawing.choice(SIZES[3:]), 0)
        side.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 5000)
        taken, received = b"", b""
        blocked = 0
        for _ in range(60):
            data = os.urandom(drawing.choice([1, 10, 1000, 5000, 50_000]))
            try:
                assert side.file.write(data) == len(data)
                taken += data
                if drawing.random() < 0.2:
                    side.file.flush()
            except BlockingIOError as error:
                blocked += 1
                assert error.errno == 11
                assert error.strerror == "write could not complete without blocking"
                assert error.characters_written <= len(data)
                if not taken.endswith(data):
                    taken += data[: error.characters_written]
            if drawing.random() < 0.1:
                received += drained(side)
                assert taken.startswith(received), seed
        side.sock.settimeout(None)
        reading = Background(everything, side.peer)
        side.file.close()
        side.sock.close()
        assert received + reading.result() == taken, seed
        assert blocked
        side.close()


def everything(sock: socket.socket) -> bytes:
    sock.settimeout(10)
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


# --- under the files of text


@each_batch
def test_text(batch: int) -> None:
    for seed in list(seeds(batch))[: max(1, SEQUENCES // 20)]:
        drawing = random.Random(seed)
        letters = "abc \n\r\näöü€😀"
        text = "".join(drawing.choice(letters) for _ in range(drawing.randrange(3000)))
        newline = drawing.choice([None, "", "\n", "\r", "\r\n"])
        results: list[list[Any]] = []
        for native in (True, False):
            drawing.seed(seed)
            side = Side("rb", native, 100, None)
            side.peer.sendall(text.encode())
            side.peer.shutdown(socket.SHUT_WR)
            with io.TextIOWrapper(side.file, "utf-8", newline=newline) as file:
                results.append([])
                for _ in range(20):
                    call = drawing.choice(["read", "readline", "read1"])
                    if call == "readline":
                        results[-1].append(file.readline(drawing.choice([-1, 5])))
                    else:
                        results[-1].append(file.read(drawing.randrange(40)))
                results[-1] += [*file, file.read(), file.buffer.closed]
            assert side.file.closed
            side.close()
        assert results[0] == results[1], seed


@pytest.mark.parametrize("native", [True, False])
def test_text_written(native: bool) -> None:
    side = Side("wb", native, 10, None)
    with io.TextIOWrapper(side.file, "utf-8", newline="\r\n", write_through=True) as file:
        print("ä" * 20, file=file)
        assert file.isatty() is False and file.seekable() is False
    side.sock.close()
    assert everything(side.peer) == ("ä" * 20 + "\r\n").encode()
    side.close()


@pytest.mark.parametrize("native", [True, False])
def test_pair(native: bool) -> None:
    side = Side("rb", native, 10, None)
    other = Side("wb", native, 10, None)
    file = io.BufferedRWPair(side.file, other.file)
    side.peer.sendall(b"line\nrest")
    side.peer.shutdown(socket.SHUT_WR)
    assert file.readline() == b"line\n" and file.read() == b"rest"
    assert file.write(b"x" * 30) == 30
    file.flush()
    assert other.peer.recv(100) == b"x" * 30
    file.close()
    assert side.file.closed and other.file.closed
    side.close()
    other.close()
