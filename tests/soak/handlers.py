"""Random handlers: each client must get the same bytes, whatever the handlers are run by.

A program (``programs``) is a list of steps that a handler takes (``steps``) and of pieces that its
client sends, with waits in between. Several run at a time on one server.
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import sys
import threading
import time
from typing import Any

import fastsock
from fastsock import multiplexing

from .programs import Program
from .steps import LIMIT, Handling, World

BATCH = 12  # programs at a time


class Quiet:
    """What handlers raise is compared by what their clients get."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(type(sys.exc_info()[1]).__name__)  # type: ignore[attr-defined]


def implementations(broken: bool) -> dict[str, tuple[Any, Any]]:
    """Mix-in and handler class by name."""

    class Losing(fastsock.StreamRequestHandler):
        def finish(self) -> None:
            if self.client_address[1] % 3:
                self.wfile.write(b"!")
            super().finish()

    return {
        "socketserver": (
            (socketserver.ThreadingMixIn, socketserver.TCPServer),
            socketserver.StreamRequestHandler,
        ),
        "ThreadingMixIn": (
            (fastsock.ThreadingMixIn, fastsock.TCPServer),
            fastsock.StreamRequestHandler,
        ),
        "MultiplexingMixIn": (
            (multiplexing.MultiplexingMixIn, fastsock.TCPServer),
            Losing if broken else fastsock.StreamRequestHandler,
        ),
    }


class Client(threading.Thread):
    def __init__(self, address: Any, program: Program) -> None:
        super().__init__(daemon=True)
        self.address, self.program = address, program
        self.got = b""
        self.error = ""

    def run(self) -> None:
        try:
            with socket.create_connection(self.address, LIMIT) as sock:
                sender = threading.Thread(target=self.send, args=(sock,), daemon=True)
                self.arrived = threading.Condition()
                self.over = False
                sender.start()
                try:
                    self.receive(sock)
                finally:
                    with self.arrived:
                        self.over = True
                        self.arrived.notify()
                    sender.join(LIMIT)
        except OSError as error:
            self.error = repr(error)

    def receive(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(1 << 16)
            except ConnectionResetError:
                return  # bytes that the handler has not read, by the time that it ended
            if not data:
                return
            with self.arrived:
                self.got += data
                self.arrived.notify()

    def send(self, sock: socket.socket) -> None:
        awaited = 0
        try:
            sock.sendall(b"%d\n" % self.program.number)
            for step, pause in zip(self.program.script, self.program.pauses):
                if pause:
                    time.sleep(0.001)
                if step[0] == "send":
                    sock.sendall(step[1])
                elif step[0] == "shut":
                    sock.shutdown(socket.SHUT_WR)
                else:
                    with self.arrived:
                        while self.got.find(step[1], awaited) < 0 and not self.over:
                            if not self.arrived.wait(LIMIT):
                                return
                        awaited = self.got.find(step[1], awaited) + len(step[1])
        except OSError:
            pass  # the handler has ended


def run_batch(programs: dict[int, Program], bases: Any, handler: Any, world: World) -> Any:
    """What each client got, and what went to handle_error()."""
    server_class = type("Server", (Quiet, *bases), {})
    handler_class = type("Handler", (Handling, handler), {})
    with server_class(("127.0.0.1", 0), handler_class) as server:
        server.world, server.errors = world, []
        loop = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        loop.start()
        clients = [Client(server.server_address, program) for program in programs.values()]
        for client in clients:
            client.start()
        for client in clients:
            client.join(2 * LIMIT)
        found = {
            client.program.number: (client.got, client.error, client.is_alive())
            for client in clients
        }
        server.shutdown()
        loop.join(LIMIT)
        if loop.is_alive():
            raise SystemExit("soak: serve_forever() does not return")
    return found, sorted(server.errors)


class Helper(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def run(options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else int(time.time())
    print(f"soak: {options.count} random handlers, seed {seed}", flush=True)
    begin = time.monotonic()
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # and does not listen
    silent = socket.create_server(("127.0.0.1", 0), backlog=64)
    helper = Helper(("127.0.0.1", 0), Upper)
    threading.Thread(target=helper.serve_forever, args=(0.01,), daemon=True).start()
    wrong = 0
    accepting = threading.Thread(target=accept_all, args=(silent,), daemon=True)
    accepting.start()
    for first in range(options.first, options.first + options.count, BATCH):
        numbers = range(first, min(first + BATCH, options.first + options.count))
        programs = {number: Program(number, seed) for number in numbers}
        results = {}
        for name, (bases, handler) in implementations(options.broken).items():
            world = World(
                programs, helper.server_address, silent.getsockname(), closed.getsockname()
            )
            results[name] = run_batch(programs, bases, handler, world)
        wrong += compare(programs, results)
        if wrong:
            break
    print(f"soak: {options.count} programs, {time.monotonic() - begin:.0f} s, seed {seed}")
    print("soak: " + ("failed" if wrong else "passed"), flush=True)
    return 1 if wrong else 0


def accept_all(listener: socket.socket) -> None:
    """And say nothing."""
    while True:
        connection = listener.accept()[0]
        threading.Thread(target=lambda c=connection: (c.recv(1), c.close()), daemon=True).start()


def compare(programs: dict[int, Program], results: dict[str, Any]) -> int:
    names = list(results)
    wrong = 0
    for number, program in programs.items():
        found = {name: results[name][0][number] for name in names}
        if len(set(found.values())) > 1 or any(f[1] or f[2] for f in found.values()):
            wrong += 1
            print(f"differs: {program}")
            for name in names:
                got, error, stuck = found[name]
                shown = got if len(got) < 600 else got[:300] + b" ... " + got[-300:]
                print(f"  {name}: {len(got)} bytes {shown!r} {error} {'stuck' if stuck else ''}")
    errors = {name: results[name][1] for name in names}
    if not wrong and len({tuple(found) for found in errors.values()}) > 1:
        wrong += 1
        print(f"differs: handle_error of programs {list(programs)}: {errors}")
    return wrong
