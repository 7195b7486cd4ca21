"""gather_replies: what handlers reply to one batch leaves together, when the batch is done."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    FEW,
    DatagramKind,
    Make,
    arrived,
    datagrams,
    nothing_more,
    numbered,
    send_all,
    tracing,
)
from support import TIMEOUT, Trace, connect, new, outcome, serving, wait_until

pytestmark = pytest.mark.fastsock_only(reason="not in the standard library")
PACKETS = numbered(FEW)


class Gathering:
    """A server that gathers, and a client.

    told: what the handler of a packet does besides writing it to wfile.
    seen: what the client had received at the end of each handler.
    """

    def __init__(self, ss: ModuleType, kind: DatagramKind, make: Make, **attributes: Any) -> None:
        self.told: dict[bytes, Callable[[Any], Any]] = {}
        self.seen: dict[bytes, list[bytes]] = {}
        self.errors: list[tuple[bytes, Any, BaseException]] = []
        self.received: list[bytes] = []
        self.looking = True
        gathering = self

        class Handler(ss.DatagramRequestHandler):
            def handle(self) -> None:
                self.wfile.write(self.packet)
                try:
                    if self.packet in gathering.told:
                        gathering.told[self.packet](self)
                finally:
                    gathering.received += arrived(gathering.client) if gathering.looking else []
                    gathering.seen[self.packet] = list(gathering.received)

        def handle_error(server: Any, request: Any, client_address: Any) -> None:
            error = sys.exc_info()[1]
            assert error is not None
            self.errors.append((request[0], client_address, error.with_traceback(None)))

        self.handler = Handler
        base = new("Gathering", kind.server(ss), gather_replies=True, handle_error=handle_error)
        self.server = make(base, Handler, **attributes)
        self.client = connect(self.server)

    def run(self, packets: list[bytes], expected: list[bytes]) -> None:
        """All of these wait; these are the answers."""
        send_all(self.client, packets)
        with serving(self.server):
            self.wait_for(packets[-1], expected)

    def wait_for(self, last: bytes, expected: list[bytes]) -> None:
        """Until the last handler has ended the client belongs to the handlers."""
        wait_until(lambda: last in self.seen)
        while len(self.received) < len(expected):
            self.received.append(self.client.recv(1 << 18))
        assert self.received == expected
        assert nothing_more(self.client)

    def failed(self) -> list[tuple[bytes, Any]]:
        return [(packet, getattr(error, "errno", None)) for packet, _, error in self.errors]


@pytest.fixture
def gathering(ss: ModuleType, kind: DatagramKind, make: Make) -> Iterator[Gathering]:
    gathering = Gathering(ss, kind, make)
    yield gathering
    gathering.client.close()


def refill(handler: Any) -> None:
    handler.wfile.seek(0)
    handler.wfile.truncate()


# --- when they are sent


@datagrams()
def test_they_leave_together(gathering: Gathering) -> None:
    gathering.run(PACKETS, PACKETS)
    assert gathering.seen == {packet: [] for packet in PACKETS}


@datagrams()
def test_off_by_default(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """Each leaves when its handler ends."""
    assert ss.UDPServer.gather_replies is False
    gathering = Gathering(ss, kind, make, gather_replies=False)
    with gathering.client:
        gathering.run(PACKETS, PACKETS)
    assert gathering.seen == {packet: PACKETS[: int(packet)] for packet in PACKETS}


@datagrams("UDP", "UDP6")
def test_several_batches(gathering: Gathering) -> None:
    packets = numbered(200)
    gathering.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    gathering.run(packets, packets)
    assert gathering.seen[b"30"] == []
    assert len(gathering.seen[b"199"]) >= 100
    for packet in packets:
        assert gathering.seen[packet] == packets[: len(gathering.seen[packet])]


@datagrams()
def test_a_lone_one_is_answered_at_once(gathering: Gathering) -> None:
    """Whether it is the first or comes after others; there is no batch then."""
    gathering.looking = False
    with serving(gathering.server, 60.0):
        for packet in PACKETS:
            gathering.client.send(packet)
            assert gathering.client.recv(100) == packet


@datagrams()
def test_handle_request_answers_at_once(gathering: Gathering) -> None:
    send_all(gathering.client, PACKETS)
    for packet in PACKETS:
        gathering.server.handle_request()
        assert gathering.client.recv(100, socket.MSG_DONTWAIT) == packet


@datagrams()
def test_turned_on_and_off(gathering: Gathering) -> None:
    """Where it is looked up does not matter; the order is kept, however it changes."""
    server = gathering.server

    def change(value: bool) -> Callable[[Any], None]:
        return lambda handler: setattr(server, "gather_replies", value)

    gathering.told = {b"2": change(False), b"5": change(True)}
    gathering.run(PACKETS, PACKETS)


@datagrams("UDP", "UnixDatagram", flavours=("Threading", "Forking"))
def test_threads_and_processes(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """They do not wait for each other's replies."""

    def handle(self: Any) -> None:
        self.wfile.write(self.packet)

    handled = new("Handler", ss.DatagramRequestHandler, handle=handle)
    server = make(kind.server(ss), handled, gather_replies=True)
    with connect(server) as client:
        send_all(client, PACKETS)
        with serving(server):
            assert sorted(client.recv(100) for _ in PACKETS) == PACKETS
        server.server_close()
        assert nothing_more(client)


