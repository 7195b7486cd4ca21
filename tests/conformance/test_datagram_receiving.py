"""Handlers that receive the next datagram from the server's socket by themselves."""

from __future__ import annotations

import array
import errno
import socket
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from datagrams import DatagramKind, Make, Waiting, datagrams, nothing_more, numbered, send_all

WOULD_BLOCK = (BlockingIOError, errno.EAGAIN)
each_place = pytest.mark.parametrize("place", ["before", "within"])


@pytest.fixture
def waiting(ss: ModuleType, kind: DatagramKind, make: Make) -> Iterator[Waiting]:
    waiting = Waiting(ss, kind, make)
    yield waiting
    waiting.client.close()


def act(waiting: Waiting, place: str, action: Callable[[Any], Any], following: list[bytes]) -> Any:
    """Do it while these wait: which came with the handler's own packet, or during the handler."""
    if place == "before":
        return waiting.act(action, [b"act", *following])
    return waiting.act(action, [b"act"], following)


# --- each way to receive


def into(
    method: str, size: int, *arguments: Any, kind: Callable[[bytes], Any] = bytearray
) -> Callable[[Any], Any]:
    """A call of recv_into() or recvfrom_into(): (what is in the buffer, address or None)."""

    def receive(sock: Any) -> Any:
        buffer = kind(b"-" * size)
        found = getattr(sock, method)(buffer, *arguments)
        count, address = found if isinstance(found, tuple) else (found, None)
        assert type(count) is int
        return bytes(buffer)[:count], address

    return receive


def recvmsg(size: int, flags: int = 0) -> Callable[[Any], Any]:
    def receive(sock: Any) -> Any:
        data, ancillary, came, address = sock.recvmsg(size, 0, flags)
        assert ancillary == []
        assert came & ~flags & ~socket.MSG_TRUNC == 0
        assert type(data) is bytes
        return data, address, came & socket.MSG_TRUNC

    return receive


def recvmsg_into(*sizes: int, flags: int = 0) -> Callable[[Any], Any]:
    def receive(sock: Any) -> Any:
        buffers = [bytearray(size) for size in sizes]
        count, ancillary, came, address = sock.recvmsg_into(buffers, 0, flags)
        assert ancillary == []
        assert came & ~flags & ~socket.MSG_TRUNC == 0
        return b"".join(buffers)[:count], address, came & socket.MSG_TRUNC

    return receive


def each_way(size: int, flags: int) -> dict[str, Callable[[Any], Any]]:
    """All receive into `size` bytes. What they return begins with the data."""
    return {
        "recv": lambda sock: (sock.recv(size, flags), None),
        "recvfrom": lambda sock: sock.recvfrom(size, flags),
        "recv_into": into("recv_into", size, size, flags),
        "recv_into a larger one": into("recv_into", size + 50, size, flags),
        "recv_into an array": into("recv_into", size, 0, flags, kind=lambda b: array.array("B", b)),
        "recvfrom_into": into("recvfrom_into", size, 0, flags),
        "recvfrom_into a memoryview": into(
            "recvfrom_into", size, size, flags, kind=lambda data: memoryview(bytearray(data))
        ),
        "recvmsg": recvmsg(size, flags),
        "recvmsg_into": recvmsg_into(size, flags=flags),
        "recvmsg_into several": recvmsg_into(2, 1, size - 3, flags=flags),
        "recvmsg_into with an empty one": recvmsg_into(1, 0, size - 1, flags=flags),
    }


WAYS = [
    *("recv", "recvfrom", "recv_into", "recv_into a larger one", "recv_into an array"),
    *("recvfrom_into", "recvfrom_into a memoryview", "recvmsg", "recvmsg_into"),
    *("recvmsg_into several", "recvmsg_into with an empty one"),
]
each = pytest.mark.parametrize("way", WAYS)


@datagrams()
@each
@each_place
def test_gets_the_next(waiting: Waiting, way: str, place: str) -> None:
    """And nobody else gets that one."""
    action = each_way(100, 0)[way]
    status, result = act(waiting, place, action, [b"second", b"third"])
    assert status == "returned", result
    assert result[0] == b"second"
    assert result[1] == (waiting.name if "from" in way or "msg" in way else None)
    assert result[2:] in [(), (0,)]
    assert waiting.seen == [b"act", b"third"]


