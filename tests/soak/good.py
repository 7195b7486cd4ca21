"""A good client: sends a line now and then, and measures how long its answer takes.

Prints the 50th and 99th percentile and the most, in milliseconds. ``fresh``: each line comes on a
connection of its own; else on a few that last.
"""

from __future__ import annotations

import json
import socket
import sys
import time

PATIENCE = 30.0
LASTING = 5


def exchange(client: socket.socket) -> None:
    client.sendall(b"hello\n")
    if client.recv(6) != b"hello\n":
        raise SystemExit("good client: not what was sent")


def main(port: int, kind: str, rate: float, seconds: float) -> None:
    address = ("127.0.0.1", port)
    lasting = []
    if kind != "fresh":
        lasting = [socket.create_connection(address, PATIENCE) for _ in range(LASTING)]
        for client in lasting:
            exchange(client)
    print("ready", flush=True)
    taken: list[float] = []
    failed = 0
    end = time.monotonic() + seconds
    due = time.monotonic()
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        begin = time.monotonic()
        try:
            if lasting:
                exchange(lasting[len(taken) % LASTING])
            else:
                with socket.create_connection(address, PATIENCE) as client:
                    exchange(client)
        except OSError:
            failed += 1
        taken.append(time.monotonic() - begin)
        due = max(due + 1 / rate, time.monotonic())
    taken.sort()
    print(
        json.dumps(
            {
                "lines": len(taken),
                "failed": failed,
                "p50": taken[len(taken) // 2] * 1000,
                "p99": taken[len(taken) * 99 // 100] * 1000,
                "most": taken[-1] * 1000,
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
