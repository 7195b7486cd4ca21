"""Rates and server CPU of the standard library, fastsock and a C epoll server, taking turns.

    compare.py [--pinned] [--rounds N] [--seconds S] [--backlog N] [scenario ...]

Needs gcc. Prints medians with their spread, and ratios that were formed within a round, so that a
machine which changes its speed changes it for all. The load comes from one thread in C.
"C batched" is the C server that takes and answers up to 32 datagrams per system call.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
C_SERVERS = ("C", "C batched")


class Scenario(NamedTuple):
    server: str
    reference: str  # what of the C server does the same work; empty: nothing
    load: tuple[str, ...]  # kind, connections, payload in bytes, depth
    what: str
    unix: bool = False
    batched: str = ""  # what of the C server does it with several datagrams per system call
    ours_only: bool = False  # the standard library has nothing of the kind


ONCE = ("once", "16", "11")
DATAGRAMS = ("datagrams", "50", "64", "8")
SCENARIOS = {
    "once": Scenario(
        "sync-once", "once", ONCE, "TCP, a connection per request, sync, 16 at a time, 11 bytes"
    ),
    "unix": Scenario("unix-once", "once", ONCE, "the same over a Unix socket", unix=True),
    "threads": Scenario("threads-once", "once", ONCE, "the same over TCP, ThreadingTCPServer"),
    "forks": Scenario("forks-once", "once", ONCE, "the same over TCP, ForkingTCPServer"),
    "echo": Scenario(
        "threads-lines", "lines", ("echo", "50", "64"), "line echo, 50 connections, 64 bytes"
    ),
    "echo1000": Scenario(
        "threads-lines", "lines", ("echo", "1000", "64"), "line echo, 1,000 connections, 64 bytes"
    ),
    "pipelined": Scenario(
        "threads-lines", "lines", ("echo", "50", "64", "16"), "the same, 50 connections, 16 deep"
    ),
    "lines16k": Scenario(
        "threads-lines", "lines", ("echo", "50", "16384"), "16 KiB lines, 50 connections"
    ),
    "http": Scenario(
        "http-keep", "", ("http", "50"), "ThreadingHTTPServer, keep-alive, 50 connections"
    ),
    "httpclose": Scenario(
        "http-close", "", ("httpclose", "16"), "ThreadingHTTPServer, a connection per request, 16"
    ),
    "udp": Scenario(
        "udp-reply",
        "udp",
        DATAGRAMS,
        "UDP echo, wfile, 50 sockets, 8 under way on each, 64 bytes",
        batched="udpbatch",
    ),
    "udpgathered": Scenario(
        "udp-gathered",
        "udp",
        DATAGRAMS,
        "the same, gather_replies",
        batched="udpbatch",
        ours_only=True,
    ),
    "udpsendto": Scenario(
        "udp-sendto", "udp", DATAGRAMS, "the same, sendto() in the handler", batched="udpbatch"
    ),
    "unixdgram": Scenario(
        "unixdgram-reply",
        "udp",
        DATAGRAMS,
        "the same over Unix sockets, wfile",
        unix=True,
        batched="udpbatch",
    ),
    "unixdgramgathered": Scenario(
        "unixdgram-gathered",
        "udp",
        DATAGRAMS,
        "the same over Unix sockets, gather_replies",
        unix=True,
        batched="udpbatch",
        ours_only=True,
    ),
    "udpthreads": Scenario(
        "udpthreads-reply",
        "udp",
        DATAGRAMS,
        "the same over UDP, ThreadingUDPServer",
        batched="udpbatch",
    ),
    "udplone": Scenario(
        "udp-reply",
        "udp",
        ("datagrams", "1", "64", "1"),
        "UDP echo, wfile, one datagram at a time: p50",
        batched="udpbatch",
    ),
    "open": Scenario(
        "threads-lines", "", ("open", "9050"), "opening 9,050 connections: seconds; KB for each"
    ),
    "open4000": Scenario(
        "threads-lines", "", ("open", "4000"), "opening 4,000 connections: seconds; KB for each"
    ),
    "open100": Scenario(
        "threads-lines", "", ("open", "100"), "opening 100 connections: seconds; KB for each"
    ),
}


class Figures(NamedTuple):
    rate: float  # operations a second; for 'open': seconds
    cpu: float  # microseconds of the server per operation; for 'open': KB per connection
    p50: float
    p99: float
    errors: int
    served: int  # lasting connections that got an answer while it counted


def cpu_clock(pid: int) -> float:
    """CPU time of a process and all its threads, those that have ended too."""
    return time.clock_gettime((~pid << 3) | 2)


def rss(pid: int) -> int:
    """Resident anonymous memory in KB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    raise LookupError("RssAnon")


