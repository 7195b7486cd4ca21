"""Connections are closed, detached or shut down by others while their handlers wait.

Each round has a batch of connections whose handlers wait, each in its way. For each of them
somebody else (this task, another one, a thread) takes the connection away, in one of several ways,
and at once makes a socket pair that gets the same number, with bytes in it that nobody is to read.
In the end every handler must have been woken with an error, the bytes must be where they were,
nobody may have written to them, the descriptor must be the same open file, and every client must
have got what its own handler has written and nothing else. A preloaded library counts the close()
calls that found nothing to close.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import os
import queue
import random
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastsock
from fastsock import multiplexing

BATCH = 40
MUCH = b"m" * 600_000  # more than a Unix socket holds
PATIENCE = 20.0


class Wrong(Exception):
    """What must not be."""


class Victim:
    """One connection of a round."""

    def __init__(self, number: int, waits: str, way: str, actor: str) -> None:
        self.number, self.waits, self.way, self.actor = number, waits, way, actor
        self.client: Any = None
        self.handler: Any = None
        self.descriptor = -1
        self.outcome: Any = None
        self.target: Any = None  # the connection that is taken away
        self.is_waiting = False
        self.sentinel: Sentinel | None = None

    def __str__(self) -> str:
        return (
            f"{self.number}: waits in {self.waits}, {self.way} by {self.actor}, "
            f"descriptor {self.descriptor}, outcome {self.outcome!r}"
        )


class Sentinel:
    """A socket pair that has got a number which somebody waited for."""

    def __init__(self, number: int) -> None:
        self.bytes = b"for nobody %d" % number
        self.inner, self.outer = socket.socketpair()
        self.outer.send(self.bytes)
        self.descriptor = self.inner.fileno()
        self.inode = os.fstat(self.descriptor).st_ino

    def check(self, closes: bool = True) -> None:
        try:
            inode = os.fstat(self.descriptor).st_ino
        except OSError as error:
            raise Wrong(f"descriptor {self.descriptor} was closed by somebody: {error}") from None
        if inode != self.inode:
            raise Wrong(f"descriptor {self.descriptor} is another file")
        self.outer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            found = self.outer.recv(100)
            raise Wrong(f"somebody has written to descriptor {self.descriptor}: {found!r}")
        self.inner.setblocking(False)
        found = self.inner.recv(100)
        if found != self.bytes:
            raise Wrong(f"somebody has read from descriptor {self.descriptor}: {found!r} is left")
        if closes:
            self.close()

    def close(self) -> None:
        self.inner.close()
        self.outer.close()


# --- how a handler waits


def in_recv(handler: Any) -> Any:
    return handler.request.recv(100)


def in_recv_into(handler: Any) -> Any:
    return handler.request.recv_into(bytearray(100))


def in_readline(handler: Any) -> Any:
    return handler.rfile.readline()


def in_iteration(handler: Any) -> Any:
    return list(handler.rfile)


def in_sendall(handler: Any) -> Any:
    handler.request.sendall(MUCH)
    return handler.request.recv(1)


def in_write(handler: Any) -> Any:
    handler.wfile.write(MUCH)
    return handler.rfile.read(1)


def in_small_writes(handler: Any) -> Any:
    for _ in range(600):
        handler.wfile.write(MUCH[:1000])
    return handler.rfile.read(1)


def in_timeout(handler: Any) -> Any:
    handler.request.settimeout(3600)
    return handler.request.recv(100)


def in_short_timeouts(handler: Any) -> Any:
    handler.request.settimeout(0.0005)
    while True:
        try:
            return handler.request.recv(100)
        except TimeoutError:
            pass


def in_three(handler: Any) -> Any:
    """All of them receive."""
    found: list[Any] = []

    def receive() -> None:
        try:
            found.append(handler.request.recv(100))
        except OSError as error:
            found.append(error)

    others = [multiplexing.spawn(receive) for _ in range(2)]
    try:
        return handler.request.recv(100)
    finally:
        for other in others:
            other.join()
        if any(value and not isinstance(value, OSError) for value in found):
            raise Wrong(f"another has got {found}")


def in_two(handler: Any) -> Any:
    """One task receives, another sends."""
    found: list[Any] = []

    def send() -> None:
        try:
            handler.request.sendall(MUCH)
        except OSError as error:
            found.append(error)

    sender = multiplexing.spawn(send)
    try:
        return handler.request.recv(100)
    finally:
        sender.join()
        if not found:
            raise Wrong("sendall() has returned")


def in_recvmsg(handler: Any) -> Any:
    return handler.request.recvmsg(100)


def in_sendfile(handler: Any) -> Any:
    with open(handler.server.torture.file, "rb") as file:
        handler.request.sendfile(file)
    return handler.request.recv(1)


def in_wait(handler: Any) -> Any:
    """As in poll(2), this goes on until the peer does something."""
    multiplexing.wait(handler.request, read=True)
    return handler.request.recv(1)


def in_outbound(handler: Any) -> Any:
    victim = handler.victim
    with multiplexing.create_connection(handler.server.torture.outside.getsockname()) as connection:
        victim.target, victim.descriptor = connection, connection.fileno()
        return connection.recv(1)


WAITS: dict[str, Callable[[Any], Any]] = {
    "recv": in_recv,
    "recv_into": in_recv_into,
    "readline": in_readline,
    "iteration": in_iteration,
    "sendall": in_sendall,
    "write": in_write,
    "small writes": in_small_writes,
    "timeout": in_timeout,
    "short timeouts": in_short_timeouts,
    "two": in_two,
    "three": in_three,
    "recvmsg": in_recvmsg,
    "sendfile": in_sendfile,
    "wait": in_wait,
    "outbound": in_outbound,
}

# --- what is done to the connection


def closed(request: Any) -> None:
    request.close()
    request._real_close()  # past the references of its files


def detached(request: Any) -> None:
    os.close(request.detach())


def shut_down(request: Any) -> None:
    request.shutdown(socket.SHUT_RDWR)


def shut_and_closed(request: Any) -> None:
    request.shutdown(socket.SHUT_RDWR)
    closed(request)


def all_closed(request: Any, *files: Any) -> None:
    """By what a program would call; a file waits for whoever is in the middle of a read."""
    request.shutdown(socket.SHUT_RDWR)
    request.close()
    for file in files:
        with contextlib.suppress(OSError):
            file.close()
    if request.fileno() >= 0:
        request._real_close()


WAYS: dict[str, Callable[[Any], None]] = {
    "closed": closed,
    "detached": detached,
    "shut down": shut_down,
    "shut and closed": shut_and_closed,
}
ACTORS = ("director", "task", "worker", "thread")


class Handler(fastsock.StreamRequestHandler):
    def handle(self) -> None:
        victim = self.server.torture.victims[int(self.rfile.readline())]
        self.victim, victim.handler = victim, self
        if victim.waits != "outbound":
            victim.target, victim.descriptor = self.request, self.request.fileno()
        self.wfile.write(b"%d\n" % victim.number)
        self.wfile.flush()
        victim.is_waiting = True
        try:
            victim.outcome = WAITS[victim.waits](self)
        except Exception as error:
            victim.outcome = error
            del error
        finally:
            self.server.torture.over.append(victim)


class Server(multiplexing.MultiplexingUnixStreamServer):
    request_queue_size = 2 * BATCH
    daemon_threads = True  # what is stuck is unwound at the end

    def handle_error(self, request: Any, client_address: Any) -> None:
        """finish() of a connection that was taken away."""
        error = sys.exc_info()[1]
        if not isinstance(error, (OSError, ValueError)):
            self.torture.wrong.append(f"handle_error {error!r}")


class Torture:
    """Runs as a task of the server, among the handlers."""

    def __init__(self, rounds: int, seed: int, closes: Any) -> None:
        self.rounds, self.closes = rounds, closes
        self.dice = random.Random(seed)
        self.victims: dict[int, Victim] = {}
        self.over: collections.deque[Victim] = collections.deque()
        self.wrong: list[str] = []
        self.count = self.same = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.kill_in_thread)
        self.folder = tempfile.mkdtemp(prefix="fs")
        self.server: Any = Server(f"{self.folder}/s", Handler)
        self.server.torture = self
        self.file = f"{self.folder}/file"
        Path(self.file).write_bytes(MUCH)
        self.outside = socket.create_server(("127.0.0.1", 0), backlog=2 * BATCH)

    def run(self) -> None:
        """Of the main thread."""
        self.thread.start()
        loop = threading.Thread(target=self.server.serve_forever, daemon=True)
        loop.start()
        starter: Any = None
        try:
            self.victims[-1] = starter = Victim(-1, "", "", "")
            WAITS[""] = self.direct
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"{self.folder}/s")
                client.send(b"-1\n")
                with client.makefile("rb") as file:
                    file.read()
        finally:
            self.jobs.put(None)
            self.server.shutdown()
            loop.join(PATIENCE)
            if loop.is_alive():
                self.wrong.append("serve_forever() does not return")
            else:
                self.server.server_close()
            self.thread.join()
            self.outside.close()
            shutil.rmtree(self.folder)
        if isinstance(starter.outcome, Exception):
            raise starter.outcome

    def direct(self, handler: Any) -> None:
        last = begin = time.monotonic()
        while self.count < self.rounds and not self.wrong:
            self.batch(min(BATCH, self.rounds - self.count))
            now = time.monotonic()
            if now - last > 15:
                last = now
                print(
                    f"  {now - begin:5.0f} s  {self.count} connections, {self.same} numbers were "
                    f"used again at once, {len(os.listdir('/proc/self/fd'))} descriptors, "
                    f"{resident()} KB",
                    flush=True,
                )

    def batch(self, size: int) -> None:
        victims = []
        for number in range(self.count, self.count + size):
            victims.append(
                Victim(
                    number,
                    self.dice.choice([name for name in WAITS if name]),
                    self.dice.choice([*WAYS, "all closed"]),
                    self.dice.choice(ACTORS),
                )
            )
        self.count += size
        self.victims.update((victim.number, victim) for victim in victims)
        for victim in victims:
            victim.client = client = socket.socket(socket.AF_UNIX)
            client.connect(f"{self.folder}/s")
            client.setblocking(False)
            client.send(b"%d\n" % victim.number)
        self.until(
            lambda: all(victim.is_waiting and victim.target for victim in victims),
            victims,
            "begin to wait",
        )
        multiplexing.sleep(0)  # after is_waiting they come to where they wait
        order = victims[:]
        self.dice.shuffle(order)
        for victim in order:
            if victim.actor == "director":
                self.kill(victim)
            elif victim.actor == "task":
                multiplexing.spawn(self.kill, victim)
            elif victim.actor == "worker":
                multiplexing.spawn(multiplexing.to_thread, self.kill, victim)
            else:
                self.jobs.put(victim)
            if self.dice.randrange(4) == 0:
                multiplexing.sleep(0)
        self.until(lambda: len(self.over) == size, victims, "end")
        # The handler of the last one may still be in its finish().
        self.until(lambda: all(victim.sentinel for victim in victims), victims, "be taken away")
        multiplexing.sleep(0)
        for victim in victims:
            self.look_at(victim)
        self.over.clear()
        for _ in range(sum(victim.waits == "outbound" for victim in victims)):
            self.outside.accept()[0].close()
        for victim in victims:
            del self.victims[victim.number]
        if self.closes is not None and self.closes():
            raise Wrong(f"{self.closes()} times something was closed that was not open")

    def until(self, is_so: Callable[[], bool], victims: list[Victim], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        turns = 0
        while not is_so():
            turns += 1
            multiplexing.sleep(0 if turns < 50 else 0.001)
            if time.monotonic() > deadline:
                left = [str(victim) for victim in victims if victim not in self.over]
                raise Wrong("\n".join([f"these did not {what}:", *left]))

    def kill_in_thread(self) -> None:
        while (victim := self.jobs.get()) is not None:
            self.kill(victim)

    def kill(self, victim: Victim) -> None:
        try:
            handler, target = victim.handler, victim.target
            if victim.way != "all closed":
                WAYS[victim.way](target)
            elif target is handler.request:
                all_closed(target, handler.rfile, handler.wfile)
            else:
                all_closed(target)
            if victim.waits == "wait":
                victim.client.shutdown(socket.SHUT_RDWR)
        except Exception as error:
            self.wrong.append(f"{error!r} for {victim}")
        finally:
            victim.sentinel = Sentinel(victim.number)
            if victim.sentinel.descriptor == victim.descriptor:
                self.same += 1

    def look_at(self, victim: Victim) -> None:
        try:
            assert victim.sentinel is not None
            victim.sentinel.check()
            self.check_client(victim)
            outcome = victim.outcome
            if isinstance(outcome, Exception):
                right = isinstance(outcome, (OSError, ValueError))
                if victim.way == "shut down":
                    right = isinstance(outcome, ConnectionError)
            else:  # the end of the stream
                right = not outcome or outcome[0] == b""
                if victim.waits != "wait":
                    right = right and victim.way in ("shut down", "shut and closed", "all closed")
            if not right:
                raise Wrong("neither an error nor the end")
            self.outcomes[f"{victim.waits}, {victim.way}: {outcome!r}"] += 1
        except Wrong as error:
            raise Wrong(f"{error}\n{victim}") from None
        finally:
            victim.handler = victim.target = None

    def check_client(self, victim: Victim) -> None:
        found = b""
        with victim.client as client, contextlib.suppress(BlockingIOError, ConnectionError):
            while data := client.recv(1 << 17):
                found += data
        expected = b"%d\n" % victim.number
        if not (found.startswith(expected) and found[len(expected) :].strip(b"m") == b""):
            raise Wrong(f"the client got {found[:100]!r}")


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def with_counted_closes() -> Any:
    """Run again with the library preloaded; None: it cannot be made."""
    if "FASTSOCK_SOAK_SHIM" in os.environ:
        return ctypes.CDLL(None).failed_closes
    compiler = shutil.which(os.environ.get("CC", "gcc"))
    if compiler is None:
        print("soak: no C compiler: double closes are only found where they hit somebody")
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/closes.so"
        source = Path(__file__).with_name("closes.c")
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True
        )
        command = [sys.executable, "-m", "soak", *sys.argv[1:]]
        environment = {**os.environ, "LD_PRELOAD": library, "FASTSOCK_SOAK_SHIM": library}
        folder_of_tests = Path(__file__).resolve().parent.parent
        done = subprocess.run(command, env=environment, cwd=folder_of_tests, check=False)
        raise SystemExit(done.returncode)


def run(options: argparse.Namespace) -> int:
    if options.seed is None:
        options.seed = int(time.time())
        sys.argv += ["--seed", str(options.seed)]
    closes = with_counted_closes()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    print(
        f"soak: {options.rounds} connections taken away, seed {options.seed}, "
        f"Python {sys.version.split()[0]}",
        flush=True,
    )
    files = len(os.listdir("/proc/self/fd"))
    begin = time.monotonic()
    if options.kind == "multiplexing":
        torture: Any = Torture(options.rounds, options.seed, closes)
    else:
        from .torture_threads import make

        torture = make(options, closes)
    try:
        torture.run()
    except Wrong as error:
        torture.wrong.append(str(error))
    left = len(os.listdir("/proc/self/fd")) - files
    if left and not torture.wrong:
        torture.wrong.append(f"{left} descriptors are left open")
    for outcome, count in sorted(torture.outcomes.items()):
        print(f"{count:8} {outcome}")
    print(
        f"soak: {torture.count} connections, {torture.same} numbers used again at once, "
        f"{time.monotonic() - begin:.0f} s"
    )
    for what in torture.wrong:
        print(f"soak: WRONG: {what}")
    print("soak: " + ("failed" if torture.wrong else "passed"), flush=True)
    return 1 if torture.wrong else 0
