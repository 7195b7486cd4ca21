"""What ``ci/instructions`` counts: ``instructions_workload.py IMPLEMENTATION WORKLOAD COUNT``.

Serves COUNT requests (lines, writes) and ends. The same source for both implementations. It is
run under valgrind twice, with different counts: what lies in the difference is the requests.

So that it does the same each time, the client is a program of its own (valgrind does not follow
an exec), which for all but ``threads`` has sent a whole block before any of it is served: the
server never waits for its client within a block, and never finds less than the block.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

LINE = b"x" * 63 + b"\n"
BLOCKS = {"tcp": 100, "threads": 100, "udp": 100, "read": 512, "write": 128}
# Between connections to `threads`: longer than the millisecond within which the thread of one
# request accepts the next: how often that happens depends on the clock, and so would the figures.
PAUSE = 0.003
TIMEOUT = 60.0  # seconds that the client waits for the server
ORDER = b"."


# ------------------------------------------------------------------ the client, not counted


def client(workload: str, port: int) -> None:
    """For each byte on standard input: prepare a block, answer with a byte, see to the rest."""
    block = {
        "tcp": tcp_client,
        "threads": threads_client,
        "udp": udp_client,
        "read": read_client,
        "write": write_client,
    }[workload](("127.0.0.1", port), BLOCKS[workload])
    while os.read(0, 1):
        next(block)
        os.write(1, ORDER)
        next(block)


# Each of these yields when a block is prepared, and again when it is over.


def tcp_client(address: tuple[str, int], size: int) -> Iterator[None]:
    """Connections that wait in the backlog, their requests sent."""
    while True:
        waiting = [socket.create_connection(address, TIMEOUT) for _ in range(size)]
        for connection in waiting:
            connection.sendall(LINE)
        yield
        for connection in waiting:
            assert connection.recv(1000) == LINE
            connection.close()
        yield


def threads_client(address: tuple[str, int], size: int) -> Iterator[None]:
    """One connection after the other, with a pause before each."""
    while True:
        yield
        for _ in range(size):
            time.sleep(PAUSE)
            with socket.create_connection(address, TIMEOUT) as connection:
                connection.sendall(LINE)
                assert connection.recv(1000) == LINE
                assert connection.recv(1000) == b""
        yield


def udp_client(address: tuple[str, int], size: int) -> Iterator[None]:
    """Datagrams that wait in the server's socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        while True:
            for _ in range(size):
                sock.send(LINE)
            yield
            for _ in range(size):
                assert sock.recv(1000) == LINE
            yield


def read_client(address: tuple[str, int], size: int) -> Iterator[None]:
    """Lines that wait in a connection; the first block is the connection alone."""
    with socket.create_connection(address, TIMEOUT) as connection:
        while True:
            yield
            yield
            connection.sendall(LINE * size)


def write_client(address: tuple[str, int], size: int) -> Iterator[None]:
    """A connection from which all is read; the first block is the connection alone."""
    with socket.create_connection(address, TIMEOUT) as connection:
        yield
        yield
        while True:
            yield
            left = size * len(LINE)
            while left:
                left -= len(connection.recv(left))
            yield


# ------------------------------------------------------------------ the server


@contextlib.contextmanager
def ordering(workload: str, server: Any) -> Iterator[Callable[[], None]]:
    """Start the client; yields what has it prepare a block and returns when it has."""
    port = server.server_address[1]
    command = [sys.executable, "-S", __file__, "client", workload, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        orders, answers = process.stdin.fileno(), process.stdout.fileno()

        def order() -> None:
            os.write(orders, ORDER)
            if not os.read(answers, 1):
                raise SystemExit("the client has failed")

        yield order


def in_blocks(order: Callable[[], None], blocks: int, serve_one: Callable[[], None]) -> None:
    """A block to warm up, then the others; what lives then the collector does not look at again."""
    for number in range(blocks + 1):
        order()
        serve_one()
        if number == 0:
            gc.collect()
            gc.freeze()


def serve(implementation: str, workload: str, count: int) -> None:
    """Serve count requests, in whole blocks, and a block before."""
    ss: Any = importlib.import_module(implementation)
    size = BLOCKS[workload]
    blocks, rest = divmod(count, size)
    if rest:
        raise SystemExit(f"{workload} takes a multiple of {size}")
    left = 0

    def count_down(server: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            stop(server)

    def stop(server: Any) -> None:
        """Have serve_forever() end behind this request."""
        if implementation == "fastsock":
            server.shutdown()
        else:  # which would wait for itself there
            server._BaseServer__shutdown_request = True

    class Answer(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            data = self.request.recv(1024)
            count_down(self.server)
            self.request.sendall(data)

    class Reply(ss.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            count_down(self.server)
            self.wfile.write(self.packet)

    class Read(ss.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            in_blocks(order, blocks, self.one_block)
            stop(self.server)

        def one_block(self) -> None:
            for _line in itertools.islice(self.rfile, size):
                pass

    class Write(ss.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            in_blocks(order, blocks, self.one_block)
            stop(self.server)

        def one_block(self) -> None:
            for _ in range(size):
                self.wfile.write(LINE)

    def serve_block() -> None:
        nonlocal left
        left = size
        server.serve_forever()

    base, handler = {
        "tcp": (ss.TCPServer, Answer),
        "threads": (ss.ThreadingTCPServer, Answer),
        "udp": (ss.UDPServer, Reply),
        "read": (ss.TCPServer, Read),
        "write": (ss.TCPServer, Write),
    }[workload]
    server_class = type("Server", (base,), {"request_queue_size": 1024})
    with server_class(("127.0.0.1", 0), handler) as server, ordering(workload, server) as order:
        if workload in ("read", "write"):
            order()  # a connection, which then is the only request
            server.serve_forever()
        else:
            in_blocks(order, blocks, serve_block)


def main() -> None:
    first, workload, number = sys.argv[1:]
    if first == "client":
        client(workload, int(number))
    else:
        serve(first, workload, int(number))


if __name__ == "__main__":
    main()