def compile_reference(into: Path) -> None:
    compiler = os.environ.get("CC", "gcc")
    if shutil.which(compiler) is None:
        raise SystemExit("compare.py: the load and the reference server need a C compiler")
    for name in ("server", "load", "datagrams"):
        source = HERE / "reference" / f"{name}.c"
        subprocess.run([compiler, "-O2", "-Wall", "-o", into / name, source], check=True)


def on(cores: list[int] | None) -> Callable[[], None] | None:
    if cores is None:
        return None
    return lambda: os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def serving(
    command: list[str], cores: list[int] | None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, preexec_fn=on(cores)
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGKILL)


def reply_size(where: str) -> str:
    host, port = where.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as client:
        client.sendall(b"GET / HTTP/1.0\r\nHost: bench\r\n\r\n")
        reply = b""
        while data := client.recv(65536):
            reply += data
    return str(len(reply))


def measure(name: str, server: str, options: argparse.Namespace, work: Path) -> Figures:
    scenario = SCENARIOS[name]
    where = str(work / f"socket-{time.monotonic_ns()}") if scenario.unix else "127.0.0.1"
    if server in C_SERVERS:
        what = scenario.reference if server == "C" else scenario.batched
        command = [str(work / "server"), what, where]
    else:
        program = [options.python, str(HERE / "serve.py")]
        command = [*program, server, scenario.server, where, str(options.backlog)]
    cores = sorted(os.sched_getaffinity(0))
    with serving(command, cores[:1] if options.pinned else None) as (process, port):
        address = where if scenario.unix else f"{where}:{port}"
        kind, connections, *rest = scenario.load
        payload = reply_size(address) if kind.startswith("http") else (rest or ["0"])[0]
        program = ["datagrams"] if kind == "datagrams" else ["load", kind]
        command = [str(work / program[0]), *program[1:], address, connections, payload]
        command += [str(options.seconds), *rest[1:]]
        memory = rss(process.pid)
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=on(cores[-1:] if options.pinned else None),
        ) as load:
            assert load.stdout is not None and load.stdin is not None
            if kind == "open":
                line = load.stdout.readline().split()
                count = int(line[0])
                per_connection = (rss(process.pid) - memory) / count
                load.stdin.close()
                return Figures(float(line[1]), per_connection, 0, 0, 0, count)
            load.stdout.readline()
            before = cpu_clock(process.pid)
            line = load.stdout.readline().split()
            spent = cpu_clock(process.pid) - before
    count, seconds = int(line[0]), float(line[1])
    return Figures(
        count / seconds,
        spent / max(count, 1) * 1e6,
        float(line[3]),
        float(line[4]),
        int(line[2]),
        int(line[5]),
    )


def takes_part(server: str, scenario: Scenario) -> bool:
    if server in C_SERVERS:
        return bool(scenario.reference if server == "C" else scenario.batched)
    return server == "fastsock" or not scenario.ours_only


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):10.2f} ({min(values):.2f} to {max(values):.2f})"


def report(name: str, taken: dict[str, list[Figures]]) -> None:
    opening = SCENARIOS[name].load[0] == "open"
    units = ("seconds", "KB", "") if opening else ("rate", "server CPU", " us")
    print(f"\n{name}: {SCENARIOS[name].what}")
    for server, runs in taken.items():
        print(
            f"  {server:13} {units[0]} {spread([run.rate for run in runs])}"
            f"   {units[1]} {spread([run.cpu for run in runs])}{units[2]}"
            f"   p50 {statistics.median(run.p50 for run in runs):.0f}"
            f" p99 {statistics.median(run.p99 for run in runs):.0f} us"
            f"   errors {sum(run.errors for run in runs)}"
            f"   served {min(run.served for run in runs)}"
        )
    ours = taken.get("fastsock", [])
    for server, theirs in taken.items():
        if ours and server != "fastsock":
            pairs = list(zip(ours, theirs, strict=True))
            print(
                f"  fastsock / {server}: {units[0]} {spread([a.rate / b.rate for a, b in pairs])}"
                f"   {units[1]} {spread([a.cpu / b.cpu for a, b in pairs])}"
            )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pinned", action="store_true", help="server and client: a core each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--backlog", type=int, default=4096, help="0: as it comes")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--only", default="C,C batched,socketserver,fastsock")
    parser.add_argument("scenario", nargs="*", default=list(SCENARIOS))
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, "
        f"{'pinned, a core each for server and client' if options.pinned else 'not pinned'}, "
        f"backlog {options.backlog or 'as it comes'}, "
        f"{options.rounds} rounds of {options.seconds} s, interleaved"
    )
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        compile_reference(work)
        for name in options.scenario:
            scenario = SCENARIOS[name]
            servers = [one for one in options.only.split(",") if takes_part(one, scenario)]
            taken: dict[str, list[Figures]] = {server: [] for server in servers}
            for _ in range(options.rounds):
                for server in servers:
                    taken[server].append(measure(name, server, options, work))
            report(name, taken)


if __name__ == "__main__":
    main()
