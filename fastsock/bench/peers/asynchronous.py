"""asyncio and uvloop: streams, as their documentation's echo server, and protocols.

A Protocol echoes what it gets, as the documentation's example does: it finds no ends of lines,
which is less work than a server that reads lines.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

Address = str | tuple[str, int]

#: name -> the distribution that has to be installed
PEERS = {
    "asyncio streams": "",
    "asyncio Protocol": "",
    "uvloop streams": "uvloop",
    "uvloop Protocol": "uvloop",
}
#: name -> what it can do
WORKS = {
    "asyncio streams": ("once", "lines"),
    "asyncio Protocol": ("once", "lines", "datagrams"),
    "uvloop streams": ("once", "lines"),
    "uvloop Protocol": ("once", "lines", "datagrams"),
}


async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(65536))
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


class OnceProtocol(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


class EchoProtocol(OnceProtocol):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class DatagramProtocol(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        self.transport.sendto(data, peer)


async def streams(work: str, address: Address, options: dict[str, Any]) -> asyncio.Server:
    handler = {"once": once, "lines": lines}[work]
    options = {"limit": 1 << 18, **options}  # of a line; 64 KiB as it comes
    if isinstance(address, str):
        return await asyncio.start_unix_server(handler, address, **options)
    return await asyncio.start_server(handler, *address, **options)


async def protocols(work: str, address: Address, options: dict[str, Any]) -> asyncio.Server:
    protocol = {"once": OnceProtocol, "lines": EchoProtocol}[work]
    loop = asyncio.get_running_loop()
    if isinstance(address, str):
        return await loop.create_unix_server(protocol, address, **options)
    return await loop.create_server(protocol, *address, **options)


async def datagrams(
    address: Address, tell: Callable[[int], None], enlarge: Callable[[socket.socket], None]
) -> None:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(address)
    enlarge(sock)
    await asyncio.get_running_loop().create_datagram_endpoint(DatagramProtocol, sock=sock)
    tell(0 if isinstance(address, str) else sock.getsockname()[1])
    await asyncio.Event().wait()


async def connections(
    server: Awaitable[asyncio.Server], address: Address, tell: Callable[[int], None]
) -> None:
    serving = await server
    tell(0 if isinstance(address, str) else serving.sockets[0].getsockname()[1])
    await serving.serve_forever()


def serve(
    name: str,
    work: str,
    address: Address,
    backlog: int,
    tell: Callable[[int], None],
    enlarge: Callable[[socket.socket], None],
) -> None:
    """Serve until killed."""
    library, _, kind = name.partition(" ")
    if library == "uvloop":
        import uvloop

        if not hasattr(uvloop, "run"):  # before 0.18
            uvloop.install()
        run: Any = getattr(uvloop, "run", asyncio.run)
    else:
        run = asyncio.run
    if work == "datagrams":
        run(datagrams(address, tell, enlarge))
        return
    make = streams if kind == "streams" else protocols
    options = {"backlog": backlog} if backlog else {}
    run(connections(make(work, address, options), address, tell))
