"""What a run of the benchmark found, and its form as JSON.

A :class:`Run` is a flat list of :class:`Measurement`, one for each round of each server at each
number of connections of each scenario; everything that is shown (table, chart, comparison) is
computed from that list. ``FORMAT`` is raised when a reader of the old form would misread the new.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 1
#: who is compared with whom
STANDARD, OURS, REFERENCE = "socketserver", "fastsock", "C"
#: fastsock, with the multiplexing classes where the program asks for threads
MULTIPLEXING = "fastsock multiplexing"
#: the servers of this package
FASTSOCK = (OURS, MULTIPLEXING)
#: the part of a core from which on the load is what limits a rate
BUSY = 0.9


class ResultsError(ValueError):
    """A file that isn't a saved run, or one of a format that this version doesn't know."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Of the operations that were counted, from the send to the last byte of the answer; in us."""

    p50: float
    p99: float
    p999: float
    max: float


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One server under one load for the seconds of one round."""

    scenario: str
    server: str  # STANDARD, OURS, MULTIPLEXING, REFERENCE, or a peer's name
    connections: int
    pinned: bool  # server and load on a core each
    round: int  # measurements of the same round were taken right after each other
    operations: int  # answered in full and verified, while it was counted
    seconds: float  # how long it was counted
    cpu: float | None  # microseconds of the server process and its children, per operation
    memory: float | None  # anonymous KB of the server per connection; None: short-lived ones
    opening: float | None  # seconds until every connection had exchanged a line; None: as above
    latency: Latency
    errors: dict[str, int]  # by kind; no kind that did not occur
    verified: int  # bytes of answers that were compared with what had to come
    served: int  # lasting connections that were answered while it was counted; else 0
    load_cpu: float | None = None  # microseconds of the load's own, per operation
    # operations a second of as many connections just before the idle ones were there; None: no idle
    alone: float | None = None

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class ScenarioInfo:
    """What the load of a scenario was."""

    title: str
    load: str  # once, lines, datagrams, http, http-close, opening
    family: str  # tcp, unix
    payload: int  # bytes of one message; of http: of the answer's body
    depth: int  # messages under way on each connection
    idle: int  # further connections that are silent
    cold: bool = False  # connections were opened while it was counted, the backlog as it comes


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """What could not be measured, and why."""

    scenario: str  # empty: all of them
    server: str
    why: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """How it was measured."""

    rounds: int
    seconds: float  # of each round
    backlog: int  # of every server; 0: as each comes
    quick: bool


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cpu: str
    cores: int
    kernel: str
    python: str
    fastsock: str
    compiler: str  # of the reference server; empty: there is none
    peers: dict[str, str]  # distribution -> version
    when: str  # ISO 8601, UTC


class Key(NamedTuple):
    """One row of the table."""

    scenario: str
    connections: int
    pinned: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """All of it."""

    machine: Machine
    settings: Settings
    scenarios: dict[str, ScenarioInfo]
    measurements: list[Measurement]
    left_out: list[LeftOut]

    def rows(self) -> list[Key]:
        """In the order in which they were measured first."""
        seen = (Key(one.scenario, one.connections, one.pinned) for one in self.measurements)
        return list(dict.fromkeys(seen))

    def servers(self, key: Key | None = None) -> list[str]:
        """In the order in which they were measured first; only those of a row, if one is given."""
        return list(
            dict.fromkeys(
                one.server
                for one in self.measurements
                if key is None or Key(one.scenario, one.connections, one.pinned) == key
            )
        )

    def of(self, key: Key, server: str) -> list[Measurement]:
        """By round."""
        found = [
            one
            for one in self.measurements
            if one.server == server and Key(one.scenario, one.connections, one.pinned) == key
        ]
        return sorted(found, key=lambda one: one.round)

    def bound_by_load(self, key: Key) -> bool:
        """Whether fastsock's rate is the load's: its one thread had no time left for more."""
        busy = [
            one.load_cpu * one.rate / 1e6 for one in self.of(key, OURS) if one.load_cpu is not None
        ]
        return bool(busy) and statistics.median(busy) > BUSY

    def ratios(
        self, key: Key, server: str, base: str, value: Callable[[Measurement], float | None]
    ) -> list[float]:
        """``value`` of a server over that of another, formed within each round that has both."""
        theirs = {one.round: value(one) for one in self.of(key, base)}
        found = []
        for one in self.of(key, server):
            mine, other = value(one), theirs.get(one.round)
            if mine is not None and other:
                found.append(mine / other)
        return found

    def to_json(self) -> str:
        """The inverse of :func:`from_json`."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"


