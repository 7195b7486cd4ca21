"""A forking server's book: what has been given to a child is under way until that has ended."""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import pytest
from books import echo, flavours, live, served, stats_when, talk
from support import connect, ended, hang_up, receive, wait_until

import fastsock


def test_a_child_is_a_connection() -> None:
    with served("forking", echo) as server:
        clients = [talk(server) for _ in range(3)]
        stats = server.stats()
        assert (stats.accepted, stats.active, stats.peak, stats.children) == (3, 3, 3, 3)
        assert stats.longest_running > 0
        found = server.connections
        assert [each.client_address for each in found] == [
            client.getsockname() for client in reversed(clients)
        ]
        assert all(each.is_live and each.state == "working" for each in found)
        hang_up(clients[1])
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.active, stats.peak, stats.children, stats.failed) == (2, 3, 2, 0)
        assert [each.is_live for each in found] == [True, False, True]
        for client in clients[::2]:
            hang_up(client)
        stats_when(server, lambda stats: stats.finished == 3 and stats.children == 0)


def test_close_ends_the_child() -> None:
    with served("forking", echo) as server:
        clients = [talk(server), talk(server)]
        latest, first = server.connections
        latest.close()
        assert ended(clients[1])
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.active, stats.failed) == (1, 1)
        assert not latest.is_live
        latest.close()  # of nobody any more
        clients[0].sendall(b"still here\n")
        assert clients[0].recv(100) == b"still here\n"
        first.close()
        assert ended(clients[0])
        for client in clients:
            client.close()


def test_who_has_collected_a_child_itself_ends_no_stranger() -> None:
    """Its pid may be another process's by then."""

    def collect_children(self: Any, *, blocking: bool = False) -> None:
        pass

    with served("forking", echo, collect_children=collect_children) as server:
        client = talk(server)
        (connection,) = server.connections
        (pid,) = server.active_children
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        stranger = os.fork()
        if stranger == 0:
            signal.pause()
            os._exit(0)
        try:
            connection.close()
            assert connection.is_live  # nobody has told
            server.active_children.discard(pid)
            stats = server.stats()
            assert (stats.active, stats.children, stats.finished, stats.failed) == (0, 0, 1, 0)
            assert os.waitpid(stranger, os.WNOHANG) == (0, 0)
        finally:
            os.kill(stranger, signal.SIGKILL)
            os.waitpid(stranger, 0)
        client.close()


def test_children_that_somebody_else_has_collected() -> None:
    with served("forking", lambda self: None, collect_children=lambda self, **keywords: None) as (
        server
    ):
        for _ in range(3):
            with connect(server) as client:
                assert receive(client) == b""
        wait_until(lambda: len(server.active_children) == 3)
        while server.active_children:
            os.waitpid(server.active_children.pop(), 0)
        with connect(server) as client:
            assert receive(client) == b""
        wait_until(lambda: server.active_children)  # the child may be faster than its parent
        stats = stats_when(server, lambda stats: stats.accepted == 4 and stats.finished >= 3)
        assert stats.children == stats.active == 1
        os.waitpid(server.active_children.pop(), 0)
        assert server.connections == []
        assert server.stats().active == 0


def test_what_a_child_knows() -> None:
    """Its own connection, and not those of its brothers."""

    def handle(self: Any) -> None:
        for _ in self.rfile:
            found = self.server.connections
            assert len(found) == self.server.stats().active == 1
            assert self.server.stats().children == 0
            self.wfile.write(repr(found[0].client_address).encode() + b"\n")

    with served("forking", handle) as server:
        clients = []
        for _ in range(3):
            clients.append(connect(server))
            clients[-1].sendall(b"who?\n")
            assert clients[-1].recv(100) == repr(clients[-1].getsockname()).encode() + b"\n"
        live(server, 3)
        for client in clients:
            hang_up(client)


def test_bytes_of_all_children() -> None:
    with served("forking", echo) as server:
        clients = [talk(server, b"x" * size + b"\n") for size in (10, 100, 1000)]
        assert server.stats().bytes_in == 0
        for client in clients:
            hang_up(client)
        stats = stats_when(server, lambda stats: stats.finished == 3)
        assert stats.bytes_in == stats.bytes_out == 1113


@pytest.mark.parametrize("how", ["raises", "exits", "is killed"])
def test_how_a_child_fails(how: str) -> None:
    def handle(self: Any) -> None:
        if how == "raises":
            raise ValueError
        if how == "exits":
            raise SystemExit(3)
        os.kill(os.getpid(), signal.SIGKILL)

    with served("forking", handle) as server:
        with connect(server) as client:
            assert ended(client)
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert stats.failed == 1


def test_server_close_collects_all() -> None:
    with served("forking", echo) as server:
        client = talk(server)
        hang_up(client)
    stats = server.stats()
    assert (stats.finished, stats.active, stats.children) == (1, 0, 0)


def test_a_mixin_without_a_server_of_ours() -> None:
    """Nobody keeps a book."""

    class Server(fastsock.ForkingMixIn):
        def close_request(self, request: Any) -> None:
            pass

        def finish_request(self, request: Any, client_address: Any) -> None:
            pass

        shutdown_request = close_request

    server = Server()
    server.process_request(None, None)
    assert server.active_children is not None and len(server.active_children) == 1
    server.collect_children(blocking=True)
    assert server.active_children == set()


class Other(socket.socket):
    """No Connection: its bytes are those that TCP has carried."""


@pytest.mark.parametrize("cls", [None, Other], ids=["Connection", "other"])
def test_what_has_come_before_the_fork_is_counted_too(cls: Any) -> None:
    def get_request(self: Any) -> Any:
        request, address = fastsock.TCPServer.get_request(self)
        if cls is not None:
            request = cls(fileno=request.detach())
        self.first = request.recv(5)
        return request, address

    def handle(self: Any) -> None:
        self.wfile.write(self.server.first + self.rfile.read())

    with served("forking", handle, get_request=get_request) as server:
        client = connect(server)
        client.sendall(b"hello world")
        client.shutdown(socket.SHUT_WR)
        assert receive(client) == b"hello world"
        client.close()
        stats = stats_when(server, lambda stats: stats.children == 0)
        assert (stats.bytes_in, stats.bytes_out) == (11, 11)


@flavours("sync", "threading", "multiplexing")
def test_the_end_of_a_stream_is_no_byte(flavour: str) -> None:
    def get_request(self: Any) -> Any:
        request, address = fastsock.TCPServer.get_request(self)
        return Other(fileno=request.detach()), address

    with served(flavour, echo, get_request=get_request) as server:
        client = connect(server)
        client.sendall(b"hello\n")
        client.shutdown(socket.SHUT_WR)
        assert receive(client) == b"hello\n"
        client.close()
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.bytes_in, stats.bytes_out) == (6, 6)
