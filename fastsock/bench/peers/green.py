"""gevent: its StreamServer and DatagramServer, handlers in the blocking style."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

Address = str | tuple[str, int]

#: name -> the distribution that has to be installed
PEERS = {"gevent": "gevent"}
#: name -> what it can do
WORKS = {"gevent": ("once", "lines", "datagrams")}


def once(sock: Any, peer: Any) -> None:
    sock.sendall(sock.recv(65536))


def lines(sock: Any, peer: Any) -> None:
    if sock.family != socket.AF_UNIX:  # as asyncio, uvloop, and gevent's own HTTP server do
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock.makefile("rb") as rfile:
        for line in rfile:
            sock.sendall(line)


def serve(
    name: str,
    work: str,
    address: Address,
    backlog: int,
    tell: Callable[[int], None],
    enlarge: Callable[[socket.socket], None],
) -> None:
    """Serve until killed."""
    from gevent import server
    from gevent import socket as green

    if work == "datagrams":
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        sock = green.socket(family, socket.SOCK_DGRAM)
        sock.bind(address)
        enlarge(sock)

        class Echo(server.DatagramServer):  # type: ignore[misc]
            def handle(self, data: bytes, peer: Any) -> None:
                self.socket.sendto(data, peer)

        tell(0 if isinstance(address, str) else sock.getsockname()[1])
        Echo(sock).serve_forever()
        return
    handler = {"once": once, "lines": lines}[work]
    options = {"backlog": backlog} if backlog else {}
    if isinstance(address, str):
        listener = green.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(address))
        listener.listen(backlog or server.StreamServer.backlog or 256)
        serving = server.StreamServer(listener, handler)
    else:
        serving = server.StreamServer(address, handler, **options)
    serving.start()
    tell(0 if isinstance(address, str) else serving.server_port)
    serving.serve_forever()
