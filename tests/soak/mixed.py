"""Everything at once: servers of all kinds in a process, clients of all kinds, drains.

After the warm-up the memory that the server's process has to itself is measured every few seconds,
and its trend estimated (Theil and Sen's, of the medians of 24 windows, with the interval in which
it is with 95 %). Now and then, and at the end, no new client comes until the others have gone:
descriptors, threads and children are those of the start, no connection is in CLOSE_WAIT, and the
servers have nothing active.

glibc's malloc has up to eight arenas for each processor, among which threads that come and go are
spread: for hours each gets a new high-water mark now and then, of memory that is free (--arenas 0
shows it). With one arena what is resident follows what is in use.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .connections import resident
from .mixed_clients import Clients, Kind
from .mixed_server import DEADLINES, SERVERS
from .resets import states
from .staying import TESTS, TICKS, show, verdict

WARM_UP = 180.0  # seconds, at most; else a tenth of the time
WINDOWS = 24
QUIETS = 14
SAMPLES = 360
FLURRIES = 5  # of datagrams
DRAIN_EVERY = 20.0  # seconds
BURST_EVERY = 11.0
ALLOWED = 1.0  # MB per hour
SHORT = 60.0  # seconds; what has less gets shorter deadlines
ENOUGH = 600.0  # seconds, for a verdict on memory


class Server:
    """The process with the servers."""

    async def start(self, scale: float, trace: int, arenas: int) -> dict[str, Any]:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        arguments = [str(scale), *([str(trace)] if trace else [])]
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "soak.mixed_server", *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self.errors,
            cwd=TESTS,
            limit=1 << 20,
            env={**os.environ, **({"MALLOC_ARENA_MAX": str(arenas)} if arenas else {})},
        )
        self.folder = Path("/proc", str(self.process.pid))
        self.turn = asyncio.Lock()
        found: dict[str, Any] = await self.answer()
        return found

    async def answer(self) -> Any:
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), 120)
        if not line:
            raise SystemExit(f"soak: the server has ended\n{self.said()[-3000:]}")
        return json.loads(line)

    async def ask(self, *command: Any) -> Any:
        assert self.process.stdin is not None
        async with self.turn:
            self.process.stdin.write(json.dumps(command).encode() + b"\n")
            return await self.answer()

    def holds(self) -> tuple[int, int, int]:
        """Descriptors, threads, children."""
        children = 0
        tasks = list((self.folder / "task").iterdir())
        for task in tasks:
            try:
                children += len((task / "children").read_text().split())
            except (FileNotFoundError, ProcessLookupError):
                continue
        return len(os.listdir(self.folder / "fd")), len(tasks), children

    def descriptors(self) -> dict[str, int]:
        """How many there are of each kind."""
        found: collections.Counter[str] = collections.Counter()
        for one in (self.folder / "fd").iterdir():
            kind, _, which = os.readlink(one).partition(":")
            found[which if kind == "anon_inode" else kind] += 1
        return dict(found)

    def cpu(self) -> float:
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    async def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), 60)


def trend(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Theil and Sen's slope, and the interval in which it is with 95 %; per second."""
    slopes = sorted(
        (y - other_y) / (x - other_x)
        for place, (x, y) in enumerate(points)
        for other_x, other_y in points[:place]
    )
    count = len(points)
    half = 1.96 * (count * (count - 1) * (2 * count + 5) / 18) ** 0.5 / 2
    middle = len(slopes) / 2
    low = slopes[max(0, int(middle - half))]
    high = slopes[min(len(slopes) - 1, int(middle + half))]
    return statistics.median(slopes), low, high