# --- what sends them first


def receive_next(sock: Any, address: Any) -> None:
    assert sock.recvfrom(100) == (b"4", address)


SENDING: dict[str, Callable[[Any, Any], Any]] = {
    "sendto": lambda sock, address: sock.sendto(b"direct", address),
    "sendto with flags": lambda sock, address: sock.sendto(b"direct", 0, address),
    "sendmsg": lambda sock, address: sock.sendmsg([b"di", b"rect"], [], 0, address),
}
FLUSHING: dict[str, Callable[[Any, Any], Any]] = {
    "send": lambda sock, address: outcome(sock.send, b"nobody is connected"),
    "sendall": lambda sock, address: outcome(sock.sendall, b"nobody is connected"),
    "recv": lambda sock, address: sock.recv(100),
    "recvfrom": receive_next,
    "recv_into": lambda sock, address: sock.recv_into(bytearray(100)),
    "recvfrom_into": lambda sock, address: sock.recvfrom_into(bytearray(100)),
    "recvmsg": lambda sock, address: sock.recvmsg(100),
    "recvmsg_into": lambda sock, address: sock.recvmsg_into([bytearray(100)]),
    "peek": lambda sock, address: sock.recv(100, socket.MSG_PEEK),
}


@datagrams()
@pytest.mark.parametrize("way", SENDING)
def test_what_is_sent_directly_comes_after_them(gathering: Gathering, way: str) -> None:
    gathering.told[b"3"] = lambda handler: SENDING[way](handler.socket, handler.client_address)
    expected = [*PACKETS[:3], b"direct", *PACKETS[3:]]
    gathering.run(PACKETS, expected)
    assert gathering.seen[b"2"] == []
    assert gathering.seen[b"3"] == gathering.seen[b"7"] == expected[:4]


@datagrams()
@pytest.mark.parametrize("way", FLUSHING)
def test_what_sends_them_first(gathering: Gathering, way: str) -> None:
    gathering.told[b"3"] = lambda handler: FLUSHING[way](handler.socket, handler.client_address)
    taken = way.startswith("recv")
    expected = [packet for packet in PACKETS if packet != b"4" or not taken]
    gathering.run(PACKETS, expected)
    assert gathering.seen[b"2"] == []
    assert gathering.seen[b"3"] == gathering.seen[b"7"] == expected[:3]


