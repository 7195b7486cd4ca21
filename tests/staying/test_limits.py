"""max_connections, max_connections_per_peer, overload: how many connections a server takes."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from living import Living, echo, until_end
from support import TIMEOUT, Background, connect, wait_until

Live = Callable[..., Living]
SEVERAL = ("threading", "multiplexing")  # that serve several connections at a time


@pytest.fixture(params=SEVERAL)
def several(request: pytest.FixtureRequest) -> str:
    if request.param == "multiplexing":
        pytest.importorskip("greenlet")
    return str(request.param)


def peer_key(peer: object) -> Any:
    return importlib.import_module("fastsock._limits").peer_key(peer)


def ledger(living: Living) -> Any:
    return living.server._fastsock.ledger


def is_served(living: Living, client: socket.socket) -> None:
    assert living.ask(client, b"hello\n") == b"hello\n"


def full(living: Living, count: int) -> list[socket.socket]:
    """So many connections that are served."""
    clients = [living.connect() for _ in range(count)]
    for client in clients:
        is_served(living, client)
    return clients


def knock(living: Living) -> socket.socket:
    """A client that has asked for something, and may have to wait."""
    living.waiting.append(living.connect(b"hello\n"))  # type: ignore[attr-defined]
    return living.waiting[-1]  # type: ignore[attr-defined, no-any-return]


def is_held(living: Any) -> bool:
    """Whether the loop has had time to take who waits, and has not."""
    passes = len(living.passes)
    wait_until(lambda: len(living.passes) > passes + 2)
    waiting = [client for client in living.waiting if client.fileno() >= 0]
    accepted = ledger(living).accepted
    return not select.select(waiting, [], [], 0)[0] and accepted == ledger(living).accepted


def served(live: Live, flavour: str, handle: Any = echo, *args: Any, **attributes: Any) -> Living:
    """A server that counts the passes of its loop."""
    passes: list[None] = []
    attributes.setdefault("service_actions", lambda server: passes.append(None))
    living = live(flavour, handle, *args, poll_interval=0.05, **attributes)
    living.passes = passes  # type: ignore[attr-defined]
    living.waiting = []  # type: ignore[attr-defined]
    return living


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# --- waiting


def test_those_beyond_wait_in_the_backlog(live: Live, several: str) -> None:
    living = served(live, several, max_connections=2)
    first = full(living, 2)
    third = knock(living)
    assert is_held(living)
    assert ledger(living).active == 2
    for client in first:
        is_served(living, client)
    first[0].close()
    assert third.recv(6) == b"hello\n"
    assert ledger(living).refused == {}
    assert ledger(living).peak == 2


def test_sync_serves_one_at_a_time_anyway(live: Live) -> None:
    living = live("sync", echo, max_connections=1)
    for _ in range(3):
        with connect(living.server) as client:
            is_served(living, client)
    assert ledger(living).peak == 1


@pytest.mark.parametrize("most", [1, 2, 3, 16, 24])
def test_an_eighth_has_to_end_first(live: Live, most: int) -> None:
    """At least one."""
    living = served(live, "threading", max_connections=most)
    clients = full(living, most)
    waiting = knock(living)
    enough = most - max(1, most // 8)
    while len(clients) - 1 > enough:
        clients.pop().close()
        wait_until(lambda: ledger(living).active == len(clients))
        assert is_held(living)
    clients.pop().close()
    assert waiting.recv(6) == b"hello\n"


def test_it_is_never_exceeded(live: Live, several: str) -> None:
    """By 60 clients who come and go."""

    def come(number: int) -> None:
        for _ in range(5):
            with connect(living.server) as client:
                client.sendall(b"%d\n" % number)
                assert client.recv(10) == b"%d\n" % number

    living = live(several, echo, max_connections=5)
    for client in [Background(come, number) for number in range(30)]:
        client.result()
    assert ledger(living).accepted == 150
    assert ledger(living).peak <= 5


def test_with_max_threads(live: Live) -> None:
    """Neither is exceeded; the listener is held for one, then the other."""
    living = served(live, "threading", max_connections=3, max_threads=2)
    clients = full(living, 2)
    third, fourth, fifth = (knock(living) for _ in range(3))
    assert is_held(living)
    living.server.max_threads = 10
    clients.pop().close()
    assert third.recv(6) == b"hello\n"
    assert fourth.recv(6) == b"hello\n"
    assert is_held(living)
    assert ledger(living).active == 3
    clients.pop().close()
    assert fifth.recv(6) == b"hello\n"
    assert ledger(living).peak == 3


def test_one_that_resets_is_gone(live: Live, several: str) -> None:
    living = served(live, several, max_connections=2)
    first = full(living, 2)
    waiting = [living.connect() for _ in range(20)]
    assert is_held(living)
    for client in [*waiting[:10], *first]:
        reset(client)
    waiting[15].sendall(b"hello\n")
    for client in waiting[10:15]:
        reset(client)
    assert waiting[15].recv(6) == b"hello\n"
    assert ledger(living).peak <= 2


def test_shutdown_while_held(live: Live, several: str) -> None:
    living = served(live, several, max_connections=1, daemon_threads=several == "threading")
    (first,) = full(living, 1)
    waiting = knock(living)
    assert is_held(living)
    begin = time.monotonic()
    living.server.shutdown()
    assert time.monotonic() - begin < TIMEOUT / 4
    if several == "multiplexing":
        first.close()  # its loop waits for handlers, and takes nobody any more
    living.loop.join(TIMEOUT)
    living.serve()  # the same limit, and the same connections
    if several == "threading":
        is_served(living, first)
        assert is_held(living)
        first.close()
    assert waiting.recv(6) == b"hello\n"


def test_drain_while_held(live: Live, several: str) -> None:
    """Who waits is still served, one after the other."""
    living = served(live, several, max_connections=1)
    (first,) = full(living, 1)
    waiting = [knock(living) for _ in range(3)]
    for client in waiting:
        client.shutdown(socket.SHUT_WR)
    assert is_held(living)
    draining = living.drain_beside(TIMEOUT)
    assert until_end(first) == b""
    assert [until_end(client) for client in waiting] == [b"hello\n"] * 3
    report, _ = draining.result()
    assert report.cut_off == 0
    assert ledger(living).peak == 1


def test_the_loop_still_does_everything_else(live: Live) -> None:
    """service_actions(), and other servers of the same loop."""
    fastsock = importlib.import_module("fastsock")
    held = served(live, "threading", serves=False, max_connections=1)
    free = live("threading", echo, serves=False)
    loop = Background(fastsock.serve_forever, held.server, free.server, poll_interval=0.01)
    try:
        (first,) = full(held, 1)
        waiting = knock(held)
        assert is_held(held)
        full(free, 3)
        first.close()
        assert waiting.recv(6) == b"hello\n"
    finally:
        held.server.shutdown()
        free.server.shutdown()
        loop.result()


# --- limits that change


def test_a_limit_that_is_raised_or_removed(live: Live, several: str) -> None:
    living = served(live, several, max_connections=1)
    full(living, 1)
    second, third = knock(living), None
    assert is_held(living)
    living.server.max_connections = 2
    assert second.recv(6) == b"hello\n"
    third = knock(living)
    assert is_held(living)
    living.server.max_connections = None
    assert third.recv(6) == b"hello\n"
    full(living, 5)


def test_a_limit_that_is_set_or_lowered(live: Live, several: str) -> None:
    """On the class, too."""
    living = served(live, several)
    clients = full(living, 6)
    type(living.server).max_connections = 6
    waiting = knock(living)
    assert is_held(living)
    assert ledger(living).active == 6
    type(living.server).max_connections = 4
    clients.pop().close()
    clients.pop().close()
    wait_until(lambda: ledger(living).active == 4)
    assert is_held(living)
    clients.pop().close()
    assert waiting.recv(6) == b"hello\n"
    del type(living.server).max_connections
    full(living, 10)


def test_overload_that_changes(live: Live, several: str) -> None:
    living = served(live, several, max_connections=1)
    full(living, 1)
    waiting = knock(living)
    assert is_held(living)
    living.server.overload = "reject"
    assert is_closed(waiting)
    waiting.close()
    assert ledger(living).refused == {"max_connections": 1}
    living.server.overload = "wait"
    waiting = knock(living)
    assert is_held(living)
    living.server.max_connections = 2
    assert waiting.recv(6) == b"hello\n"


@pytest.mark.parametrize("most", ["many", 0, -3, 2.0, True, None, object(), [1]], ids=str)
def test_what_is_no_limit(live: Live, several: str, most: Any) -> None:
    """A program may have attributes of these names for itself."""
    living = live(several, echo, max_connections=most, max_connections_per_peer=most, overload=most)
    full(living, 4)
    assert ledger(living).refused == {}


def test_properties_that_fail(live: Live, several: str) -> None:
    @property  # type: ignore[misc]
    def fails(server: Any) -> int:
        raise RuntimeError("not yet")

    living = live(several, echo, max_connections=fails, max_connections_per_peer=fails)
    full(living, 4)


def test_properties_and_attribute_hooks(live: Live, several: str) -> None:
    """What Python finds holds."""
    most = [2]
    living = served(
        live,
        several,
        max_connections=property(lambda server: most[0]),
        __getattr__=lambda server, name: object.__getattribute__(server, name),
    )
    clients = full(living, 2)
    waiting = knock(living)
    assert is_held(living)
    most[0] = 3
    assert waiting.recv(6) == b"hello\n"
    del clients


def test_a_leader_does_not_know_of_limits(live: Live) -> None:
    """The thread of a request that takes the next ones in the loop's place, until one is set."""

    def short(handler: Any) -> None:
        if (line := handler.rfile.readline()) != b"hello\n":
            handler.gate.wait()
        handler.wfile.write(line)

    living = served(live, "threading", short, service_actions=lambda server: None)
    del type(living.server).service_actions  # the default: else there is no leader
    for number in range(300):
        with connect(living.server) as client:
            client.sendall(b"hello\n")
            assert until_end(client) == b"hello\n"
        if number == 200:
            living.server.max_connections = 2
    clients = [living.connect(b"wait\n") for _ in range(2)]
    wait_until(lambda: ledger(living).active == 2)
    with connect(living.server) as client:
        client.sendall(b"hello\n")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(6)
    living.gate.open()
    assert [until_end(client) for client in clients] == [b"wait\n"] * 2