@datagrams()
@each
@each_place
def test_peeks_at_the_next(waiting: Waiting, way: str, place: str) -> None:
    action = each_way(100, socket.MSG_PEEK)[way]
    results = act(waiting, place, lambda sock: [action(sock), action(sock)], [b"second", b"third"])
    assert results[0] == "returned", results
    for result in results[1]:
        assert result[0] == b"second"
        assert result[1] == (waiting.name if "from" in way or "msg" in way else None)
    assert waiting.seen == [b"act", b"second", b"third"]


@datagrams()
@each
@each_place
def test_cuts_the_next(waiting: Waiting, way: str, place: str) -> None:
    """What does not fit is lost."""
    action = each_way(6, 0)[way]
    status, result = act(waiting, place, action, [b"0123456789", b"third"])
    assert status == "returned", result
    assert result[0] == b"012345"
    assert result[2:] in [(), (socket.MSG_TRUNC,)]
    assert waiting.seen == [b"act", b"third"]


@datagrams()
@each
@each_place
def test_peeks_at_a_part(waiting: Waiting, way: str, place: str) -> None:
    """With MSG_PEEK nothing is lost."""
    action = each_way(6, socket.MSG_PEEK)[way]
    status, result = act(waiting, place, action, [b"0123456789", b"third"])
    assert (status, result[0]) == ("returned", b"012345")
    assert result[2:] in [(), (socket.MSG_TRUNC,)]
    assert waiting.seen == [b"act", b"0123456789", b"third"]


@datagrams()
@each
def test_all_that_follow(waiting: Waiting, way: str) -> None:
    """One handler takes them all, in order."""
    action, following = each_way(100, 0)[way], numbered(6)
    status, results = waiting.act(
        lambda sock: [action(sock)[0] for _ in range(8)],
        [b"act", *following],
        [b"within 1", b"within 2"],
    )
    assert (status, results) == ("returned", [*following, b"within 1", b"within 2"])
    assert waiting.seen == [b"act"]


@datagrams()
@each
def test_nothing_waits(waiting: Waiting, way: str) -> None:
    """MSG_DONTWAIT, setblocking(False) and settimeout() say so."""
    no_waiting = each_way(100, socket.MSG_DONTWAIT)[way]
    assert waiting.act(no_waiting, [b"1", b"act"])[:2] == WOULD_BLOCK
    action = each_way(100, 0)[way]

    def without_blocking(sock: Any) -> Any:
        sock.setblocking(False)
        try:
            return action(sock)
        finally:
            sock.setblocking(True)

    def with_timeout(sock: Any) -> Any:
        sock.settimeout(0.05)
        begin = time.monotonic()
        try:
            return action(sock)
        finally:
            assert time.monotonic() - begin > 0.04
            sock.settimeout(None)

    assert waiting.act(without_blocking, [b"1", b"act"])[:2] == WOULD_BLOCK
    assert waiting.act(with_timeout, [b"1", b"act"]) == (TimeoutError, None, ("timed out",))
    # With something there none of them waits.
    for now in (no_waiting, without_blocking):
        status, result = waiting.act(now, [b"act", b"next"])
        assert (status, result[0]) == ("returned", b"next")
    status, result = waiting.act(lambda sock: action(sock), [b"act", b"next"])
    assert (status, result[0]) == ("returned", b"next")


@datagrams()
def test_a_timeout_and_something_waits(waiting: Waiting) -> None:
    """settimeout() changes nothing about what has come already; the loop can go on with it."""

    def action(sock: Any) -> Any:
        sock.settimeout(20)
        return sock.recv(100)

    assert waiting.act(action, [b"act", b"second", b"third"]) == ("returned", b"second")
    assert waiting.seen == [b"act", b"third"]
    assert waiting.server.socket.gettimeout() == 20


# --- particular sizes and flags


@datagrams()
@each_place
def test_no_bytes(waiting: Waiting, place: str) -> None:
    """recv(0) does nothing at all; the others take a datagram away."""
    following = [b"second", b"third"]
    assert act(waiting, place, lambda sock: sock.recv(0), following) == ("returned", b"")
    assert waiting.seen == [b"act", *following]
    empty = act(waiting, place, lambda sock: sock.recv_into(bytearray(0)), following)
    assert empty == ("returned", 0)
    assert waiting.seen == [b"act", *following]
    found = act(waiting, place, lambda sock: sock.recvfrom(0), following)
    assert found == ("returned", (b"", waiting.name))
    assert waiting.seen == [b"act", b"third"]
    found = act(waiting, place, lambda sock: sock.recvfrom_into(bytearray(0)), following)
    assert found == ("returned", (0, waiting.name))
    assert waiting.seen == [b"act", b"third"]
    for action in (lambda sock: sock.recvmsg(0)[::3], lambda sock: sock.recvmsg_into([])[::3]):
        status, (nothing, name) = act(waiting, place, action, following)
        assert (status, bool(nothing), name) == ("returned", False, waiting.name)
        assert waiting.seen == [b"act", b"third"]


