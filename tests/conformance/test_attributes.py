"""What the attributes of a server do, wherever they are set."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Background,
    Kind,
    Trace,
    ask,
    connect,
    kinds,
    new,
    receive,
    requires,
    serving,
    upper,
)

Make = Callable[..., Any]

sync = kinds(flavours=("",))
LONG = 8.0  # a timeout that a test never waits for
SHORT = 0.02


def set_somewhere(base: Any, where: str, patch: pytest.MonkeyPatch, name: str, value: Any) -> Any:
    """A class whose servers have this attribute before the constructor looks at it."""
    if where == "subclass":
        return new("Server", base, **{name: value})
    if where == "library":
        patch.setattr(base, name, value)
        return base

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        setattr(self, name, value)
        base.__init__(self, *args, **kwargs)

    return new("Server", base, __init__=init)


everywhere = pytest.mark.parametrize("where", ["subclass", "library", "instance"])


# --- timeout


@sync
@pytest.mark.parametrize(
    ("timeout", "socket_timeout"),
    [
        (SHORT, None),
        (None, SHORT),
        (SHORT, LONG),
        (LONG, SHORT),
        (0, None),
        (0, LONG),
        (LONG, 0),
        (-1, None),
    ],
)
def test_timeout(
    ss: ModuleType,
    kind: Kind,
    make: Make,
    trace: Trace,
    timeout: float | None,
    socket_timeout: float | None,
) -> None:
    """The shorter one of self.timeout and the socket's ends handle_request()."""
    server = make(
        kind.server(ss),
        upper(kind.handler(ss)),
        handle_timeout=lambda self: trace.log("handle_timeout"),
    )
    server.timeout = timeout
    server.socket.settimeout(socket_timeout)
    begun = time.monotonic()
    assert server.handle_request() is None
    elapsed = time.monotonic() - begun
    assert trace.names() == ["handle_timeout"]
    assert (elapsed >= SHORT) == (SHORT in (timeout, socket_timeout))
    assert elapsed < LONG / 2
    with connect(server) as client:  # and it is none when there is a request
        client.sendall(b"hello\n")
        select.select([server], [], [], TIMEOUT)
        server.handle_request()
        assert receive(client) == b"HELLO\n"
    assert trace.names() == ["handle_timeout"]


@sync
def test_no_timeout(ss: ModuleType, kind: Kind, make: Make, trace: Trace) -> None:
    """Without one handle_request() waits for a request, which may come late."""
    server = make(
        kind.server(ss),
        upper(kind.handler(ss)),
        handle_timeout=lambda self: trace.log("handle_timeout"),
    )
    assert server.timeout is None
    thread = Background(server.handle_request)
    thread.join(5 * SHORT)
    assert thread.is_alive()
    assert ask(server) == b"HELLO\n"
    thread.result()
    assert trace.names() == []