# --- rejecting


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(10) == b""
    except ConnectionResetError:
        return True


def test_those_beyond_are_rejected(live: Live, several: str) -> None:
    refused = []
    living = live(
        several,
        echo,
        max_connections=2,
        overload="reject",
        connection_refused=lambda server, *args: refused.append(args),
    )
    first = full(living, 2)
    for _ in range(3):
        client = living.connect()
        assert is_closed(client)
        assert refused.pop() == (client.getsockname(), "max_connections")
    assert ledger(living).refused == {"max_connections": 3}
    assert ledger(living).accepted == 2 + 3  # as of any that is taken and refused
    first[0].close()
    wait_until(lambda: ledger(living).active == 1)
    is_served(living, living.connect())


def test_rejecting_lasts_until_an_eighth_has_ended(live: Live) -> None:
    living = live("threading", echo, max_connections=16, overload="reject")
    clients = full(living, 16)
    assert is_closed(living.connect())
    clients.pop().close()
    wait_until(lambda: ledger(living).active == 15)
    assert is_closed(living.connect())
    clients.pop().close()
    wait_until(lambda: ledger(living).active == 14)
    clients += full(living, 2)
    assert is_closed(living.connect())


def test_a_refused_one_that_lingers_does_not_hold_the_loop(live: Live) -> None:
    living = live("threading", echo, max_connections=1, overload="reject", lingering_close=True)
    (first,) = full(living, 1)
    begin = time.monotonic()
    for _ in range(5):
        living.connect(b"still there")
    wait_until(lambda: ledger(living).refused == {"max_connections": 5})
    assert time.monotonic() - begin < 1.5
    is_served(living, first)


