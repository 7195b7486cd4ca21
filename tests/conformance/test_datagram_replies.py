"""What handlers of datagrams send: replies, and whatever else goes through the server's socket."""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    FEW,
    DatagramKind,
    Make,
    Waiting,
    datagrams,
    echoing,
    handler,
    nothing_more,
    numbered,
    receive_all,
    send_all,
    serve_until,
)
from support import TIMEOUT, Background, connect, fresh_address, new, serving, wait_until

unix = datagrams("UnixDatagram")
QUEUE = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1


@pytest.fixture
def waiting(ss: ModuleType, kind: DatagramKind, make: Make) -> Iterator[Waiting]:
    waiting = Waiting(ss, kind, make)
    yield waiting
    waiting.client.close()


def named(name: Any) -> socket.socket:
    """A Unix socket. While it is not connected to the server, it takes QUEUE datagrams at most."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.bind(name)
    return sock


def replying(ss: ModuleType, handle: Any) -> Any:
    return new("Handler", ss.DatagramRequestHandler, handle=handle)


class Errors:
    """A handle_error() that notes what came to it."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, Any, BaseException]] = []

    def hook(self, server: Any, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        assert error is not None
        self.found.append((request[0], client_address, error.with_traceback(None)))

    def numbers(self) -> list[tuple[bytes, Any]]:
        return [(packet, getattr(error, "errno", None)) for packet, _, error in self.found]

    def types(self) -> list[tuple[bytes, type[BaseException]]]:
        return [(packet, type(error)) for packet, _, error in self.found]


def make_with(errors: Errors, make: Make, base: Any, handler: Any, **attributes: Any) -> Any:
    hook = lambda self, request, client_address: errors.hook(self, request, client_address)  # noqa: E731
    return make(base, handler, handle_error=hook, **attributes)


# --- order


@datagrams(flavours=("", "Threading"))
def test_direct_ones_come_before_the_reply(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """The order on the wire is that of the calls; the reply in wfile is sent at the end."""
    count = 4 if kind.transport == "UnixDatagram" else 30  # two answers each

    def handle(self: Any) -> None:
        self.wfile.write(self.packet + b" late")
        self.socket.sendto(self.packet + b" early", self.client_address)

    server = make(kind.server(ss), replying(ss, handle))
    with connect(server) as client:
        send_all(client, numbered(count))
        with serving(server):
            answers = receive_all(client, 2 * count)
        assert nothing_more(client)
    expected = [b"%d %s" % (n, part) for n in range(count) for part in (b"early", b"late")]
    if not kind.flavour:
        assert answers == expected
    assert sorted(answers) == sorted(expected)
    for number in range(count):
        assert answers.index(b"%d early" % number) < answers.index(b"%d late" % number)


@datagrams(flavours=("", "Threading"))
def test_each_peer_has_its_answers_in_order(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """Five clients which send eight datagrams each."""
    clients: list[socket.socket] = []
    seen: list[bytes] = []
    server = make(kind.server(ss), echoing(ss, seen))
    packets = numbered(FEW)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(5)]
        if kind.transport == "UnixDatagram":  # whose queue has no room for all
            stack.enter_context(serving(server))
            sending = [Background(send_all, client, packets) for client in clients]
            for thread in sending:
                thread.result()
        else:
            for packet in packets:
                for client in clients:
                    client.send(packet)
            stack.enter_context(serving(server))
        for client in clients:
            answers = receive_all(client, FEW)
            assert (sorted(answers) if kind.flavour else answers) == packets
            assert nothing_more(client)
    assert sorted(seen) == sorted(5 * packets)


# --- addresses


@datagrams()
def test_client_addresses(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """What getsockname() of each client says, of the same types, for each of its datagrams."""
    found: dict[bytes, list[Any]] = {b"0": [], b"1": [], b"2": []}
    server = make(
        kind.server(ss),
        handler(ss, lambda self: found[self.request[0]].append(self.client_address)),
    )
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(3)]
        for _ in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d" % number)
        serve_until(server, lambda: min(map(len, found.values())) == 3)
        names = [client.getsockname() for client in clients]
    assert list(found.values()) == [[name] * 3 for name in names]
    for address in itertools.chain(*found.values()):
        types = {"UDP": (str, int), "UDP6": (str, int, int, int)}.get(kind.transport)
        assert type(address) is (bytes if types is None else tuple)
        assert types is None or tuple(map(type, address)) == types


@unix
@pytest.mark.parametrize("length", [None, 20, 107])
@pytest.mark.parametrize("letter", ["a", "\u00e9", "\udcff"], ids=ascii)
def test_paths_of_clients(
    ss: ModuleType, kind: DatagramKind, make: Make, folder: str, length: int | None, letter: str
) -> None:
    """str, decoded as file names are."""
    path = os.fsencode(os.path.join(folder, f"client {letter}"))
    path += b"-" * ((length or len(path)) - len(path))
    found: list[Any] = []
    server = make(
        kind.server(ss),
        echoing(ss, []),
        verify_request=lambda self, request, address: found.append(address) or True,
    )
    with named(path) as client:
        client.connect(server.server_address)
        send_all(client, [b"1", b"2"])
        with serving(server):
            assert receive_all(client, 2) == [b"1", b"2"]
        assert found == [os.fsdecode(path)] * 2
        assert found[0] == client.getsockname()


@unix
@pytest.mark.parametrize("name", [b"\0a", b"\0", b"\0\0\xff\0", b"\0" + b"x" * 107], ids=repr)
def test_abstract_names_of_clients(
    ss: ModuleType, kind: DatagramKind, make: Make, name: bytes
) -> None:
    """bytes, with every byte of theirs."""
    found: list[Any] = []
    server = make(
        kind.server(ss),
        echoing(ss, []),
        verify_request=lambda self, request, address: found.append(address) or True,
    )
    with named(name) as client:
        client.connect(server.server_address)
        send_all(client, [b"1", b"2"])
        with serving(server):
            assert receive_all(client, 2) == [b"1", b"2"]
    assert found == [name] * 2


@datagrams()
def test_to_somebody_else(ss: ModuleType, kind: DatagramKind, make: Make, folder: str) -> None:
    base = kind.server(ss)

    def handle(self: Any) -> None:
        self.request[1].sendto(self.request[0], other.getsockname())
        self.request[1].sendto(b"done", self.client_address)

    server = make(base, handler(ss, handle))
    with socket.socket(base.address_family, socket.SOCK_DGRAM) as other, connect(server) as client:
        other.bind(fresh_address(base, folder))
        other.settimeout(TIMEOUT)
        send_all(client, numbered(4))
        with serving(server):
            assert receive_all(client, 4) == [b"done"] * 4
            assert receive_all(other, 4) == numbered(4)
        assert nothing_more(client) and nothing_more(other)


def copies(address: Any) -> list[Any]:
    """Other addresses of the same meaning."""
    if isinstance(address, bytes):
        return [bytes(bytearray(address)), bytearray(address), memoryview(address)]
    copied = (str(bytes(address[0], "ascii"), "ascii"), *address[1:])
    if len(address) == 4:
        return [copied, address[:2], address[:3], ("0::1", *address[1:]), new("T", tuple)(address)]
    return [copied, ("localhost", address[1]), new("T", tuple)(address), ("127.1", address[1])]


@datagrams()
def test_an_equal_address(waiting: Waiting) -> None:
    """One that is not the very object that the client's address is."""
    addresses = copies(waiting.name)

    def action(sock: Any) -> int:
        return [sock.sendto(b"hello", address) for address in addresses]

    result = waiting.act(action, [b"act", b"2"])
    assert result == ("returned", [5] * len(addresses))
    assert receive_all(waiting.client, len(addresses)) == [b"hello"] * len(addresses)


WRONG_ADDRESSES = {
    "UDP": [
        (lambda name: list(name), TypeError),
        (lambda name: None, TypeError),
        (lambda name: name[0], TypeError),
        (lambda name: (*name, 0), TypeError),
        (lambda name: (name[0],), TypeError),
        (lambda name: (name[0], str(name[1])), TypeError),
        (lambda name: (name[0], 65536), OverflowError),
        (lambda name: (name[0], -1), OverflowError),
        (lambda name: ("", name[1], 0), TypeError),
        (lambda name: ("not an address.", 1), socket.gaierror),
    ],
    "UDP6": [
        (lambda name: list(name), TypeError),
        (lambda name: (*name, 0), TypeError),
        (lambda name: (name[0], 65536), OverflowError),
        (lambda name: (name[0], 1, -1), OverflowError),
        (lambda name: ("127.0.0.1", name[1]), socket.gaierror),
    ],
    "UnixDatagram": [
        (lambda name: [name], TypeError),
        (lambda name: None, TypeError),
        (lambda name: (name,), TypeError),
        (lambda name: b"\0" + b"x" * 108, OSError),
        (lambda name: "/nothing there", FileNotFoundError),
        (lambda name: name + b"?", ConnectionRefusedError),
    ],
}


@datagrams()
def test_wrong_addresses(waiting: Waiting, kind: DatagramKind) -> None:
    """Nothing is sent then."""
    for change, expected in WRONG_ADDRESSES[kind.transport]:
        address = change(waiting.name)
        result = waiting.act(lambda sock: sock.sendto(b"hello", address), [b"act", b"2"])  # noqa: B023
        assert result[0] is expected, (address, result)
        assert waiting.seen == [b"act", b"2"]
    assert nothing_more(waiting.client)


# --- data


@datagrams()
def test_kinds_of_data(waiting: Waiting) -> None:
    """Whatever has a contiguous buffer; flags stand before the address."""
    name = waiting.name

    def action(sock: Any) -> Any:
        return [
            sock.sendto(b"bytes", name),
            sock.sendto(bytearray(b"bytearray"), name),
            sock.sendto(memoryview(b"a view of it")[2:6], name),
            sock.sendto(array.array("H", b"even"), name),
            sock.sendto(b"", name),
            sock.sendto(b"flags", 0, name),
            sock.sendto(b"more flags", socket.MSG_DONTWAIT, name),
            sock.sendmsg([b"in ", bytearray(b"pieces")], [], 0, name),
            sock.sendmsg([], (), socket.MSG_DONTWAIT, name),
        ]

    result = waiting.act(action, [b"act", b"2"])
    expected = [b"bytes", b"bytearray", b"view", b"even", b"", b"flags", b"more flags"]
    expected += [b"in pieces", b""]
    assert result == ("returned", [len(data) for data in expected])
    assert receive_all(waiting.client, len(expected)) == expected
    assert nothing_more(waiting.client)


@datagrams()
def test_wrong_calls(waiting: Waiting) -> None:
    name = waiting.name
    wrong: list[tuple[Any, type[Exception]]] = [
        (lambda sock: sock.sendto("text", name), TypeError),
        (lambda sock: sock.sendto(None, name), TypeError),
        (lambda sock: sock.sendto(b"no address"), TypeError),
        (lambda sock: sock.sendto(b"data", name, 0), TypeError),
        (lambda sock: sock.sendto(b"data", 0, name, 0), TypeError),
        (lambda sock: sock.sendto(b"data", "0", name), TypeError),
        (lambda sock: sock.sendto(b"data", address=name), TypeError),
        (lambda sock: sock.sendto(memoryview(b"abcdef")[::2], name), BufferError),
        (lambda sock: sock.sendto(), TypeError),
    ]
    for action, expected in wrong:
        assert waiting.act(action, [b"act", b"2"])[0] is expected
        assert waiting.seen == [b"act", b"2"]
    assert nothing_more(waiting.client)


# --- errors


@datagrams()
@pytest.mark.parametrize("way", ["wfile", "sendto"])
def test_too_large(ss: ModuleType, kind: DatagramKind, make: Make, way: str) -> None:
    """The error goes to handle_error(), the others get their answers."""
    errors = Errors()

    def handle(self: Any) -> None:
        large = b"x" * (1 << 23) if self.packet == b"2" else self.packet
        if way == "wfile":
            self.wfile.write(large)
        else:
            self.socket.sendto(large, self.client_address)

    base = ss.DatagramRequestHandler
    attributes = {} if way == "wfile" else {"finish": lambda self: None}
    server = make_with(errors, make, kind.server(ss), new("H", base, handle=handle, **attributes))
    with connect(server) as client:
        send_all(client, numbered(5))
        with serving(server):
            assert receive_all(client, 4) == [b"0", b"1", b"3", b"4"]
        assert nothing_more(client)
        assert errors.numbers() == [(b"2", errno.EMSGSIZE)]
        assert errors.found[0][1] == client.getsockname()


@unix
def test_unnamed_and_closed_peers(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """They cannot be answered; those between them are."""
    errors = Errors()
    server = make_with(errors, make, kind.server(ss), echoing(ss, []))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unnamed, connect(server) as client:
        unnamed.connect(server.server_address)
        unnamed.send(b"unnamed")
        client.send(b"1")
        with connect(server) as closed:
            closed.send(b"closed")
        client.send(b"2")
        with serving(server):
            assert receive_all(client, 2) == [b"1", b"2"]
    assert errors.types() == [(b"unnamed", TypeError), (b"closed", ConnectionRefusedError)]
    assert errors.found[0][1] is None


@unix
def test_a_path_that_has_gone(ss: ModuleType, kind: DatagramKind, make: Make, folder: str) -> None:
    errors = Errors()
    server = make_with(errors, make, kind.server(ss), echoing(ss, []))
    path = os.path.join(folder, "client")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone, connect(server) as client:
        gone.bind(path)
        gone.connect(server.server_address)
        gone.send(b"gone")
        os.unlink(path)
        client.send(b"1")
        with serving(server):
            assert client.recv(100) == b"1"
    assert errors.types() == [(b"gone", FileNotFoundError)]
    assert errors.found[0][1] == path


@unix
@pytest.mark.parametrize("flavour", ["", "Threading"])
def test_a_full_receiver_is_waited_for(
    ss: ModuleType, kind: DatagramKind, make: Make, flavour: str
) -> None:
    """A client which reads late gets everything."""
    seen: list[bytes] = []
    server = make(DatagramKind(flavour, kind.transport).server(ss), echoing(ss, seen))
    packets = numbered(QUEUE + 20)

    def send() -> None:
        for packet in packets:
            client.sendto(packet, server.server_address)

    with named("") as client, serving(server):
        sending = Background(send)
        wait_until(lambda: len(seen) > QUEUE)  # the last of them waits in sendto()
        answers = receive_all(client, len(packets))
        sending.result()
        assert nothing_more(client)
    assert (sorted(answers, key=int) if flavour else answers) == packets


@unix
@pytest.mark.parametrize(
    ("timeout", "expected"), [(0.0, BlockingIOError), (0.05, TimeoutError)], ids=str
)
def test_a_full_receiver_and_a_timeout(
    ss: ModuleType, kind: DatagramKind, make: Make, timeout: float, expected: type[OSError]
) -> None:
    """Of the server's socket: the reply fails when there is no room in time."""
    errors, seen = Errors(), []
    server = make_with(errors, make, kind.server(ss), echoing(ss, seen))
    server.socket.settimeout(timeout)
    packets = numbered(QUEUE + 2)
    with named("") as client:
        with serving(server):
            for packet in packets:
                client.sendto(packet, server.server_address)
            wait_until(lambda: len(errors.found) == 2)
        assert receive_all(client, QUEUE) == packets[:QUEUE]
        assert nothing_more(client)
    assert errors.types() == [(packet, expected) for packet in packets[QUEUE:]]
    assert seen == packets
