"""lingering_close: unread input does not make the kernel throw the reply away."""

from __future__ import annotations

import errno
import importlib
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from living import FLAVOURS, Living, echo, until_end
from support import TIMEOUT, connect, receive, wait_until

Live = Callable[..., Living]
REPLY = b"x" * 100_000  # fits into the server's send buffer, not into the client's


def replies(handler: Any) -> None:
    """Without reading all that was sent."""
    handler.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    handler.request.recv(6)
    handler.wfile.write(REPLY)


def slow_client(living: Living) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.settimeout(TIMEOUT)
    living.stack.enter_context(client)
    client.connect(living.server.server_address)
    client.sendall(b"hello\n" + b"not read" * 5000)
    return client


def read_slowly(client: socket.socket) -> bytes:
    found = []
    try:
        while data := client.recv(1000):
            found.append(data)
    except ConnectionResetError:
        pass
    return b"".join(found)


def close_counted(living: Living) -> Callable[[], bool]:
    """Whether the server has begun to close a connection, or has collected a child that has."""
    return lambda: living.server._fastsock.ledger.finished > 0


@pytest.mark.parametrize("lingers", [False, True])
def test_the_reply_is_not_lost(live: Live, flavour: str, lingers: bool) -> None:
    living = live(flavour, replies, lingering_close=lingers)
    client = slow_client(living)
    if not lingers:
        wait_until(close_counted(living))
        assert len(read_slowly(client)) < len(REPLY)  # or this test would show nothing
    else:
        assert read_slowly(client) == REPLY


@pytest.mark.parametrize("flavour", [name for name in FLAVOURS if name != "forking"])
def test_it_does_not_wait_for_ever(live: Live, flavour: str) -> None:
    """For a client that keeps its end open: two seconds."""
    living = live(flavour, replies, lingering_close=True)
    begin = time.monotonic()
    slow_client(living)
    wait_until(close_counted(living))
    assert 1.9 < time.monotonic() - begin < 3


@pytest.mark.parametrize("flavour", ["threading", "multiplexing"])
def test_others_are_served_meanwhile(live: Live, flavour: str) -> None:
    living = live(flavour, replies, lingering_close=True)
    for _ in range(3):
        slow_client(living)
    begin = time.monotonic()
    assert read_slowly(slow_client(living)) == REPLY
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("flavour", [name for name in FLAVOURS if name != "forking"])
def test_it_does_not_drop_for_ever(
    live: Live, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes on sending: 64 KiB."""
    living = live(flavour, lambda handler: handler.wfile.write(b"x"), lingering_close=True)
    monkeypatch.setattr(importlib.import_module("fastsock._linger"), "SECONDS", 600.0)
    client = living.connect()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:
            client.sendall(b"x" * 10_000)


@pytest.mark.parametrize("flavour", [name for name in FLAVOURS if name != "forking"])
def test_one_that_is_not_verified_does_not_hold_the_loop(
    live: Live, flavour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no reply to be lost."""
    living = live(
        flavour, lambda handler: None, lingering_close=True, verify_request=lambda *args: False
    )
    monkeypatch.setattr(importlib.import_module("fastsock._linger"), "SECONDS", 600.0)
    for _ in range(3):
        assert receive(living.connect(b"hello")) == b""


# A child has a copy of its client's socket here, which then does not end with the client.
@pytest.mark.parametrize("flavour", [name for name in FLAVOURS if name != "forking"])
def test_a_well_behaved_client_costs_no_time(live: Live, flavour: str) -> None:
    living = live(flavour, lambda handler: handler.wfile.write(b"x"), lingering_close=True)
    begin = time.monotonic()
    for _ in range(20):
        with living.connect() as client:
            assert client.recv(10) == b"x"
    assert time.monotonic() - begin < 1.5


def test_a_drain_cuts_it_short(live: Live, flavour: str) -> None:
    def handle(handler: Any) -> None:
        handler.wfile.write(b"bye")

    living = live(flavour, handle, lingering_close=True)
    client = living.connect(b"hello")
    assert receive(client) == b"bye"  # it lingers, and this end stays open
    report, seconds = living.drain(0.1)
    assert 0.1 <= seconds < 1.5  # it lingers for two
    assert report.cut_off == 1


@pytest.mark.parametrize("transport", ["UDP", "UnixDatagram"])
def test_datagrams_have_nothing_to_linger_for(live: Live, flavour: str, transport: str) -> None:
    def handle(handler: Any) -> None:
        handler.request[1].sendto(b"x", handler.client_address)

    living = live(flavour, handle, transport, lingering_close=True)
    client = living.connect(b"hello")
    assert client.recv(10) == b"x"


def test_a_property_that_fails_is_the_program_s_own(live: Live, flavour: str) -> None:
    def fails(self: Any) -> Any:
        raise ZeroDivisionError

    living = live(flavour, echo, lingering_close=property(fails), close_timeout=property(fails))
    for _ in range(2):
        client = living.connect(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert until_end(client) == b"hello\n"


def test_an_override_of_shutdown_request(live: Live) -> None:
    """Calls the default, or has its own way."""
    order = []

    def shutdown_request(server: Any, request: Any) -> None:
        order.append("mine")
        type(server).__mro__[1].shutdown_request(server, request)
        order.append(request.fileno())

    living = live("sync", lambda handler: None, lingering_close=True,
                  shutdown_request=shutdown_request)  # fmt: skip
    with connect(living.server) as client:
        assert client.recv(1) == b""
    wait_until(lambda: len(order) == 2)
    assert order == ["mine", -1]


class NoDescriptor:
    """Stands for a shortage of descriptors, when a module is to be imported."""

    def find_spec(self, name: str, *arguments: object) -> None:
        if name == "fastsock._linger":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_without_a_descriptor_to_import_it_with(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is closed at once, and the loop goes on."""
    living = live("sync", replies, lingering_close=True)
    monkeypatch.delitem(sys.modules, "fastsock._linger", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoDescriptor(), *sys.meta_path])
    for _ in range(2):
        with connect(living.server) as client:
            client.sendall(b"hello\n")
            assert len(receive(client)) == len(REPLY)