def test_one_that_is_no_connection_does_not_hold_the_loop_either(live: Live) -> None:
    closed = []

    def get_request(server: Any) -> Any:
        request, address = server.socket.accept()
        return socket.socket(fileno=request.detach()), address

    def close_request(server: Any, request: Any) -> None:
        closed.append(request)
        request.close()

    living = live("threading", echo, max_connections=1, overload="reject", lingering_close=True,
                  get_request=get_request, close_request=close_request)  # fmt: skip
    (first,) = full(living, 1)
    begin = time.monotonic()
    for _ in range(3):
        living.connect(b"still there")
    wait_until(lambda: len(closed) == 3)
    assert time.monotonic() - begin < 1.5
    is_served(living, first)


def test_a_refusal_goes_through_the_hooks(live: Live) -> None:
    ended = []

    def shutdown_request(server: Any, request: Any) -> None:
        ended.append(request)
        request.close()

    living = live(
        "threading", echo, max_connections=1, overload="reject", shutdown_request=shutdown_request
    )
    full(living, 1)
    assert is_closed(living.connect())
    assert len(ended) == 1


def test_a_hook_that_fails_ends_the_loop(live: Live) -> None:
    """As one of verify_request() does; the connection is closed."""

    def connection_refused(server: Any, address: Any, reason: str) -> None:
        raise LookupError(reason)

    living = live(
        "threading", echo, max_connections=1, overload="reject", daemon_threads=True,
        connection_refused=connection_refused,
    )  # fmt: skip
    full(living, 1)
    assert is_closed(living.connect())
    with pytest.raises(LookupError):
        living.loop.result()
    living.loop = None


