"""One measurement after another, each on a server and a load of its own.

Within a round the servers of a scenario take turns right after each other: a machine that changes
its speed changes it for all, and ratios formed within a round stay what they are.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsock.bench import _machine, _scenarios
from fastsock.bench._results import (
    FASTSOCK,
    MULTIPLEXING,
    OURS,
    REFERENCE,
    STANDARD,
    Latency,
    LeftOut,
    Measurement,
    Run,
    Settings,
)
from fastsock.bench._scenarios import FOLDER, QUICK_CONNECTIONS, REFERENCES, Peer, Scenario

SPARE_DESCRIPTORS = 100
START_SECONDS = 30  # until a server listens
COLD_SECONDS = 3  # at least: until a connection that finds no room in a backlog is there
GRACE = 10  # seconds that the first round may take longer
# This very package, whatever the working directory has under its name.
CLIENT = """
import sys
if sys.path[:1] == [""]:  # not so with PYTHONSAFEPATH
    del sys.path[0]
sys.path.insert(0, sys.argv[1])
from fastsock.bench._client import main
sys.exit(main())
"""
NO_GREENLET = "greenlet is not installed: pip install 'fastsock[bench]'"
TIMEOUT = 10  # seconds without an answer; thousands of threads may take some


def patience(held: int) -> float:
    """Seconds until so many lasting connections are served; a hundred of them take milliseconds."""
    return 20 + held / 40


class MeasureError(Exception):
    """This server can't be measured with this load; the message says why."""


@dataclass(frozen=True)
class Step:
    """One server under one load, once."""

    scenario: Scenario
    connections: int
    server: str
    pinned: bool
    round: int


