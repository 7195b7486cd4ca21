"""An echo server for ``connections``, whose handlers read and write in different ways.

Prints its address; serves until its standard input ends, and then says how many handlers it had.
"""

from __future__ import annotations

import collections
import json
import sys
import threading
from typing import Any

import fastsock
from fastsock import multiplexing

PIECE = 20_000
counts: collections.Counter[str] = collections.Counter()


def by_lines(handler: Any) -> None:
    for line in handler.rfile:
        handler.wfile.write(line)


def by_readline(handler: Any) -> None:
    handler.request.settimeout(3600)  # so that there are some thousands of timers
    while line := handler.rfile.readline(500):
        handler.wfile.write(line)


def by_recv(handler: Any) -> None:
    while data := handler.request.recv(PIECE):
        handler.request.sendall(data)


def by_read1(handler: Any) -> None:
    while data := handler.rfile.read1(PIECE):
        handler.wfile.write(data)
        handler.wfile.flush()


def by_recv_into(handler: Any) -> None:
    buffer = memoryview(bytearray(3000))
    while count := handler.request.recv_into(buffer):
        sent = 0
        while sent < count:
            sent += handler.request.send(buffer[sent:count])


def in_turns(handler: Any) -> None:
    """Two tasks of one connection: one reads, the other writes."""
    queue: Any = multiplexing.Queue()

    def write() -> None:
        while data := queue.get():
            try:
                handler.request.sendall(data)
            except OSError:
                return

    writer = multiplexing.spawn(write)
    try:
        while data := handler.rfile.read1(PIECE):
            queue.put(data)
    finally:
        queue.put(b"")
        writer.join()


WAYS = (by_lines, by_readline, by_recv, by_read1, by_recv_into, in_turns)


class Echo(fastsock.StreamRequestHandler):
    def handle(self) -> None:
        way = WAYS[self.client_address[1] // 2 % len(WAYS)]
        counts[way.__name__] += 1
        try:
            way(self)
        except (ConnectionResetError, BrokenPipeError):
            counts["resets"] += 1


class Server(multiplexing.MultiplexingTCPServer):
    request_queue_size = 4096

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, (ConnectionResetError, BrokenPipeError)):
            counts["resets"] += 1  # in finish(): the last bytes
            return
        counts[f"error {error!r}"] += 1
        super().handle_error(request, client_address)


def main() -> None:
    server = Server(("0.0.0.0", 0), Echo)
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    print(json.dumps(server.server_address[1]), flush=True)
    sys.stdin.read()
    server.shutdown()
    loop.join()
    server.server_close()
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
