"""Connections that are used by others than their own hub's tasks, and hubs that are used oddly."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import TIMEOUT, receive, wait_until
from talks import Served, output, program

from fastsock import multiplexing

Serve = Callable[..., Served]


def echo(self: Any) -> None:
    while line := self.rfile.readline():
        self.wfile.write(line)


@pytest.mark.parametrize("call", ["sendall", "wfile", "recv", "readline"])
def test_a_connection_of_another_server(serve: Serve, call: str) -> None:
    """Who waits for it does not keep the others of its own server waiting."""
    kept: list[Any] = []
    over = multiplexing.Event()
    found: list[Any] = []

    def keep(self: Any) -> None:
        kept.append(self)
        assert over.wait(TIMEOUT)

    def use(self: Any) -> None:
        if self.rfile.readline() != b"use\n":
            self.wfile.write(b"alive\n")
            return
        other = kept[0]
        if call == "sendall":
            other.request.sendall(bytes(20_000_000))
        elif call == "wfile":
            other.wfile.write(bytes(20_000_000))
        elif call == "recv":
            found.append(other.request.recv(10))
        else:
            found.append(other.rfile.readline())
        self.wfile.write(b"done\n")

    first, second = serve(keep), serve(use)
    stranger = first.connect()
    wait_until(lambda: kept)
    user = second.connect(b"use\n")
    for _ in range(3):
        assert second.ask(b"hello\n") == b"alive\n"
    if call in ("sendall", "wfile"):
        left = 20_000_000
        while left:
            left -= len(stranger.recv(1 << 20))
    else:
        stranger.sendall(b"a line\n")
    assert receive(user) == b"done\n"
    over.set()
    assert found in ([], [b"a line\n"])


def test_a_connection_of_an_earlier_loop(ss: ModuleType, time_limit: None) -> None:
    """Of the same thread, used by a handler of the next one."""
    kept: list[Any] = []
    found: list[bytes] = []

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        if line == b"keep\n":
            kept.append(self.request)
            return
        if line == b"use\n":
            found.append(kept[0].recv(10))
        self.wfile.write(line)

    class Server(ss.ThreadingTCPServer):  # type: ignore[misc, name-defined]
        def shutdown_request(self, request: Any) -> None:
            if request not in kept:
                super().shutdown_request(request)

    handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
    go_on = threading.Event()
    with Server(("127.0.0.1", 0), handler) as server, contextlib.ExitStack() as stack:

        def serve() -> None:
            server.serve_forever(0.002)
            go_on.set()
            server.serve_forever(0.002)

        def connect(said: bytes) -> socket.socket:
            sock = stack.enter_context(socket.create_connection(server.server_address, TIMEOUT))
            sock.sendall(said)
            return sock

        loop = threading.Thread(target=serve, daemon=True)
        loop.start()
        first = connect(b"keep\n")
        wait_until(lambda: kept)
        server.shutdown()
        assert go_on.wait(TIMEOUT)
        user = connect(b"use\n")
        for _ in range(3):
            assert receive(connect(b"hello\n")) == b"hello\n"
        first.sendall(b"to it")
        assert receive(user) == b"use\n"
        assert found == [b"to it"]
        kept[0].close()
        server.shutdown()
        loop.join(TIMEOUT)


@pytest.mark.parametrize("hook", ["verify_request", "process_request"])
def test_a_hook_that_waits_for_the_connection(ss: ModuleType, serve: Serve, hook: str) -> None:
    """Accepting waits meanwhile, handlers don't."""
    base = ss.ThreadingTCPServer
    asleep = threading.Event()
    silent: list[Any] = []

    def look(request: Any) -> None:
        if request.getpeername() in silent:
            asleep.set()
        request.settimeout(TIMEOUT)
        request.recv(1, socket.MSG_PEEK)
        request.settimeout(None)

    def verify_request(self: Any, request: Any, address: Any) -> bool:
        look(request)
        return True

    def process_request(self: Any, request: Any, address: Any) -> None:
        look(request)
        base.process_request(self, request, address)

    served = serve(echo, **{hook: locals()[hook]})
    established = served.connect(b"a\n")
    assert established.recv(10) == b"a\n"
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        silent.append(sock.getsockname())
        sock.connect(served.server.server_address)
        assert asleep.wait(TIMEOUT)
        for number in range(3):
            established.sendall(b"again %d\n" % number)
            assert established.recv(10) == b"again %d\n" % number
        later = served.connect(b"later\n")
    assert later.recv(10) == b"later\n"