@datagrams()
@each_place
def test_empty_datagrams(waiting: Waiting, place: str) -> None:
    """One of no bytes is a datagram, too."""
    action = lambda sock: [sock.recv(10), sock.recvfrom(10)]  # noqa: E731
    result = act(waiting, place, action, [b"", b"", b"", b"fourth"])
    assert result == ("returned", [b"", (b"", waiting.name)])
    assert waiting.seen == [b"act", b"", b"fourth"]


@datagrams()
@each_place
def test_the_whole_length_of_a_cut_one(waiting: Waiting, place: str) -> None:
    """MSG_TRUNC asks for it."""
    following, flag = [b"0123456789" * 2, b"third"], socket.MSG_TRUNC

    def action(sock: Any) -> Any:
        buffer = bytearray(10)
        return [
            sock.recv_into(buffer, 10, flag | socket.MSG_PEEK),
            sock.recvmsg_into([bytearray(4)], 0, flag | socket.MSG_PEEK)[0],
            sock.recvfrom_into(buffer, 0, flag)[0],
            bytes(buffer),
        ]

    assert act(waiting, place, action, following) == ("returned", [20, 20, 20, b"0123456789"])
    assert waiting.seen == [b"act", b"third"]


@datagrams()
@pytest.mark.parametrize("size", [20_000, 65_000, 150_000])
@each_place
def test_the_next_is_larger_than_max_packet_size(
    ss: ModuleType, kind: DatagramKind, make: Make, size: int, place: str
) -> None:
    """max_packet_size is of the server's requests, not of what a handler receives."""
    if size > 65_507 and kind.transport != "UnixDatagram":
        pytest.skip("no UDP datagram is as large")
    large = bytes(range(250)) * (size // 250)
    waiting = Waiting(ss, kind, make, max_packet_size=100)
    with waiting.client:
        waiting.client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        following = [large, large[:300], b"4"]
        result = act(waiting, place, lambda sock: sock.recvfrom(1 << 18), following)
        assert result == ("returned", (large, waiting.name))
        assert waiting.seen == [b"act", large[:100], b"4"]


WRONG: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
    "recv(-1)": (lambda sock: sock.recv(-1), ValueError),
    "recvfrom(-1)": (lambda sock: sock.recvfrom(-1), ValueError),
    "recvmsg(-1)": (lambda sock: sock.recvmsg(-1), ValueError),
    "recvmsg(9, -1)": (lambda sock: sock.recvmsg(9, -1), ValueError),
    "recvmsg_into negative": (lambda sock: sock.recvmsg_into([bytearray(9)], -1), ValueError),
    "recv_into negative": (lambda sock: sock.recv_into(bytearray(9), -1), ValueError),
    "recvfrom_into negative": (lambda sock: sock.recvfrom_into(bytearray(9), -1), ValueError),
    "recv_into too many": (lambda sock: sock.recv_into(bytearray(9), 10), ValueError),
    "recvfrom_into too many": (lambda sock: sock.recvfrom_into(bytearray(9), 10), ValueError),
    "recv()": (lambda sock: sock.recv(), TypeError),
    "recv(None)": (lambda sock: sock.recv(None), TypeError),
    "recv('9')": (lambda sock: sock.recv("9"), TypeError),
    "recv(9.0)": (lambda sock: sock.recv(9.0), TypeError),
    "recv(9, None)": (lambda sock: sock.recv(9, None), TypeError),
    "recv(9, 0, 0)": (lambda sock: sock.recv(9, 0, 0), TypeError),
    "recv(bufsize=9)": (lambda sock: sock.recv(bufsize=9), TypeError),
    "recvfrom('9')": (lambda sock: sock.recvfrom("9"), TypeError),
    "recvfrom(9, flags=0)": (lambda sock: sock.recvfrom(9, flags=0), TypeError),
    "recvmsg()": (lambda sock: sock.recvmsg(), TypeError),
    "recvmsg('9')": (lambda sock: sock.recvmsg("9"), TypeError),
    "recv_into bytes": (lambda sock: sock.recv_into(b"123"), TypeError),
    "recv_into int": (lambda sock: sock.recv_into(9), TypeError),
    "recv_into text": (lambda sock: sock.recv_into(bytearray(9), "1"), TypeError),
    "recvfrom_into bytes": (lambda sock: sock.recvfrom_into(b"123"), TypeError),
    "recvmsg_into int": (lambda sock: sock.recvmsg_into(9), TypeError),
    "recvmsg_into bytes": (lambda sock: sock.recvmsg_into([b"123"]), TypeError),
    "recv huge": (lambda sock: sock.recv(1 << 70), OverflowError),
}


