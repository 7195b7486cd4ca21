"""Many datagrams that wait: each is a request of its own, whatever happens to the one before."""

from __future__ import annotations

import functools
import itertools
import socket
import sys
from types import ModuleType
from typing import Any

import pytest
from datagrams import (
    SERVER_HOOKS,
    DatagramKind,
    Make,
    datagrams,
    echoing,
    handler,
    nothing_more,
    noting,
    numbered,
    receive_all,
    send_all,
    serve,
    serve_until,
    tracing,
)
from support import Trace, connect, fresh_address, new, outcome, serving

HANDLER_HOOKS = ("setup", "handle", "finish")
FINISHED = ("process_request", "finish_request", *HANDLER_HOOKS)
END = ("shutdown_request", "close_request")
every_flavour = datagrams(flavours=("", "Threading"))


class Stop(BaseException):
    pass


# --- hooks


def calls(packet: bytes, *names: str) -> list[str]:
    return [f"{name}({packet.decode()})" for name in names]


@datagrams()
@pytest.mark.parametrize(
    "left_alone", ["", "process_request", "finish_request", "shutdown_request"]
)
def test_hooks_of_each(
    ss: ModuleType, kind: DatagramKind, make: Make, trace: Trace, left_alone: str
) -> None:
    """In the documented order, whichever are overridden; service_actions() after each request."""
    handled = tracing(echoing(ss, []), trace, *HANDLER_HOOKS)
    hooks = [name for name in SERVER_HOOKS if name != left_alone]
    server = make(tracing(kind.server(ss), trace, *hooks, "service_actions"), handled)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            assert receive_all(client, len(packets)) == packets
            trace.wait("service_actions", len(packets))
    called = [event.call for event in trace.events()]
    assert [call for call in called if call != "service_actions()"] == [
        call
        for packet in packets
        for call in calls(packet, "verify_request", *FINISHED, *END)
        if not call.startswith(f"{left_alone}(")
    ]
    for packet, following in itertools.pairwise(packets):
        between = called[: called.index(*calls(following, "verify_request"))]
        between = between[between.index(*calls(packet, "close_request")) :]
        assert "service_actions()" in between


@datagrams(flavours=("Threading",))
def test_hooks_of_each_in_threads(
    ss: ModuleType, kind: DatagramKind, make: Make, trace: Trace
) -> None:
    handled = tracing(echoing(ss, []), trace, *HANDLER_HOOKS)
    server = make(tracing(kind.server(ss), trace, *SERVER_HOOKS), handled)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            assert sorted(receive_all(client, len(packets))) == sorted(packets)
            events = trace.wait("close_request", len(packets))
    for packet in packets:
        of_it = [event.name for event in events if event.args == (packet.decode(),)]
        assert of_it == ["verify_request", *FINISHED, *END]
    taken = [event.args[0].encode() for event in trace.named("verify_request")]
    assert taken == packets


@every_flavour
def test_refused(ss: ModuleType, kind: DatagramKind, make: Make, trace: Trace) -> None:
    """Every third is refused by verify_request(): it is ended, and has no answer."""

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        return int(request[0]) % 3 != 0

    base = new("Server", kind.server(ss), verify_request=verify_request)
    server = make(tracing(base, trace, *SERVER_HOOKS), echoing(ss, []))
    packets = numbered(kind.many)
    accepted = [packet for packet in packets if int(packet) % 3]
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            answers = receive_all(client, len(accepted))
            trace.wait("close_request", len(packets))
        assert nothing_more(client)
    assert (sorted(answers, key=int) if kind.flavour else answers) == accepted
    for packet in packets:
        of_it = [event.name for event in trace.events() if event.args == (packet.decode(),)]
        middle = () if int(packet) % 3 == 0 else ("process_request", "finish_request")
        assert of_it == ["verify_request", *middle, *END]


