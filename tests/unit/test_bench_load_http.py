"""The load of HTTP servers: what it takes for a right response, and what for which error."""

from __future__ import annotations

import socket
from typing import Any

import hostile
import pytest
from hostile import Streams, spoiling
from hypothesis import given, settings
from hypothesis import strategies as st
from loads import LONG

from fastsock.bench._load import StreamLoad

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
BODY = b"The body of a response.\n"


def response(body: bytes = BODY, *, status: str = "200 OK", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body


def http(kind: str, answer: Any) -> Streams:
    return Streams(answer, b"\r\n\r\n", lasting=kind == "http")


def http_load(server: Streams, kind: str, **options: Any) -> StreamLoad:
    load = StreamLoad(server.address, kind, options.pop("connections", 1), GET, BODY, **options)
    load.open(LONG)
    return load


each_http = pytest.mark.parametrize("kind", ["http", "http-close"])
GOOD = {
    "plain": response(),
    "more fields": b"HTTP/1.0 200 OK\r\nServer: x\r\ncontent-LENGTH:24  \r\nDate: now\r\n\r\n"
    + BODY,
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 24\r\n\r\n" + BODY,
    "twice the same": b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\nContent-Length:24\r\n\r\n" + BODY,
    "long header": b"HTTP/1.1 200 OK\r\nX: "
    + b"x" * 16000
    + b"\r\nContent-Length: 24\r\n\r\n"
    + BODY,
}


@each_http
@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_right_responses(kind: str, text: bytes) -> None:
    with (
        http(kind, hostile.constant(text)) as server,
        http_load(server, kind, connections=2) as load,
    ):
        load.run(LONG, 20)
        assert (load.operations, load.errors) == (20, {})
        assert load.verified >= 20 * len(BODY)


@each_http
def test_responses_in_pieces(kind: str) -> None:
    with http(kind, hostile.bytewise(response())) as server, http_load(server, kind) as load:
        load.run(LONG, 5)
        assert (load.operations, load.errors) == (5, {})


def test_a_response_that_only_the_end_ends() -> None:
    with (
        http("http-close", hostile.constant(b"HTTP/1.0 200 OK\r\n\r\n" + BODY)) as server,
        http_load(server, "http-close") as load,
    ):
        load.run(LONG, 5)
        assert (load.operations, load.errors) == (5, {})


@each_http
def test_an_empty_body(kind: str) -> None:
    with (
        http(kind, hostile.constant(response(b""))) as server,
        StreamLoad(server.address, kind, 2, GET, b"") as load,
    ):
        load.open(LONG)
        load.run(LONG, 20)
        assert (load.operations, load.errors, load.verified) == (20, {}, 0)


@pytest.mark.parametrize("depth", [2, 50])
def test_http_requests_in_a_row(depth: int) -> None:
    def answer(connection: socket.socket, request: bytes) -> bool:
        connection.sendall(response() * request.count(GET))
        return True

    with http("http", answer) as server, http_load(server, "http", depth=depth) as load:
        load.run(LONG, 3 * depth)
        assert (load.operations, load.errors) == (3 * depth, {})


SHORT, OTHER = BODY[:-1], BODY.replace(b"body", b"Body")
BAD = {
    "status": (response(status="500 Internal Server Error"), "status"),
    "another status": (response(status="201 Created"), "status"),
    "no status": (response(status="OK"), "malformed"),
    "not HTTP": (b"SSH-2.0-x\r\n\r\n" + BODY, "malformed"),
    "HTTP/2": (b"HTTP/2.0 200 OK\r\nContent-Length: 24\r\n\r\n" + BODY, "malformed"),
    "no colon": (b"HTTP/1.1 200 OK\r\nContent-Length 24\r\n\r\n" + BODY, "malformed"),
    "no number": (b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\n" + BODY, "malformed"),
    "negative": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + BODY, "malformed"),
    "huge": (b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", "malformed"),
    "no length at all": (b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n" + BODY, "malformed"),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\nContent-Length: 25\r\n\r\n" + BODY,
        "malformed",
    ),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n18\r\n" + BODY + b"\r\n0\r\n\r\n",
        "malformed",
    ),
    "endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20000, "malformed"),
    "other body": (response(OTHER), "corrupted"),
    "other length": (response(SHORT), "corrupted"),
    "short body": (response(SHORT, length=24), "early end"),
    "header only": (b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n", "early end"),
    "half a header": (b"HTTP/1.1 200 OK\r\nContent-Le", "early end"),
    "nothing": (b"", "early end"),
    "long body": (response(BODY + b"!", length=24), "too many bytes"),
}


@each_http
@pytest.mark.parametrize(("text", "error"), BAD.values(), ids=BAD)
def test_wrong_responses(kind: str, text: bytes, error: str) -> None:
    bad = hostile.constant(text, goes_on=False)
    answer = spoiling(bad, 3, hostile.constant(response()), first=kind == "http")
    with http(kind, answer) as server, http_load(server, kind) as load:
        load.run(LONG, 10)
        assert load.operations == 10
        assert sum(load.errors.values()) == 4
        assert load.errors == {error: 4}


def test_a_lasting_connection_needs_a_length() -> None:
    bad = hostile.constant(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)
    answer = spoiling(bad, 2, hostile.constant(response()), first=1)
    with http("http", answer) as server, http_load(server, "http") as load:
        load.run(LONG, 3)
        assert (load.operations, load.errors) == (3, {"malformed": 2})


@given(pieces=st.lists(st.integers(1, 60), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_a_response_may_be_cut_anywhere(pieces: list[int]) -> None:
    text = response()

    def answer(connection: socket.socket, request: bytes) -> bool:
        at = 0
        for piece in pieces:
            connection.sendall(text[at : at + piece])
            at += piece
        connection.sendall(text[at:])
        return True

    with http("http", answer) as server, http_load(server, "http") as load:
        load.run(LONG, 3)
        assert (load.operations, load.errors) == (3, {})
