"""Multiplexing servers and handlers as programs write them: this type-checks."""

import socket
import threading
from typing import Any

import fastsock
from fastsock import multiplexing
from fastsock.multiplexing import Event, Lock, Queue, create_connection, sleep, spawn, to_thread


class Server(fastsock.MultiplexingMixIn, fastsock.TCPServer):
    daemon_threads = True
    block_on_close = False
    slow_handler_threshold = 0.5
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Proxy)
        self.lock = Lock()
        self.lines: Queue[bytes] = Queue(10)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        super().process_request_thread(request, client_address)


class Proxy(fastsock.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        with create_connection(("localhost", 80), timeout=3.0) as upstream:
            copier = spawn(self.copy, upstream, self.request, count=3)
            self.copy(self.connection, upstream)
            if not copier.join(1.5) and copier.is_alive():
                copier.join()
        with self.server.lock:
            self.server.lines.put(b"line", timeout=3)
        line: bytes = self.server.lines.get()
        self.wfile.write(line)

    def copy(self, source: socket.socket, target: socket.socket, count: int = 1) -> None:
        while multiplexing.wait(source, read=True, timeout=5) and (data := source.recv(65536)):
            target.sendall(data)
            sleep(0.1)


def query(sql: str, *values: int, limit: int = 0) -> list[str]:
    return [sql] * limit


def rows() -> int:
    event = Event()
    event.set()
    if not event.wait(1):
        event.wait(timeout=None)
    found: list[str] = to_thread(query, "SELECT", 1, 2, limit=3)
    return len(found)


def use(path: str) -> None:
    with Server(0) as server:
        threading.Thread(target=server.serve_forever).start()
    servers: list[fastsock.BaseServer] = [
        server,
        fastsock.MultiplexingTCPServer(("", 0), Proxy),
        fastsock.MultiplexingUDPServer(("", 0), fastsock.DatagramRequestHandler),
        fastsock.MultiplexingUnixStreamServer(path, Proxy),
        multiplexing.MultiplexingUnixDatagramServer(path, fastsock.DatagramRequestHandler),
    ]
    fastsock.serve_forever(*servers)
    fastsock.install(multiplex=True)