def test_hooks_of_the_program_s_own(live: Live) -> None:
    """It may have a thing of that name which is no function."""
    living = live("threading", echo, handle_accept_error=5, connection_refused="yes",
                  max_connections=1, overload="reject")  # fmt: skip
    full(living, 1)
    assert is_closed(living.connect())


# --- by peer


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        (("1.2.3.4", 5), "1.2.3.4"),
        (("::ffff:1.2.3.4", 5, 0, 0), "1.2.3.4"),
        (("::FFFF:102:304", 5, 0, 0), "1.2.3.4"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), bytes.fromhex("20010db800010002")),
        (("2001:db8:1:2::", 7, 0, 0), bytes.fromhex("20010db800010002")),
        (("2001:db8:1:3::", 7, 0, 0), bytes.fromhex("20010db800010003")),
        (("fe80::1%eth0", 7, 0, 2), bytes.fromhex("fe80000000000000")),
        (("::1", 7, 0, 0), bytes(8)),
        (("::1.2.3.4", 7, 0, 0), bytes(8)),  # no mapped one
        (("no address", 7, 0, 0), "no address"),
        (("\udc80\N{SNOWMAN}", 7, 0, 0), "\udc80\N{SNOWMAN}"),
        (("name", "b"), "name"),
        ("", None),
        (b"\0name", None),
        ("/path", None),
        (None, None),
        ((), None),
        ((1, 2), None),
        ((3,), None),
    ],
    ids=str,
)
def test_whom_connections_count_for(peer: Any, key: Any) -> None:
    assert peer_key(peer) == key


def from_address(living: Living, address: str) -> socket.socket:
    client = living.stack.enter_context(socket.socket())
    client.settimeout(TIMEOUT)
    client.bind((address, 0))
    client.connect(living.server.server_address)
    return client


def test_one_peer_has_too_many(live: Live, several: str) -> None:
    refused = []
    living = live(
        several,
        echo,
        max_connections_per_peer=2,
        connection_refused=lambda server, *args: refused.append(args),
    )
    first = full(living, 2)
    client = living.connect()
    assert is_closed(client)
    assert refused == [(client.getsockname(), "max_connections_per_peer")]
    others = [from_address(living, "127.0.0.2") for _ in range(2)]
    for other in others:
        is_served(living, other)
    assert is_closed(from_address(living, "127.0.0.2"))
    first[0].close()
    wait_until(lambda: ledger(living).active == 3)
    is_served(living, living.connect())
    assert ledger(living).refused == {"max_connections_per_peer": 2}


