"""The servers of ``mixed``, all in one process; they obey.

Prints the addresses; then obeys lines of JSON, each with an answer, until its standard input ends.
Meanwhile a thread asks for their numbers and connections, broadcasts, and closes connections of
clients whose address says that they are victims.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import gc
import hashlib
import json
import os
import random
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
from pathlib import Path
from typing import Any

import fastsock

sys.path.append(str(Path(__file__).resolve().parent.parent / "multiplex"))

LINE = 8192  # max_line_size
TOO_LONG = b"too long\n"
VICTIMS = "127.0.2."
#: kind -> base class, attributes of the server
SERVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "threading": ("ThreadingTCPServer", {"max_connections": 60, "lingering_close": True}),
    "multiplexing": ("MultiplexingTCPServer", {"max_connections": 70, "overload": "reject"}),
    "unix": ("ThreadingUnixStreamServer", {"max_connections": 50}),
    "udp": ("ThreadingUDPServer", {}),
    "sync": ("TCPServer", {}),
    "forking": ("ForkingTCPServer", {"max_connections": 10}),
    "tls": ("ThreadingTCPServer", {"max_connections": 20}),
}
BROADCASTS = ("threading", "multiplexing", "unix")
#: seconds; of the sync server, where all wait for one, the half
DEADLINES = {"first_byte_timeout": 4.0, "idle_timeout": 4.0, "request_timeout": 10.0}
DEADLINES |= {"write_timeout": 3.0}
TICK = 0.05  # seconds between two looks of the thread


def echo(handler: Any) -> None:
    try:
        for line in handler.rfile:
            handler.wfile.write(line)
    except fastsock.LineTooLongError:
        handler.wfile.write(TOO_LONG)


def echo_tls(handler: Any) -> None:
    """Has the timeout of its socket: deadlines do not hold for what ssl has wrapped."""
    from tls_support import server_context

    handler.request.settimeout(DEADLINES["idle_timeout"])
    with (
        contextlib.suppress(OSError),
        server_context().wrap_socket(handler.request, server_side=True) as tls,
        tls.makefile("rb") as file,
    ):
        while line := file.readline(LINE):
            tls.sendall(line)


def answer(handler: Any) -> None:
    handler.wfile.write(handler.packet)


def news(number: int, dice: random.Random) -> bytes:
    """A broadcast, which proves that it is whole."""
    text = b"%d %s" % (number, b"n" * dice.randrange(400))
    return b"*" + hashlib.sha1(text).hexdigest().encode() + b" " + text + b"\n"


def malloc_holds() -> tuple[int, int]:
    """Bytes that malloc(3) has given away, and that it has from the kernel; 0 if it cannot say."""

    class Info(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in (
                *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks"),
                *("uordblks", "fordblks", "keepcost"),
            )
        ]

    try:
        ask = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0, 0
    ask.restype = Info
    found = ask()
    return int(found.uordblks + found.hblkhd), int(found.arena + found.hblkhd)


class One:
    """A server that runs."""

    def __init__(self, name: str, folder: str, number: int) -> None:
        base, attributes = SERVERS[name]
        handler: Any = fastsock.StreamRequestHandler
        deadlines = {
            key: value / 2 if name == "sync" else value for key, value in DEADLINES.items()
        }
        about: dict[str, Any] = {"handle": echo, "max_line_size": LINE, **deadlines}
        if name == "tls":
            about = {"handle": echo_tls}
        if name == "udp":
            handler, about = fastsock.DatagramRequestHandler, {"handle": answer}
        server_class = type(
            "Server",
            (getattr(fastsock, base),),
            {
                "quiet_disconnects": True,
                "request_queue_size": 256,
                "thread_idle_timeout": 1.0,
                **attributes,
            },
        )
        address: Any = f"{folder}/{number}" if name == "unix" else ("127.0.0.1", 0)
        self.server: Any = server_class(address, type("Handler", (handler,), about))
        self.failed: list[str] = []
        self.loop = threading.Thread(target=self.serve)
        self.loop.start()

    def serve(self) -> None:
        try:
            self.server.serve_forever()
        except BaseException:
            self.failed.append(traceback.format_exc())

    def numbers(self) -> dict[str, int]:
        stats = self.server.stats()
        return {
            "accepted": stats.accepted,
            "active": stats.active,
            "finished": stats.finished,
            "failed": stats.failed,
            "refused": sum(stats.refused.values()),
            "timed out": sum(stats.timed_out.values()),
            "not taken": sum(stats.accept_errors.values()) + stats.start_failures,
            "datagrams": stats.datagrams_in,
            "dropped": stats.datagrams_dropped,
        }


class All:
    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="fs"))
        self.dice = random.Random()
        self.made = self.news = 0
        self.wrong: list[str] = []
        self.did: collections.Counter[str] = collections.Counter()
        self.past: dict[str, collections.Counter[str]] = {
            name: collections.Counter() for name in SERVERS
        }
        self.servers = {name: self.make(name) for name in SERVERS}
        self.ending = threading.Event()
        self.looks = threading.Thread(target=self.look_around)
        self.looks.start()

    def make(self, name: str) -> One:
        self.made += 1
        return One(name, self.folder, self.made)

    def addresses(self) -> dict[str, Any]:
        return {name: one.server.server_address for name, one in self.servers.items()}

    def look_around(self) -> None:
        while not self.ending.wait(TICK):
            try:
                self.look_at(self.dice.choice(list(self.servers)))
            except Exception:
                self.wrong.append(traceback.format_exc())

    def look_at(self, name: str) -> None:
        server = self.servers[name].server
        server.stats()
        if name != "udp":
            self.did["connections seen"] += len(server.connections)
        for one in server.connections if name in ("threading", "multiplexing", "tls") else ():
            is_victim = str(one.client_address[0]).startswith(VICTIMS)
            if is_victim and one.seconds > 0.2 and self.dice.random() < 0.5:
                one.close()
                self.did["connections closed"] += 1
        if name in BROADCASTS:
            self.news += 1
            result = server.broadcast(news(self.news, self.dice))
            self.did["news sent"] += result.sent
            self.did["news skipped"] += len(result.skipped)

    # What it is told.

    def anew(self, name: str, timeout: float) -> Any:
        """Drain one of them, and make another in its place."""
        old = self.servers[name]
        begin = time.monotonic()
        report = old.server.drain(timeout)
        seconds = time.monotonic() - begin
        old.loop.join(30)
        old.server.server_close()
        self.wrong += old.failed
        if old.loop.is_alive():
            self.wrong.append(f"the loop of {name} has not ended")
        if name == "unix":
            os.unlink(old.server.server_address)
        self.servers[name] = self.make(name)
        self.check(name, old)
        self.did["drains"] += 1
        for which in ("finished", "idle_closed", "cut_off"):
            self.did[f"drains: {which}"] += getattr(report, which)
        return self.servers[name].server.server_address, seconds - timeout

    def check(self, name: str, old: One) -> None:
        """Of one that has ended: nothing is active, and everything was counted."""
        end = time.monotonic() + 5
        while (found := old.numbers())["active"] and time.monotonic() < end:
            time.sleep(0.01)
        self.balance(name, found)
        self.past[name].update(found)

    def balance(self, name: str, found: dict[str, int]) -> None:
        served = found["finished"] + found["refused"]
        if found["active"] or (name != "udp" and found["accepted"] != served):
            self.wrong.append(f"{name} has counted {found}")

    def peak(self, name: str) -> int:
        found: int = self.servers[name].server.stats().peak
        return found

    def active(self) -> int:
        return sum(one.server.stats().active for one in self.servers.values())

    def look(self, quiet: bool) -> Any:
        counted = {}
        for name, one in self.servers.items():
            found = one.numbers()
            if quiet:
                self.balance(name, found)
            counted[name] = dict(self.past[name] + collections.Counter(found))
            self.wrong += one.failed
        if quiet:
            gc.collect()
        return {
            "counted": counted,
            "did": self.did,
            "wrong": self.wrong,
            "blocks": sys.getallocatedblocks(),
            "malloc": malloc_holds(),
            "cpu": time.process_time(),
        }

    def trace(self) -> Any:
        """With tracemalloc: what has grown most since it was asked for."""
        new = tracemalloc.take_snapshot()
        old, self.snapshot = getattr(self, "snapshot", None), new
        if old is None:
            return []
        return [str(one) for one in new.compare_to(old, "lineno")[:20]]

    def close(self) -> None:
        self.ending.set()
        self.looks.join()
        for one in self.servers.values():
            one.server.shutdown()
            one.loop.join()
            one.server.server_close()
        self.stack.close()


def main() -> None:
    for name in DEADLINES:
        DEADLINES[name] *= float(sys.argv[1])
    if len(sys.argv) > 2:
        tracemalloc.start(int(sys.argv[2]))
    threading.stack_size(1 << 18)
    servers = All()
    print(json.dumps(servers.addresses()), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(servers, command)(*arguments)), flush=True)
    servers.close()


if __name__ == "__main__":
    main()
