"""Every errno that the design knows, a thousand times at each call; then short transfers.

Needs a C compiler. The library of faults.c makes calls on the server's own sockets fail. A
connection whose call has failed is reported once, with that errno, and closed; the others, and who
comes next, are served. In the end a million reads and writes, of which every tenth is interrupted,
has nothing yet, or takes a part only: each payload and its hash are what was sent.

The standard library is shown beside.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import random
import socket
import time
from typing import Any

from .faulted import PATIENCE, Faulty, library
from .faulty import FIRST, WAYS
from .staying import show, verdict

SHORTAGES = ("EMFILE", "ENFILE", "ENOBUFS", "ENOMEM")
CONNECTIONS = ("ECONNABORTED", "EPROTO", "ENETDOWN", "EHOSTUNREACH", "ENETUNREACH", "ENOPROTOOPT")
CONNECTIONS += ("EHOSTDOWN", "ENONET", "ENOTSUP")
REFUSED = ("EPERM",)  # last: after that no recvmmsg(2) is tried any more
BROKEN = ("EBADF", "EINVAL", "ENOTSOCK")
PEER = ("ECONNRESET", "EPIPE", "ETIMEDOUT")
NONE = ("EINTR", "EAGAIN")  # no failures
TAKEN = (*SHORTAGES, *CONNECTIONS, *BROKEN, *NONE, *REFUSED)
MOVED = (*PEER, *TAKEN)

SERVERS = (
    ("fastsock", "sync"),
    ("fastsock", "threading"),
    ("fastsock", "multiplexing"),
    ("fastsock", "unix multiplexing"),
    ("fastsock", "udp"),
    ("fastsock", "udp threading"),
    ("fastsock", "udp multiplexing"),
    ("socketserver", "sync"),
    ("socketserver", "threading"),
    ("socketserver", "udp"),
)
#: every how manyeth call fails
EVERY = {"take": 2, "receive": 7, "send": 3}
BURST = 8  # of datagrams


def received(client: socket.socket, size: int) -> bytes:
    pieces = []
    while size:
        piece = client.recv(min(size, 1 << 16))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class Wrong(Exception):
    """What came is not what was sent."""


def exchange(client: socket.socket, data: bytes) -> None:
    client.sendall(b"%8d" % len(data) + data)
    answer = received(client, 20 + len(data))
    if answer[20:] != data or hashlib.sha1(data).digest() != answer[:20]:
        raise Wrong(f"{len(data)} bytes have changed on their way")


class Clients:
    """One after another, or some datagrams at a time."""

    def __init__(self, server: Faulty) -> None:
        self.server = server
        self.dice = random.Random(7)
        self.served = self.failed = self.number = 0
        self.datagrams: Any = None
        if "udp" in server.kind:
            self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.datagrams.settimeout(PATIENCE)

    def some(self) -> None:
        self.number += 1
        if self.datagrams is not None:
            self.burst()
            return
        try:
            with self.server.connect() as client:
                client.sendall(bytes([FIRST + self.number % len(WAYS)]))
                for _ in range(2):
                    exchange(client, self.dice.randbytes(self.dice.choice((3, 300, 5000))))
            self.served += 1
        except (EOFError, ConnectionError):
            self.failed += 1

    def burst(self) -> None:
        sent = {b"%d, %d" % (self.number, place) for place in range(BURST)}
        for data in sent:
            self.datagrams.sendto(data, self.server.address)
        for _ in range(BURST):
            answer = self.datagrams.recv(100)
            if answer == b"failed":
                self.failed += 1
            elif answer in sent:
                sent.remove(answer)
                self.served += 1
            else:
                raise Wrong(f"{answer!r} came")

    def close(self) -> None:
        if self.datagrams is not None:
            self.datagrams.close()


def fail(server: Faulty, clients: Clients, call: str, error: str, times: int) -> dict[str, Any]:
    """Until the call has failed so often; what the server says then."""
    served, failed = clients.served, clients.failed
    before = server.look()
    server.ask("plan", call, error, EVERY[call], times)
    idle = 0
    while True:
        for _ in range(max(1, min(100, times // 10))):
            clients.some()
        found = server.look()
        injected = found["injected"][call]
        idle = 0 if injected else idle + 1
        if injected >= times or idle > 5 or not found["serves"]:
            break
    server.ask("plan_none")
    clients.some()  # it serves
    end = time.monotonic() + 5
    while (  # an error is reported after its client has gone
        call != "take"
        and error not in NONE
        and sum(found["errors"].values()) < injected - found["looks"]
        and time.monotonic() < end
    ):
        found = server.look()
    counts = (one.get("accept errors", {}).get(error, 0) for one in (found, before))
    return {
        "call": call,
        "errno": error,
        "injected": injected,
        "served": clients.served - served,
        "failed": clients.failed - failed,
        "errors": found["errors"],
        "looks": found["looks"],
        "counted": next(counts) - next(counts),
        "serves": found["serves"],
    }


def complaints(server: Faulty, row: dict[str, Any], times: int) -> list[str]:
    """What is not as documented."""
    call, error, injected, errors = row["call"], row["errno"], row["injected"], row["errors"]
    wrong = []
    if not row["serves"]:
        return ["it serves no more"]
    if injected != times and not (error == "EAGAIN" and not injected):  # of no call that waits
        wrong.append(f"{injected} calls have failed")
    if call == "take" or error in NONE:
        expected = {}
    elif "udp" in server.kind:  # what is refused is sent again by itself
        expected = {error: row["failed"]} if row["failed"] else {}
        if error not in REFUSED and row["failed"] != injected:
            wrong.append(f"{row['failed']} of {injected} reported")
    else:
        reported = errors.get(error, 0)
        if not injected - row["looks"] <= reported <= injected:
            reported = injected
        expected = {error: reported} if reported else {}
    if errors != expected:
        wrong.append(f"handle_error: {errors}, not {expected}")
    if call == "take" and server.implementation == "fastsock":
        once = error in REFUSED and "udp" in server.kind
        if not (row["counted"] == (0 if error in NONE else injected) or once):
            wrong.append(f"counted {row['counted']} of {injected}")
    return [f"{server}: {error} at {call}: {what}" for what in wrong]


def failures(
    implementation: str, kind: str, shim: str, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    server = Faulty(implementation, kind, "frames", shim, thread_idle_timeout=0.5)
    clients = Clients(server)
    for _ in range(5):
        clients.some()
    time.sleep(0.6)
    before = server.holds()
    cpu, begin = server.look()["cpu"], time.monotonic()
    wrong: list[str] = []
    injected = 0
    calls = ("take", "send") if "udp" in kind else ("take", "receive", "send")
    kinds = 0
    for call in calls:
        for error in TAKEN if call == "take" else MOVED:
            row = fail(server, clients, call, error, options.times)
            injected += row["injected"]
            kinds += row["injected"] > 0
            wrong += complaints(server, row, options.times)
    clients.close()
    cpu, seconds = server.look()["cpu"] - cpu, time.monotonic() - begin
    left = server.back_to(before)
    if left != (0, 0, 0):
        wrong.append(f"{server}: descriptors, threads, children left: {left}")
    if kind == "sync" and implementation == "fastsock":
        wrong += broken_for_good(server)
    told = server.close()
    if told["close"]:
        wrong.append(f"{server}: server_close() raised {told['close']}")
    return {
        "": str(server),
        "errnos x calls": kinds,
        "failures": injected,
        "served": clients.served,
        "closed or reported": clients.failed,
        "not as documented": len(wrong),
        "fds, threads left": f"{left[0]}, {left[1]}",
        "CPU %": round(100 * cpu / seconds),
    }, wrong


def broken_for_good(server: Faulty) -> list[str]:
    server.ask("plan", "take", "EINVAL", 1, 1_000_000)
    with server.connect():
        end = time.monotonic() + 5
        while server.look()["serves"] and time.monotonic() < end:
            time.sleep(0.01)
    found = server.look()
    server.ask("plan_none")
    if found["serves"] or "Invalid argument" not in found["ended"]:
        return [f"{server}: a listener that stays broken: {found['ended']}"]
    return []


def talk(server: Faulty, seed: int, frames: int) -> int:
    """Of one connection: how many frames have come back as they were."""
    dice = random.Random(seed)
    with server.connect() as client:
        client.sendall(bytes([FIRST + seed % len(WAYS)]))
        for _ in range(frames):
            size = dice.choice((1, 30, 300, 3000, 20_000, 100_000))
            exchange(client, dice.randbytes(dice.randint(1, size)))
    return frames


def mixture(
    implementation: str, kind: str, shim: str, options: argparse.Namespace
) -> tuple[dict[str, Any], list[str]]:
    server = Faulty(implementation, kind, "frames", shim, thread_idle_timeout=0.5)
    at_a_time = 1 if kind == "sync" else 4
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(lambda seed: talk(server, seed, 20), range(24)))
    time.sleep(0.6)
    before, begin = server.holds(), time.monotonic()
    server.ask("mix", options.percent)
    wrong: list[str] = []
    right = seed = 0
    mixed: dict[str, int] = {"calls": 0}
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        while mixed["calls"] < options.transfers and not wrong:
            batch = [pool.submit(talk, server, seed + place, 20) for place in range(24)]
            seed += len(batch)
            for one in batch:
                try:
                    right += one.result()
                except (OSError, EOFError, Wrong) as error:
                    wrong.append(f"{server}: {type(error).__name__}: {error}")
            mixed = server.look()["mixed"]
    found = server.look()
    server.ask("mix", 0)
    if found["errors"]:
        wrong.append(f"{server}: handle_error: {found['errors']}")
    left = server.back_to(before)
    if left != (0, 0, 0):
        wrong.append(f"{server}: descriptors, threads, children left: {left}")
    server.close()
    return {
        "": str(server),
        "reads and writes": mixed["calls"],
        **{name: mixed[name] for name in ("EINTR", "EAGAIN", "short")},
        "payloads": right,
        "wrong": len(wrong),
        "fds, threads left": f"{left[0]}, {left[1]}",
        "seconds": round(time.monotonic() - begin),
    }, wrong


def run(options: argparse.Namespace) -> int:
    chosen = [one for one in SERVERS if one[0] in options.implementations]
    if options.kinds:
        chosen = [one for one in chosen if one[1] in options.kinds]
    wrong: list[str] = []
    with library() as shim:
        if options.times:
            rows = []
            for implementation, kind in chosen:
                row, what = failures(implementation, kind, shim, options)
                rows.append(row)
                wrong += what if implementation == "fastsock" else []
                for line in what if implementation != "fastsock" else []:
                    print(f"  {line}")
            show(f"each errno, {options.times} times at each call", rows)
        if options.transfers:
            rows = []
            for implementation, kind in chosen:
                if "udp" not in kind:
                    row, what = mixture(implementation, kind, shim, options)
                    rows.append(row)
                    wrong += what if implementation == "fastsock" else []
            show(f"{options.percent} % interrupted, not ready, or short", rows)
    return verdict(wrong)