def test_requests_that_another_thread_processes(serve: Serve, ss: ModuleType) -> None:
    requests: queue.Queue[Any] = queue.Queue()
    base = ss.ThreadingTCPServer

    def work() -> None:
        while (request := requests.get()) is not None:
            base.process_request(*request)

    def process_request(self: Any, request: Any, address: Any) -> None:
        requests.put((self, request, address))

    worker = threading.Thread(target=work)
    worker.start()
    try:
        served = serve(echo, process_request=process_request)
        for number in range(20):
            assert served.ask(b"%d\n" % number) == b"%d\n" % number
    finally:
        requests.put(None)
        worker.join(TIMEOUT)


@pytest.mark.parametrize("depth", [1, 3])
def test_greenlets_of_the_handlers_own(serve: Serve, depth: int) -> None:
    """It may wait inside of them, and they hand on what has come."""
    greenlet = pytest.importorskip("greenlet")

    def handle(self: Any) -> None:
        def inside(left: int) -> None:
            parent = greenlet.getcurrent().parent
            if left > 1:
                inner = greenlet.greenlet(inside)
                parent.switch(inner.switch(left - 1))
            for _ in range(2):
                line = self.rfile.readline()
                multiplexing.sleep(0)
                self.wfile.write(b"inside: ")
                parent.switch(line)

        inner = greenlet.greenlet(inside)
        self.wfile.write(inner.switch(depth))
        self.wfile.write(self.rfile.readline())

    served = serve(handle)
    clients = [served.connect() for _ in range(3)]
    for number, client in enumerate(clients):
        client.sendall(b"%d\n" % number)
    for number, client in enumerate(clients):
        client.sendall(b"then %d\n" % number)
        assert receive(client) == b"inside: %d\nthen %d\n" % (number, number)


def test_handlers_go_on_while_handle_request_waits(ss: ModuleType, time_limit: None) -> None:
    handler = type("Handler", (ss.StreamRequestHandler,), {"handle": echo})
    server = ss.ThreadingTCPServer(("127.0.0.1", 0), handler)
    count = 3

    def serve() -> None:
        with server:
            for _ in range(count):
                server.handle_request()

    loop = threading.Thread(target=serve, daemon=True)
    loop.start()
    with contextlib.ExitStack() as stack:
        clients: list[socket.socket] = []
        for _ in range(count):
            for client in clients:  # of before: the loop waits for the next one
                client.sendall(b"line\n")
                assert client.recv(10) == b"line\n"
            address = server.server_address
            clients.append(stack.enter_context(socket.create_connection(address, TIMEOUT)))
    loop.join(TIMEOUT)
    assert not loop.is_alive()


WORKERS = """
import signal

def handle(self):
    self.wfile.write(b"%d\\n" % os.getpid())
    while line := self.rfile.readline():
        self.wfile.write(line)

handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
server = ss.ThreadingTCPServer(("127.0.0.1", 0), handler)
pids = []
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        try:
            server.serve_forever(30)
        finally:
            os._exit(1)
    pids.append(pid)
established = {}
for _ in range(60):
    client = socket.create_connection(server.server_address, 5)
    file = client.makefile("rb")
    established.setdefault(file.readline(), (client, file))
    for client, file in established.values():
        client.sendall(b"ping\\n")
        assert file.readline() == b"ping\\n"
print("served")
for pid in pids:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
"""


def test_workers_that_accept_from_one_listener(script: Any) -> None:
    """One that was too late for a connection goes on with its handlers."""
    assert output(script(program(WORKERS))) == "served\n"


def test_the_listener_blocks_again(serve: Serve) -> None:
    served = serve(echo)
    assert served.ask(b"x\n") == b"x\n"
    served.server.shutdown()
    served.loop.join(TIMEOUT)
    assert os.get_blocking(served.server.fileno())
