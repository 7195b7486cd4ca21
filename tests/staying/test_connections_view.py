"""connections: a safe view of what is being served."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from books import echo, flavours, live, served, stats_when, talk
from support import TIMEOUT, connect, ended, event, hang_up, receive, serving, wait_until

import fastsock

sys.path.append(str(Path(__file__).resolve().parent.parent / "multiplex"))
from tls_support import client_context, handler, wrapping


@flavours()
def test_what_is_seen(flavour: str) -> None:
    before = time.time()
    with served(flavour, echo) as server:
        assert server.connections == []
        client = talk(server)
        (connection,) = server.connections
        assert connection.client_address == client.getsockname()
        assert connection.is_live
        assert before - 1 < connection.since <= time.time()
        since = connection.since
        assert 0 < connection.seconds < TIMEOUT
        if flavour != "forking":
            wait_until(lambda: connection.state == "idle")
            assert (connection.bytes_in, connection.bytes_out) == (6, 6)
            client.sendall(b"half a li")
            wait_until(lambda: connection.state == "reading")
        assert repr(client.getsockname()) in repr(connection)
        hang_up(client)
        wait_until(lambda: not connection.is_live)
        assert connection.since == since
        assert server.connections == []


@flavours("threading", "forking", "multiplexing")
def test_the_latest_come_first(flavour: str) -> None:
    with served(flavour, echo) as server:
        clients = [talk(server) for _ in range(3)]
        addresses = [client.getsockname() for client in clients]
        assert [each.client_address for each in server.connections] == addresses[::-1]
        for client in clients:
            hang_up(client)


@flavours("threading", "multiplexing")
def test_states(flavour: str) -> None:
    def handle(self: Any) -> None:
        self.rfile.readline()
        self.server.entered.set()
        assert self.server.go_on.wait(TIMEOUT)
        self.wfile.write(b"x" * 50_000_000)

    events = {"entered": event(fastsock), "go_on": event(fastsock)}
    if flavour == "multiplexing":
        from fastsock.multiplexing import Event

        events = {"entered": Event(), "go_on": Event()}
    with served(flavour, handle, **events) as server, connect(server) as client:
        (connection,) = live(server, 1)
        wait_until(lambda: connection.state == "idle")
        client.sendall(b"go\n")
        assert server.entered.wait(TIMEOUT)
        assert connection.state == "working"
        server.go_on.set()
        wait_until(lambda: connection.state == "writing")
        assert len(receive(client)) == 50_000_000
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.bytes_in, stats.bytes_out) == (3, 50_000_000)


@flavours()
def test_close(flavour: str) -> None:
    with served(flavour, echo) as server:
        client = talk(server)
        (connection,) = server.connections
        connection.close()
        assert ended(client)
        client.close()
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert stats.failed == int(flavour == "forking")
        connection.close()
        other = talk(server)  # on the same descriptor, most likely
        connection.close()
        other.sendall(b"here\n")
        assert other.recv(10) == b"here\n"
        hang_up(other)


@flavours("sync", "threading", "multiplexing")
def test_what_was_written_before_still_comes(flavour: str) -> None:
    def handle(self: Any) -> None:
        self.rfile.readline()
        self.wfile.write(b"bye\n")
        for connection in self.server.connections:
            connection.close()

    with served(flavour, handle) as server:
        client = connect(server)
        client.sendall(b"hello\n")
        assert receive(client) == b"bye\n"
        client.close()


@flavours("threading", "multiplexing")
def test_close_of_one_that_the_socket_object_owns(flavour: str) -> None:
    def handle(self: Any) -> None:
        self.request.getpeername()
        echo(self)

    with served(flavour, handle) as server:
        client = talk(server)
        (connection,) = server.connections
        connection.close()
        assert ended(client)
        client.close()
        stats_when(server, lambda stats: stats.finished == 1)


@flavours("threading", "multiplexing")
def test_closing_what_was_given_away_does_nothing(flavour: str) -> None:
    """Whose descriptor that is by now nobody knows."""
    left: list[int] = []

    def handle(self: Any) -> None:
        left.append(self.request.detach())
        self.server.detached.set()
        assert self.server.go_on.wait(TIMEOUT)

    module: Any = fastsock
    if flavour == "multiplexing":
        from fastsock import multiplexing as module  # type: ignore[no-redef]
    events = {"detached": event(fastsock), "go_on": event(fastsock)}
    if flavour == "multiplexing":
        events = {"detached": module.Event(), "go_on": module.Event()}
    with served(flavour, handle, **events) as server, connect(server) as client:
        (connection,) = live(server, 1)
        assert server.detached.wait(TIMEOUT)
        connection.close()
        with socket.socket(fileno=left.pop()) as own:
            own.sendall(b"mine")
            assert client.recv(10) == b"mine"
        server.go_on.set()


@flavours("sync", "threading", "multiplexing")
def test_tls_of_get_request(flavour: str) -> None:
    from books import MIXINS

    base: Any = type("Base", (*MIXINS[flavour], fastsock.TCPServer), {})
    made = handler(fastsock.StreamRequestHandler, echo, "get_request")
    with wrapping(base, "get_request")(("127.0.0.1", 0), made) as server, serving(server):
        plain = connect(server)
        client = client_context().wrap_socket(plain, server_hostname="localhost")
        client.sendall(b"x" * 999 + b"\n")
        assert client.recv(2000)
        (connection,) = live(server, 1)
        assert connection.client_address == client.getsockname()
        assert connection.state == "working"
        assert connection.bytes_in > 1000
        wait_until(lambda: connection.bytes_out > 1000)
        seen = server.stats()
        assert seen.bytes_in == connection.bytes_in
        connection.close()
        with pytest.raises((OSError, EOFError)):
            while client.recv(2000):
                pass
            raise EOFError
        client.close()
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert not connection.is_live
        assert stats.bytes_in >= seen.bytes_in
        assert stats.bytes_out >= 1000


def test_it_keeps_no_connection_open() -> None:
    with served("threading", lambda self: None) as server:
        with connect(server) as client:
            found = server.connections
            assert receive(client) == b""
        stats_when(server, lambda stats: stats.finished == 1)
        assert all(not each.is_live for each in found)


@flavours("threading", "multiplexing")
def test_looked_at_while_they_come_and_go(flavour: str) -> None:
    with served(flavour, echo) as server:
        for _ in range(20):
            clients = [talk(server) for _ in range(5)]
            seen = server.connections
            for client in clients:
                client.close()
            for connection in seen:
                assert repr(connection)
                connection.close()
        stats_when(server, lambda stats: stats.finished == 100)


@flavours("threading", "multiplexing")
def test_nor_one_that_nobody_has_closed(flavour: str) -> None:
    """It is closed when it is dropped, whoever has looked at it."""

    def handle(self: Any) -> None:
        self.rfile.readline()
        self.server.seen = self.server.connections

    with (
        pytest.warns(ResourceWarning, match="unclosed"),
        served(flavour, handle, shutdown_request=lambda *request: None) as server,
        connect(server) as client,
    ):
        client.sendall(b"hello\n")
        assert receive(client) == b""
        (connection,) = server.seen
        assert (connection.bytes_in, connection.client_address) == (6, client.getsockname())
        assert not connection.is_live
