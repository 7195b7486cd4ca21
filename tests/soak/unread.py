"""Hundreds of clients that ask for much and never read: little memory each, and gone in time.

A good client is served meanwhile as it was before. The standard library's handlers have their
``timeout``, which would be the time of a client that says nothing as well.
"""

from __future__ import annotations

import argparse
import socket
import time
from typing import Any

from .good import LASTING
from .staying import Good, Server, raise_limit, show, until, verdict

RATE = 40.0  # lines per second, of the good client
RECEIVES = 1 << 16  # bytes that the kernel takes for each
#: of a processor, which a server uses whose handlers all wait
STUCK = 0.05


def share(server: Server) -> float:
    """Of a processor, that it uses."""
    begin, cpu = time.monotonic(), server.cpu()
    time.sleep(0.2)
    return (server.cpu() - cpu) / (time.monotonic() - begin)


def measure(implementation: str, options: argparse.Namespace) -> dict[str, Any]:
    which = "timeout" if implementation == "socketserver" else "write_timeout"
    server = Server(implementation, handler={which: options.deadline})
    baseline = Good(server, "lasting", RATE, max(2.0, options.deadline)).result()
    until(lambda: server.descriptors() < 20)
    descriptors, memory = server.descriptors(), server.memory()
    clients = []
    for _ in range(options.clients):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVES)  # or 500 take some GB
        client.connect(server.address)
        client.sendall(b"flood\n")
        clients.append(client)
    until(lambda: server.descriptors() - descriptors >= options.clients)
    while share(server) > STUCK:  # the kernel still takes some
        pass
    begin = time.monotonic()
    good = Good(server, "lasting", RATE, options.deadline + 2.0)
    most = server.memory()
    gone_after: float | str = "never"
    while time.monotonic() - begin < options.deadline + 2.0:
        most = max(most, server.memory())
        left = server.descriptors() - descriptors - LASTING
        if left <= 0:
            gone_after = round(time.monotonic() - begin, 2)
            break
        time.sleep(0.01)
    during = good.result()
    for client in clients:
        client.close()
    counted = server.close()
    return {
        "": implementation,
        "clients": options.clients,
        "KB each, at most": round((most - memory) / options.clients, 1),
        "p50 before, ms": round(baseline["p50"], 2),
        "p50 meanwhile": round(during["p50"], 2),
        "p99 before, ms": round(baseline["p99"], 2),
        "p99 meanwhile": round(during["p99"], 2),
        "left": max(left, 0),
        "gone after, s": gone_after,
        "timed out": counted.get("timed out", "-"),
    }


def run(options: argparse.Namespace) -> int:
    raise_limit()
    rows = [measure(name, options) for name in options.implementations]
    show(f"clients that never read, a deadline of {options.deadline:g} s", rows)
    wrong = []
    for row in rows:
        if row[""] == "socketserver":
            continue
        if row["KB each, at most"] > 200:
            wrong.append(f"{row['']}: {row['KB each, at most']} KB each")
        if row["p99 meanwhile"] > 2 * row["p99 before, ms"] + options.allowance:
            wrong.append(f"{row['']}: p99 from {row['p99 before, ms']} to {row['p99 meanwhile']}")
        if row["gone after, s"] == "never" or row["gone after, s"] > options.deadline + 1:
            wrong.append(f"{row['']}: gone after {row['gone after, s']} s")
    return verdict(wrong)
