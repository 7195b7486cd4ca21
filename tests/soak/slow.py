"""Thousands of clients that send a byte a second, again and again: each is gone in time.

A good client is served meanwhile as it was before. The standard library's server has the handler's
``timeout``, which each byte renews.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import select
import socket
import threading
import time
from typing import Any

from .staying import Good, Server, raise_limit, show, verdict

RATE = 25.0  # connections per second, of the good client


class Attackers(threading.Thread):
    """Each sends a byte a second; who is thrown out comes again.

    They come one after the other, so that they are not all thrown out at the same moment.
    """

    def __init__(self, address: Any, count: int, ramp: float) -> None:
        super().__init__(daemon=True)
        self.address, self.count, self.ramp = address, count, ramp
        self.lives: list[float] = []
        self.failed = 0
        self.full = threading.Event()
        self.over = False

    def run(self) -> None:
        poller = select.epoll()
        clients: dict[int, tuple[socket.socket, float]] = {}
        due: list[tuple[float, int, float]] = []
        missing = begun = 0
        begin = time.monotonic()
        while not self.over:
            now = time.monotonic()
            come = min(self.count, int(self.count * (now - begin) / self.ramp))
            missing += come - begun
            begun = come
            for _ in range(missing):
                client = socket.create_connection(self.address, 30)
                client.setblocking(False)
                born = time.monotonic()
                clients[client.fileno()] = client, born
                poller.register(client, select.EPOLLIN | select.EPOLLRDHUP)
                heapq.heappush(due, (born, client.fileno(), born))
            if begun == self.count:
                self.full.set()
            while due and due[0][0] <= now:
                when, descriptor, born = heapq.heappop(due)
                known = clients.get(descriptor)
                if known is None or known[1] != born:
                    continue
                with contextlib.suppress(OSError):  # of which the poller tells
                    known[0].send(b"x")
                heapq.heappush(due, (when + 1.0, descriptor, born))
            gone = poller.poll(0.002)  # so many at once as come within that
            missing = len(gone)
            for descriptor, _ in gone:
                client, born = clients.pop(descriptor)
                self.lives.append(time.monotonic() - born)
                poller.unregister(descriptor)
                client.close()
        self.left = len(clients)
        self.oldest = max((time.monotonic() - born for _, born in clients.values()), default=0.0)
        for client, _ in clients.values():
            client.close()
        poller.close()


def measure(implementation: str, options: argparse.Namespace) -> dict[str, Any]:
    count = options.clients if implementation == "multiplexing" else options.threads
    if implementation == "socketserver":
        server = Server(implementation, handler={"timeout": options.deadline})
    else:
        server = Server(
            implementation,
            server={"max_connections": count + 100},
            handler={"request_timeout": options.deadline, "first_byte_timeout": options.deadline},
        )
    baseline = Good(server, "fresh", RATE, max(2.0, options.seconds / 3)).result()
    attackers = Attackers(server.address, count, options.deadline)
    attackers.start()
    if not attackers.full.wait(60):
        raise SystemExit("soak: the attackers have not all connected")
    time.sleep(1.0)
    cpu = server.cpu()
    during = Good(server, "fresh", RATE, options.seconds).result()
    cpu = (server.cpu() - cpu) / options.seconds
    attackers.over = True
    attackers.join()
    counted = server.close()
    lives = attackers.lives
    return {
        "": implementation,
        "attackers": count,
        "p50 before, ms": round(baseline["p50"], 2),
        "p50 meanwhile": round(during["p50"], 2),
        "p99 before, ms": round(baseline["p99"], 2),
        "p99 meanwhile": round(during["p99"], 2),
        "failed": during["failed"],
        "thrown out": len(lives),
        "latest after, s": round(max(lives), 2) if lives else "never",
        "oldest left, s": round(attackers.oldest, 2),
        "CPU %": round(100 * cpu, 1),
        "peak": counted.get("peak", "-"),
    }


def run(options: argparse.Namespace) -> int:
    raise_limit()
    rows = [measure(name, options) for name in options.implementations]
    show(f"a byte a second, a deadline of {options.deadline:g} s, for {options.seconds:g} s", rows)
    wrong = []
    for row in rows:
        if row[""] == "socketserver":
            continue
        if row["p99 meanwhile"] > 2 * row["p99 before, ms"] + options.allowance:
            wrong.append(f"{row['']}: p99 from {row['p99 before, ms']} to {row['p99 meanwhile']}")
        if row["latest after, s"] == "never" or row["latest after, s"] > options.deadline + 1:
            wrong.append(f"{row['']}: gone after {row['latest after, s']} s")
        if row["oldest left, s"] > options.deadline + 1 or row["failed"]:
            wrong.append(f"{row['']}: {row['failed']} failed, or an attacker is left")
    return verdict(wrong)
