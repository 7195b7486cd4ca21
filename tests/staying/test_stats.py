"""stats(): each number, for each kind of server."""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any

import pytest
from books import echo, flavours, line_of, live, served, server_class, stats_when, talk
from support import TIMEOUT, ask, connect, hang_up, receive, serving, wait_until

import fastsock


def counted(stats: Any) -> int:
    return sum(count for _, count in stats.latencies)


@flavours()
def test_a_connection(flavour: str) -> None:
    with served(flavour, echo) as server:
        assert server.stats().accepted == 0
        client = talk(server)
        stats = server.stats()
        assert (stats.accepted, stats.active, stats.peak, stats.finished) == (1, 1, 1, 0)
        assert 0 < stats.longest_running < TIMEOUT
        assert counted(stats) == 0
        if flavour != "forking":
            assert (stats.bytes_in, stats.bytes_out) == (6, 6)
        hang_up(client)
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.accepted, stats.active, stats.peak, stats.failed) == (1, 0, 1, 0)
        assert (stats.bytes_in, stats.bytes_out) == (6, 6)
        assert stats.longest_running == 0.0
        assert counted(stats) == 1
        assert 0 < stats.latency_sum < TIMEOUT
        (bound,) = [bound for bound, count in stats.latencies if count]
        assert bound / 2.1 < stats.latency_sum < bound


@flavours("threading", "forking", "multiplexing")
def test_the_peak_stays(flavour: str) -> None:
    with served(flavour, echo) as server:
        clients = [talk(server) for _ in range(3)]
        for client in clients:
            hang_up(client)
        stats_when(server, lambda stats: stats.finished == 3)
        client = talk(server)
        stats = server.stats()
        assert (stats.active, stats.peak) == (1, 3)
        hang_up(client)


@flavours()
def test_a_handler_that_fails(flavour: str) -> None:
    def handle(self: Any) -> None:
        raise ValueError

    with served(flavour, handle) as server:
        with connect(server) as client:
            assert receive(client) == b""
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.failed, stats.active, counted(stats)) == (1, 0, 1)


@flavours()
def test_what_verify_request_refuses(flavour: str) -> None:
    with served(flavour, echo, verify_request=lambda *request: False) as server:
        with connect(server) as client:
            assert receive(client) == b""
        stats = stats_when(server, lambda stats: stats.refused)
        assert stats.refused == {"verify_request": 1}
        wait_until(lambda: server.stats().active == 0)
        stats = server.stats()
        assert (stats.accepted, stats.finished, stats.failed, counted(stats)) == (1, 0, 0, 0)


def test_a_request_that_is_no_connection_is_refused() -> None:
    class Server(fastsock.TCPServer):
        def get_request(self) -> Any:
            accepted, address = self.socket.accept()
            return socket.socket(fileno=accepted.detach()), address

        def verify_request(self, *request: Any) -> bool:
            return False

    with Server(("127.0.0.1", 0), fastsock.BaseRequestHandler) as server, serving(server):
        with connect(server) as client:
            assert receive(client) == b""
        stats = stats_when(server, lambda stats: stats.refused)
        assert (stats.accepted, stats.active, stats.finished) == (1, 0, 0)


@flavours()
def test_shutdown_request_that_leaves_the_connection_to_others(flavour: str) -> None:
    with served(flavour, lambda self: None, shutdown_request=lambda self, request: None) as server:
        with connect(server):
            stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.accepted, stats.active) == (1, 0)


def test_a_request_that_fails_and_is_left_to_others() -> None:
    """The dispatch has called shutdown_request()."""
    kept: list[Any] = []

    def handle(self: Any) -> None:
        kept.append(self.request)
        raise ValueError

    with served("sync", handle, shutdown_request=lambda self, request: None) as server:
        with connect(server):
            stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.failed, stats.active) == (1, 0)
        kept.pop().close()


def test_accept_errors_by_errno() -> None:
    def get_request(self: Any) -> Any:
        sock, address = fastsock.TCPServer.get_request(self)
        if not self.failed:
            self.failed = True
            sock.close()
            raise OSError(errno.ENFILE, "no more")
        return sock, address

    with served("sync", echo, get_request=get_request, failed=False) as server:
        with connect(server) as client:
            assert receive(client) == b""
        hang_up(talk(server))
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert stats.accept_errors == {errno.ENFILE: 1}
        stats.accept_errors.clear()
        assert server.stats().accept_errors == {errno.ENFILE: 1}


def test_processes_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.EAGAIN, "no more")

    with served("forking", echo) as server:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fork", fork)
            with connect(server) as client:
                assert receive(client) == b""
        hang_up(talk(server))
        stats = stats_when(server, lambda stats: stats.finished == 2)
        assert (stats.start_failures, stats.failed, stats.accepted) == (1, 1, 2)


@flavours("threading", "multiplexing")
def test_the_oldest_runs_longest(flavour: str) -> None:
    with served(flavour, echo) as server:
        first = talk(server)
        (oldest,) = server.connections
        wait_until(lambda: oldest.seconds > 0.05)
        second = talk(server)
        at_least = oldest.seconds
        assert at_least <= server.stats().longest_running <= oldest.seconds
        hang_up(first)
        hang_up(second)


