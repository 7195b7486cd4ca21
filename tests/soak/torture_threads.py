"""As torture, for threads: four of them close, detach and shut down what handlers wait for.

Closing a descriptor does not wake a thread that waits for it, neither here nor in the standard
library; shutting it down does, and so does the peer's end, which follows here. In between a socket
pair has got the number, with bytes in it that nobody is to read. In the end the bytes must be where
they were, nobody may have written to the pair, its descriptor must be the same open file, every
handler must have ended, and every client got nothing but what its own handler has written.

A handler with a timeout waits in poll(2), which looks at the number again when it is woken: if that
is somebody's from whom nothing has come it sleeps on, until its time is over. It has read nothing.
These are counted.

``--kind socketserver`` shows what the standard library does.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import os
import queue
import random
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from .torture import BATCH, PATIENCE, WAITS, WAYS, Sentinel, Victim, Wrong, all_closed, resident

THREADS = 4
GIVEN = b"x" * 60_000
SHORT, STUCK = 0.05, 5.0  # seconds


def in_busy_recv(handler: Any) -> Any:
    """It does not wait, for most of the time."""
    while data := handler.request.recv(7):
        if data.strip(b"x"):
            raise Wrong(f"somebody else's {data!r}")
    return b""


def in_busy_send(handler: Any) -> Any:
    while True:
        handler.request.send(b"m")


SHARED = ("recv", "recv_into", "readline", "iteration", "sendall", "write", "small writes")
SHARED += ("timeout", "short timeouts", "recvmsg")
TAKEN: dict[str, Callable[[Any], Any]] = {
    **{name: WAITS[name] for name in SHARED},
    "busy recv": in_busy_recv,
    "busy send": in_busy_send,
}


def handle(handler: Any) -> None:
    victim = handler.server.torture.victims[int(handler.rfile.readline())]
    victim.handler, victim.target = handler, handler.request
    victim.descriptor = handler.request.fileno()
    handler.wfile.write(b"%d\n" % victim.number)
    victim.is_waiting = True
    try:
        victim.outcome = TAKEN[victim.waits](handler)
    except Exception as error:
        victim.outcome = error
        del error
    finally:
        handler.server.torture.over.append(victim)


class Torture:
    def __init__(self, implementation: str, rounds: int, seed: int, closes: Any) -> None:
        self.rounds, self.closes = rounds, closes
        self.dice = random.Random(seed)
        self.victims: dict[int, Victim] = {}
        self.over: collections.deque[Victim] = collections.deque()
        self.wrong: list[str] = []
        self.told: list[str] = []
        self.counted: set[Victim] = set()
        self.failures: collections.Counter[str] = collections.Counter()
        self.count = self.same = self.asleep = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.killers = [threading.Thread(target=self.kill_in_thread) for _ in range(THREADS)]
        self.folder = tempfile.mkdtemp(prefix="fs")
        module: Any = importlib.import_module(implementation)
        attributes = {"request_queue_size": 2 * BATCH, "handle_error": self.handle_error}
        server_class = type("Server", (module.ThreadingUnixStreamServer,), attributes)
        handler = type("Handler", (module.StreamRequestHandler,), {"handle": handle})
        self.server: Any = server_class(f"{self.folder}/s", handler)
        self.server.torture = self

    def handle_error(self, request: Any, client_address: Any) -> None:
        """finish() of a connection that was taken away."""
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, ValueError)):
            self.wrong.append(f"handle_error {error!r}")

    def run(self) -> None:
        loop = threading.Thread(target=self.server.serve_forever)
        for thread in (loop, *self.killers):
            thread.start()
        try:
            self.direct()
        finally:
            for _ in self.killers:
                self.jobs.put(None)
            for victim in self.victims.values():  # after a failure
                if victim.client is not None:
                    victim.client.close()
            self.server.shutdown()
            for thread in (loop, *self.killers):
                thread.join()
            self.server.server_close()
            shutil.rmtree(self.folder)
            print(f"{self.asleep} slept on in poll(2), which looked at a number that was reused")
            for what, count in sorted(self.failures.items()):
                self.wrong.append(f"{count} times: {what}")
            if self.failures:
                self.wrong.append(f"{self.failures.total()} of {self.count}, such as:")
                self.wrong += self.told

    def direct(self) -> None:
        last = begin = time.monotonic()
        while self.count < self.rounds and not self.wrong:  # failures are counted
            self.batch(min(BATCH, self.rounds - self.count))
            now = time.monotonic()
            if now - last > 15:
                last = now
                print(
                    f"  {now - begin:5.0f} s  {self.count} connections, {self.same} numbers were "
                    f"used again at once, {len(os.listdir('/proc/self/fd'))} descriptors, "
                    f"{threading.active_count()} threads, {resident()} KB, "
                    f"{self.failures.total()} failures",
                    flush=True,
                )

    def batch(self, size: int) -> None:
        dice = self.dice
        victims = [
            Victim(number, dice.choice(list(TAKEN)), dice.choice([*WAYS, "all closed"]), "thread")
            for number in range(self.count, self.count + size)
        ]
        self.count += size
        self.victims.update((victim.number, victim) for victim in victims)
        for victim in victims:
            victim.client = client = socket.socket(socket.AF_UNIX)
            client.connect(f"{self.folder}/s")
            client.setblocking(False)
            client.send(b"%d\n" % victim.number)
        self.until(lambda: all(victim.is_waiting for victim in victims), victims, "begin to wait")
        time.sleep(0.001)  # after is_waiting they come to where they wait
        for victim in victims:
            if victim.waits == "busy recv":
                with contextlib.suppress(BlockingIOError):
                    victim.client.send(GIVEN)
        order = victims[:]
        dice.shuffle(order)
        for victim in order:
            self.jobs.put(victim)
        self.until(lambda: all(victim.sentinel for victim in victims), victims, "be taken away")
        begin = time.monotonic()
        while stuck := [victim for victim in victims if victim not in self.over]:
            seconds = time.monotonic() - begin
            asleep = [victim for victim in stuck if victim.waits == "timeout"]
            if seconds > (SHORT if len(asleep) == len(stuck) else STUCK):
                break
            time.sleep(0.0002)
        self.asleep += len(asleep) if stuck else 0
        for victim in stuck:
            if victim not in asleep:
                self.failed(victim, "it waits for somebody else's")
        for victim in victims:
            self.look_at_pair(victim)
            self.look_at_client(victim)
        if stuck:  # they have to end: whatever they look at is ready, and they are made to look
            for victim in victims:
                victim.sentinel.inner.shutdown(socket.SHUT_RDWR)
                victim.sentinel.outer.shutdown(socket.SHUT_RDWR)
        for victim in victims:
            victim.client.close()
        self.until(lambda: len(self.over) == size, victims, "end")
        for victim in victims:
            self.look_at(victim)
        self.over.clear()
        for victim in victims:
            del self.victims[victim.number]
        if self.closes is not None and self.closes():
            raise Wrong(f"{self.closes()} times something was closed that was not open")

    def failed(self, victim: Victim, what: str) -> None:
        if victim in self.counted:
            return
        self.counted.add(victim)
        self.failures[f"{victim.waits}, {victim.way}"] += 1
        if len(self.told) < 5:
            self.told.append(f"{what}; {victim}")

    def until(self, is_so: Callable[[], bool], victims: list[Victim], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not is_so():
            time.sleep(0.0002)
            if time.monotonic() > deadline:
                left = [str(victim) for victim in victims if victim not in self.over]
                raise Wrong("\n".join([f"these did not {what}:", *left]))

    def kill_in_thread(self) -> None:
        while (victim := self.jobs.get()) is not None:
            self.kill(victim)

    def kill(self, victim: Victim) -> None:
        sentinel = None
        try:
            handler, target = victim.handler, victim.target
            if victim.way == "all closed":
                all_closed(target, handler.rfile, handler.wfile)
            else:
                WAYS[victim.way](target)
        except Exception as error:
            self.wrong.append(f"{error!r} for {victim}")
        finally:
            sentinel = Sentinel(victim.number)
            if sentinel.descriptor == victim.descriptor:
                self.same += 1
            with contextlib.suppress(OSError):  # this wakes who waits for what was closed
                victim.client.shutdown(socket.SHUT_RDWR)
            victim.sentinel = sentinel

    def look_at_pair(self, victim: Victim) -> None:
        try:
            victim.sentinel.check(closes=False)
        except Wrong as error:
            self.failed(victim, str(error))

    def look_at_client(self, victim: Victim) -> None:
        found = b""
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while data := victim.client.recv(1 << 17):
                found += data
        expected = b"%d\n" % victim.number
        if not (found.startswith(expected) and found[len(expected) :].strip(b"m") == b""):
            self.failed(victim, f"the client got {found[:100]!r}")

    def look_at(self, victim: Victim) -> None:
        victim.sentinel.close()
        outcome = victim.outcome
        if isinstance(outcome, Exception):
            right = isinstance(outcome, (OSError, ValueError))
        else:  # the end of the stream
            right = not outcome or outcome[0] == b""
        if not right:
            self.failed(victim, "neither an error nor the end")
        self.outcomes[f"{victim.waits}, {victim.way}: {outcome!r}"] += 1
        victim.handler = victim.target = None


def make(options: argparse.Namespace, closes: Any) -> Torture:
    implementation = "socketserver" if options.kind == "socketserver" else "fastsock"
    return Torture(implementation, options.rounds, options.seed, closes)
