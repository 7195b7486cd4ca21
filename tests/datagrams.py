"""What the tests of datagrams that wait share: kinds of server, a client's packets, hooks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from support import Kind, Trace, connect, new, outcome, serving, wait_until

Make = Callable[..., Any]
FEW = 8  # wait at a Unix socket without blocking the client: net.unix.max_dgram_qlen is 10
MANY = 40  # more than one batch
SERVER_HOOKS = (
    "verify_request",
    "process_request",
    "finish_request",
    "handle_error",
    "shutdown_request",
    "close_request",
)


@dataclass(frozen=True)
class DatagramKind(Kind):
    """Also 'UDP6'."""

    def server(self, ss: ModuleType) -> Any:
        if self.transport != "UDP6":
            return super().server(ss)
        udp = Kind(self.flavour, "UDP").server(ss)
        return new(udp.__name__, udp, address_family=socket.AF_INET6)

    @property
    def many(self) -> int:
        return FEW if self.transport == "UnixDatagram" else MANY


def datagrams(*transports: str, flavours: tuple[str, ...] = ("",)) -> pytest.MarkDecorator:
    """Parametrize a test over `kind`."""
    chosen = [
        DatagramKind(flavour, transport)
        for flavour in flavours
        for transport in transports or ("UDP", "UDP6", "UnixDatagram")
    ]
    return pytest.mark.parametrize("kind", chosen, ids=str)


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def handler(ss: ModuleType, handle: Callable[[Any], Any], **attributes: Any) -> Any:
    return new("Handler", ss.BaseRequestHandler, handle=handle, **attributes)


def noting(ss: ModuleType, seen: list[bytes]) -> Any:
    """A handler that notes its packet."""
    return handler(ss, lambda self: seen.append(self.request[0]))


def echoing(ss: ModuleType, seen: list[bytes]) -> Any:
    """A handler that notes its packet and answers with it."""

    def handle(self: Any) -> None:
        seen.append(self.packet)
        self.wfile.write(self.packet)

    return new("Echo", ss.DatagramRequestHandler, handle=handle)


def send_all(client: socket.socket, packets: Iterable[bytes]) -> None:
    for packet in packets:
        client.send(packet)


def receive_all(client: socket.socket, count: int) -> list[bytes]:
    return [client.recv(1 << 18) for _ in range(count)]


def arrived(client: socket.socket) -> list[bytes]:
    """Whatever is there already."""
    before, found = client.gettimeout(), []
    client.setblocking(False)
    try:
        while True:
            found.append(client.recv(1 << 18))
    except BlockingIOError:
        return found
    finally:
        client.settimeout(before)


def nothing_more(client: socket.socket) -> bool:
    """Has the socket received all that was sent to it?"""
    return not arrived(client)


def serve_until(server: Any, predicate: Callable[[], Any]) -> None:
    """serve_forever() in a thread until something holds."""
    with serving(server):
        wait_until(predicate)


def serve(server: Any, seen: list[bytes], expected: list[bytes]) -> None:
    """serve_forever() until as many were seen, and not one more or one less was."""
    serve_until(server, lambda: len(seen) >= len(expected))
    assert seen == expected


def packet_of(instance: Any, arguments: tuple[Any, ...]) -> str:
    """What a hook is called for: of a server's arguments, or of a handler."""
    request = arguments[0] if arguments else getattr(instance, "request", (b"",))
    return request[0].decode()


def tracing(base: Any, trace: Trace, *names: str) -> Any:
    """A subclass of a server or handler that records these hooks, and no other is overridden."""

    def recorded(name: str) -> Callable[..., Any]:
        def hook(self: Any, *args: Any) -> Any:
            trace.log(name, *filter(None, [packet_of(self, args)]))
            return getattr(super(Tracing, self), name)(*args)

        return hook

    Tracing: Any = type(
        "Tracing" + base.__name__, (base,), {name: recorded(name) for name in names}
    )
    return Tracing


class Waiting:
    """Several datagrams that wait, for one of which, b"act", something is done in its handler.

    seen: the packets that became requests; result: what the action returned or raised.
    """

    def __init__(self, ss: ModuleType, kind: Kind, make: Make, **attributes: Any) -> None:
        self.seen: list[bytes] = []
        self.result: Any = None
        self.before: list[bytes] = []
        self.within: list[bytes] = []
        self.action: Callable[[Any], Any] = lambda sock: None
        waiting = self

        class Handler(ss.BaseRequestHandler):
            def handle(self) -> None:
                packet, sock = self.request
                waiting.seen.append(packet)
                if packet == b"act":
                    send_all(waiting.client, waiting.within)
                    waiting.result = outcome(waiting.action, sock)

        self.server = make(kind.server(ss), Handler, **attributes)
        self.client = connect(self.server)
        self.name = self.client.getsockname()

    def act(
        self, action: Callable[[Any], Any], before: Iterable[bytes], within: Iterable[bytes] = ()
    ) -> Any:
        """What the action came to. `before` wait from the beginning, `within` when it is run.

        The last datagram is one of its own, so that it is seen what became of all others.
        """
        self.action, self.within = action, list(within)
        self.seen.clear()
        send_all(self.client, before)
        with serving(self.server):
            wait_until(lambda: b"act" in self.seen and self.result is not None)
            self.client.send(b"last")
            wait_until(lambda: b"last" in self.seen)
        assert self.seen.pop() == b"last"
        result, self.result = self.result, None
        return result