def test_names_of_deadlines_and_reasons_are_others_to_give() -> None:
    with server_class("sync")(("127.0.0.1", 0), fastsock.BaseRequestHandler) as server:
        ledger = server._fastsock.ledger
        for _ in range(2):
            ledger.time_out("idle")
        ledger.refuse("max_connections")
        stats = server.stats()
        assert stats.timed_out == {"idle": 2}
        assert stats.refused == {"max_connections": 1}
        stats.timed_out.clear()
        stats.refused.clear()
        assert server.stats().timed_out == {"idle": 2}
        assert server.stats().refused == {"max_connections": 1}
        ledger.time_out("idle")
        ledger.refuse("max_connections")
        assert (stats.timed_out, stats.refused) == ({}, {})


# --- datagrams


def own_thread(self: Any, request: Any, client_address: Any) -> None:
    self.finish_request(request, client_address)
    self.shutdown_request(request)


def super_thread(self: Any, request: Any, client_address: Any) -> None:
    super(type(self), self).process_request_thread(request, client_address)


def super_process(self: Any, request: Any, client_address: Any) -> None:
    super(type(self), self).process_request(request, client_address)


@pytest.mark.parametrize(
    ("flavour", "attributes"),
    [
        ("sync", {}),
        ("sync", {"gather_replies": True}),
        ("sync", {"process_request": super_process}),
        ("threading", {}),
        ("threading", {"max_threads": 3}),
        ("threading", {"process_request_thread": own_thread}),
        ("threading", {"process_request_thread": own_thread, "max_threads": 3}),
        ("threading", {"process_request_thread": own_thread, "reuse_threads": False}),
        ("threading", {"process_request_thread": super_thread}),
        ("threading", {"process_request_thread": super_thread, "reuse_threads": False}),
        ("threading", {"reuse_threads": False}),
        ("forking", {}),
        ("multiplexing", {}),
        ("multiplexing", {"process_request_thread": own_thread}),
        ("multiplexing", {"process_request_thread": super_thread}),
    ],
    ids=str,
)
def test_datagrams(flavour: str, attributes: dict[str, Any]) -> None:
    def handle(self: Any) -> None:
        if self.packet == b"fail":
            raise ValueError
        self.wfile.write(self.packet)

    fails = attributes.get("process_request_thread") is not own_thread
    with served(flavour, handle, "UDP", **attributes) as server:
        with connect(server) as client:
            for number in range(10):
                client.send(b"%d" % number)
            assert {client.recv(10) for _ in range(10)} == {b"%d" % number for number in range(10)}
            stats_when(server, lambda stats: stats.finished == 10)
            if fails:
                client.send(b"fail")
                # finish() has answered, as ever
                stats_when(server, lambda stats: stats.finished == 11)
        total = 11 if fails else 10
        stats = stats_when(server, lambda stats: counted(stats) == total)
        assert (stats.datagrams_in, stats.datagrams_out) == (total, total)
        assert (stats.accepted, stats.active, stats.failed) == (0, 0, int(fails))
        assert (stats.finished, stats.longest_running) == (total, 0.0)
        assert 0 < stats.latency_sum < TIMEOUT
    assert server.stats().datagrams_out == total  # also when the socket is closed


def test_a_datagram_that_lasts() -> None:
    go_on = threading.Event()

    def handle(self: Any) -> None:
        assert go_on.wait(TIMEOUT)

    with served("sync", handle, "UDP") as server, connect(server) as client:
        client.send(b"x")
        stats_when(server, lambda stats: stats.longest_running > 0.01)
        go_on.set()
        client.recv(10)
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert stats.longest_running == 0.0
        assert stats.latency_sum > 0.01


@flavours("sync", "threading")
def test_truncated_and_refused_datagrams(flavour: str) -> None:
    def handle_truncated(self: Any, data: bytes, length: int, address: Any) -> bool:
        return length < 200

    with served(
        flavour,
        lambda self: self.wfile.write(self.packet),
        "UDP",
        max_packet_size=100,
        handle_truncated=handle_truncated,
    ) as server:
        with connect(server) as client:
            for size in (50, 150, 250):
                client.send(b"x" * size)
            assert sorted(len(client.recv(1000)) for _ in range(2)) == [50, 100]
        stats = stats_when(server, lambda stats: stats.datagrams_in == 3 and stats.finished == 2)
        assert stats.datagrams_truncated == 2
        assert stats.refused == {"handle_truncated": 1}


def test_dropped_datagrams() -> None:
    with server_class("sync", "UDP", receive_buffer_size=4096)(
        ("127.0.0.1", 0), fastsock.DatagramRequestHandler
    ) as server:
        with connect(server) as client:
            for _ in range(100):
                client.send(b"x" * 1000)
        dropped = server.datagram_counts().dropped
        assert dropped > 0
        assert server.stats().datagrams_dropped == dropped
    assert server.stats().datagrams_dropped == 0