@everywhere
def test_timeout_set(
    ss: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Before the constructor runs, too."""
    server_class = set_somewhere(ss.TCPServer, where, monkeypatch, "timeout", SHORT)
    server = make(server_class)
    assert server.timeout == SHORT
    server.handle_request()


def test_serve_forever_ignores_timeout(ss: ModuleType, make: Make, trace: Trace) -> None:
    server = make(
        ss.TCPServer,
        timeout=0.001,
        handle_timeout=lambda self: trace.log("handle_timeout"),
        service_actions=lambda self: trace.log("service_actions"),
    )
    with serving(server, SHORT):
        trace.wait("service_actions", 3)
    assert "handle_timeout" not in trace.names()


def test_requests_are_not_given_the_timeout_of_the_server(ss: ModuleType, make: Make) -> None:
    timeouts = []

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            timeouts.append(self.connection.gettimeout())

    server = make(ss.TCPServer, Handler)
    server.timeout = LONG
    server.socket.settimeout(LONG)
    with connect(server):
        server.handle_request()
    assert timeouts == [None]


# --- allow_reuse_address, allow_reuse_port, request_queue_size


OPTIONS = {
    "allow_reuse_address": socket.SO_REUSEADDR,
    "allow_reuse_port": socket.SO_REUSEPORT,
}


@everywhere
@pytest.mark.parametrize("value", [True, False, 1, 0])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("base", ["TCPServer", "UDPServer"])
def test_socket_option(
    ss: ModuleType,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    name: str,
    value: Any,
    where: str,
) -> None:
    if name == "allow_reuse_port":
        requires(ss, (3, 11), name)
    server = make(set_somewhere(getattr(ss, base), where, monkeypatch, name, value))
    for each, option in OPTIONS.items():
        is_set = bool(server.socket.getsockopt(socket.SOL_SOCKET, option))
        assert is_set == (each == name and bool(value))


@pytest.mark.stdlib_since(3, 11)
@kinds(flavours=("",), transports=("TCP", "UDP"))
def test_reuse_port_shares_a_port(ss: ModuleType, kind: Kind, make: Make) -> None:
    sharing = new("Sharing", kind.server(ss), allow_reuse_port=True)
    first = make(sharing)
    second = make(sharing, address=first.server_address)
    assert first.server_address == second.server_address
    with pytest.raises(OSError) as caught:
        make(kind.server(ss), address=first.server_address)
    assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.stdlib_since(3, 14)
@kinds(flavours=("",), transports=("UnixStream", "UnixDatagram"))
def test_reuse_port_is_for_internet_addresses(ss: ModuleType, kind: Kind, make: Make) -> None:
    """Linux refuses SO_REUSEPORT for others."""
    server = make(kind.server(ss), upper(kind.handler(ss)), allow_reuse_port=True)
    assert server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0
    with serving(server):
        assert ask(server) == b"HELLO\n"


def test_reuse_address_after_a_connection(ss: ModuleType, make: Make) -> None:
    """The server's end waits in TIME_WAIT; a new server gets the address all the same."""
    reusing = new("Reusing", ss.TCPServer, allow_reuse_address=True)
    first = make(reusing)
    with connect(first) as client:
        first.handle_request()
        assert receive(client) == b""
    first.server_close()
    second = make(reusing, upper(ss.StreamRequestHandler), address=first.server_address)
    with serving(second):
        assert ask(second) == b"HELLO\n"


@everywhere
def test_request_queue_size(
    ss: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    server = make(set_somewhere(ss.TCPServer, where, monkeypatch, "request_queue_size", 17))
    info = server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack_from("I", info, 28)[0] == 17  # tcpi_sacked: a listener's backlog


@pytest.mark.parametrize(("base", "calls"), [("TCPServer", [17]), ("UDPServer", [])])
def test_server_activate(ss: ModuleType, base: str, calls: list[int]) -> None:
    """listen(request_queue_size), and only for streams."""

    class Listener:
        def __init__(self) -> None:
            self.calls: list[int] = []

        def listen(self, size: int) -> None:
            self.calls.append(size)

    server = getattr(ss, base)(("127.0.0.1", 0), ss.BaseRequestHandler, False)
    server.socket.close()
    server.socket = Listener()
    server.request_queue_size = 17
    server.server_activate()
    assert server.socket.calls == calls


# --- address_family, socket_type, server_address


@kinds(flavours=("", "Threading"), transports=("TCP", "UDP"))
@pytest.mark.parametrize("where", ["subclass", "instance"])
def test_address_family(
    ss: ModuleType,
    kind: Kind,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """IPv6, as http.server does: decided in the constructor of a subclass."""
    family = socket.AF_INET6
    base = set_somewhere(kind.server(ss), where, monkeypatch, "address_family", family)
    try:
        with socket.socket(family) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    server = make(base, upper(kind.handler(ss)), address=("::1", 0))
    assert server.socket.family == family
    assert server.server_address[0] == "::1"
    assert len(server.server_address) == 4
    seen = []
    server.verify_request = lambda request, client_address: seen.append(client_address) or True
    with serving(server), connect(server) as client:
        client.sendall(b"hello\n")
        assert receive(client) == b"HELLO\n"
        assert seen == [client.getsockname()]


def test_socket_type(ss: ModuleType, make: Make, folder: str) -> None:
    """A stream server on sequenced packets."""

    class Handler(ss.BaseRequestHandler):
        def handle(self) -> None:
            while packet := self.request.recv(100):
                self.request.send(packet.upper())

    server = make(ss.UnixStreamServer, Handler, socket_type=socket.SOCK_SEQPACKET)
    assert server.socket.type == socket.SOCK_SEQPACKET
    with serving(server), connect(server) as client:
        client.send(b"one")
        client.send(b"two")
        assert (client.recv(100), client.recv(100)) == (b"ONE", b"TWO")


@sync
def test_server_address(ss: ModuleType, kind: Kind, make: Make, folder: str) -> None:
    """What the socket is bound to; for port 0 the port that was found."""
    server = make(kind.server(ss))
    assert server.server_address == server.socket.getsockname()
    assert isinstance(server.server_address, str) == (server.address_family == socket.AF_UNIX)
    if server.address_family == socket.AF_INET:
        host, port = server.server_address
        assert (host, port > 0) == ("127.0.0.1", True)


@pytest.mark.parametrize("address", ["\0abstract-%d", b"\0abstract-bytes-%d"], ids=repr)
@kinds(flavours=("",), transports=("UnixStream", "UnixDatagram"))
def test_abstract_address(ss: ModuleType, kind: Kind, make: Make, address: Any) -> None:
    address %= os.getpid()
    server = make(kind.server(ss), upper(kind.handler(ss)), address=address)
    assert server.server_address == (address.encode() if isinstance(address, str) else address)
    with serving(server):
        assert ask(server) == b"HELLO\n"


@sync
def test_unix_path_stays(ss: ModuleType, kind: Kind, make: Make) -> None:
    """Nobody unlinks the path of a Unix server; a second one there fails."""
    server = make(kind.server(ss))
    server.server_close()
    if server.address_family == socket.AF_UNIX:
        assert os.path.exists(server.server_address)
        with pytest.raises(OSError) as caught:
            make(kind.server(ss), address=server.server_address)
        assert caught.value.errno == errno.EADDRINUSE


def test_listener_is_not_inherited(ss: ModuleType, make: Make) -> None:
    server = make(ss.TCPServer)
    assert server.socket.get_inheritable() is False
    assert server.socket.gettimeout() is None
    assert isinstance(server.socket, socket.socket)


def test_accept_of_the_program_blocks(ss: ModuleType, make: Make) -> None:
    """server.socket.accept() waits, whatever the core does underneath."""
    server = make(ss.TCPServer)
    server.timeout = 0
    server.handle_request()
    thread = Background(server.socket.accept)
    thread.join(5 * SHORT)
    assert thread.is_alive()
    with connect(server) as client:
        request, address = thread.result()
        with request:
            assert address == client.getsockname()


# --- max_packet_size


@everywhere
@kinds(flavours=("", "Threading"), transports=("UDP", "UnixDatagram"))
def test_max_packet_size(
    ss: ModuleType,
    kind: Kind,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Longer datagrams are cut."""
    base = kind.server(ss)
    server_class = set_somewhere(base, where, monkeypatch, "max_packet_size", 5)
    server = make(server_class, upper(kind.handler(ss)))
    with serving(server):
        assert ask(server, b"abc") == b"ABC"
        assert ask(server, b"abcdefgh") == b"ABCDE"
        server.max_packet_size = 7  # it is looked up for every datagram
        assert ask(server, b"abcdefgh") in (b"ABCDE", b"ABCDEFG")
        assert ask(server, b"abcdefgh") == b"ABCDEFG"


@kinds(flavours=("",), transports=("UDP", "UnixDatagram"))
def test_large_datagrams(ss: ModuleType, kind: Kind, make: Make) -> None:
    server = make(kind.server(ss), upper(kind.handler(ss)))
    with serving(server):
        assert ask(server, b"a" * 9000) == b"A" * 8192
        server.max_packet_size = 65536
        ask(server, b"x")
        assert ask(server, b"a" * 60000) == b"A" * 60000
        assert ask(server, b"") == b""


def test_class_patched_at_run_time(
    ss: ModuleType, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TCPServer.allow_reuse_address = True, long before and for every subclass."""
    monkeypatch.setattr(ss.TCPServer, "allow_reuse_address", True)
    for base, is_set in ((ss.ThreadingTCPServer, True), (ss.UDPServer, False)):
        option = make(base).socket.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert bool(option) is is_set


def test_two_threads_handle_requests(ss: ModuleType, make: Make) -> None:
    """handle_request() of one server in several threads at a time."""
    server = make(ss.TCPServer, upper(ss.StreamRequestHandler))
    server.timeout = 0.2
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            server.handle_request()

    server.socket.settimeout(0.2)  # the one that comes too late for a connection must not wait
    threads = [Background(serve) for _ in range(2)]
    for _ in range(10):
        assert ask(server) == b"HELLO\n"
    done.set()
    for thread in threads:
        thread.result()
