"""Bytes through a request: odd arguments, timeouts, peers that are slow, silent or gone."""

from __future__ import annotations

import array
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from accepted import Make, both, bring_into, each_state, each_stream, fresh, same
from support import TIMEOUT, Background, Kind, outcome, receive

HERE = str(Path(__file__).resolve().parent)
MUCH = 8 << 20  # bytes: more than the buffers of a connection hold
SMALL = 1000


class Index:
    def __index__(self) -> int:
        return 3


# --- odd arguments

RECV: dict[str, Callable[[Any], Any]] = {
    "none": lambda sock: sock.recv(),
    "0": lambda sock: sock.recv(0),
    "1": lambda sock: sock.recv(1),
    "exactly": lambda sock: sock.recv(6),
    "-1": lambda sock: sock.recv(-1),
    "-1 peek": lambda sock: sock.recv(-1, socket.MSG_PEEK),
    "None": lambda sock: sock.recv(None),
    "str": lambda sock: sock.recv("3"),
    "float": lambda sock: sock.recv(3.0),
    "True": lambda sock: sock.recv(True),
    "index": lambda sock: sock.recv(Index()),
    "1e30": lambda sock: sock.recv(10**30),
    "keyword": lambda sock: sock.recv(bufsize=3),
    "three": lambda sock: sock.recv(1, 0, 0),
    "flags None": lambda sock: sock.recv(3, None),
    "flags large": lambda sock: sock.recv(3, 2**40),
    "flags index": lambda sock: sock.recv(5, Index()),
    "peek": lambda sock: sock.recv(3, socket.MSG_PEEK),
    "peek flag member": lambda sock: sock.recv(3, socket.MsgFlag.MSG_PEEK),
    "dontwait": lambda sock: sock.recv(3, socket.MSG_DONTWAIT),
    "dontwait empty": lambda sock: (sock.recv(9), outcome(sock.recv, 9, socket.MSG_DONTWAIT)),
    "waitall": lambda sock: sock.recv(6, socket.MSG_WAITALL),
    "oob": lambda sock: sock.recv(1, socket.MSG_OOB),
    "errqueue": lambda sock: sock.recv(1, socket.MSG_ERRQUEUE),
    "into none": lambda sock: sock.recv_into(),
    "into": lambda sock: into(sock, bytearray(3)),
    "into large": lambda sock: into(sock, bytearray(30)),
    "into empty": lambda sock: into(sock, bytearray()),
    "into array": lambda sock: into(sock, array.array("H", [0, 0])),
    "into view": lambda sock: into(sock, memoryview(bytearray(6))[2:5]),
    "into 2d": lambda sock: into(sock, memoryview(bytearray(6)).cast("B", (2, 3))),
    "into strided": lambda sock: into(sock, memoryview(bytearray(6))[::2]),
    "into strided part": lambda sock: into(sock, memoryview(bytearray(6))[::2], 1),
    "into bytes": lambda sock: into(sock, b"abc"),
    "into str": lambda sock: into(sock, "abc"),
    "into None": lambda sock: into(sock, None),
    "into read-only": lambda sock: into(sock, memoryview(b"abc")),
    "into part": lambda sock: into(sock, bytearray(5), 2),
    "into whole": lambda sock: into(sock, bytearray(5), 5),
    "into too much": lambda sock: into(sock, bytearray(3), 5),
    "into -1": lambda sock: into(sock, bytearray(3), -1),
    "into 0": lambda sock: into(sock, bytearray(3), 0),
    "into size str": lambda sock: into(sock, bytearray(3), "1"),
    "into size float": lambda sock: into(sock, bytearray(3), 1.0),
    "into size 1e30": lambda sock: into(sock, bytearray(3), 10**30),
    "into index": lambda sock: into(sock, bytearray(5), Index(), 0),
    "into peek": lambda sock: into(sock, bytearray(5), 2, socket.MSG_PEEK),
    "into waitall": lambda sock: into(sock, bytearray(5), 0, socket.MSG_WAITALL),
    "into keywords": lambda sock: sock.recv_into(nbytes=2, flags=2, buffer=bytearray(5)),
    "into twice": lambda sock: sock.recv_into(bytearray(5), buffer=bytearray(5)),
    "into unknown": lambda sock: sock.recv_into(bytearray(5), size=1),
}
SEND: dict[str, Callable[[Any], Any]] = {
    "none": lambda sock: sock.send(),
    "empty": lambda sock: sock.send(b""),
    "bytearray": lambda sock: sock.send(bytearray(b"abc")),
    "array": lambda sock: sock.send(array.array("I", [1, 2])),
    "view": lambda sock: sock.send(memoryview(b"abcdef")[2:5]),
    "2d": lambda sock: sock.send(memoryview(b"abcdef").cast("B", (2, 3))),
    "strided": lambda sock: sock.send(memoryview(b"abcdef")[::2]),
    "str": lambda sock: sock.send("abc"),
    "None": lambda sock: sock.send(None),
    "int": lambda sock: sock.send(3),
    "list": lambda sock: sock.send([b"abc"]),
    "flags": lambda sock: sock.send(b"abc", socket.MSG_DONTWAIT),
    "more": lambda sock: (sock.send(b"abc", socket.MSG_MORE), sock.send(b"def")),
    "oob": lambda sock: sock.send(b"abc", socket.MSG_OOB),
    "flags None": lambda sock: sock.send(b"abc", None),
    "flags str": lambda sock: sock.send(b"abc", "0"),
    "flags large": lambda sock: sock.send(b"abc", -(2**40)),
    "keyword": lambda sock: sock.send(data=b"abc"),
    "three": lambda sock: sock.send(b"abc", 0, 0),
    "all none": lambda sock: sock.sendall(),
    "all empty": lambda sock: sock.sendall(b""),
    "all": lambda sock: sock.sendall(b"abc"),
    "all bytearray": lambda sock: sock.sendall(bytearray(b"abc")),
    "all array": lambda sock: sock.sendall(array.array("I", [1, 2])),
    "all strided": lambda sock: sock.sendall(memoryview(b"abcdef")[::2]),
    "all str": lambda sock: sock.sendall("abc"),
    "all None": lambda sock: sock.sendall(None),
    "all flags": lambda sock: sock.sendall(b"abc", socket.MSG_DONTWAIT),
    "all flags None": lambda sock: sock.sendall(b"abc", None),
    "all keyword": lambda sock: sock.sendall(data=b"abc"),
    "shutdown none": lambda sock: sock.shutdown(),
    "shutdown 7": lambda sock: sock.shutdown(7),
    "shutdown -1": lambda sock: sock.shutdown(-1),
    "shutdown None": lambda sock: sock.shutdown(None),
    "shutdown float": lambda sock: sock.shutdown(1.0),
    "shutdown large": lambda sock: sock.shutdown(2**40),
    "shutdown read": lambda sock: (sock.shutdown(socket.SHUT_RD), sock.recv(10)),
}


