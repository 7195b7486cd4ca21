"""A server that runs in a thread, and its clients."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from support import TIMEOUT, Background, connect, fresh_address, load_implementation, wait_until

#: how requests are handled -> what comes before TCPServer and the like
FLAVOURS = {"sync": "", "threading": "Threading", "forking": "Forking", "multiplexing": "Threading"}
#: seconds that a drain may return after its deadline here, where the machine may be loaded; what
#: is promised, 0.1, is shown by `ci/soak drain`
LATE = 2.0


def module_of(flavour: str, fastsock_dir: str | None = None) -> Any:
    return load_implementation(
        "multiplex" if flavour == "multiplexing" else "fastsock", fastsock_dir
    )


class Gate:
    """What handlers wait for, wherever they run, and count how many have come to it."""

    def __init__(self, flavour: str, fastsock_dir: str | None) -> None:
        module_of(flavour, fastsock_dir)
        self._greenlets = flavour == "multiplexing"
        self._come = os.pipe()
        self._opened = os.pipe()

    def wait(self) -> None:
        os.write(self._come[1], b".")
        if self._greenlets:
            from fastsock import multiplexing

            multiplexing.wait(self._opened[0], read=True, timeout=TIMEOUT)
        else:
            select.select(self._opened[:1], [], [], TIMEOUT)

    def await_one(self) -> None:
        assert select.select(self._come[:1], [], [], TIMEOUT)[0], "no handler has come to the gate"
        os.read(self._come[0], 1)

    def open(self) -> None:
        os.write(self._opened[1], b".")  # nobody takes it out

    def close(self) -> None:
        for descriptor in (*self._come, *self._opened):
            os.close(descriptor)


class Living:
    """handle(handler) is what a handler does; transport: TCP, UDP, UnixStream, UnixDatagram."""

    def __init__(
        self,
        fastsock_dir: str | None,
        folder: str,
        flavour: str,
        handle: Callable[[Any], object],
        transport: str = "TCP",
        *,
        serves: bool = True,
        poll_interval: float = 60,  # it is woken
        mixed: tuple[Any, ...] = (),
        **attributes: Any,
    ) -> None:
        self.flavour = flavour
        self.module = module_of(flavour, fastsock_dir)
        self.gate = Gate(flavour, fastsock_dir)
        base = getattr(self.module, f"{FLAVOURS[flavour]}{transport}Server")
        stream = transport in ("TCP", "UnixStream")
        handlers = self.module.StreamRequestHandler if stream else self.module.BaseRequestHandler
        self.handler = type("Handler", (handlers,), {"handle": handle, "gate": self.gate})
        server_class = type("Server", (*mixed, base), {"request_queue_size": 256, **attributes})
        self.server = server_class(fresh_address(server_class, folder), self.handler)
        self.stack = contextlib.ExitStack()
        self.loop: Background | None = None
        self.poll_interval = poll_interval
        if serves:
            self.serve()

    def serve(self) -> None:
        self.loop = Background(self.server.serve_forever, self.poll_interval)
        wait_until(lambda: self.server._BaseServer__is_shut_down.serving())

    def connect(self, data: bytes = b"") -> socket.socket:
        client = self.stack.enter_context(connect(self.server))
        if data:
            client.sendall(data)
        return client

    def ask(self, client: socket.socket, line: bytes) -> bytes:
        client.sendall(line)
        return client.recv(len(line))

    def drain(self, timeout: float | None = None) -> tuple[Any, float]:
        """The report, and the seconds that it took."""
        begin = time.monotonic()
        report = self.server.drain(timeout)
        return report, time.monotonic() - begin

    def drain_beside(self, timeout: float | None = None) -> Background:
        """In a thread; returns when it has begun."""
        draining = Background(self.drain, timeout)
        wait_until(lambda: self.server._fastsock.draining or not draining.is_alive())
        return draining

    def await_active(self, count: int) -> None:
        """Wait until so many connections have been taken."""
        wait_until(lambda: self.server._fastsock.ledger.accepted >= count)

    def await_state(self, state: str, count: int = 1) -> None:
        wait_until(lambda: [one.state for one in self.server.connections].count(state) >= count)

    def is_refused(self) -> bool:
        try:
            with connect(self.server):
                return False
        except (ConnectionRefusedError, FileNotFoundError):
            return True

    def close(self) -> None:
        self.gate.open()
        self.stack.close()
        if self.loop is not None:
            self.server.shutdown()
            self.loop.join(TIMEOUT)
        self.server.server_close()
        self.gate.close()
        if self.loop is not None:
            self.loop.result()


def echo(handler: Any) -> None:
    """Lines, as long as there come some; one that says so waits at the gate."""
    for line in handler.rfile:
        if line == b"wait\n":
            handler.gate.wait()
        handler.wfile.write(line)


def until_end(client: socket.socket) -> bytes:
    """What comes until the server closes."""
    found = []
    while data := client.recv(65536):
        found.append(data)
    return b"".join(found)