@datagrams()
@pytest.mark.parametrize("call", WRONG)
def test_wrong_arguments(waiting: Waiting, call: str) -> None:
    """Nothing is received then."""
    action, expected = WRONG[call]
    assert waiting.act(action, [b"act", b"second", b"third"])[0] is expected
    assert waiting.seen == [b"act", b"second", b"third"]


@datagrams()
def test_arguments_by_name(waiting: Waiting) -> None:
    def action(sock: Any) -> Any:
        buffer = bytearray(9)
        peek = socket.MSG_PEEK
        assert sock.recv_into(buffer=buffer, nbytes=3, flags=peek) == 3
        assert sock.recvfrom_into(buffer=buffer, nbytes=4, flags=peek) == (4, waiting.name)
        assert sock.recv_into(memoryview(buffer)[5:]) == 4
        return bytes(buffer)

    result = waiting.act(action, [b"act", b"second", b"third"])
    assert result == ("returned", b"seco\x00seco")
    assert waiting.seen == [b"act", b"third"]


@datagrams()
def test_numbers_of_other_types(waiting: Waiting) -> None:
    """Whatever has __index__()."""

    class Number:
        def __index__(self) -> int:
            return 3

    result = waiting.act(
        lambda sock: [sock.recv(Number()), sock.recvfrom(True)[0]], [b"act", b"second", b"third"]
    )
    assert result == ("returned", [b"sec", b"t"])
    assert waiting.seen == [b"act"]


@datagrams()
@pytest.mark.parametrize("inner", [1, 2])
def test_buffers_that_receive(waiting: Waiting, inner: int) -> None:
    """recvmsg_into() asks for its buffers first; what they receive is not there any more."""

    def action(sock: Any) -> Any:
        taken, buffer = [], bytearray(6)

        def buffers() -> Iterator[bytearray]:
            taken.extend(sock.recv(100) for _ in range(inner))
            yield buffer

        try:
            count = sock.recvmsg_into(buffers(), 0, socket.MSG_DONTWAIT)[0]
        except BlockingIOError:
            return taken, None
        return taken, bytes(buffer[:count])

    result = waiting.act(action, [b"act", b"second", b"third"])
    assert result == ("returned", ([b"second", b"third"][:inner], [b"third", None][inner - 1]))
    assert waiting.seen == [b"act"]


@datagrams()
def test_the_socket_after_all(waiting: Waiting) -> None:
    """What else a program may ask of the socket while datagrams wait."""

    def action(sock: Any) -> Any:
        assert sock is waiting.server.socket
        assert sock.getsockname() == waiting.server.server_address
        assert (sock.type, sock.family) == (socket.SOCK_DGRAM, waiting.server.address_family)
        with pytest.raises(OSError):
            sock.getpeername()
        with pytest.raises(OSError):
            sock.send(b"to nobody")
        return sock.recv(10)

    assert waiting.act(action, [b"act", b"2", b"3"]) == ("returned", b"2")
    assert waiting.seen == [b"act", b"3"]


@datagrams()
def test_outside_of_handlers(waiting: Waiting) -> None:
    """Between two runs of serve_forever()."""
    sock = waiting.server.socket
    assert waiting.act(lambda sock: None, [b"1", b"act", b"2"])[0] == "returned"
    send_all(waiting.client, [b"3", b"4"])
    assert sock.recv(10, socket.MSG_PEEK) == b"3"
    assert [sock.recv(10), sock.recv(10)] == [b"3", b"4"]
    assert nothing_more(sock)
