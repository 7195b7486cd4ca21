"""No descriptor is left for a minute, and 120 clients wait: no busy loop, no flood of logs.

The established clients go on as before, and who waits is served as soon as another has gone.
"""

from __future__ import annotations

import argparse
import select
import socket
import time
from typing import Any

from .staying import Good, Server, raise_limit, show, until, verdict

DESCRIPTORS = 64
RATE = 40.0  # lines per second, of the good client
FREED = 20


def connected(server: Server) -> socket.socket:
    client = socket.create_connection(server.address, 30)
    client.sendall(b"hello\n")
    return client


def answered(clients: list[socket.socket], seconds: float) -> list[socket.socket]:
    ready = select.select(clients, [], [], seconds)[0]
    for client in ready:
        assert client.recv(10) == b"hello\n"
    return list(ready)


def measure(implementation: str, options: argparse.Namespace) -> dict[str, Any]:
    server = Server(implementation, descriptors=DESCRIPTORS)
    baseline = Good(server, "lasting", RATE, max(2.0, options.seconds / 4)).result()
    until(lambda: server.descriptors() < 20)
    good = Good(server, "lasting", RATE, options.seconds + 1.0)
    established: list[socket.socket] = []
    while True:  # fill it up
        client = connected(server)
        established.append(client)
        if not answered([client], 1.0):
            break
    waiting = [established.pop(), *(connected(server) for _ in range(options.clients - 1))]
    time.sleep(0.5)
    begin, cpu, lines = time.monotonic(), server.cpu(), server.log_lines()
    time.sleep(options.seconds)
    share = (server.cpu() - cpu) / (time.monotonic() - begin)
    lines = server.log_lines()
    during = good.result()
    while served := answered(waiting, 1.0):  # in the places of the good client's connections
        waiting = [client for client in waiting if client not in served]
        established += served
    freed = []
    for _ in range(FREED):
        established.pop(0).close()
        moment = time.monotonic()
        served = answered(waiting, 30)
        freed.append(time.monotonic() - moment)
        assert len(served) >= 1
        for client in served:
            waiting.remove(client)
            established.append(client)
        time.sleep(0.2)
    for client in (*established, *waiting):
        client.close()
    counted = server.close()
    return {
        "": implementation,
        "CPU %": round(100 * share, 2),
        "log lines": lines,
        "p99 before, ms": round(baseline["p99"], 2),
        "p99 meanwhile, ms": round(during["p99"], 2),
        "p50 before, ms": round(baseline["p50"], 2),
        "p50 meanwhile, ms": round(during["p50"], 2),
        "served after, ms": f"{1000 * sorted(freed)[FREED // 2]:.1f}, most {1000 * max(freed):.1f}",
        "accept errors": sum(counted.get("accept errors", {}).values()) if counted else "-",
    }


def run(options: argparse.Namespace) -> int:
    raise_limit()
    rows = [measure(name, options) for name in options.implementations]
    show(f"{options.clients} clients wait for {options.seconds:.0f} s, no descriptor is left", rows)
    wrong = []
    for row in rows:
        if row[""] == "socketserver":
            continue
        if row["CPU %"] > 2 + 100 * RATE * 0.0005:  # what the good client's lines cost
            wrong.append(f"{row['']}: {row['CPU %']} % of a core")
        if row["log lines"] > options.seconds / 5 + 3:
            wrong.append(f"{row['']}: {row['log lines']} log lines")
        if row["p99 meanwhile, ms"] > 2 * row["p99 before, ms"] + options.allowance:
            wrong.append(f"{row['']}: p99 from {row['p99 before, ms']} to ...")
        if float(row["served after, ms"].split()[-1]) > 49 + options.allowance:
            wrong.append(f"{row['']}: served after {row['served after, ms']} ms")
    return verdict(wrong)