class Spread(NamedTuple):
    """The median of several rounds, and the least and the most of them."""

    median: float
    least: float
    most: float


def spread(values: Iterable[float]) -> Spread | None:
    """None, if there are none."""
    taken = [value for value in values if not math.isnan(value)]
    return Spread(statistics.median(taken), min(taken), max(taken)) if taken else None


def _build(kind: Any, fields: Any, what: str) -> Any:
    if not isinstance(fields, dict):
        raise ResultsError(f"{what} is not an object")
    every = dataclasses.fields(kind)
    needed = {field.name for field in every if field.default is dataclasses.MISSING}
    if missing := sorted(needed - fields.keys()):
        raise ResultsError(f"{what} has no {', '.join(missing)}")
    taken = {field.name: fields[field.name] for field in every if field.name in fields}
    hints = typing.get_type_hints(kind)
    for name, value in taken.items():
        if not _fits(value, hints[name]):
            raise ResultsError(f"{what}: {name} is {value!r:.40}")
    return kind(**taken)


def _fits(value: object, hint: Any) -> bool:
    """Is it what JSON has for a field of that type? Not to the depth of lists and objects."""
    if origin := typing.get_origin(hint):
        if origin is list:
            return isinstance(value, list)
        if origin is dict:
            inner = typing.get_args(hint)[-1]
            return isinstance(value, dict) and all(_fits(one, inner) for one in value.values())
        return any(_fits(value, one) for one in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict)
    if hint in (int, float):
        return (
            isinstance(value, int | hint)
            and not isinstance(value, bool)
            and 0 <= value < 1e18  # there is nothing negative, nor infinite
        )
    return isinstance(value, hint)


def from_json(text: str) -> Run:
    """A saved run.

    Raises:
        ResultsError: it isn't one; the message says what is wrong with it.
    """
    try:
        whole = json.loads(text)
    except ValueError as error:
        raise ResultsError(f"not JSON: {error}") from None
    if not isinstance(whole, dict) or "format" not in whole:
        raise ResultsError("not a saved run of this benchmark")
    if whole["format"] != FORMAT:
        raise ResultsError(f"format {whole['format']}; this version of fastsock reads {FORMAT}")
    run = _build(Run, whole, "the file")
    measurements = []
    for one in run.measurements:
        measurement = _build(Measurement, one, "a measurement")
        latency = _build(Latency, measurement.latency, "the latency of a measurement")
        measurements.append(dataclasses.replace(measurement, latency=latency))
    found = Run(
        _build(Machine, run.machine, "the machine"),
        _build(Settings, run.settings, "the settings"),
        {
            name: _build(ScenarioInfo, one, f"the scenario {name}")
            for name, one in run.scenarios.items()
        },
        measurements,
        [_build(LeftOut, one, "an entry of left_out") for one in run.left_out],
    )
    for one in measurements:
        if one.scenario not in found.scenarios:
            raise ResultsError(f"a measurement is of {one.scenario!r}, which is no scenario of it")
    return found


def load(path: Path) -> Run:
    """A saved run, from its file.

    Raises:
        ResultsError: it isn't one; the message begins with the path.
        OSError: it can't be read.
    """
    try:
        return from_json(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not a text file: {error}") from None
    except ResultsError as error:
        raise ResultsError(f"{path}: {error}") from None
