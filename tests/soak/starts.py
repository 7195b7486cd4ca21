"""A thread, or a process, cannot be started, a thousand times: its client is told so, no more.

Needs a C compiler: pthread_create(3) and fork(2) fail by faults.c, every second time. Each failure
is one call of handle_error(), one closed connection, and one of ``start_failures``; the request
after it is served. With greenlets it is ``to_thread()`` whose threads fail. The last start before
server_close() fails. The standard library is shown beside: its server_close() joins a thread that
was never started.
"""

from __future__ import annotations

import argparse
import socket
import time
from typing import Any

from .faulted import PATIENCE, Faulty, library
from .staying import show, verdict

MOST = 4  # max_threads, where there is that
#: name -> implementation, kind, what fails, attributes
SERVERS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "threading": ("fastsock", "threading", "thread", {"thread_idle_timeout": 0}),
    "threading, max_threads": (
        "fastsock",
        "threading",
        "thread",
        {"thread_idle_timeout": 0, "max_threads": MOST},
    ),
    "threading, not reused": ("fastsock", "threading", "thread", {"reuse_threads": False}),
    "forking": ("fastsock", "forking", "fork", {}),
    "multiplexing, to_thread": ("fastsock", "multiplexing", "thread", {}),
    "socketserver threading": ("socketserver", "threading", "thread", {}),
    "socketserver forking": ("socketserver", "forking", "fork", {}),
}
REPORTED = {"thread": 'RuntimeError("can\'t start new thread")', "fork": "EAGAIN"}


def is_answered(client: socket.socket) -> bool:
    try:
        client.sendall(b"hello\n")
        return client.recv(100) == b"HELLO\n"
    except ConnectionError:
        return False


def alone(server: Faulty, threads: int) -> None:
    end = time.monotonic() + PATIENCE
    while server.threads() > threads:
        if time.monotonic() > end:
            raise SystemExit(f"soak: {server}: its threads do not end")


def measure(name: str, shim: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    implementation, kind, call, attributes = SERVERS[name]
    server = Faulty(implementation, kind, "works", shim, **attributes)
    for _ in range(3):  # what is made once is made
        with server.connect() as client:
            assert is_answered(client)
    time.sleep(0.2)
    before, told = server.holds(), server.look()
    # A thread of to_thread() that has begun goes on to other calls: none of them is to begin.
    in_a_row = "to_thread" in name
    if in_a_row:
        server.kill()
        server = Faulty(implementation, kind, "works", shim, **attributes)
        told = server.look()
        before = server.holds()
    server.ask("plan", call, "EAGAIN", 1 if in_a_row else 2, options.times)
    served = closed = 0
    begin = time.monotonic()
    while True:
        for _ in range(20):
            with server.connect() as client:
                if is_answered(client):
                    served += 1
                else:
                    closed += 1
            if kind == "threading":  # one that rests would be used again: none is started
                alone(server, before[1])
        found = server.look()
        injected = found["injected"][call]
        if injected >= options.times or served > 20 * options.times:
            break
    seconds = time.monotonic() - begin
    wrong = []
    clients = [server.connect() for _ in range(MOST)]
    if not all(is_answered(client) for client in clients):
        wrong.append("the next are not served")
    for client in clients:
        client.close()
    if in_a_row:  # its threads rest
        before = before[0], before[1] + MOST, before[2]
    left = server.back_to(before)
    found = server.look()
    server.ask("plan", call, "EAGAIN", 1, 1)
    with server.connect() as client:
        last = is_answered(client)
    ended = server.close()
    reported = found["errors"].get(REPORTED[call], 0)
    counted = found.get("start failures", 0) - told.get("start failures", 0)
    if injected != options.times or closed != injected:
        wrong.append(f"{injected} failures, {closed} connections closed")
    if found["errors"] != {REPORTED[call]: injected}:
        wrong.append(f"handle_error: {found['errors']}")
    if implementation == "fastsock" and counted != (0 if in_a_row else injected):
        wrong.append(f"start_failures: {counted}")
    if left != (0, 0, 0):
        wrong.append(f"descriptors, threads, children left: {left}")
    if last and not in_a_row:
        wrong.append("the last one was served")
    if ended["close"]:
        wrong.append(f"server_close(): {ended['close']}")
    return {
        "": name,
        "failures": injected,
        "closed": closed,
        "reported": reported,
        "served between": served,
        "fds, threads, children left": "{}, {}, {}".format(*left),
        "server_close()": ended["close"] or f"{ended['seconds']:.2f} s",
        "seconds": round(seconds, 1),
    }, [f"{name}: {what}" for what in wrong]


def run(options: argparse.Namespace) -> int:
    rows, wrong = [], []
    with library() as shim:
        for name, (implementation, kind, _, _) in SERVERS.items():
            if implementation not in options.implementations:
                continue
            if options.kinds and kind not in options.kinds:
                continue
            row, what = measure(name, shim, options)
            rows.append(row)
            if implementation == "fastsock":
                wrong += what
    show(f"starts that fail, {options.times} times", rows)
    return verdict(wrong)