def test_set_on_the_way_it_counts_those_who_are_there(live: Live, several: str) -> None:
    living = live(several, echo)
    clients = full(living, 3)
    living.server.max_connections_per_peer = 3
    assert is_closed(living.connect())
    clients.pop().close()
    wait_until(lambda: ledger(living).active == 2)
    full(living, 1)
    living.server.max_connections_per_peer = None
    full(living, 3)


def test_both_limits(live: Live, several: str) -> None:
    living = served(live, several, max_connections=3, max_connections_per_peer=2)
    full(living, 2)
    assert is_closed(living.connect())
    is_served(living, from_address(living, "127.0.0.2"))
    waiting = from_address(living, "127.0.0.3")
    assert is_held(living)
    living.server.max_connections = 4
    is_served(living, waiting)


@pytest.mark.parametrize("attributes", [{"max_connections": 50}, {}], ids=str)
def test_unix_peers_have_no_address(live: Live, several: str, attributes: Any) -> None:
    living = live(several, echo, "UnixStream", max_connections_per_peer=1, **attributes)
    full(living, 5)
    assert ledger(living).refused == {}


def test_ipv6(live: Live, several: str) -> None:
    """Connections of IPv4 clients to it count for their addresses."""

    def server_bind(server: Any) -> None:
        server.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.server_address = ("::", 0, 0, 0)
        super(type(server), server).server_bind()

    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    living = live(several, echo, address_family=socket.AF_INET6, max_connections_per_peer=1,
                  server_bind=server_bind)  # fmt: skip
    port = living.server.server_address[1]
    enter = living.stack.enter_context
    first = enter(socket.create_connection(("::1", port), TIMEOUT))
    is_served(living, first)
    assert is_closed(enter(socket.create_connection(("::1", port), TIMEOUT)))
    mapped = enter(socket.create_connection(("127.0.0.1", port), TIMEOUT))
    is_served(living, mapped)
    assert is_closed(enter(socket.create_connection(("127.0.0.1", port), TIMEOUT)))


# --- other ways to serve


def test_handle_request_waits(live: Live) -> None:
    """Until its own timeout, as for a request."""
    living = live("threading", echo, serves=False, max_connections=1, timeout=0.2)
    living.waiting = []
    first = knock(living)
    living.server.handle_request()
    assert first.recv(6) == b"hello\n"
    waiting = knock(living)
    timeouts = []
    living.server.handle_timeout = lambda: timeouts.append(1)
    living.server.handle_request()
    assert timeouts == [1]
    assert ledger(living).active == 1
    living.server.timeout = TIMEOUT
    handling = Background(living.server.handle_request)
    first.close()
    handling.result()
    assert waiting.recv(6) == b"hello\n"


