"""Datagram servers and DatagramRequestHandler."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import (
    Kind,
    Trace,
    ask,
    connect,
    kinds,
    new,
    receive,
    serving,
    upper,
)

Make = Callable[..., Any]
datagrams = kinds(flavours=("",), transports=("UDP", "UnixDatagram"))


class FakeSocket:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def sendto(self, data: bytes, address: Any) -> None:
        self.sent.append((data, address))


def test_attributes(ss: ModuleType) -> None:
    """packet and socket are the two parts of the request; the files are io.BytesIO."""
    fake = FakeSocket()

    class Handler(ss.DatagramRequestHandler):
        def handle(self) -> None:
            assert self.packet == b"one\ntwo\n"
            assert self.socket is fake
            assert type(self.rfile) is type(self.wfile) is io.BytesIO
            assert self.rfile.getvalue() == b"one\ntwo\n"
            assert list(self.rfile) == [b"one\n", b"two\n"]
            assert self.wfile.getvalue() == b""
            self.wfile.write(b"answer")
            assert fake.sent == []

    handler = Handler((b"one\ntwo\n", fake), "address", None)
    assert fake.sent == [(b"answer", "address")]
    assert handler.wfile.getvalue() == b"answer"


def test_nothing_written(ss: ModuleType) -> None:
    """An empty datagram is sent, also after handle() failed."""
    fake = FakeSocket()
    ss.DatagramRequestHandler((b"", fake), "address", None)

    def handle(self: Any) -> None:
        self.wfile.write(b"so far")
        raise ValueError

    with pytest.raises(ValueError):
        new("Handler", ss.DatagramRequestHandler, handle=handle)((b"", fake), "address", None)
    assert fake.sent == [(b"", "address"), (b"so far", "address")]


@datagrams
def test_empty_answer(ss: ModuleType, kind: Kind, make: Make) -> None:
    server = make(kind.server(ss), ss.DatagramRequestHandler)
    with serving(server):
        assert ask(server) == b""


@datagrams
def test_request(ss: ModuleType, kind: Kind, make: Make) -> None:
    """(bytes, the server's socket), also after the socket was replaced."""
    seen: list[Any] = []

    def handle(self: Any) -> None:
        seen.append(self.request)

    server = make(kind.server(ss), new("Handler", ss.BaseRequestHandler, handle=handle))
    with connect(server) as client:
        client.send(b"hello")
        server.handle_request()
        server.socket = socket.socket(fileno=server.socket.detach())
        client.send(b"")
        server.handle_request()
    assert [type(request) for request in seen] == [tuple, tuple]
    assert [request[0] for request in seen] == [b"hello", b""]
    assert seen[1][1] is server.socket is not seen[0][1]


@datagrams
def test_closing_a_request_leaves_the_socket(ss: ModuleType, kind: Kind, make: Make) -> None:
    server = make(kind.server(ss))
    request = (b"", server.socket)
    assert server.shutdown_request(request) is None
    assert server.close_request(request) is None
    assert server.fileno() != -1


@datagrams
def test_handler_receives_the_next_datagram(
    ss: ModuleType, kind: Kind, make: Make, trace: Trace
) -> None:
    """recvfrom() in a handler gets what comes after its own packet, and nobody else does."""

    class Handler(ss.DatagramRequestHandler):
        def handle(self) -> None:
            following, _ = self.socket.recvfrom(100)
            trace.log("handle", self.packet.decode(), following.decode())
            self.wfile.write(self.packet + following)

    server = make(kind.server(ss), Handler)
    with connect(server) as client:
        for packet in (b"1", b"2", b"3", b"4"):
            client.send(packet)
        with serving(server):
            assert (client.recv(100), client.recv(100)) == (b"12", b"34")
            client.send(b"5")
            client.send(b"6")
            assert client.recv(100) == b"56"
    assert [event.call for event in trace.events()] == [
        "handle(1, 2)",
        "handle(3, 4)",
        "handle(5, 6)",
    ]


@datagrams
def test_order_and_boundaries(ss: ModuleType, kind: Kind, make: Make) -> None:
    """Many datagrams that wait already: each is one request, in the order of arrival."""
    packets = []

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            packets.append((self.request[0], self.client_address))
            self.request[1].sendto(self.request[0], self.client_address)

    server = make(kind.server(ss), Handler)
    count = 8 if server.address_family == socket.AF_UNIX else 40  # net.unix.max_dgram_qlen
    expected = [b"x" * size for size in range(count)]
    with connect(server) as client:
        for packet in expected:
            client.send(packet)
        with serving(server):
            answers = [client.recv(100) for _ in expected]
        assert answers == expected
        assert packets == [(packet, client.getsockname()) for packet in expected]


@datagrams
def test_one_request_for_each_handle_request(ss: ModuleType, kind: Kind, make: Make) -> None:
    packets = []

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            packets.append(self.request[0])

    server = make(kind.server(ss), Handler)
    with connect(server) as client:
        for packet in (b"1", b"2", b"3"):
            client.send(packet)
        server.handle_request()
        assert packets == [b"1"]
        assert server.socket.recv(10) == b"2"
        server.handle_request()
        assert packets == [b"1", b"3"]


@datagrams
def test_unnamed_client(ss: ModuleType, kind: Kind, make: Make) -> None:
    """A Unix datagram socket without a name cannot be answered; the server goes on."""
    if kind.transport == "UDP":
        pytest.skip("every UDP socket has a name")
    seen = []
    server = make(
        kind.server(ss),
        upper(kind.handler(ss)),
        verify_request=lambda self, request, address: seen.append(address) or True,
        handle_error=lambda self, request, address: None,
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.connect(server.server_address)
        client.send(b"hello\n")
        server.handle_request()
    assert seen == [None]
    with serving(server):
        assert ask(server) == b"HELLO\n"


@datagrams
def test_several_clients(ss: ModuleType, kind: Kind, make: Make) -> None:
    """Each gets its own answer."""
    server = make(kind.server(ss), upper(kind.handler(ss)))
    clients = [connect(server) for _ in range(6)]
    with serving(server):
        for number, client in enumerate(clients):
            client.send(b"client %d\n" % number)
        for number, client in enumerate(clients):
            assert receive(client) == b"CLIENT %d\n" % number
    for client in clients:
        client.close()


def test_error_message_on_the_socket(ss: ModuleType, make: Make, trace: Trace) -> None:
    """A client that has gone: the ICMP error that comes back is no request."""
    handled = new(
        "Handler",
        ss.DatagramRequestHandler,
        handle=lambda self: trace.log("handle", self.packet),
    )
    server = make(ss.UDPServer, handled)
    gone = connect(server)
    gone.send(b"one")
    gone.close()
    with serving(server):
        trace.wait("handle")
        assert ask(server, b"two") == b""
    assert [event.call for event in trace.events()] == ["handle(b'one')", "handle(b'two')"]