def into(sock: Any, buffer: Any, *args: Any) -> Any:
    result = without_words(outcome(sock.recv_into, buffer, *args))
    return result, bytes(buffer) if isinstance(buffer, (bytearray, array.array)) else None


def without_words(result: tuple[Any, ...]) -> Any:
    """Which arguments are wanted is said in other words by C code and by Cython's."""
    kind, *rest = result
    return kind if kind in (TypeError, OverflowError) and "bytes" not in str(rest) else result


@each_stream
@each_state
@pytest.mark.parametrize("what", RECV)
def test_receiving(
    ss: ModuleType, make: Make, folder: str, kind: Kind, state: str, what: str
) -> None:
    def call(sock: Any, client: socket.socket) -> Any:
        bring_into(state, sock, client)
        client.sendall(b"abcdef")
        result = without_words(outcome(RECV[what], sock))
        client.sendall(b"g")
        return result, sock.recv(10)

    with both(ss, make, folder, kind) as (found, expected):
        assert same(found, expected, call)[0] == "returned"


@each_stream
@each_state
@pytest.mark.parametrize("what", SEND)
def test_sending(
    ss: ModuleType, make: Make, folder: str, kind: Kind, state: str, what: str
) -> None:
    def call(sock: Any, client: socket.socket) -> Any:
        bring_into(state, sock, client)
        result = without_words(outcome(SEND[what], sock))
        sock.shutdown(socket.SHUT_WR)
        return result, receive(client)

    with both(ss, make, folder, kind) as (found, expected):
        assert same(found, expected, call)[0] == "returned"


@each_state
def test_out_of_band(ss: ModuleType, make: Make, folder: str, state: str) -> None:
    def call(sock: Any, client: socket.socket) -> Any:
        bring_into(state, sock, client)
        client.send(b"!", socket.MSG_OOB)
        return sock.recv(1, socket.MSG_OOB), outcome(sock.recv, 1, socket.MSG_OOB)

    with both(ss, make, folder) as (found, expected):
        same(found, expected, call)


# --- peers that are slow, silent or gone


@each_stream
@pytest.mark.parametrize("timeout", [None, TIMEOUT])
@pytest.mark.parametrize("call", ["sendall", "send"])
def test_slow_reader(
    ss: ModuleType, make: Make, kind: Kind, timeout: float | None, call: str
) -> None:
    data = os.urandom(MUCH)
    with fresh(ss, make, kind) as (request, client):
        request.settimeout(timeout)

        def send() -> int:
            if call == "sendall":
                assert request.sendall(data) is None
                return request.close() or MUCH
            sent = request.send(data)
            request.close()
            return sent

        sending = Background(send)
        received = bytearray()
        while chunk := client.recv(20_000):
            received += chunk
        assert len(received) == sending.result()
        assert hashlib.sha1(received).digest() == hashlib.sha1(data[: len(received)]).digest()
        assert timeout is not None or len(received) == MUCH  # a blocking send(2) takes all


