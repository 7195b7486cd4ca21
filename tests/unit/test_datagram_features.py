"""What the datagram servers have that the standard library's have not; without gathering."""

from __future__ import annotations

import copy
import pickle
import select
import socket
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    DatagramKind,
    Make,
    datagrams,
    echoing,
    nothing_more,
    noting,
    numbered,
    receive_all,
    send_all,
    serve,
    serve_until,
    tracing,
)
from support import TIMEOUT, Trace, connect, fresh_address, new, serving, wait_until

pytestmark = pytest.mark.fastsock_only(reason="not in the standard library")
each_mode = pytest.mark.parametrize("mode", ["serve_forever", "handle_request"])
END = ["shutdown_request", "close_request"]
LONG = b"0123456789"


def run(mode: str, server: Any, seen: list[bytes], count: int) -> None:
    """Serve what waits until so many were seen."""
    if mode == "serve_forever":
        serve_until(server, lambda: len(seen) >= count)
    else:
        while len(seen) < count:
            server.handle_request()


# --- receive_buffer_size, datagram_counts()


@datagrams(flavours=("", "Threading"))
def test_receive_buffer_size(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """SO_RCVBUF, which the kernel doubles."""
    assert kind.server(ss).receive_buffer_size is None
    default = make(kind.server(ss)).socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        assert default == plain.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    server = make(kind.server(ss), receive_buffer_size=65_536)
    assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 65_536


@datagrams("UDP")
def test_receive_buffer_size_is_set_in_server_bind(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    """So an instance attribute counts, and a wrong one raises what setsockopt() does."""
    with kind.server(ss)(("127.0.0.1", 0), ss.BaseRequestHandler, False) as server:
        before = server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        server.receive_buffer_size = 10_000
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == before
        server.server_bind()
        assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 20_000
    with pytest.raises(TypeError):
        make(kind.server(ss), receive_buffer_size="large")


@datagrams("UDP", "UDP6", flavours=("", "Threading"))
def test_dropped(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """What the kernel could not deliver, and the server served: that is all."""
    seen: list[bytes] = []
    server = make(kind.server(ss), noting(ss, seen), receive_buffer_size=20_000)
    assert server.datagram_counts().dropped == 0
    with connect(server) as client:
        send_all(client, numbered(2000))
        dropped = server.datagram_counts().dropped
        assert 0 < dropped < 2000
        serve_until(server, lambda: len(seen) + dropped >= 2000)
        assert sorted(seen, key=int) == sorted(set(seen), key=int)
        assert len(seen) + dropped == 2000
        send_all(client, numbered(10))
        serve_until(server, lambda: len(seen) + dropped >= 2010)
    counts = server.datagram_counts()
    assert (counts.dropped, counts.truncated) == (dropped, 0)
    assert {type(counts.dropped), type(counts.truncated)} == {int}


@datagrams(flavours=("", "Threading", "Forking"))
@each_mode
def test_truncated(ss: ModuleType, kind: DatagramKind, make: Make, mode: str) -> None:
    """Those that were cut; not those that just fit."""
    server = make(kind.server(ss), echoing(ss, []), max_packet_size=6)
    with connect(server) as client:
        send_all(client, [b"012345", LONG, b"", LONG * 100, b"01234"])
        if mode == "serve_forever":
            with serving(server):
                answers = receive_all(client, 5)
        else:
            for _ in range(5):
                server.handle_request()
            answers = receive_all(client, 5)
    assert sorted(answers) == [b"", b"01234"] + [b"012345"] * 3
    assert server.datagram_counts().truncated == 2
    assert server.datagram_counts().dropped == 0


@datagrams()
def test_what_a_handler_receives_is_not_counted(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        seen.extend([self.request[0], self.request[1].recv(3)])

    handled = new("Handler", ss.BaseRequestHandler, handle=handle)
    server = make(kind.server(ss), handled, max_packet_size=6)
    with connect(server) as client:
        send_all(client, [b"1", LONG, LONG, b"2"])
        serve(server, seen, [b"1", LONG[:3], LONG[:6], b"2"])
    assert server.datagram_counts().truncated == 1


def test_counts_of_a_closed_server(ss: ModuleType, make: Make) -> None:
    server = make(ss.UDPServer)
    server.server_close()
    with pytest.raises(OSError):
        server.datagram_counts()


# --- handle_truncated()


@datagrams(flavours=("", "Threading"))
@each_mode
def test_handle_truncated(
    ss: ModuleType, kind: DatagramKind, make: Make, mode: str, trace: Trace
) -> None:
    """Between get_request() and verify_request(), for those that were cut; false refuses them."""
    seen: list[Any] = []

    def handle_truncated(self: Any, data: bytes, full_length: int, address: Any) -> bool:
        trace.log("handle_truncated", data.decode())
        seen.append((data, full_length, address))
        return data != b"refuse"

    base = new("Base", kind.server(ss), max_packet_size=6, handle_truncated=handle_truncated)
    hooks = ("verify_request", "finish_request", *END)
    server = make(tracing(base, trace, *hooks), noting(ss, []))
    packets = [b"012345", b"012345789", b"refuse this", b"refuse", b"end"]
    with connect(server) as client:
        send_all(client, packets)
        if mode == "serve_forever":
            with serving(server):
                trace.wait("close_request", 5)
        else:
            for _ in packets:
                server.handle_request()
            trace.wait("close_request", 5)
        name = client.getsockname()
    assert seen == [(b"012345", 9, name), (b"refuse", 11, name)]
    if not kind.flavour:
        served = ["verify_request", "finish_request", *END]
        assert trace.names() == [
            *served,
            *("handle_truncated", *served),
            *("handle_truncated", *END),
            *served,
            *served,
        ]
    else:
        of_refused = [event.name for event in trace.events() if event.args == ("refuse",)]
        assert sorted(of_refused) == sorted(
            ["handle_truncated", *END, "verify_request", "finish_request", *END]
        )
    assert server.datagram_counts().truncated == 2


@datagrams()
@each_mode
@pytest.mark.parametrize("error", [ValueError("boom"), SystemExit(3), OSError(5, "boom")], ids=repr)
def test_handle_truncated_raises(
    ss: ModuleType, kind: DatagramKind, make: Make, mode: str, error: BaseException, trace: Trace
) -> None:
    """As from verify_request(): it leaves, the request is ended, and nothing is lost."""
    seen: list[bytes] = []

    def handle_truncated(self: Any, data: bytes, full_length: int, address: Any) -> bool:
        raise error

    base = new("Base", kind.server(ss), max_packet_size=6, handle_truncated=handle_truncated)
    server = make(tracing(base, trace, "handle_error", *END), noting(ss, seen))
    with connect(server) as client:
        send_all(client, [b"1", LONG, b"2", b"3"])
        if mode == "handle_request":
            server.handle_request()
        with pytest.raises(type(error)) as caught:
            getattr(server, mode)()
        assert caught.value is error
        error.__traceback__ = None
        assert seen == [b"1"]
        assert [event.call for event in trace.events()] == [
            *("shutdown_request(1)", "close_request(1)"),
            *("shutdown_request(012345)", "close_request(012345)"),
        ]
        run(mode, server, seen, 3)
    assert seen == [b"1", b"2", b"3"]


@datagrams()
@pytest.mark.parametrize("result", [None, 0, "", 1, "yes", []], ids=repr)
def test_truth_of_handle_truncated(
    ss: ModuleType, kind: DatagramKind, make: Make, result: Any
) -> None:
    """Any object will do, on the instance as well, put there while it is serving."""
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"1":
            self.server.handle_truncated = lambda *arguments: result
        if self.request[0] == b"2":
            del self.server.handle_truncated

    handled = new("Handler", ss.BaseRequestHandler, handle=handle)
    server = make(kind.server(ss), handled, max_packet_size=6)
    cut = LONG[:6]
    with connect(server) as client:
        send_all(client, [LONG, b"1", LONG, LONG, b"2", LONG, b"3"])
        serve(server, seen, [cut, b"1", *[cut, cut][: 2 * bool(result)], b"2", cut, b"3"])
    assert server.datagram_counts().truncated == 4


@datagrams()
def test_default_of_handle_truncated(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    server = make(kind.server(ss))
    assert server.handle_truncated(b"", 1, None) is True


# --- reply_if_empty


@datagrams(flavours=("", "Threading", "Forking"))
def test_reply_if_empty(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """False: nothing is sent where nothing was written."""
    assert ss.DatagramRequestHandler.reply_if_empty is True

    def handle(self: Any) -> None:
        if self.packet == b"instance":
            self.reply_if_empty = True
        elif self.packet != b"silent":
            self.wfile.write(self.packet)

    handled = new("Handler", ss.DatagramRequestHandler, handle=handle, reply_if_empty=False)
    server = make(kind.server(ss), handled)
    with connect(server) as client:
        send_all(client, [b"silent", b"1", b"silent", b"silent", b"instance", b"2", b"silent"])
        with serving(server):
            answers = receive_all(client, 3)
        server.server_close()
        assert nothing_more(client)
    assert (sorted(answers) if kind.flavour else answers) == (
        [b"", b"1", b"2"] if kind.flavour else [b"1", b"", b"2"]
    )


# --- DatagramSocket


@datagrams(flavours=("", "Threading", "Forking"))
def test_type_of_the_socket(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    sock = make(kind.server(ss)).socket
    assert type(sock) is ss.DatagramSocket
    assert isinstance(sock, socket.socket)
    assert type(sock).__module__ == "fastsock"
    assert repr(sock).startswith(f"<fastsock.DatagramSocket fd={sock.fileno()}, family=")
    assert (repr(sock).endswith(">") and "SOCK_DGRAM" in repr(sock)) or "type=2" in repr(sock)
    with pytest.raises(AttributeError):
        sock.new_attribute = 1
    hash(sock)


@pytest.mark.parametrize("name", ["TCPServer", "UnixStreamServer"])
def test_listeners_are_plain_sockets(ss: ModuleType, make: Make, name: str) -> None:
    assert type(make(getattr(ss, name)).socket) is socket.socket


@datagrams()
def test_a_duplicate(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """dup() makes one of the same kind, which has nothing that was received ahead."""
    server = make(kind.server(ss))
    with server.socket.dup() as copied, connect(server) as client:
        assert type(copied) is ss.DatagramSocket
        assert copied.fileno() != server.socket.fileno()
        assert not copied.get_inheritable()
        send_all(client, [b"1", b"2"])
        assert (copied.recv(10), server.socket.recv(10)) == (b"1", b"2")
        assert copied.getsockname() == server.server_address


@datagrams()
def test_detached(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    server = make(kind.server(ss))
    number = server.socket.fileno()
    with connect(server) as client:
        assert server.socket.detach() == number
        assert server.fileno() == server.socket.fileno() == -1
        with socket.socket(fileno=number) as plain:
            client.send(b"1")
            assert plain.recv(10) == b"1"
    with pytest.raises(OSError):
        server.socket.recv(10)
    assert "[closed]" in repr(server.socket)


@datagrams()
def test_a_file_of_it(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """makefile() works as on any socket for datagrams."""
    server = make(kind.server(ss))
    with connect(server) as client, server.socket.makefile("rb", buffering=0) as file:
        send_all(client, [b"one\n", b"two\n"])
        assert (file.read(10), file.read(10)) == (b"one\n", b"two\n")


@datagrams()
def test_not_to_be_pickled(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    sock = make(kind.server(ss)).socket
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            attempt(sock)


@datagrams()
def test_made_by_a_program(ss: ModuleType, kind: DatagramKind, make: Make, folder: str) -> None:
    """As any socket.socket, and put in the place of a server's."""
    seen: list[bytes] = []
    server = make(kind.server(ss), echoing(ss, seen))
    server.socket.close()
    server.socket = ss.DatagramSocket(server.address_family, socket.SOCK_DGRAM)
    server.socket.bind(fresh_address(server, folder))
    server.server_address = server.socket.getsockname()
    with connect(server) as client:
        send_all(client, numbered(8))
        with serving(server):
            assert receive_all(client, 8) == numbered(8)
        client.send(b"last")
        assert select.select([server.socket], [], [], TIMEOUT)[0]
        server.handle_request()
        assert client.recv(10) == b"last"
    with server.socket as sock:
        assert sock.fileno() != -1
    assert sock.fileno() == -1


@datagrams(flavours=("", "Threading"))
def test_a_plain_socket(ss: ModuleType, kind: DatagramKind, make: Make, folder: str) -> None:
    """Put in its place by the program; everything goes on without receiving ahead."""
    server = make(kind.server(ss), echoing(ss, []), max_packet_size=6)
    server.socket.close()
    server.socket = socket.socket(server.address_family, socket.SOCK_DGRAM)
    server.socket.bind(fresh_address(server, folder))
    server.server_address = server.socket.getsockname()
    packets = [*numbered(7), LONG]
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            assert sorted(receive_all(client, 8)) == sorted([*numbered(7), LONG[:6]])
            wait_until(lambda: server.datagram_counts().truncated == 1)
        assert server.datagram_counts().dropped == 0
        client.send(LONG)
        server.handle_request()
        assert client.recv(100) == LONG[:6]
    assert server.datagram_counts().truncated == 2
