"""Ancillary data of datagrams that wait: descriptors, packet information, credentials."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    DatagramKind,
    Make,
    Waiting,
    datagrams,
    handler,
    noting,
    send_all,
    serve,
    serve_until,
)
from support import connect

SPACE = socket.CMSG_SPACE(4 * 8)
unix = datagrams("UnixDatagram")
each_place = pytest.mark.parametrize("place", ["before", "within"])
IPV6_RECVPKTINFO, IPV6_PKTINFO = socket.IPV6_RECVPKTINFO, socket.IPV6_PKTINFO
IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)
SCM_CREDENTIALS = getattr(socket, "SCM_CREDENTIALS", 2)
SO_PASSCRED = getattr(socket, "SO_PASSCRED", 16)


@pytest.fixture
def waiting(ss: ModuleType, kind: DatagramKind, make: Make) -> Iterator[Waiting]:
    waiting = Waiting(ss, kind, make)
    yield waiting
    waiting.client.close()


class Pipes:
    """Write ends to be passed on."""

    def __init__(self, count: int) -> None:
        self.pairs = [os.pipe() for _ in range(count)]
        for reading, _ in self.pairs:
            os.set_blocking(reading, False)

    def pass_on(self, client: socket.socket, data: bytes) -> None:
        """Send them along a datagram; this process keeps none."""
        socket.send_fds(client, [data], [writing for _, writing in self.pairs])
        for _, writing in self.pairs:
            os.close(writing)

    def check(self, descriptors: list[int]) -> None:
        """These are the write ends, and there are no other copies of them."""
        assert len(descriptors) == len(self.pairs)
        for descriptor, (reading, _) in zip(descriptors, self.pairs):
            os.write(descriptor, b"hello")
            os.close(descriptor)
            assert os.read(reading, 100) == b"hello"
        self.check_ended()

    def check_ended(self) -> None:
        """Nobody has a write end any more."""
        for reading, _ in self.pairs:
            assert os.read(reading, 100) == b""

    def close(self) -> None:
        for reading, _ in self.pairs:
            os.close(reading)


@pytest.fixture
def pipes() -> Iterator[Callable[[int], Pipes]]:
    made: list[Pipes] = []

    def make(count: int) -> Pipes:
        made.append(Pipes(count))
        return made[-1]

    yield make
    for pipes in made:
        pipes.close()


def act_with(
    waiting: Waiting, place: str, send: Callable[[], None], action: Callable[[Any], Any]
) -> Any:
    """Do it in the handler of b"act" while b"second", which send() sends, and b"third" wait."""
    if place == "within":

        def sending_first(sock: Any) -> Any:
            send()
            waiting.client.send(b"third")
            return action(sock)

        return waiting.act(sending_first, [b"act"])
    waiting.client.send(b"act")
    send()
    return waiting.act(action, [b"third"])


def descriptors_of(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        assert type(data) is bytes
        found.frombytes(data)
    return list(found)


# --- descriptors


@unix
@pytest.mark.parametrize("count", [1, 3, 253])
@each_place
def test_descriptors_along_the_next(
    waiting: Waiting, pipes: Callable[[int], Pipes], count: int, place: str
) -> None:
    passed = pipes(count)

    def action(sock: Any) -> Any:
        data, descriptors, flags, address = socket.recv_fds(sock, 100, 253)
        assert flags == 0
        assert {os.get_inheritable(descriptor) for descriptor in descriptors} == {True}
        return data, descriptors, address

    status, result = act_with(
        waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action
    )
    assert status == "returned", result
    assert (result[0], result[2]) == (b"second", waiting.name)
    passed.check(result[1])
    assert waiting.seen == [b"act", b"third"]


@unix
@each_place
def test_descriptors_with_recvmsg_into_and_cloexec(
    waiting: Waiting, pipes: Callable[[int], Pipes], place: str
) -> None:
    passed = pipes(2)

    def action(sock: Any) -> Any:
        buffer = bytearray(6)
        found = sock.recvmsg_into([buffer], SPACE, socket.MSG_CMSG_CLOEXEC)
        descriptors = descriptors_of(found[1])
        assert {os.get_inheritable(descriptor) for descriptor in descriptors} == {False}
        return bytes(buffer), found[2], descriptors

    status, result = act_with(
        waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action
    )
    assert status == "returned", result
    assert result[:2] == (b"second", socket.MSG_CMSG_CLOEXEC)
    passed.check(result[2])


@unix
@pytest.mark.parametrize("room", [0, 1, socket.CMSG_LEN(0), socket.CMSG_LEN(3)])
@each_place
def test_no_room_for_descriptors(
    waiting: Waiting, pipes: Callable[[int], Pipes], room: int, place: str
) -> None:
    """They are closed, and MSG_CTRUNC says so."""
    passed = pipes(2)

    def action(sock: Any) -> Any:
        data, ancillary, flags, _ = sock.recvmsg(100, room)
        passed.check_ended()
        return data, descriptors_of(ancillary), flags

    status, result = act_with(
        waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action
    )
    assert (status, result) == ("returned", (b"second", [], socket.MSG_CTRUNC))


@unix
@each_place
def test_room_for_some_descriptors(
    waiting: Waiting, pipes: Callable[[int], Pipes], place: str
) -> None:
    passed = pipes(4)

    def action(sock: Any) -> Any:
        _, ancillary, flags, _ = sock.recvmsg(100, socket.CMSG_LEN(2 * 4))
        return descriptors_of(ancillary), flags

    status, result = act_with(
        waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action
    )
    assert status == "returned", result
    descriptors, flags = result
    assert (len(descriptors), flags) == (2, socket.MSG_CTRUNC)
    for descriptor in descriptors:
        os.close(descriptor)
    passed.check_ended()


@unix
@each_place
def test_descriptors_are_peeked_at(
    waiting: Waiting, pipes: Callable[[int], Pipes], place: str
) -> None:
    """MSG_PEEK gives copies of them."""
    passed = pipes(1)

    def action(sock: Any) -> Any:
        copies = [descriptors_of(sock.recvmsg(100, SPACE, socket.MSG_PEEK)[1])[0] for _ in range(2)]
        received = descriptors_of(sock.recvmsg(100, SPACE)[1])
        for descriptor in copies:
            assert os.get_inheritable(descriptor)
            os.write(descriptor, b"")
            os.close(descriptor)
        return len({*copies, *received}), received

    status, result = act_with(
        waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action
    )
    assert status == "returned", result
    assert result[0] == 3
    passed.check(result[1])
    assert waiting.seen == [b"act", b"third"]


@unix
@pytest.mark.parametrize("method", ["recv", "recvfrom"])
@each_place
def test_descriptors_that_a_handler_does_not_take(
    waiting: Waiting, pipes: Callable[[int], Pipes], method: str, place: str
) -> None:
    passed = pipes(2)

    def action(sock: Any) -> None:
        getattr(sock, method)(100)
        passed.check_ended()

    result = act_with(waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action)
    assert result == ("returned", None)


@unix
@pytest.mark.parametrize("flavour", ["", "Threading"])
def test_descriptors_along_requests(
    ss: ModuleType, kind: DatagramKind, make: Make, pipes: Callable[[int], Pipes], flavour: str
) -> None:
    """Ordinary requests: the descriptors are closed when the datagram is taken."""
    seen: list[bytes] = []
    passed = [pipes(2) for _ in range(4)]

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        passed[int(self.request[0])].check_ended()

    server = make(
        DatagramKind(flavour, kind.transport).server(ss),
        handler(ss, handle),
        handle_error=lambda self, request, address: seen.append(b"failed"),
    )
    before = len(os.listdir("/proc/self/fd"))
    with connect(server) as client:
        for number, one in enumerate(passed):
            one.pass_on(client, b"%d" % number)
        serve_until(server, lambda: len(seen) >= 4)
        assert sorted(seen) == [b"0", b"1", b"2", b"3"]
        # A client more, and what was passed on is closed here.
        assert len(os.listdir("/proc/self/fd")) == before + 1 - 2 * 4


@unix
def test_descriptors_nobody_came_for(
    ss: ModuleType, kind: DatagramKind, make: Make, pipes: Callable[[int], Pipes]
) -> None:
    """Closing the server closes those that came with datagrams which were never served."""
    passed = pipes(2)

    def handle(self: Any) -> None:
        raise KeyboardInterrupt

    server = make(kind.server(ss), handler(ss, handle))
    with connect(server) as client:
        client.send(b"1")
        passed.pass_on(client, b"2")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
        server.server_close()
    passed.check_ended()


# --- other ancillary data


def pktinfo_of(family: int, ancillary: list[tuple[int, int, bytes]]) -> str:
    """The address that the datagram was sent to."""
    ((level, kind, data),) = ancillary
    if family == socket.AF_INET:
        assert (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO)
        assert struct.unpack("=i4s4s", data)[0] == socket.if_nametoindex("lo")
        return socket.inet_ntop(family, data[8:])
    assert (level, kind) == (socket.IPPROTO_IPV6, IPV6_PKTINFO)
    return socket.inet_ntop(family, data[:16])


@datagrams("UDP", "UDP6")
@each_place
def test_packet_information(waiting: Waiting, kind: DatagramKind, place: str) -> None:
    """Asked for with setsockopt(); recvmsg() has it, and the others go on without."""
    server, family = waiting.server, waiting.server.address_family
    if family == socket.AF_INET:
        server.socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        server.socket.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)

    def action(sock: Any) -> Any:
        data, ancillary, flags, address = sock.recvmsg(100, 256)
        assert (data, flags, address) == (b"second", 0, waiting.name)
        buffer = bytearray(5)
        count, more, flags, address = sock.recvmsg_into([buffer], 256)
        assert (count, bytes(buffer), flags, address) == (5, b"third", 0, waiting.name)
        _, nothing, flags, _ = sock.recvmsg(100, 0, socket.MSG_PEEK)
        assert (nothing, flags) == ([], socket.MSG_CTRUNC | flags & socket.MSG_PEEK)
        return ancillary, more

    following = [b"second", b"third", b"fourth", b"fifth"]
    before, within = (following, []) if place == "before" else ([], following)
    status, result = waiting.act(action, [b"act", *before], within)
    assert status == "returned", result
    for ancillary in result:
        assert pktinfo_of(family, ancillary) == server.server_address[0]
    assert waiting.seen == [b"act", b"fourth", b"fifth"]


@datagrams("UDP")
def test_packet_information_asked_for_by_a_handler(waiting: Waiting) -> None:
    """For datagrams that are sent from then on."""

    def action(sock: Any) -> Any:
        assert sock.recvmsg(100, 256)[:2] == (b"second", [])
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        waiting.client.send(b"third")
        data, ancillary, _, _ = sock.recvmsg(100, 256)
        return data, pktinfo_of(socket.AF_INET, ancillary)

    assert waiting.act(action, [b"act", b"second"]) == ("returned", (b"third", "127.0.0.1"))


@unix
@each_place
def test_credentials_and_descriptors(
    waiting: Waiting, pipes: Callable[[int], Pipes], place: str
) -> None:
    waiting.server.socket.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)
    passed = pipes(1)

    def action(sock: Any) -> Any:
        data, ancillary, flags, _ = sock.recvmsg(100, 256)
        found = {kind: data for _, kind, data in ancillary}
        assert [level for level, _, _ in ancillary] == [socket.SOL_SOCKET] * 2
        return data, flags, struct.unpack("=3i", found[SCM_CREDENTIALS]), found[socket.SCM_RIGHTS]

    status, result = act_with(
        waiting, place, lambda: passed.pass_on(waiting.client, b"second"), action
    )
    assert status == "returned", result
    assert result[:3] == (b"second", 0, (os.getpid(), os.getuid(), os.getgid()))
    passed.check(list(array.array("i", result[3])))


@unix
def test_only_the_data_of_requests_with_credentials(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    seen: list[bytes] = []
    server = make(kind.server(ss), noting(ss, seen))
    server.socket.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)
    with connect(server) as client:
        send_all(client, [b"1", b"2", b"3"])
        serve(server, seen, [b"1", b"2", b"3"])
