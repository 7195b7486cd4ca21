"""A TCP proxy: what comes from a client goes to a server, and what comes from that goes back.

    python examples/tcp_proxy.py 8080 example.org:80
    python examples/tcp_proxy.py --threads 8080 example.org:80

listens on port 8080 of this machine. A connection is served by two pieces of ordinary blocking
code, one for each direction. With fastsock's multiplexing all of them share one thread; with
--threads each has one of its own.

A direction ends when its source sends no more: the other side is told just that (``shutdown()``),
and the opposite direction goes on. So a client may send a request, end its part, and still read the
whole answer.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from typing import Any

import fastsock
from fastsock import multiplexing
from fastsock.multiplexing import create_connection, spawn

CHUNK = 1 << 16  # bytes


def copy(source: socket.socket, target: socket.socket) -> None:
    """Send what is received to the other side, until the end."""
    try:
        while data := source.recv(CHUNK):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One side is gone. Whoever waits for the other one is woken, and finds its end.
        for sock in (source, target):
            with contextlib.suppress(OSError):  # it is that one
                sock.shutdown(socket.SHUT_RDWR)


class Proxy(fastsock.BaseRequestHandler):
    """Serves one client."""

    server: Server

    def handle(self) -> None:
        try:
            upstream = create_connection(self.server.target, timeout=self.server.connect_timeout)
        except OSError as error:
            print(f"no connection to {self.server.target}: {error}", flush=True)
            return
        with upstream:
            upstream.settimeout(None)
            forth = spawn(copy, self.request, upstream)
            copy(upstream, self.request)
            forth.join()


class Server:
    """Mixed into a server class."""

    allow_reuse_address = True
    request_queue_size = 1024
    target: tuple[str, int]
    connect_timeout = 10.0


class MultiplexingProxy(Server, multiplexing.MultiplexingTCPServer):
    """All connections in one thread."""


class ThreadingProxy(Server, fastsock.ThreadingTCPServer):
    """Two threads for each connection."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A TCP proxy.")
    parser.add_argument("port", type=int, help="to listen on; 0: any")
    parser.add_argument("target", metavar="host:port")
    parser.add_argument("--threads", action="store_true", help="a thread for each direction")
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")
    server_class: Any = ThreadingProxy if options.threads else MultiplexingProxy
    with server_class(("127.0.0.1", options.port), Proxy) as server:
        server.daemon_threads = True
        server.target = (host, int(port))
        print(f"listening on port {server.server_address[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