@pytest.mark.parametrize("watched", [True, False])
def test_handle_request_of_a_forking_server(
    live: Live, watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It collects the child that it waits for, whether it may be watched or not."""
    if not watched:
        monkeypatch.delattr("os.pidfd_open")
    living = live("forking", line, serves=False, max_connections=1, timeout=TIMEOUT / 2)
    begin = time.monotonic()
    for _ in range(3):
        client = living.connect(b"hello\n")
        living.server.handle_request()
        assert until_end(client) == b"hello\n"
    assert time.monotonic() - begin < TIMEOUT / 4


def test_handle_request_of_a_forking_server_that_collects_by_itself(live: Live) -> None:
    """As ever: when the time is over."""

    def collect_children(server: Any, *, blocking: bool = False) -> None:
        super(type(server), server).collect_children(blocking=blocking)

    living = live("forking", line, serves=False, max_connections=1, timeout=0.3,
                  collect_children=collect_children)  # fmt: skip
    clients = [living.connect(b"hello\n") for _ in range(2)]
    living.server.handle_request()
    assert until_end(clients[0]) == b"hello\n"
    begin, used = time.monotonic(), time.process_time()
    living.server.handle_request()
    assert time.monotonic() - begin >= 0.3
    assert time.process_time() - used < 0.2
    living.server.handle_request()
    assert until_end(clients[1]) == b"hello\n"


def line(handler: Any) -> None:
    handler.wfile.write(handler.rfile.readline())


def test_handle_request_beside_a_loop_that_is_held(live: Live) -> None:
    living = served(live, "threading", max_connections=1, daemon_threads=True)
    (first,) = full(living, 1)
    waiting = [knock(living) for _ in range(2)]
    assert is_held(living)
    living.server.shutdown()
    living.loop.join(TIMEOUT)
    first.close()
    wait_until(lambda: ledger(living).active == 0)
    living.server.handle_request()
    assert waiting[0].recv(6) == b"hello\n"
    living.serve()
    assert is_held(living)
    waiting[0].close()
    assert waiting[1].recv(6) == b"hello\n"


@contextlib.contextmanager
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def one_descriptor() -> Iterator[None]:
    """As many are left, for the connection that is accepted next."""
    taken: list[socket.socket] = []
    with few_descriptors():
        try:
            try:
                while True:
                    taken.append(socket.socket())
            except OSError as error:
                assert error.errno == errno.EMFILE
            taken.pop().close()
            yield
        finally:
            for one in taken:
                one.close()


def test_without_a_descriptor_to_wait_by(live: Live, several: str) -> None:
    """The limit holds all the same."""
    living = served(live, several, max_connections=1)
    first, second = (living.stack.enter_context(socket.socket()) for _ in range(2))
    first.settimeout(TIMEOUT)
    second.settimeout(TIMEOUT)
    with one_descriptor():
        first.connect(living.server.server_address)
        is_served(living, first)
        second.connect(living.server.server_address)
        second.sendall(b"hello\n")
        passes = len(living.passes)
        wait_until(lambda: len(living.passes) > passes + 3)
        assert ledger(living).active == 1
        first.close()
        assert second.recv(6) == b"hello\n"
    assert ledger(living).peak == 1


def test_handle_request_without_a_descriptor_to_wait_by(live: Live) -> None:
    living = live("threading", echo, serves=False, max_connections=1, timeout=0.2)
    living.waiting = []
    first, second = (living.stack.enter_context(socket.socket()) for _ in range(2))
    first.settimeout(TIMEOUT)
    second.settimeout(TIMEOUT)
    with one_descriptor():
        first.connect(living.server.server_address)
        living.server.handle_request()
        is_served(living, first)
        second.connect(living.server.server_address)
        living.server.handle_request()  # in vain
        assert ledger(living).active == 1
        first.close()
        wait_until(lambda: ledger(living).active == 0)
        living.server.handle_request()
    is_served(living, second)


def test_requests_that_are_no_connections(live: Live, several: str) -> None:
    """What an overridden get_request() returns counts as well, until it is closed."""

    def get_request(server: Any) -> Any:
        request, address = server.socket.accept()
        plain = socket.socket(fileno=request.detach())
        plain.settimeout(TIMEOUT)
        return plain, address

    living = served(live, several, max_connections=2, get_request=get_request)
    clients = full(living, 2)
    waiting = knock(living)
    assert is_held(living)
    clients[0].close()
    assert waiting.recv(6) == b"hello\n"
    living.server.max_connections_per_peer = 2
    living.server.max_connections = None
    assert is_closed(living.connect())


def test_a_loop_by_a_program_s_own_hook(live: Live) -> None:
    """_handle_request_noblock() overridden: the listener is held all the same."""

    def noblock(server: Any) -> None:
        super(type(server), server)._handle_request_noblock()

    living = served(live, "threading", max_connections=1, _handle_request_noblock=noblock)
    (first,) = full(living, 1)
    waiting = knock(living)
    assert is_held(living)
    first.close()
    assert waiting.recv(6) == b"hello\n"


@pytest.mark.parametrize("transport", ["UDP", "UnixDatagram"])
def test_datagrams_are_not_limited(live: Live, several: str, transport: str) -> None:
    def answers(handler: Any) -> None:
        handler.request[1].sendto(handler.request[0], handler.client_address)

    living = live(several, answers, transport, max_connections=1, max_connections_per_peer=1)
    client = living.connect()
    for number in range(10):
        client.send(b"%d" % number)
    assert sorted(client.recv(10) for _ in range(10)) == [b"%d" % n for n in range(10)]


def test_who_ends_later_writes_to_no_event(live: Live, several: str) -> None:
    """It is for a listener that is held."""
    living = served(live, several, max_connections=2)
    first = full(living, 2)
    waiting = knock(living)
    assert is_held(living)
    first[0].close()
    assert waiting.recv(6) == b"hello\n"
    living.server.max_connections = 100
    wait_until(lambda: not written_events())
    for client in (first[1], waiting):
        client.close()
    wait_until(lambda: ledger(living).active == 0)
    assert not written_events()


def written_events() -> list[str]:
    """The eventfds of this process which nobody has read since they were written to."""
    found = []
    for descriptor in os.listdir("/proc/self/fdinfo"):
        with (
            contextlib.suppress(FileNotFoundError),
            open(f"/proc/self/fdinfo/{descriptor}") as file,
        ):
            found += [line for line in file if line.startswith("eventfd-count")]
    return [line for line in found if int(line.split()[1], 16)]


def test_nothing_is_left_behind(live: Live, several: str) -> None:
    """No peer, and no descriptor but the one eventfd."""
    living = live(several, echo, max_connections=3, max_connections_per_peer=3)
    for _ in range(20):
        with contextlib.ExitStack() as stack:
            for client in [stack.enter_context(connect(living.server)) for _ in range(3)]:
                is_served(living, client)
        wait_until(lambda: ledger(living).active == 0)
    living.server.max_connections_per_peer = 1
    full(living, 1)
    assert ledger(living).accepted == 61


def test_accept_errors_are_told(live: Live) -> None:
    told = []
    living = live("threading", echo, handle_accept_error=lambda server, error: told.append(error))
    with few_descriptors():
        client = socket.socket()
        fillers = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(socket.socket())
            client.connect(living.server.server_address)
            wait_until(lambda: told)
        finally:
            for one in (*fillers, client):
                one.close()
    assert isinstance(told[0], OSError)
    assert told[0].errno == errno.EMFILE
    is_served(living, living.connect())


def test_a_hook_for_accept_errors_that_fails(
    live: Live, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is done about the error is done, and told, all the same."""

    def handle_accept_error(server: Any, error: OSError) -> None:
        raise LookupError(error.errno)

    living = live("threading", echo, handle_accept_error=handle_accept_error)
    with socket.socket() as client:
        with no_descriptor():
            client.connect(living.server.server_address)
            assert living.loop is not None
            with pytest.raises(LookupError):
                living.loop.result()
        living.loop = None
    assert [record.event for record in caplog.records] == ["cannot_take"]  # type: ignore[attr-defined]


@contextlib.contextmanager
def no_descriptor() -> Iterator[None]:
    with one_descriptor(), socket.socket():
        yield


def test_a_child_that_ends_leaves_a_descriptor(live: Live) -> None:
    """Its pidfd: the listener is tried at once, however long the pause."""

    def waits(handler: Any) -> None:
        handler.gate.wait()
        handler.wfile.write(b"done")

    told: list[OSError] = []
    living = live("forking", waits, handle_accept_error=lambda server, error: told.append(error))
    clients = [living.connect()]
    living.gate.await_one()
    wait_until(lambda: living.server._fastsock.watched is not None)
    clients.append(living.stack.enter_context(socket.socket()))
    with no_descriptor():
        clients[1].connect(living.server.server_address)
        wait_until(lambda: len(told) == 8)  # the next pause lasts for a second
        living.gate.open()
        begin = time.monotonic()
        assert until_end(clients[0]) == b"done"
        wait_until(lambda: ledger(living).accepted == 2)
        assert time.monotonic() - begin < 0.5
    assert until_end(clients[1]) == b"done"
