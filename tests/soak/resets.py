"""A hundred thousand clients that go at a random byte: of what they ask for, or of the answer.

They reset the connection (SO_LINGER with no time), close it with bytes unread, or are killed, as
whole processes. Five seconds later no connection to the server is in CLOSE_WAIT, or any other state
but TIME_WAIT, and it holds as many descriptors, threads and children as before. The standard
library's servers are shown beside.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any

from .faulted import Faulty
from .staying import show, verdict

#: name -> implementation, kind, its part of the clients
SERVERS = {
    "threading": ("fastsock", "threading", 0.3),
    "multiplexing": ("fastsock", "multiplexing", 0.3),
    "sync": ("fastsock", "sync", 0.3),
    "forking": ("fastsock", "forking", 0.1),
    "socketserver threading": ("socketserver", "threading", 0.1),
    "socketserver sync": ("socketserver", "sync", 0.1),
    "socketserver forking": ("socketserver", "forking", 0.05),
}
WAYS = ("reset", "closed", "killed")
KILLED = 20  # connections of a process that is killed
#: linux/in.h: the port of a bound source is chosen by connect(2), of those that are free for that
#: destination
IP_BIND_ADDRESS_NO_PORT = 24
STATES = {"01": "ESTABLISHED", "04": "FIN_WAIT1", "05": "FIN_WAIT2", "08": "CLOSE_WAIT"}
STATES |= {"09": "LAST_ACK", "0B": "CLOSING"}
AFTER = 5.0  # seconds


def connect(server: Faulty, dice: random.Random) -> socket.socket:
    """From one of many addresses: those who close first keep their port for a minute."""
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    client.bind((f"127.0.{dice.randrange(1, 250)}.{dice.randrange(1, 250)}", 0))
    client.settimeout(30)
    client.connect(server.address)
    return client


def ask(client: socket.socket, dice: random.Random, alone: bool) -> None:
    """As far as a random byte; alone: nobody else of this process waits for the server."""
    size = dice.choice((1, 100, 5000, 300_000))
    line = b"%0*d\n" % (dice.choice((8, 200, 3000)), size)
    place = dice.randrange(-size, len(line)) if size > 1000 else dice.randrange(-100, len(line))
    if place >= 0:  # it ends within what is asked
        client.sendall(line[:place])
        return
    client.sendall(line)
    if not alone:
        return
    left = min(size, -place)
    while left:
        data = client.recv(min(left, 1 << 16))
        if not data:
            break
        left -= len(data)


def go(server: Faulty, dice: random.Random) -> None:
    client = connect(server, dice)
    with contextlib.suppress(ConnectionError):
        ask(client, dice, True)
    if dice.random() < 0.5:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def be_killed(server: Faulty, seed: int) -> None:
    """A process with some connections, in the middle of which it is killed."""
    process = os.fork()
    if process:
        os.waitpid(process, 0)
        return
    dice = random.Random(seed)
    held = []
    with contextlib.suppress(OSError):
        for _ in range(KILLED):
            held.append(connect(server, dice))
            ask(held[-1], dice, False)
    os.kill(os.getpid(), signal.SIGKILL)


def clients(server: Faulty, count: int, seed: int) -> None:
    dice = random.Random(seed)
    while count > 0:
        if count >= KILLED and dice.random() < 1 / KILLED:  # half of the connections
            be_killed(server, dice.randrange(1 << 30))
            count -= KILLED
        else:
            go(server, dice)
            count -= 1


def states(port: int) -> dict[str, int]:
    """Of the connections of the server's end, but TIME_WAIT."""
    found: dict[str, int] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[3] in STATES:
            name = STATES[fields[3]]
            found[name] = found.get(name, 0) + 1
    return found


def warm(server: Faulty) -> None:
    """What is made once is made, with as many at a time as come later."""
    for _ in range(2):
        held = [server.connect() for _ in range(1 if server.kind == "sync" else 4)]
        for client in held:
            client.sendall(b"3\n")
            assert client.recv(10)
            client.close()


def measure(name: str, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    implementation, kind, part = SERVERS[name]
    server = Faulty(implementation, kind, "replies", thread_idle_timeout=0.5)
    count = int(options.clients * part)
    warm(server)
    time.sleep(1.0)
    before, begin = server.holds(), time.monotonic()
    children = []
    for place in range(options.processes):
        process = os.fork()
        if not process:
            clients(server, count // options.processes, options.seed * 1000 + place)
            os._exit(0)
        children.append(process)
    failed = sum(os.waitpid(process, 0)[1] != 0 for process in children)
    seconds = time.monotonic() - begin
    most = server.holds()
    moment = time.monotonic()
    while time.monotonic() < moment + AFTER and states(server.address[1]):
        time.sleep(0.05)
    after = time.monotonic() - moment
    left_in = states(server.address[1])
    left = server.back_to(before)
    with server.connect() as client:
        client.sendall(b"3\n")
        serves = client.recv(10)
    found = server.look()
    told = server.close()
    wrong = []
    if failed:
        wrong.append(f"{failed} processes of clients have failed")
    if left_in:
        wrong.append(f"after {AFTER:g} s: {left_in}")
    if left != (0, 0, 0):
        wrong.append(f"descriptors, threads, children left: {left}")
    if serves != b"rrr":
        wrong.append("it does not serve any more")
    if told["close"]:
        wrong.append(f"server_close(): {told['close']}")
    others = set(found["errors"]) - {"ECONNRESET", "EPIPE"}
    if others:
        wrong.append(f"handle_error: {others}")
    return {
        "": name,
        "clients": count // options.processes * options.processes,
        "per second": round(count / seconds),
        **{error: found["errors"].get(error, 0) for error in ("ECONNRESET", "EPIPE")},
        "CLOSE_WAIT": left_in.get("CLOSE_WAIT", 0),
        "others": sum(left_in.values()) - left_in.get("CLOSE_WAIT", 0),
        "none after, s": round(after, 2),
        "fds, threads, children at the end": "{}, {}, {}".format(*most),
        "left": "{}, {}, {}".format(*left),
    }, [f"{name}: {what}" for what in wrong]


def run(options: argparse.Namespace) -> int:
    rows, wrong = [], []
    for name, (implementation, kind, _) in SERVERS.items():
        if implementation not in options.implementations:
            continue
        if options.kinds and kind not in options.kinds:
            continue
        row, what = measure(name, options)
        rows.append(row)
        if implementation == "fastsock":
            wrong += what
    show(f"{options.clients} clients that go without a word", rows)
    return verdict(wrong)