@dataclass
class Plan:
    """What is to be measured, in which order, and what is left out from the beginning."""

    settings: Settings
    steps: list[Step] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def limit_of_files() -> int:
    """How many descriptors a process here may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def servers_for(scenario: Scenario, peers: list[Peer]) -> list[str]:
    """Who can do what the scenario asks for, in the order in which they take turns."""
    reference = [name for name, _ in REFERENCES.get(scenario.info.load, ())]
    return [
        STANDARD,
        OURS,
        *([MULTIPLEXING] if scenario.threading else []),
        *(peer.name for peer in peers if scenario.work in peer.works),
        *reference,
    ]


def plan(
    scenarios: list[Scenario],
    peers: list[Peer],
    settings: Settings,
    pinning: tuple[bool, ...],
    only: frozenset[str] | None = None,
) -> Plan:
    """All that is asked for and can be had.

    Args:
        only: the servers that take part; None: all.
    """
    made = Plan(settings)
    here = {STANDARD, OURS, *(peer.name for peer in peers if peer.version)}
    if _machine.compiler():
        here |= {name for pairs in REFERENCES.values() for name, _ in pairs}
    else:
        made.left_out.append(LeftOut("", REFERENCE, "no C compiler here (cc, gcc, or CC)"))
    if _scenarios.version_of("greenlet"):
        here.add(MULTIPLEXING)
    elif any(scenario.threading for scenario in scenarios) and (
        only is None or MULTIPLEXING in only
    ):
        made.left_out.append(LeftOut("", MULTIPLEXING, NO_GREENLET))
    for peer in peers:
        if not peer.version and (only is None or peer.name in only):
            made.left_out.append(LeftOut("", peer.name, f"{peer.distribution} is not installed"))
    keys: list[tuple[Scenario, int]] = []
    for scenario in scenarios:
        for connections in scenario.connections:
            descriptors = connections + scenario.info.idle + SPARE_DESCRIPTORS
            if settings.quick and (not scenario.quick or connections > QUICK_CONNECTIONS):
                why = f"{connections:,} connections: --quick"
            elif descriptors > limit_of_files():
                why = (
                    f"{connections:,} connections: {descriptors:,} descriptors are needed, the "
                    f"limit is {limit_of_files():,} (ulimit -n)"
                )
            else:
                keys.append((scenario, connections))
                continue
            made.left_out.append(LeftOut(scenario.name, "", why))
    made.steps = [
        Step(scenario, connections, server, pinned, number)
        for number in range(settings.rounds)
        for pinned in pinning
        for scenario, connections in keys
        for server in servers_for(scenario, peers)
        if server in here and (only is None or server in only)
    ]
    return made


@contextlib.contextmanager
def _on(cores: list[int] | None) -> Iterator[None]:
    """What is started meanwhile inherits these cores from the thread that starts it."""
    if cores is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Leash:
    """A file of a process that is to end with this one, however this one ends.

    A pipe with O_ASYNC: when its other end closes, the kernel sends SIGIO to its owner, whose
    default action is to terminate (fcntl(2), signal(7)). Nothing has to be done in the process
    itself, nor between fork and exec.
    """

    def __init__(self) -> None:
        self.theirs, self._ours = os.pipe()

    def fasten(self, pid: int) -> None:
        fcntl.fcntl(self.theirs, fcntl.F_SETOWN, pid)
        flags = fcntl.fcntl(self.theirs, fcntl.F_GETFL)
        fcntl.fcntl(self.theirs, fcntl.F_SETFL, flags | os.O_ASYNC)

    def close(self) -> None:
        os.close(self.theirs)
        os.close(self._ours)


class Bench:
    """Measures; a context manager, since it has a folder and the reference server in it."""

    def __init__(self, peers: list[Peer], settings: Settings) -> None:
        self._peers = {peer.name: peer for peer in peers}
        self._settings = settings
        self._cores = sorted(os.sched_getaffinity(0))
        self._count = 0

    def __enter__(self) -> Bench:
        self._folder = tempfile.TemporaryDirectory(prefix="fastsock-bench-")
        self._work = Path(self._folder.name)
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def _reference(self) -> Path:
        """The server in C, compiled when it is first asked for."""
        program = self._work / "reference"
        if not program.exists():
            source = FOLDER / "reference" / "server.c"
            command = [_machine.compiler(), "-O2", "-o", str(program), str(source)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise MeasureError(f"the C compiler: {done.stderr.strip()[-300:]}")
        return program

    def _command(self, step: Step, address: str) -> list[str]:
        program = [sys.executable, str(FOLDER / "_serve.py")]
        scenario = step.scenario
        backlog = "0" if scenario.info.cold else str(self._settings.backlog)
        if step.server in (STANDARD, *FASTSOCK):
            return [*program, "scenario", str(scenario.path), step.server, address, backlog]
        if peer := self._peers.get(step.server):
            return [*program, "peer", str(peer.path), peer.name, scenario.work, address, backlog]
        works = dict(REFERENCES[scenario.info.load])
        return [str(self._reference()), works[step.server], address]

    @contextlib.contextmanager
    def _serving(self, step: Step) -> Iterator[tuple[int, str | tuple[str, int]]]:
        """The server: its process and where it listens. It is killed at the end, with children."""
        self._count += 1
        unix = step.scenario.info.family == "unix"
        where = str(self._work / f"socket-{self._count}") if unix else "127.0.0.1"
        with tempfile.TemporaryFile() as errors, contextlib.closing(_Leash()) as leash:
            with _on(self._cores[:1] if step.pinned else None):
                process = subprocess.Popen(
                    self._command(step, where),
                    stdin=leash.theirs,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            with process:
                try:
                    leash.fasten(process.pid)
                    assert process.stdout is not None
                    told, _, _ = select.select([process.stdout], [], [], START_SECONDS)
                    line = process.stdout.readline() if told else b""
                    if not line.strip():
                        errors.seek(0)
                        said = errors.read().decode(errors="replace").strip().splitlines()
                        raise MeasureError(
                            f"the server did not start: {said[-1] if said else 'it said nothing'}"
                        )
                    yield process.pid, where if unix else (where, int(line))
                finally:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    if unix:
                        Path(where).unlink(missing_ok=True)

    def measure(self, step: Step) -> Measurement:
        """One measurement.

        Raises:
            MeasureError: it was not to be had.
        """
        scenario, info = step.scenario, step.scenario.info
        seconds = self._settings.seconds
        if info.cold:
            seconds = max(seconds, COLD_SECONDS)
        with self._serving(step) as (pid, address):
            job: dict[str, Any] = {
                "load": info.load,
                "lasting": scenario.lasting,
                "ordered": scenario.ordered,
                "address": address,
                "connections": step.connections,
                "payload": info.payload,
                "depth": info.depth,
                "idle": info.idle,
                "cold": info.cold,
                "request": base64.b64encode(scenario.request).decode(),
                "body": base64.b64encode(scenario.body).decode(),
                "pid": pid,
                "patience": patience(step.connections + info.idle),
                "timeout": TIMEOUT,
                "warm_up": seconds / 4,
                "seconds": seconds,
            }
            with contextlib.ExitStack() as stack:
                leash = stack.enter_context(contextlib.closing(_Leash()))
                with _on(self._cores[-1:] if step.pinned else None):
                    load = subprocess.Popen(
                        [sys.executable, "-c", CLIENT, str(FOLDER.parents[1])],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                        pass_fds=(leash.theirs,),
                    )
                stack.enter_context(load)
                try:
                    leash.fasten(load.pid)
                    limit = job["patience"] + 10 * seconds + 60
                    found, said = load.communicate(json.dumps(job), timeout=limit)
                except subprocess.TimeoutExpired:
                    raise MeasureError(f"the load did not end within {limit:.0f} s") from None
                finally:
                    load.kill()
            if load.returncode:
                lines = said.strip().splitlines()
                raise MeasureError(lines[-1] if lines else f"the load: status {load.returncode}")
        fields = json.loads(found)
        fields["latency"] = Latency(**fields["latency"])
        return Measurement(
            scenario=scenario.name,
            server=step.server,
            connections=step.connections,
            pinned=step.pinned,
            round=step.round,
            **fields,
        )


def run(
    made: Plan,
    peers: list[Peer],
    *,
    began: Callable[[Step], None] = lambda step: None,
    ended: Callable[[Step], None] = lambda step: None,
    until: float | None = None,
) -> Run:
    """Everything of a plan, in its order.

    Args:
        began: called before each measurement.
        ended: called after each, and for those that are passed over.
        until: of ``time.monotonic()``; nothing but the first round goes on after it, and that for
            no longer than ``GRACE``.

    KeyboardInterrupt ends it early: then what was measured is in the run.
    """
    machine = _machine.describe(peers)  # what fails fails before anything was measured
    measurements: list[Measurement] = []
    left_out = list(made.left_out)
    passed_over = False
    given_up: set[tuple[str, int, str, bool]] = set()
    with Bench(peers, made.settings) as bench:
        try:
            for step in made.steps:
                which = (step.scenario.name, step.connections, step.server, step.pinned)
                grace = 0 if step.round else GRACE
                late = until is not None and time.monotonic() > until + grace
                if which not in given_up and not late:
                    began(step)
                    try:
                        measurements.append(bench.measure(step))
                    except (MeasureError, OSError, ValueError) as error:
                        given_up.add(which)
                        why = f"{step.connections:,} connections: {error}"
                        left_out.append(LeftOut(step.scenario.name, step.server, why))
                passed_over |= late
                ended(step)
            if passed_over:
                left_out.append(LeftOut("", "", "what came last: --quick had no time left"))
        except KeyboardInterrupt:
            left_out.append(LeftOut("", "", "interrupted: not all was measured"))
    return Run(
        machine,
        made.settings,
        {step.scenario.name: step.scenario.info for step in made.steps},
        measurements,
        left_out,
    )