def windows(points: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Medians of so many stretches of time, of the same number of points."""
    parts = [
        points[len(points) * place // count : len(points) * (place + 1) // count]
        for place in range(count)
    ]
    return [
        (statistics.median(x for x, _ in part), statistics.median(y for _, y in part))
        for part in parts
        if part
    ]


class Soak:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.seconds = options.minutes * 60
        self.is_short = self.seconds < SHORT
        self.warm_up = min(WARM_UP, self.seconds / 10)
        self.scale = 0.5 if self.is_short else 1.0
        self.seed = options.seed if options.seed is not None else int(time.time())
        self.wrong: list[str] = []
        self.samples: list[tuple[float, float]] = []
        self.quiets: list[dict[str, float]] = []
        self.ports: set[int] = set()
        self.busy = False

    def now(self) -> float:
        return time.monotonic() - self.begin

    def learn(self, name: str, address: Any) -> None:
        self.kinds[name].set_address(address)
        if name not in ("unix", "udp"):
            self.ports.add(address[1])

    async def run(self) -> None:
        self.server, self.over = Server(), asyncio.Event()
        addresses = await self.server.start(self.scale, self.options.trace, self.options.arenas)
        self.kinds = {name: Kind(name, address) for name, address in addresses.items()}
        for name, address in addresses.items():
            self.learn(name, address)
        self.clients = Clients(self.kinds, self.scale, self.seed)
        self.begin = time.monotonic()
        itself = asyncio.ensure_future(self.clients.watch_itself())
        for _ in range(2):
            await self.touch()
            await self.gone()
        self.before = await self.settled()
        self.kinds_before = self.server.descriptors()
        print(f"descriptors, threads, children at the start: {self.before}", flush=True)
        print(
            "  seconds  clients  connections  MB checked  RSS KB  RSS quiet  malloc KB   blocks"
            "  descriptors, threads, children",
            flush=True,
        )
        self.begin, self.cpu = time.monotonic(), self.server.cpu()
        watching = asyncio.ensure_future(self.watch())
        draining = asyncio.ensure_future(self.drain())
        await self.load()
        self.over.set()
        await draining
        self.used = (self.server.cpu() - self.cpu) / self.now(), time.process_time() / self.now()
        await self.be_quiet()
        for task in (watching, itself):
            task.cancel()
        await asyncio.gather(watching, itself, return_exceptions=True)
        self.told = await self.server.ask("look", True)
        status = await self.server.end()
        if status:
            self.wrong.append(f"the server ended with status {status}")

    async def touch(self) -> None:
        """Each server, beyond its limit: what it makes once is made, an eventfd(2) for example."""
        self.clients.start("one_shot", "sync")
        for _ in range(FLURRIES):  # a thread that takes datagrams in the place of the loop
            self.clients.start("flurry", "udp")
            await self.gone()
        wanted = [name for name, kind in self.kinds.items() if kind.most]
        for _ in range(10):
            for name in wanted:
                self.clients.burst(name)
            await self.gone()
            wanted = [
                name
                for name in wanted
                if await self.server.ask("peak", name) < self.kinds[name].most
            ]
            if not wanted:
                return
        self.wrong.append(f"servers that have never had as many as they take: {wanted}")

    async def gone(self) -> None:
        """When all clients have."""
        while self.clients.tasks:
            await asyncio.wait(self.clients.tasks)

    async def settled(self, wanted: tuple[int, int, int] | None = None) -> tuple[int, int, int]:
        """What it holds when that stays, or is as wanted."""
        seen: list[tuple[int, int, int]] = []
        end = time.monotonic() + 15
        while time.monotonic() < end:
            seen.append(self.server.holds())
            if seen[-1] == wanted:
                break
            if wanted is None and len(seen) > 40 and len(set(seen[-40:])) == 1:
                break
            await asyncio.sleep(0.05)
        return seen[-1]

    async def load(self) -> None:
        dice = self.clients.dice
        quiet_every = max(self.seconds / QUIETS, 60.0)
        quiet = self.seconds if self.is_short else self.warm_up
        burst = 0.0
        due = time.monotonic()
        bursts = ("threading", "multiplexing", "unix")
        while self.now() < self.seconds:
            self.busy = True
            if self.now() >= quiet:
                await self.be_quiet()
                quiet = max(quiet + quiet_every, self.now() + quiet_every / 2)
                due = time.monotonic()
            if self.now() >= burst:
                self.clients.burst(dice.choice(bursts))
                burst = self.now() + min(BURST_EVERY, self.seconds / 5)
            self.clients.start_any()
            due = max(due + dice.expovariate(self.options.rate), time.monotonic() - 1)
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def drain(self) -> None:
        """One of the servers, again and again."""
        names: list[str] = []
        every = min(DRAIN_EVERY, self.seconds / 5)
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.over.wait(), every)
            while not self.busy and not self.over.is_set():
                await asyncio.sleep(0.1)
            if self.over.is_set():
                return
            if not names:
                names = list(SERVERS)
                self.clients.dice.shuffle(names)
            await self.drain_one(names.pop())

    async def drain_one(self, name: str) -> None:
        kind = self.kinds[name]
        kind.era += 1
        timeout = self.clients.dice.choice((0.0, 0.5, 1.5))
        address, _ = await self.server.ask("anew", name, timeout)
        self.learn(name, address)
        kind.era += 1

    async def watch(self) -> None:
        every = max(0.5, self.seconds / SAMPLES)
        while True:
            await asyncio.sleep(every)
            if self.busy and self.now() > self.warm_up:
                self.samples.append((self.now(), resident(self.server.process.pid)))

    async def be_quiet(self) -> None:
        self.busy = False
        async with self.server.turn:
            pass  # a drain
        await self.gone()
        await self.touch()
        await self.gone()
        end = time.monotonic() + 20
        while await self.server.ask("active") and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for _ in range(3):
            self.after = holds = await self.settled(self.before)
            if holds == self.before:
                break
            await self.touch()  # it may be less than it was
            await self.gone()
        # Fewer are no leak: on a busy machine a touch may not make all that is made once.
        if any(now > before for now, before in zip(holds, self.before, strict=True)):
            self.wrong.append(
                f"after {self.now():.0f} s: {holds}, {self.before} at the start; "
                f"{self.server.descriptors()}, {self.kinds_before} at the start"
            )
        for port in self.ports:
            if found := states(port):
                self.wrong.append(f"after {self.now():.0f} s: port {port}: {found}")
        told = await self.server.ask("look", True)
        size = float(resident(self.server.process.pid))
        self.quiets.append(
            {
                "seconds": self.now(),
                "resident": size,
                "malloc": told["malloc"][0] / 1024,
                "of malloc": told["malloc"][1] / 1024,
                "blocks": told["blocks"],
            }
        )
        loaded = self.samples[-1][1] if self.samples else 0
        print(
            f"  {self.now():7.0f} {sum(self.clients.count.values()):8} "
            f"{self.clients.connections:12} {self.clients.bytes / 1e6:11.1f} {loaded:7.0f} "
            f"{size:10.0f} {told['malloc'][0] / 1024:10.1f} {told['blocks']:8}  {holds}",
            flush=True,
        )
        if self.options.trace:
            print("\n".join(await self.server.ask("trace")), flush=True)

    def memory(self) -> None:
        rows = []
        for what, points in (
            ("resident, under load", windows(self.samples, WINDOWS)),
            ("resident, at quiet moments", self.at_quiet("resident")),
            ("malloc has from the kernel", self.at_quiet("of malloc")),
            ("malloc has given away", self.at_quiet("malloc")),
        ):
            if len(points) < 5:
                continue
            slope, low, high = (one * 3600 / 1024 for one in trend(points))
            rows.append(
                {
                    "": what,
                    "points": len(points),
                    "MB per hour": f"{slope:+.2f}",
                    "95 %": f"{low:+.2f} to {high:+.2f}",
                    "resolution": f"{(high - low) / 2:.2f}",
                    "first, KB": f"{points[0][1]:.0f}",
                    "last, KB": f"{points[-1][1]:.0f}",
                }
            )
            if what.startswith("resident") and low > ALLOWED and self.seconds >= ENOUGH:
                self.wrong.append(f"memory grows, {what}: {slope:+.2f} MB per hour")
        if rows:
            minutes = (self.seconds - self.warm_up) / 60
            show(f"trend of memory, in {minutes:.1f} minutes after the warm-up", rows)

    def at_quiet(self, which: str) -> list[tuple[float, float]]:
        return [
            (one["seconds"], one[which]) for one in self.quiets if one["seconds"] > self.warm_up
        ]

    def judge(self) -> None:
        self.wrong += self.clients.wrong + self.told["wrong"]
        said = self.server.said()
        if "Traceback" in said:
            at = said.index("Traceback")
            self.wrong.append(f"a traceback:\n{said[max(0, at - 300) : at + 2500]}")
        lines = said.splitlines()
        gone = sum(" has gone: " in line for line in lines)
        counted = self.told["counted"]
        rows = [{"": name, **numbers} for name, numbers in counted.items()]
        names = dict.fromkeys(name for row in rows for name in row)
        show("counted by the servers", [{name: row.get(name, 0) for name in names} for row in rows])
        print(f"clients: {dict(self.clients.count)}")
        print(f"the server's process: {self.told['did']}")
        print(f"standard error: {gone} lines of peers that have gone, {len(lines) - gone} others")
        for line in [line for line in lines if line.strip() and " has gone: " not in line][:5]:
            print(f"    {line}")
        refused = sum(one.get("refused", 0) for one in counted.values())
        if self.clients.count["stalls"]:  # who is late may be given up before it has a byte
            refused += sum(
                one.get("timed out", 0) for name, one in counted.items() if self.kinds[name].rejects
            )
        if self.clients.count["one too many"] > refused:
            self.wrong.append(f"{self.clients.count['one too many']} clients were refused")
        if failures := sum(one.get("not taken", 0) for one in counted.values()):
            self.wrong.append(f"{failures} requests could not be taken")
        self.memory()
        first, last = self.quiets[0], self.quiets[-1]
        print(f"blocks of Python's objects: {first['blocks']:.0f}, then {last['blocks']:.0f}")
        print(
            f"descriptors, threads, children: {self.before} at the start, "
            f"{self.after} at the end; {self.used[0]:.0%} and {self.used[1]:.0%} of a core"
        )


def run(options: argparse.Namespace) -> int:
    soak = Soak(options)
    print(
        f"mixed: {soak.seconds:.0f} s, {options.rate:g} clients a second, seed {soak.seed}, "
        f"deadlines {', '.join(f'{value * soak.scale:g}' for value in DEADLINES.values())} s, "
        f"Python {sys.version.split()[0]}",
        flush=True,
    )
    asyncio.run(soak.run())
    soak.judge()
    return verdict(soak.wrong)


def add(commands: Any) -> None:
    mixed = commands.add_parser("mixed", help="everything at once; memory and the like stay flat")
    mixed.add_argument("--minutes", type=float, default=30.0)
    mixed.add_argument("--rate", type=float, default=150.0, help="clients per second")
    mixed.add_argument("--seed", type=int, default=None, help="default: from the clock")
    mixed.add_argument("--arenas", type=int, default=1, help="of glibc's malloc; 0: its own choice")
    mixed.add_argument("--trace", type=int, default=0, help="frames of tracemalloc; slow")
