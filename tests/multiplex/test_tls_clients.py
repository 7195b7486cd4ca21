"""TLS sockets that a handler connects: connect(), connect_ex() and the handshake in them."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from crews import Crew
from support import TIMEOUT, Background
from tls_support import client_context, server_context, text_of_timeout

SHORT = 0.05


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT)
        yield listener


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A listener whose backlog is full, of clients that have gone: a further one waits."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        with contextlib.ExitStack() as stack, contextlib.suppress(TimeoutError):
            while True:
                client = stack.enter_context(socket.socket())
                client.settimeout(0.1)
                client.connect(listener.getsockname())
        listener.settimeout(TIMEOUT)
        yield listener


def unconnected(family: int = socket.AF_INET, timeout: float | None = None, **named: Any) -> Any:
    plain = socket.socket(family)
    plain.settimeout(timeout)
    return client_context().wrap_socket(plain, server_hostname="localhost", **named)


def converse(call: str, address: Any, **named: Any) -> Any:
    """What the call returns, and what the server says."""
    with unconnected(**named) as sock:
        returned = getattr(sock, call)(address)
        if not sock.do_handshake_on_connect:
            sock.do_handshake()
        sock.sendall(b"question")
        return returned, sock.recv(10), sock.gettimeout()


def answer(listener: socket.socket, stack: contextlib.ExitStack) -> Any:
    """Take a client, which is not answered before the function that is returned is called."""
    peer = stack.enter_context(listener.accept()[0])
    peer.settimeout(TIMEOUT)
    assert peer.recv(1, socket.MSG_PEEK)  # it has begun to shake hands

    def go_on() -> None:
        with server_context().wrap_socket(peer, server_side=True) as sock:
            assert sock.recv(10) == b"question"
            sock.sendall(b"answer")

    return go_on


@pytest.mark.parametrize("shake", [True, False])
@pytest.mark.parametrize("call", ["connect", "connect_ex"])
@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_others_run_during_the_handshake(
    crew: Crew, listener: socket.socket, call: str, timeout: float | None, shake: bool
) -> None:
    def handle() -> Any:
        return converse(
            call, listener.getsockname(), timeout=timeout, do_handshake_on_connect=shake
        )

    with contextlib.ExitStack() as stack:
        jobs = [crew.start(handle) for _ in range(3)]
        clients = [Background(answer, listener, stack) for _ in jobs]
        waiting = [client.result() for client in clients]
        assert crew.run(lambda: "another") == "another"
        assert not any(job.over.is_set() for job in jobs)
        for go_on in reversed(waiting):
            go_on()
        returned = None if call == "connect" else 0
        assert [job.result() for job in jobs] == [(returned, b"answer", timeout)] * 3


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_others_run_while_it_is_connected(crew: Crew, full: socket.socket, call: str) -> None:
    """The kernel tries again after a second."""
    job = crew.start(converse, call, full.getsockname())
    assert crew.run(lambda: "another") == "another"
    assert not job.over.is_set()
    with contextlib.ExitStack() as stack:
        while (peer := stack.enter_context(full.accept()[0])).recv(1, socket.MSG_PEEK) == b"":
            pass
        with server_context().wrap_socket(peer, server_side=True) as sock:
            assert sock.recv(10) == b"question"
            sock.sendall(b"answer")
        assert job.result()[1] == b"answer"


@pytest.mark.parametrize("timeout", [None, TIMEOUT])
def test_refused(crew: Crew, timeout: float | None) -> None:
    """And once more, which Linux answers in another way if the first did not block."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))

        def handle() -> Any:
            with unconnected(timeout=timeout) as sock:
                with pytest.raises(ConnectionRefusedError) as caught:
                    sock.connect(nobody.getsockname())
                assert sock._sslobj is None
                return caught.value.errno, sock.connect_ex(nobody.getsockname())

        again = errno.ECONNREFUSED if timeout is None else errno.ECONNABORTED
        assert crew.run(handle) == (errno.ECONNREFUSED, again)