@pytest.mark.parametrize("method", ["send", "sendall", "sendmsg", "sendto", "sendto_flags"])
def test_each_way_to_send_a_datagram_counts(method: str) -> None:
    with (
        server_class("sync", "UDP")(("127.0.0.1", 0), fastsock.DatagramRequestHandler) as server,
        connect(server) as client,
    ):
        address = client.getsockname()
        sock = server.socket
        if method in ("send", "sendall"):
            sock.connect(address)
            getattr(sock, method)(b"x")
        elif method == "sendmsg":
            sock.sendmsg([b"x"], [], 0, address)
        elif method == "sendto":
            sock.sendto(b"x", address)
        else:
            sock.sendto(b"x", 0, address)
        assert client.recv(10) == b"x"
        assert server.stats().datagrams_out == 1


# --- threads


@pytest.mark.parametrize("reuse", [True, False])
def test_threads(reuse: bool) -> None:
    with served("threading", echo, reuse_threads=reuse) as server:
        clients = [talk(server) for _ in range(3)]
        stats = server.stats()
        assert (stats.threads_busy, stats.threads_peak) == (3, 3)
        for client in clients[:2]:
            hang_up(client)
        stats = stats_when(server, lambda stats: stats.threads_busy == 1)
        if reuse:
            stats = stats_when(server, lambda stats: stats.threads_idle == 2)
        assert (stats.threads_idle, stats.threads_peak) == (2 if reuse else 0, 3)
        hang_up(clients[2])
        stats_when(server, lambda stats: stats.finished == 3 and stats.threads_busy == 0)
    stats = server.stats()
    assert (stats.threads_busy, stats.threads_idle, stats.threads_peak) == (0, 0, 3)


@flavours("sync", "multiplexing", "forking")
def test_no_threads(flavour: str) -> None:
    with served(flavour, echo) as server:
        hang_up(talk(server))
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.threads_busy, stats.threads_idle, stats.threads_peak) == (0, 0, 0)


# --- bytes that the channel does not carry itself


@flavours()
@pytest.mark.parametrize("method", ["recvmsg", "recvfrom", "recvmsg_into", "recvfrom_into"])
def test_bytes_received_by_other_methods(flavour: str, method: str) -> None:
    def handle(self: Any) -> None:
        buffer = bytearray(10)
        arguments: Any = {
            "recvmsg": (10,),
            "recvfrom": (10,),
            "recvmsg_into": ([buffer],),
            "recvfrom_into": (buffer,),
        }[method]
        peek = {"recvmsg": (0,), "recvmsg_into": (0,), "recvfrom_into": (0,)}.get(method, ())
        getattr(self.request, method)(*arguments, *peek, socket.MSG_PEEK)
        getattr(self.request, method)(*arguments)

    with served(flavour, handle) as server:
        assert ask(server, b"12345") == b""
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.bytes_in, stats.failed) == (5, 0)


@flavours()
@pytest.mark.parametrize("method", ["sendmsg", "sendto", "sendfile", "sendfile_of_no_file"])
def test_bytes_sent_by_other_methods(flavour: str, method: str, tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"12345")

    class NoFile:
        def __init__(self, file: Any) -> None:
            self.read = file.read

    def handle(self: Any) -> None:
        if method == "sendmsg":
            self.request.sendmsg([b"123", b"45"])
        elif method == "sendto":
            self.request.sendto(b"12345", 0, self.client_address)
        else:
            with open(tmp_path / "file", "rb") as file:
                self.request.sendfile(NoFile(file) if method.endswith("no_file") else file)

    with served(flavour, handle) as server:
        with connect(server) as client:
            assert receive(client) == b"12345"
        stats = stats_when(server, lambda stats: stats.finished == 1)
        assert (stats.bytes_out, stats.failed) == (5, 0)


# --- programs that have such names already


@flavours()
def test_names_of_the_programs_own(flavour: str) -> None:
    """They mean what the program says, and everything goes on."""

    def init(self: Any, *args: Any) -> None:
        super(type(self), self).__init__(*args)
        self.connections = set()
        self.stats = {"requests": 0}

    def broadcast(self: Any) -> str:
        return "mine"

    def handle(self: Any) -> None:
        self.server.stats["requests"] += 1
        self.server.connections.add(self.client_address)
        self.wfile.write(f"{self.server.broadcast()} {len(self.server.connections)}\n".encode())

    with served(flavour, handle, __init__=init, broadcast=broadcast) as server:
        for number in (1, 2):
            with connect(server) as client:
                assert line_of(client) == f"mine {1 if flavour == 'forking' else number}\n".encode()
        control = server._fastsock
        wait_until(lambda: control.ledger.finished == 2)
        assert control.ledger.accepted == 2


def test_a_snapshot_does_not_change() -> None:
    with served("threading", echo) as server:
        before = server.stats()
        client = talk(server)
        live(server, 1)
        assert (before.accepted, before.active) == (0, 0)
        hang_up(client)
