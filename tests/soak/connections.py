"""Ten thousand connections for ten minutes: every byte is right, memory and descriptors flat."""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
SAMPLES = 60  # of a run


def raise_limit(needed: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise SystemExit(f"{needed} descriptors are needed, and {hard} are allowed (ulimit -n)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Process:
    """A program whose lines of JSON are read as they come."""

    def __init__(self, module: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"soak.{module}", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TESTS,
        )
        self.last: Any = None
        self.told = threading.Event()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.last = json.loads(line)
            self.told.set()
        self.told.set()

    def end(self, timeout: float) -> int:
        assert self.process.stdin is not None
        if not self.process.stdin.closed:
            self.process.stdin.close()
        status = self.process.wait(timeout)
        self.reader.join()
        return status


def resident(pid: int) -> int:
    """Kilobytes that the process has to itself."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE") // 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def settled(pid: int) -> int:
    """How many there are when it has closed what it is about to close."""
    seen: list[int] = []
    while len(seen) < 10 or len(set(seen[-10:])) > 1:
        time.sleep(0.02)
        seen.append(descriptors(pid))
    return seen[-1]


def slope(points: list[tuple[float, float]]) -> float:
    """Least squares, per second."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    below = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / below if below else 0.0


def warm_up(port: int) -> None:
    """One connection to its end, so that the loop has made what it needs."""
    with socket.create_connection(("127.0.0.1", port), 30) as client:
        client.sendall(b"line\n")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as file:
            assert file.read() == b"line\n"


def run(options: argparse.Namespace) -> int:
    raise_limit(options.connections + 200)
    seed = options.seed if options.seed is not None else int(time.time())
    seconds = options.minutes * 60
    print(
        f"soak: {options.connections} connections for {seconds:.0f} s, seed {seed}, "
        f"Python {sys.version.split()[0]}",
        flush=True,
    )
    server = Process("server")
    assert server.told.wait(60) and server.last, "the server did not start"
    port, pid = server.last, server.process.pid
    warm_up(port)
    before = settled(pid)
    loads = [
        Process(
            "load",
            *("--port", port),
            *("--connections", options.connections // options.processes),
            *("--rate", options.rate // options.processes),
            *("--seed", seed + number, "--first", number * 10_000_000, "--seconds", seconds),
        )
        for number in range(options.processes)
    ]
    try:
        samples = watch(server, loads, seconds)
    finally:
        failed = [load.process.wait() for load in loads]
    # Each handler ends when it has seen the end of its connection.
    deadline = time.monotonic() + 30
    while descriptors(pid) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    after = descriptors(pid)
    at_end = resident(pid)
    status = server.end(60)
    wrong = verdict(options, samples, before, after)
    if any(failed):
        wrong.append("a client found something wrong: see above")
    if status != 0:
        wrong.append(f"the server ended with status {status}")
    errors = [name for name in server.last if name.startswith("error")]
    if errors:
        wrong.append(f"errors in the server: {errors}")
    report(options, samples, loads, server.last, before, after, at_end)
    for what in wrong:
        print(f"soak: WRONG: {what}")
    print("soak: " + ("failed" if wrong else "passed"), flush=True)
    return 1 if wrong else 0


def watch(server: Process, loads: list[Process], seconds: float) -> list[dict[str, float]]:
    pid = server.process.pid
    begin = time.monotonic()
    samples: list[dict[str, float]] = []
    every = max(0.5, seconds / SAMPLES)
    print("  seconds    open    RSS KB  descriptors  handlers so far     bytes checked", flush=True)
    while any(load.process.poll() is None for load in loads):
        time.sleep(every)
        now = time.monotonic() - begin
        if now > seconds or any(load.last is None for load in loads):
            continue
        sample = {
            "seconds": now,
            "open": sum(load.last["open"] for load in loads),
            "resident": resident(pid),
            "descriptors": descriptors(pid),
            "made": sum(load.last["made"] for load in loads),
            "bytes": sum(load.last["bytes"] for load in loads),
        }
        samples.append(sample)
        print(
            "  {seconds:7.0f} {open:7.0f} {resident:9.0f} {descriptors:12.0f} {made:16.0f} "
            "{bytes:17.0f}".format(**sample),
            flush=True,
        )
    return samples


def full(options: argparse.Namespace, samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Those since all connections have been open, and the buffers had time to grow."""
    opened = [s for s in samples if s["open"] >= 0.95 * options.connections]
    return opened[len(opened) // 4 :]


def verdict(
    options: argparse.Namespace, samples: list[dict[str, float]], before: int, after: int
) -> list[str]:
    wrong = []
    if after != before:
        wrong.append(f"{before} descriptors before, {after} after")
    steady = full(options, samples)
    if len(steady) < 4:
        return [*wrong, f"only {len(steady)} samples with all connections open"]
    for sample in steady:
        # Some close while this is counted: their handlers are about to end.
        if sample["descriptors"] > before + options.connections * 1.02 + 50:
            wrong.append(f"{sample['descriptors']:.0f} descriptors")
            break
    half = len(steady) // 2
    first = sorted(s["resident"] for s in steady[:half])[half // 2]
    second = sorted(s["resident"] for s in steady[half:])[(len(steady) - half) // 2]
    if second > first * 1.05 + 2048:
        wrong.append(f"memory: {first:.0f} KB in the first half, {second:.0f} KB in the second")
    return wrong


def report(
    options: argparse.Namespace,
    samples: list[dict[str, float]],
    loads: list[Process],
    counts: dict[str, int],
    before: int,
    after: int,
    at_end: int,
) -> None:
    print(f"handlers: {counts}")
    ended = {
        name: sum(load.last["ended"][name] for load in loads) for name in loads[0].last["ended"]
    }
    print(f"connections that ended: {ended}")
    print(f"descriptors: {before} before, {after} after; RSS after all have ended: {at_end} KB")
    steady = full(options, samples)
    if len(steady) >= 4:
        memory = slope([(s["seconds"], s["resident"]) for s in steady])
        files = slope([(s["seconds"], s["descriptors"]) for s in steady])
        print(f"trend: {memory * 60:+.0f} KB a minute, {files * 60:+.1f} descriptors a minute")
