"""TLS that a handler makes of its connection: known to the server's book, and cut off as any."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from living import LATE, Living
from support import TIMEOUT, Background, wait_until

sys.path.append(str(Path(__file__).resolve().parent.parent / "multiplex"))
from tls_support import client_context, server_context

Live = Callable[..., Living]
KEEPS_TRACK = pytest.mark.parametrize("flavour", ["sync", "threading", "multiplexing"])


def echo_tls(handler: Any) -> None:
    """Lines of a TLS connection that is made here, until the end, or what looks like it."""
    tls = server_context().wrap_socket(handler.request, server_side=True)
    with tls, contextlib.suppress(OSError):
        while line := tls.recv(100):
            tls.sendall(line)


@contextlib.contextmanager
def client_of(living: Living) -> Iterator[ssl.SSLSocket]:
    """Has got an answer."""
    plain = living.connect()
    with client_context().wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(b"hello\n")
        assert client.recv(100) == b"hello\n"
        yield client


def end_of(client: ssl.SSLSocket) -> bytes:
    with contextlib.suppress(ssl.SSLEOFError, ConnectionError):
        return client.recv(100)
    return b""


@KEEPS_TRACK
def test_a_drain_cuts_it_off(live: Live, flavour: str) -> None:
    living = live(flavour, echo_tls)
    with client_of(living) as client:
        report, seconds = living.drain(0.3)
        assert report.cut_off == 1
        assert 0.3 <= seconds <= 0.3 + LATE
        assert end_of(client) == b""
        wait_until(lambda: living.server.stats().active == 0)


@KEEPS_TRACK
def test_so_does_its_close(live: Live, flavour: str) -> None:
    living = live(flavour, echo_tls)
    with client_of(living) as client:
        (connection,) = living.server.connections
        connection.close()
        assert end_of(client) == b""
        wait_until(lambda: not connection.is_live)
        assert living.server.stats().failed == 0


@KEEPS_TRACK
def test_one_that_does_not_shake_hands_is_cut_off(live: Live, flavour: str) -> None:
    living = live(flavour, echo_tls, handle_error=lambda *about: None)
    client = living.connect(b"\x16")
    living.await_active(1)
    report, seconds = living.drain(0.3)
    assert report.cut_off == 1
    assert seconds <= 0.3 + LATE
    with contextlib.suppress(ConnectionError):
        client.recv(100)
    wait_until(lambda: living.server.stats().active == 0)


@KEEPS_TRACK
def test_nothing_plain_is_sent_to_it(live: Live, flavour: str) -> None:
    living = live(flavour, echo_tls)
    with client_of(living) as client:
        result = living.server.broadcast(b"plain\n")
        assert (result.sent, len(result.skipped)) == (0, 1)
        client.sendall(b"more\n")
        assert client.recv(100) == b"more\n"


@pytest.mark.parametrize("how", ["close", "detach"])
@KEEPS_TRACK
def test_its_number_is_somebody_else_s(live: Live, flavour: str, how: str) -> None:
    """It was closed, or given away, while the request goes on."""

    def handle(handler: Any) -> None:
        handler.rfile.readline()
        handler.wfile.write(b"hello\n")
        tls = server_context().wrap_socket(
            handler.request, server_side=True, do_handshake_on_connect=False
        )
        number = tls.fileno()
        client, ours = socket.socketpair()
        with client, ours:
            given = getattr(tls, how)()
            if given is not None:
                socket.close(given)
            with socket.socket(fileno=socket.dup(ours.fileno())) as other:
                found.append(other.fileno() == number)
                for one in handler.server.connections:
                    one.close()
                other.sendall(b"x")
                found.append(client.recv(1))

    found: list[Any] = []
    living = live(flavour, handle)
    living.connect(b"hello\n")
    wait_until(lambda: len(found) == 2)
    assert found == [True, b"x"]


def test_one_that_was_detached_otherwise_is_left_alone(live: Live) -> None:
    """Though ssl has been imported, and makes something of it later."""

    def handle(handler: Any) -> None:
        own = socket.socket(fileno=handler.request.detach())
        handler.server.tls = server_context().wrap_socket(
            own, server_side=True, do_handshake_on_connect=False
        )
        handler.gate.wait()

    living = live("threading", handle)
    client = living.connect()
    living.gate.await_one()
    for connection in living.server.connections:
        connection.close()
    sent = threading.Event()
    shaking = Background(lambda: (living.server.tls.do_handshake(), sent.set()))
    client_context().wrap_socket(client, server_hostname="localhost").close()
    shaking.join(TIMEOUT)
    assert sent.is_set()
    living.server.tls.close()