def test_a_second_attempt(crew: Crew, listener: socket.socket) -> None:
    """After one that was refused, with the same socket."""

    def handle() -> Any:
        with socket.socket() as nobody, unconnected() as sock:
            nobody.bind(("127.0.0.1", 0))
            with pytest.raises(ConnectionRefusedError):
                sock.connect(nobody.getsockname())
            sock.connect(listener.getsockname())
            with pytest.raises(ValueError, match="already-connected"):
                sock.connect(listener.getsockname())
            sock.sendall(b"question")
            return sock.recv(10)

    job = crew.start(handle)
    with contextlib.ExitStack() as stack:
        answer(listener, stack)()
        assert job.result() == b"answer"


def test_not_connected_in_time(crew: Crew, full: socket.socket) -> None:
    def handle() -> Any:
        with unconnected(timeout=SHORT) as first, unconnected(timeout=SHORT) as second:
            with pytest.raises(TimeoutError) as caught:
                first.connect(full.getsockname())
            return str(caught.value), second.connect_ex(full.getsockname()), first.gettimeout()

    assert crew.run(handle) == ("timed out", errno.EAGAIN, SHORT)


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_hands_not_shaken_in_time(crew: Crew, listener: socket.socket, call: str) -> None:
    def handle() -> str:
        with unconnected(timeout=SHORT) as sock:
            with pytest.raises(TimeoutError) as caught:
                getattr(sock, call)(listener.getsockname())
            return str(caught.value)

    assert crew.run(handle) == text_of_timeout("do_handshake")


def test_without_waiting(crew: Crew, listener: socket.socket) -> None:
    def handle() -> Any:
        with unconnected(timeout=0) as first, unconnected(timeout=0) as second:
            with pytest.raises(BlockingIOError) as caught:
                first.connect(listener.getsockname())
            return caught.value.errno, second.connect_ex(listener.getsockname())

    assert crew.run(handle) == (errno.EINPROGRESS, errno.EINPROGRESS)


def test_a_unix_listener_whose_backlog_is_full(crew: Crew, tmp_path: Path) -> None:
    address = os.path.relpath(tmp_path / "s")
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.settimeout(TIMEOUT)
        listener.bind(address)
        listener.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(address)
        job = crew.start(lambda: converse("connect", address, family=socket.AF_UNIX))
        assert crew.run(lambda: "another") == "another"
        stack.enter_context(listener.accept()[0])
        answer(listener, stack)()
        assert job.result()[1] == b"answer"


def test_a_class_of_the_program(crew: Crew, listener: socket.socket) -> None:
    """Its own connect() is called, once."""
    calls = []

    class Own(ssl.SSLSocket):
        def connect(self, address: Any) -> None:
            calls.append(address)
            super().connect(address)

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.sslsocket_class = Own

    def handle() -> bytes:
        with context.wrap_socket(socket.socket()) as sock:
            assert isinstance(sock, Own)
            sock.connect(listener.getsockname())
            sock.sendall(b"question")
            return sock.recv(10)

    with contextlib.ExitStack() as stack:
        job = crew.start(handle)
        go_on = answer(listener, stack)
        assert crew.run(lambda: "another") == "another"
        go_on()
        assert job.result() == b"answer"
    assert calls == [listener.getsockname()]


def test_unwound_meanwhile(tasks: Crew, full: socket.socket) -> None:
    job = tasks.start(converse, "connect", full.getsockname())
    assert tasks.run(lambda: "another") == "another"
    tasks.stop()
    with pytest.raises(BaseException) as caught:
        job.result()
    assert type(caught.value).__name__ == "GreenletExit"


def test_in_no_handler(listener: socket.socket) -> None:
    with contextlib.ExitStack() as stack:
        client = Background(converse, "connect", listener.getsockname())
        answer(listener, stack)()
        assert client.result() == (None, b"answer", None)
