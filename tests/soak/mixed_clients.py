"""The clients of ``mixed``: each behaves in its own way, and says how it has ended.

What a server echoes is compared with what was sent, byte for byte; broadcasts come between lines,
and carry their own hash. A connection may end early where a server was being drained meanwhile,
where it is one too many for a server that rejects those, or where that is what the client is for.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import random
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "multiplex"))

from .mixed_server import LINE, SERVERS, TOO_LONG, VICTIMS
from .resets import IP_BIND_ADDRESS_NO_PORT

PATIENCE = 45.0  # seconds; who needs it has failed
SIZES = (1, 10, 40, 100, 400, 3000, LINE - 1)
LIMIT = 1024  # of what asyncio reads ahead


class Wrong(Exception):
    """What must not be."""


class Kind:
    """A server; ``era`` is odd while it is drained, and another one afterwards."""

    def __init__(self, name: str, address: Any) -> None:
        self.name = name
        self.era = 0
        self.rejects = SERVERS[name][1].get("overload") == "reject"
        self.most = SERVERS[name][1].get("max_connections", 0)
        self.set_address(address)

    def set_address(self, address: Any) -> None:
        self.address = address if isinstance(address, str) else tuple(address)


class Client:
    """One connection."""

    def __init__(self, clients: Clients, kind: Kind) -> None:
        self.clients, self.kind = clients, kind
        self.dice = random.Random(clients.dice.random())
        self.sent = bytearray()
        self.got = 0
        self.rest = bytearray()  # of a line that has not come to its end

    async def connect(self, prefix: str = "127.0.1.", buffer: int = 0) -> None:
        family = socket.AF_UNIX if self.kind.name == "unix" else socket.AF_INET
        sock = socket.socket(family)
        try:
            sock.setblocking(False)
            if buffer:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            if family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((f"{prefix}{self.dice.randrange(1, 250)}", 0))
            await asyncio.get_running_loop().sock_connect(sock, self.kind.address)
            secure: dict[str, Any] = {}
            if self.kind.name == "tls":
                from tls_support import client_context

                secure = {"ssl": client_context(), "server_hostname": "localhost"}
            self.reader, self.writer = await asyncio.open_connection(
                sock=sock, limit=LIMIT, **secure
            )
        except BaseException:
            sock.close()
            raise
        self.clients.connections += 1

    def line(self, size: int = 0) -> bytes:
        size = size or self.dice.choice(SIZES)
        return (
            b"x" * min(1, size - 1)
            + self.dice.randbytes(max(0, size - 2)).replace(b"\n", b"_")
            + b"\n"
        )

    async def send(self, data: bytes) -> None:
        self.sent += data
        self.writer.write(data)
        await self.writer.drain()

    async def take(self) -> bool:
        """Some bytes, which are checked; false at the end."""
        data = await self.reader.read(1 << 16)
        if not data:
            return False
        self.rest += data
        while True:
            at = self.rest.find(b"\n") + 1
            if not at:
                break
            line = bytes(self.rest[:at])
            del self.rest[:at]
            if line.startswith(b"*"):
                if hashlib.sha1(line[42:-1]).hexdigest().encode() != line[1:41]:
                    raise Wrong(f"a broadcast: {line!r}")
                self.clients.count["broadcasts got"] += 1
            elif self.sent[self.got : self.got + at] != line:
                raise Wrong(f"{line[:50]!r} at {self.got}, not what was sent")
            else:
                self.got += at
                self.clients.bytes += at
        if not self.rest.startswith(b"*") and not self.sent.startswith(self.rest, self.got):
            raise Wrong(f"{bytes(self.rest[:50])!r} behind {self.got}, not what was sent")
        return True

    async def take_all(self) -> None:
        """Until all has come back that was sent."""
        while self.got < len(self.sent):
            if not await self.take():
                raise ConnectionError("an early end")

    async def take_end(self) -> None:
        while await self.take():
            pass

    async def pause(self, most: float) -> None:
        await asyncio.sleep(self.dice.random() * most * self.clients.scale)

    async def close(self) -> None:
        writer = getattr(self, "writer", None)
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.wait_closed(), 5)

    # Behaviours: each returns when it has ended as it should.

    async def one_shot(self) -> None:
        await self.connect()
        for _ in range(self.dice.randrange(1, 4)):
            await self.send(self.line())
            await self.take_all()

    async def keep_alive(self) -> None:
        await self.connect()
        for _ in range(self.dice.randrange(3, 15)):
            await self.send(self.line())
            await self.take_all()
            await self.pause(0.4)

    async def victim(self) -> None:
        """Some time its connection is closed, by the server's program."""
        with contextlib.suppress(OSError):
            await self.connect(VICTIMS)
            for _ in range(30):
                await self.send(self.line())
                await self.take_all()
                await self.pause(0.3)
            return
        self.clients.count["victims cut off"] += 1

    async def half_close(self) -> None:
        await self.connect()
        lines = [self.line() for _ in range(self.dice.randrange(1, 25))]
        sending = asyncio.ensure_future(self.send(b"".join(lines)))
        try:
            await asyncio.sleep(0)
            self.writer.write_eof()  # behind what asyncio has to write yet
            await self.take_end()
        finally:
            await asyncio.gather(sending, return_exceptions=True)
        if self.got != len(self.sent):
            raise ConnectionError("an early end")

    async def overlong(self) -> None:
        """The line is not answered but by a word, which a lingering server gets to its client."""
        await self.connect()
        for _ in range(self.dice.randrange(3)):
            await self.send(self.line())
        await self.take_all()
        before = len(self.sent)
        self.sent += TOO_LONG
        try:
            self.writer.write(b"x" * self.dice.randrange(LINE + 1, 3 * LINE) + b"\n")
            await self.take_end()
        except ConnectionError:
            if self.kind.name == "threading":
                raise
        if self.kind.name == "threading" and self.got != before + len(TOO_LONG):
            raise ConnectionError("the answer is lost")

    async def resets(self) -> None:
        await self.connect()
        data = b"".join(self.line() for _ in range(self.dice.randrange(1, 20)))
        self.sent += data
        self.writer.write(data[: self.dice.randrange(len(data) + 1)])
        for _ in range(self.dice.randrange(4)):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.take(), 0.05)
        sock = self.writer.get_extra_info("socket")
        if sock is None:
            return  # the server was faster
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def silent(self) -> None:
        """Until its deadline is over; some after a line."""
        await self.connect()
        if self.dice.random() < 0.5:
            await self.send(self.line())
        with contextlib.suppress(ConnectionError):
            await self.take_end()

    async def slow(self) -> None:
        """A byte now and then, until its deadline is over."""
        await self.connect()
        ending = asyncio.ensure_future(self.reader.read(1))
        try:
            with contextlib.suppress(ConnectionError):
                while not ending.done() and not self.writer.is_closing():
                    self.writer.write(b"x")
                    await self.writer.drain()
                    await asyncio.wait([ending], timeout=0.05 + 0.3 * self.dice.random())
            if ending.done() and not ending.exception() and ending.result():
                if ending.result() != b"*":
                    raise Wrong("an answer without a question")
                with contextlib.suppress(ConnectionError):
                    while await self.reader.read(1 << 16):
                        pass
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def never_reads(self) -> None:
        """Until the server has given it up."""
        await self.connect(buffer=4096)
        data = b"".join(self.line(3000) for _ in range(20))
        with contextlib.suppress(ConnectionError):
            while not self.writer.is_closing():
                self.writer.write(data)
                await self.writer.drain()

    async def listener(self) -> None:
        """What is broadcast, for some seconds."""
        await self.connect()
        loop = asyncio.get_running_loop()
        end = loop.time() + self.clients.scale * (1 + 4 * self.dice.random())
        while loop.time() < end:
            await self.send(self.line(40))
            await self.take_all()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.take(), 0.2)
            await self.pause(1.0)

    async def datagrams(self) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.kind.address)
            for _ in range(self.dice.randrange(1, 6)):
                data = self.dice.randbytes(self.dice.choice((1, 40, 400, 3000)))
                await loop.sock_sendall(sock, data)
                try:
                    found = await asyncio.wait_for(loop.sock_recv(sock, 1 << 16), 10)
                except asyncio.TimeoutError:
                    raise ConnectionError("a datagram without an answer") from None
                if found != data:
                    raise Wrong(f"a datagram: {found[:50]!r}, not {data[:50]!r}")
                self.clients.bytes += len(data)

    async def flurry(self) -> None:
        """Many datagrams at once; at a quiet moment."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.connect(self.kind.address)
            sent = [b"%d" % number for number in range(20)]
            for data in sent:
                await loop.sock_sendall(sock, data)
            found = [await asyncio.wait_for(loop.sock_recv(sock, 99), 10) for _ in sent]
            if sorted(found) != sorted(sent):
                raise Wrong(f"datagrams: {found}")

    async def held(self) -> None:
        """One of a burst."""
        await self.connect()
        await self.send(self.line(100))
        await self.take_all()
        await asyncio.sleep(0.4)
        await self.pause(0.3)


#: (behaviour, kind): its share of the clients
SHARES: dict[tuple[str, str], float] = {
    **{("one_shot", name): 6 for name in ("threading", "multiplexing", "unix", "sync")},
    **{("keep_alive", name): 3 for name in ("threading", "multiplexing", "unix")},
    **{("half_close", name): 3 for name in ("threading", "multiplexing", "unix", "sync")},
    **{("overlong", name): 1.5 for name in ("threading", "multiplexing", "unix")},
    **{("resets", name): 3 for name in ("threading", "multiplexing", "unix", "sync")},
    **{("victim", name): 1 for name in ("threading", "multiplexing", "tls")},
    **{("listener", name): 1 for name in ("threading", "multiplexing", "unix")},
    **{("silent", name): 0.6 for name in ("threading", "multiplexing", "unix", "tls")},
    **{("slow", name): 0.4 for name in ("threading", "multiplexing", "unix")},
    **{("never_reads", name): 0.4 for name in ("threading", "multiplexing", "unix", "tls")},
    **{("silent", "sync"): 0.05, ("slow", "sync"): 0.015, ("datagrams", "udp"): 10},
    **{("one_shot", "tls"): 1.5, ("keep_alive", "tls"): 0.7, ("resets", "tls"): 0.7},
    **{("one_shot", "forking"): 1, ("half_close", "forking"): 0.5, ("resets", "forking"): 0.5},
}
MOST = 400  # clients at a time
STALL = 0.3  # seconds by which the clients may be late themselves; beyond, deadlines may be over


class Clients:
    """Those that there are, and what has become of the others."""

    def __init__(self, kinds: dict[str, Kind], scale: float, seed: int) -> None:
        self.kinds = kinds
        self.scale = scale
        self.dice = random.Random(seed)
        self.tasks: set[asyncio.Task[None]] = set()
        self.count: collections.Counter[str] = collections.Counter()
        self.bytes = self.connections = 0
        self.stalled = float("-inf")  # when this process was last late by STALL
        self.wrong: list[str] = []

    def start(self, behaviour: str, name: str) -> None:
        if len(self.tasks) < MOST:
            task = asyncio.ensure_future(self.run(behaviour, self.kinds[name]))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    def start_any(self) -> None:
        (which,) = self.dice.choices(list(SHARES), list(SHARES.values()))
        self.start(*which)

    def burst(self, name: str) -> None:
        """More at a time than the server takes."""
        for _ in range(self.kinds[name].most + 15):
            self.start("held", name)

    async def watch_itself(self) -> None:
        while True:
            begin = time.monotonic()
            await asyncio.sleep(0.05)
            if time.monotonic() - begin > STALL:
                self.stalled = time.monotonic()
                self.count["stalls"] += 1

    async def run(self, behaviour: str, kind: Kind) -> None:
        client = Client(self, kind)
        era, begin = kind.era, time.monotonic()
        act: Callable[[], Awaitable[None]] = getattr(client, behaviour)
        try:
            await asyncio.wait_for(act(), PATIENCE)
            self.count[behaviour] += 1
        except asyncio.TimeoutError:
            self.wrong.append(f"{behaviour} of {kind.name} has waited for {PATIENCE} s")
        except OSError as error:
            if kind.era != era or era % 2:
                self.count["interrupted by a drain"] += 1
            elif kind.rejects and not client.got:
                self.count["one too many"] += 1
            elif self.stalled >= begin:
                self.count["late themselves"] += 1
            elif behaviour == "resets":
                self.count[behaviour] += 1
            else:
                self.wrong.append(f"{behaviour} of {kind.name}: {error!r}, {client.got} bytes in")
        except Exception as error:
            self.wrong.append(f"{behaviour} of {kind.name}: {error!r}")
        finally:
            await client.close()