@every_flavour
def test_handlers_that_raise(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """handle_error() has the request, its address and its exception; the others are served."""
    errors: list[Any] = []
    served: list[bytes] = []

    def handle(self: Any) -> None:
        if int(self.request[0]) % 4 == 0:
            raise ValueError(self.request[0])
        served.append(self.request[0])

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        errors.append((request, client_address, sys.exc_info()[1].args))

    server = make(kind.server(ss), handler(ss, handle), handle_error=handle_error)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        serve_until(server, lambda: len(errors) + len(served) >= len(packets))
        name = client.getsockname()
    failing = [packet for packet in packets if int(packet) % 4 == 0]
    errors.sort(key=lambda error: int(error[0][0]))
    assert errors == [((packet, server.socket), name, (packet,)) for packet in failing]
    assert sorted(served, key=int) == [packet for packet in packets if packet not in failing]


# --- exceptions that leave serve_forever()

LEAVING = ["verify_request", "process_request", "handle", "handle_error", "shutdown_request"]
LEAVING += ["service_actions"]
each_ending = pytest.mark.parametrize(
    "ending", [KeyboardInterrupt(), SystemExit(3), Stop()], ids=lambda e: type(e).__name__
)


class Leaving:
    """A server out of whose serve_forever() an exception comes while it serves b"3"."""

    def __init__(
        self, ss: ModuleType, kind: DatagramKind, make: Make, name: str, ending: BaseException
    ) -> None:
        self.seen: list[bytes] = []
        self.armed = True
        base = kind.server(ss)

        def fail_at(packet: bytes, hook: str) -> None:
            if self.armed and name == hook and packet == b"3":
                self.armed = False
                raise ending

        def handle(handler: Any) -> None:
            self.seen.append(handler.request[0])
            fail_at(handler.request[0], "handle")
            if name == "handle_error":
                raise ValueError

        def hook(hook_name: str) -> Any:
            def called(server: Any, request: Any, *args: Any) -> Any:
                fail_at(request[0], hook_name)
                if hook_name != "handle_error":
                    return getattr(base, hook_name)(server, request, *args)

            return called

        def service_actions(server: Any) -> None:
            fail_at(self.seen[-1] if self.seen else b"", "service_actions")

        hooks = {name: hook(name)} if name not in ("handle", "service_actions") else {}
        if name == "service_actions":
            hooks[name] = service_actions
        hooks.setdefault("handle_error", hook("handle_error"))
        self.server = make(base, handler(ss, handle), **hooks)

    def leave(self, ending: BaseException) -> None:
        with pytest.raises(type(ending)) as caught:
            self.server.serve_forever()
        assert caught.value is ending
        ending.__traceback__ = ending.__context__ = None
        assert not self.armed


def raised_by(name: str, ending: BaseException, packets: list[bytes]) -> list[bytes]:
    """Those whose handler runs."""
    no_handler = {"verify_request", "process_request"}
    return [packet for packet in packets if name not in no_handler or packet != b"3"]


@datagrams()
@pytest.mark.parametrize("name", LEAVING)
@each_ending
def test_nothing_is_lost_when_an_exception_leaves(
    ss: ModuleType, kind: DatagramKind, make: Make, name: str, ending: BaseException
) -> None:
    """The next serve_forever() serves what had arrived."""
    leaving = Leaving(ss, kind, make, name, ending)
    packets = numbered(kind.many)
    with connect(leaving.server) as client:
        send_all(client, packets)
        leaving.leave(ending)
        assert leaving.seen == raised_by(name, ending, packets[:4])
        serve(leaving.server, leaving.seen, raised_by(name, ending, packets))


@datagrams()
def test_error_in_handle_error(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """An Exception, too, and once per serve_forever() if need be."""
    seen: list[bytes] = []

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        raise KeyError(request[0])

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        raise ValueError

    server = make(kind.server(ss), handler(ss, handle), handle_error=handle_error)
    packets = numbered(8)
    with connect(server) as client:
        send_all(client, packets)
        for packet in packets:
            with pytest.raises(KeyError) as caught:
                server.serve_forever()
            assert caught.value.args == (packet,)
            caught.value.__traceback__ = caught.value.__context__ = None
    assert seen == packets


@datagrams()
def test_served_otherwise_after_an_exception(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    """handle_request() and the socket itself have what had arrived, too, and in order."""
    leaving = Leaving(ss, kind, make, "handle", ending := Stop())
    server = leaving.server
    packets = numbered(8)
    with connect(server) as client:
        send_all(client, packets)
        leaving.leave(ending)
        server.timeout = 0
        server.handle_request()
        assert leaving.seen == packets[:5]
        assert server.socket.recvfrom(100) == (b"5", client.getsockname())
        assert server.socket.recv(100, socket.MSG_DONTWAIT) == b"6"
        server._handle_request_noblock()
        assert leaving.seen == [*packets[:5], b"7"]
        assert nothing_more(server.socket)


# --- overridden hooks and changed attributes


def calling_super(base: Any, called: list[bytes]) -> Any:
    def get_request(self: Any) -> Any:
        request, address = base.get_request(self)
        called.append(request[0])
        return request, address

    return get_request


def calling_the_socket(base: Any, called: list[bytes]) -> Any:
    def get_request(self: Any) -> Any:
        data, address = self.socket.recvfrom(100)
        called.append(data)
        return (data, self.socket), address

    return get_request


each_get_request = pytest.mark.parametrize("get_request", [calling_super, calling_the_socket])


@datagrams()
@each_get_request
@pytest.mark.parametrize("where", ["class", "instance", "class while serving", "instance ..."])
def test_get_request_overridden(
    ss: ModuleType, kind: DatagramKind, make: Make, get_request: Any, where: str
) -> None:
    """It is called for each, from then on; and no more once it is taken back."""
    seen: list[bytes] = []
    called: list[bytes] = []
    base = kind.server(ss)

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        place = self.server if where.startswith("instance") else type(self.server)
        if self.request[0] == b"1" and where in ("class while serving", "instance ..."):
            own = get_request(base, called)
            place.get_request = own.__get__(self.server) if place is self.server else own
        if self.request[0] == b"5":
            del place.get_request

    attributes = {"get_request": get_request(base, called)} if where == "class" else {}
    server = make(new("Server", base, **attributes), handler(ss, handle))
    if where == "instance":
        server.get_request = get_request(base, called).__get__(server)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        serve(server, seen, packets)
    assert called == packets[0 if where in ("class", "instance") else 2 : 6]


@datagrams()
def test_socket_replaced(ss: ModuleType, kind: DatagramKind, make: Make, folder: str) -> None:
    """By a handler: the new one's datagrams are served, the old one's can be read from it."""
    seen: list[bytes] = []
    base = kind.server(ss)
    new_socket = socket.socket(base.address_family, socket.SOCK_DGRAM)
    new_socket.setblocking(False)

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if self.request[0] == b"2":
            self.server.socket = new_socket

    server = make(base, handler(ss, handle))
    with server.socket as old_socket, connect(server) as client:
        new_socket.bind(fresh_address(base, folder))
        send_all(client, numbered(8))
        client.connect(new_socket.getsockname())
        send_all(client, numbered(4, 100))
        serve(server, seen, numbered(3) + numbered(4, 100))
        old_socket.setblocking(False)
        assert receive_all(old_socket, 5) == numbered(5, 3)
        assert nothing_more(old_socket)


@datagrams()
def test_handle_request_noblock_overridden(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """One call takes one datagram."""
    seen: list[bytes] = []
    counts: list[int] = []
    base = kind.server(ss)

    def _handle_request_noblock(self: Any) -> None:
        before = len(seen)
        base._handle_request_noblock(self)
        counts.append(len(seen) - before)

    attributes = {"_handle_request_noblock": _handle_request_noblock}
    server = make(base, noting(ss, seen), **attributes)
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        serve(server, seen, packets)
    assert counts == [1] * len(packets)


@datagrams()
@pytest.mark.parametrize("name", ["process_request", "finish_request"])
def test_step_overridden_without_super(
    ss: ModuleType, kind: DatagramKind, make: Make, name: str
) -> None:
    """The server's own way of serving; the requests stay valid as long as it keeps them."""
    kept: list[Any] = []
    server = make(
        kind.server(ss),
        **{name: lambda self, request, client_address: kept.append((request, client_address))},
    )
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        serve_until(server, lambda: len(kept) >= len(packets))
        name = client.getsockname()
    assert kept == [((packet, server.socket), name) for packet in packets]
    assert {type(request) for request, _ in kept} == {tuple}
    assert {type(request[0]) for request, _ in kept} == {bytes}


@datagrams()
@pytest.mark.parametrize("way", ["lambda", "partial", "replaced"])
def test_request_handler_class(ss: ModuleType, kind: DatagramKind, make: Make, way: str) -> None:
    """Whatever can be called with (request, client_address, server)."""
    seen: list[bytes] = []

    def handle(extra: bytes, request: Any, client_address: Any, server: Any) -> None:
        seen.append(request[0] + extra)
        if way == "replaced" and request[0] == b"2":
            server.RequestHandlerClass = functools.partial(handle, b"!")

    classes: dict[str, Any] = {"lambda": lambda *args: handle(b"", *args)}
    server = make(kind.server(ss), classes.get(way, functools.partial(handle, b"")))
    packets = numbered(kind.many)
    expected = [packet + b"!" * (way == "replaced" and int(packet) > 2) for packet in packets]
    with connect(server) as client:
        send_all(client, packets)
        serve(server, seen, expected)


@datagrams()
def test_max_packet_size_changes(ss: ModuleType, kind: DatagramKind, make: Make) -> None:
    """It holds from the next request on, for datagrams that had arrived before, too."""
    seen: list[bytes] = []
    sizes: dict[int, Any] = {1: 3, 3: 100, 5: 0, 6: 9}

    def handle(self: Any) -> None:
        if len(seen) in sizes:
            type(self.server).max_packet_size = sizes[len(seen)]
        if len(seen) == 2:
            self.server.max_packet_size = 2
        elif len(seen) == 3:
            del self.server.max_packet_size
        seen.append(self.request[0])

    server = make(kind.server(ss), handler(ss, handle), max_packet_size=6)
    with connect(server) as client:
        send_all(client, [b"0123456789"] * 8)
        serve_until(server, lambda: len(seen) >= 8)
    assert [len(packet) for packet in seen] == [6, 6, 3, 2, 10, 10, 0, 9]
    assert all(b"0123456789".startswith(packet) for packet in seen)


@datagrams()
@pytest.mark.parametrize("size", [-1, "many", None], ids=repr)
def test_bad_max_packet_size(ss: ModuleType, kind: DatagramKind, make: Make, size: Any) -> None:
    """What recvfrom() says to it leaves serve_forever(), and takes no datagram."""
    seen: list[bytes] = []

    def handle(self: Any) -> None:
        seen.append(self.request[0])
        if len(seen) == 2:
            type(self.server).max_packet_size = size

    server = make(new("Server", kind.server(ss)), handler(ss, handle))
    packets = numbered(6)
    with connect(server) as client:
        send_all(client, packets)
        assert outcome(server.serve_forever)[0] is (ValueError if size == -1 else TypeError)
        type(server).max_packet_size = 100
        serve(server, seen, packets)


@every_flavour
def test_a_fileno_that_is_overridden_meanwhile(
    ss: ModuleType, kind: DatagramKind, make: Make
) -> None:
    """What has been received before that is served all the same."""

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        if request[0] == packets[2]:
            self.fileno = self.socket.fileno
        return True

    server = make(new("Server", kind.server(ss), verify_request=verify_request), echoing(ss, []))
    packets = numbered(kind.many)
    with connect(server) as client:
        send_all(client, packets)
        with serving(server):
            assert sorted(receive_all(client, len(packets))) == sorted(packets)
