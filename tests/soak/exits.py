"""An interpreter ends while a hundred handlers are in the middle of something, again and again."""

from __future__ import annotations

import argparse
import collections
import subprocess
import sys
import time

LIMIT = 5.0  # seconds
KINDS = ("threading", "multiplexing", "drained", "run")

PROGRAM = """
import os, random, signal, socket, sys, threading, time
import fastsock
from fastsock import multiplexing

kind, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(seed)
come = threading.Semaphore(0)

class Handler(fastsock.StreamRequestHandler):
    def handle(self):
        come.release()
        way = dice.randrange(4)
        while True:
            if way == 0:
                self.rfile.readline()
                return
            elif way == 1:
                multiplexing.sleep(0.001)
            elif way == 2:
                self.wfile.write(b"x" * 1000)
                if self.connection.gettimeout() is None:
                    self.connection.settimeout(0.5)
                multiplexing.sleep(0.001)
            else:
                sum(range(2000))
                multiplexing.sleep(0)

    def finish(self):
        try:
            super().finish()
        except OSError:
            pass

base = fastsock.MultiplexingTCPServer if kind == "multiplexing" else fastsock.ThreadingTCPServer

class Server(base):
    request_queue_size = 512
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass

server = Server(("127.0.0.1", 0), Handler)

def knock():
    clients = [socket.create_connection(server.server_address) for _ in range(count)]
    for _ in range(count):
        come.acquire()
    if kind == "run":
        os.kill(os.getpid(), signal.SIGTERM)
    return clients

if kind == "run":
    threading.Thread(target=lambda: globals().update(clients=knock()), daemon=True).start()
    fastsock.run(server, drain_timeout=0.05)
else:
    loop = threading.Thread(target=server.serve_forever, daemon=True)
    loop.start()
    clients = knock()
    if kind == "drained":
        server.drain(0.05)
print("end", flush=True)
"""


def run(options: argparse.Namespace) -> int:
    outcomes: collections.Counter[str] = collections.Counter()
    longest = 0.0
    for number in range(options.count):
        kind = KINDS[number % len(KINDS)]
        command = [sys.executable, "-X", "faulthandler", "-c", PROGRAM, kind]
        begin = time.monotonic()
        process = subprocess.Popen(
            [*command, str(options.seed + number), str(options.handlers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        told = process.stdout.readline()
        ending = time.monotonic()
        try:
            _, errors = process.communicate(timeout=LIMIT)
            outcome = "ended" if process.returncode == 0 and told else f"{process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
            outcome = "hung"
        longest = max(longest, time.monotonic() - ending)
        outcomes[outcome] += 1
        if outcome != "ended":
            print(f"number {number}, {kind}: {outcome} after {time.monotonic() - begin:.1f} s")
            print(errors)
    print(
        f"exits: {options.count} interpreters with {options.handlers} handlers each: "
        f"{dict(outcomes)}; the longest end took {longest:.2f} s"
    )
    failed = set(outcomes) != {"ended"}
    print("exits: failed" if failed else "exits: passed")
    return failed