@datagrams()
def test_what_a_plain_handler_sends(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """BaseRequestHandler and DatagramRequestHandler in turn: the order is that of the requests."""
    gathering = Gathering(ss, kind, make)

    def handle(self: Any) -> None:
        self.request[1].sendto(self.request[0], self.client_address)

    plain = new("Plain", ss.BaseRequestHandler, handle=handle)

    def choose(request: Any, address: Any, server: Any) -> Any:
        chosen = plain if int(request[0]) % 3 == 0 else gathering.handler
        return chosen(request, address, server)

    gathering.server.RequestHandlerClass = choose
    with gathering.client:
        gathering.run(PACKETS, PACKETS)


# --- what fails


def write_too_much(handler: Any) -> None:
    handler.wfile.write(b"x" * (1 << 23 if handler.socket.family == socket.AF_UNIX else 70_000))


@datagrams()
def test_one_that_is_too_large(gathering: Gathering) -> None:
    """It goes to handle_error() with its own request, and all others are sent."""
    gathering.told = {b"2": write_too_much, b"3": write_too_much, b"7": write_too_much}
    gathering.run(PACKETS, [b"0", b"1", b"4", b"5", b"6"])
    assert gathering.failed() == [(packet, errno.EMSGSIZE) for packet in (b"2", b"3", b"7")]
    name = gathering.client.getsockname()
    assert [address for _, address, _ in gathering.errors] == [name] * 3


@datagrams("UnixDatagram")
@pytest.mark.parametrize("kind_of_end", ["closed", "unlinked", "unnamed"])
def test_a_client_that_cannot_be_reached(
    gathering: Gathering, folder: str, kind_of_end: str
) -> None:
    client, server = gathering.client, gathering.server
    path = os.path.join(folder, "gone")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
        if kind_of_end != "unnamed":
            gone.bind(path)
        gone.connect(server.server_address)
        send_all(client, [b"0", b"1"])
        gone.send(b"gone")
        client.send(b"2")
        gone.send(b"gone, too")
        if kind_of_end == "unlinked":
            os.unlink(path)
        elif kind_of_end == "closed":
            gone.close()
        gathering.run([b"3", b"4"], numbered(5))
    wait_until(lambda: len(gathering.errors) == 2)
    assert [packet for packet, _, _ in gathering.errors] == [b"gone", b"gone, too"]
    expected = {"closed": ConnectionRefusedError, "unlinked": FileNotFoundError}
    for _, address, error in gathering.errors:
        assert address == (None if kind_of_end == "unnamed" else path)
        assert type(error) is expected.get(kind_of_end, TypeError)


@datagrams("UnixDatagram")
def test_a_full_receiver_is_waited_for(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """A client which reads late gets everything."""
    gathering = Gathering(ss, kind, make)
    queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 1
    with gathering.client, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.bind("")
        late.settimeout(TIMEOUT)
        with serving(gathering.server):
            for packet in numbered(queue):
                late.sendto(packet, gathering.server.server_address)
            wait_until(lambda: len(gathering.seen) == queue)
            for packet in numbered(FEW, queue):
                late.sendto(packet, gathering.server.server_address)
            assert [late.recv(100) for _ in range(queue + FEW)] == numbered(queue + FEW)
        assert nothing_more(late)


@datagrams()
def test_handlers_that_raise(gathering: Gathering) -> None:
    """finish() replies all the same, as it does without gathering."""

    def fail(handler: Any) -> None:
        raise ValueError("boom")

    gathering.told = {b"1": fail, b"7": fail}
    gathering.run(PACKETS, PACKETS)
    assert [(packet, type(error)) for packet, _, error in gathering.errors] == [
        (b"1", ValueError),
        (b"7", ValueError),
    ]


@datagrams()
@pytest.mark.parametrize("packet", [b"3", b"7"])
@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_an_exception_that_leaves(
    gathering: Gathering, packet: bytes, ending: BaseException
) -> None:
    """serve_forever() is left; what was gathered before is not lost, and neither is the rest."""

    def leave(handler: Any) -> None:
        raise ending

    gathering.told[packet] = leave
    send_all(gathering.client, PACKETS)
    with pytest.raises(type(ending)):
        gathering.server.serve_forever()
    ending.__traceback__ = None
    with serving(gathering.server):
        gathering.wait_for(PACKETS[-1], PACKETS)


@datagrams()
def test_an_exception_that_leaves_handle_error(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    """Of a reply that failed: the replies after it are sent nevertheless."""
    ending = SystemExit(3)

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        raise ending

    gathering = Gathering(ss, kind, make, handle_error=handle_error)
    gathering.told[b"3"] = write_too_much
    with gathering.client:
        send_all(gathering.client, PACKETS)
        with pytest.raises(SystemExit) as caught:
            gathering.server.serve_forever()
        assert caught.value is ending
        ending.__traceback__ = ending.__context__ = None
        with serving(gathering.server):
            gathering.wait_for(PACKETS[-1], [packet for packet in PACKETS if packet != b"3"])


@datagrams()
def test_hooks(ss: ModuleType, kind: DatagramKind, make: Make, trace: Trace) -> None:
    """Each request is ended once, as without gathering, also if its reply fails later."""
    hooks = ("verify_request", "finish_request", "shutdown_request", "close_request")
    recorded = DatagramKind(kind.flavour, kind.transport)
    gathering = Gathering(ss, recorded, make)
    gathering.server.__class__ = tracing(type(gathering.server), trace, *hooks)
    gathering.told[b"3"] = write_too_much
    with gathering.client:
        gathering.run(PACKETS, [packet for packet in PACKETS if packet != b"3"])
    assert [event.call for event in trace.events()] == [
        f"{name}({packet.decode()})" for packet in PACKETS for name in hooks
    ]
    assert gathering.failed() == [(b"3", errno.EMSGSIZE)]


@datagrams()
def test_other_peers_in_one_batch(gathering: Gathering) -> None:
    """Each gets its own, in order."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(connect(gathering.server)) for _ in range(3)]
        for packet in (b"a", b"b"):
            for number, other in enumerate(others):
                other.send(packet + b"%d" % number)
        gathering.run([b"x", b"y"], [b"x", b"y"])
        for number, other in enumerate(others):
            assert [other.recv(100), other.recv(100)] == [b"a%d" % number, b"b%d" % number]


@datagrams()
def test_reply_if_empty(gathering: Gathering) -> None:
    def say_nothing(handler: Any) -> None:
        refill(handler)
        handler.reply_if_empty = handler.packet == b"3"

    gathering.told = {b"2": say_nothing, b"3": say_nothing, b"7": say_nothing}
    gathering.run(PACKETS, [b"0", b"1", b"", b"4", b"5", b"6"])


@datagrams()
def test_closing_the_server_in_the_middle(gathering: Gathering) -> None:
    """What was gathered is sent before the socket is closed."""

    def close(handler: Any) -> None:
        handler.server.server_close()

    gathering.told[b"3"] = close
    send_all(gathering.client, PACKETS)
    outcome(gathering.server.serve_forever)
    assert (gathering.received + arrived(gathering.client))[:3] == PACKETS[:3]


@datagrams("UDP")
def test_fork_in_a_handler(gathering: Gathering) -> None:
    """The child sends nothing of what the parent has gathered."""

    def fork(handler: Any) -> None:
        pid = os.fork()
        if not pid:
            try:
                handler.socket.sendto(b"child", handler.client_address)
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    gathering.told[b"3"] = fork
    gathering.run(PACKETS, [b"child", *PACKETS])