@each_stream
@pytest.mark.parametrize("size", [SMALL, 32768, 32769, MUCH])
@pytest.mark.parametrize("timeout", [0.05, 0])
def test_nobody_reads(ss: ModuleType, make: Make, kind: Kind, timeout: float, size: int) -> None:
    """sendall() ends by its timeout; what was taken by then arrives, in order."""
    data = os.urandom(size)
    error = TimeoutError if timeout else BlockingIOError
    with fresh(ss, make, kind) as (request, client):
        request.settimeout(timeout)
        whole, begin = 0, time.monotonic()
        with pytest.raises(error) as caught:
            while True:
                begin = time.monotonic()
                request.sendall(data)
                whole += 1
        took = time.monotonic() - begin
        assert timeout <= took < TIMEOUT / 2
        assert caught.value.args == (("timed out",) if timeout else (11, os.strerror(11)))
        with pytest.raises(error):
            while True:
                request.send(data[:1])
        request.close()
        received = receive(client)
        assert received[: whole * size] == data * whole
        # Then a part of `data`, and the single bytes that send() put in after it.
        rest = received[whole * size :]
        part = next((n for n, (a, b) in enumerate(zip(data, rest)) if a != b), len(rest))
        assert set(rest[part:]) <= {data[0]}


@pytest.mark.parametrize(
    "call", ["recv(10)", "recv_into(bytearray(3))", "recv(3, 2)", "recvfrom(3)"]
)
@pytest.mark.parametrize("timeout", [0.02, 0])
@each_state
def test_silent_peer(
    ss: ModuleType, make: Make, folder: str, call: str, timeout: float, state: str
) -> None:
    def silent(sock: Any, client: socket.socket) -> Any:
        bring_into(state, sock, client)
        sock.settimeout(timeout)
        begin = time.monotonic()
        result = [outcome(eval, f"sock.{call}", {"sock": sock}) for _ in range(2)]
        assert time.monotonic() - begin >= 2 * timeout
        client.sendall(b"ab")
        sock.settimeout(TIMEOUT)
        return result, sock.recv(10)

    with both(ss, make, folder) as (found, expected):
        same(found, expected, silent)


@each_state
@pytest.mark.parametrize(
    "call", ["recv(10)", "send(b'x')", "sendall(bytes(100000))", "shutdown(1)"]
)
def test_peer_reset(ss: ModuleType, make: Make, folder: str, call: str, state: str) -> None:
    def reset(sock: Any, client: socket.socket) -> Any:
        bring_into(state, sock, client)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        return [outcome(eval, f"sock.{each}", {"sock": sock}) for each in (call, call, "recv(1)")]

    with both(ss, make, folder) as (found, expected):
        same(found, expected, reset)


@pytest.mark.parametrize("call", ["recv(10)", "sendall(bytes(100000))", "recv_into(bytearray(9))"])
@pytest.mark.parametrize("end", ["close", "detach"])
@pytest.mark.parametrize("first", ["", "sendall(b'1')", "recv(1)", "getpeername()"])
def test_closed_with_a_timeout(
    ss: ModuleType, make: Make, folder: str, call: str, end: str, first: str
) -> None:
    """EBADF at once: nothing is waited for where there is no descriptor."""

    def use(sock: Any, client: socket.socket) -> Any:
        sock.settimeout(0.1)
        if first:
            client.sendall(b"1")
            eval(f"sock.{first}", {"sock": sock})
            assert sock.recv(1 - (first == "recv(1)")) in (b"", b"1")
            assert first == "recv(1)" or outcome(sock.recv, 1)[0] is TimeoutError
        number = getattr(sock, end)()
        if number is not None:
            os.close(number)
        begin = time.monotonic()
        result = outcome(eval, f"sock.{call}", {"sock": sock})
        return result, time.monotonic() - begin < 0.1

    with both(ss, make, folder) as (found, expected):
        same(found, expected, use)


# --- makefile()


@pytest.mark.parametrize("mode", ["r", "w", "rw", "rb", "wb", "rwb", "b", "", "a", "x"])
@pytest.mark.parametrize("buffering", [None, -1, 0, 1, 5, 8192])
@pytest.mark.parametrize("text", [{}, {"encoding": "utf-16-le", "newline": "\r\n"}])
def test_makefile(
    ss: ModuleType, make: Make, folder: str, mode: str, buffering: int | None, text: dict[str, Any]
) -> None:
    """The classes, the attributes and the bytes; the last close() closes the request."""

    def use(sock: Any, client: socket.socket) -> Any:
        with sock.makefile(mode, buffering, **text) as file:
            sock.close()
            told = [type(file), file.readable(), file.writable(), sock.fileno() >= 0]
            told.append(type(getattr(file, "buffer", file)))
            if file.readable():
                client.sendall("eins\r\nzwei".encode("utf-16-le") + b"\n\0")
                told += [file.readline(), file.read(3)]
            if file.writable():
                told.append(file.write("äx\n" if "b" not in mode else b"bytes\n"))
                file.flush()
                told.append(client.recv(100))
        return told, file.closed, sock.fileno()

    with both(ss, make, folder) as (found, expected):
        same(found, expected, use)
