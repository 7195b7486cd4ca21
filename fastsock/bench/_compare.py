"""What changed of fastsock between two saved runs, beyond what the noise explains.

A machine may run at another speed for a while, in the middle of a round as well, and from one run
to the next. The other servers tell: they are the same in both runs, so each has one level, and what
was measured of them, in the order in which it was measured, beside their levels is the speed of the
machine at that time. Levels and speeds are found by turns (:func:`_speeds`). What remains of a
figure of fastsock when the speed at its time is taken off is compared between the runs, all of it
as logarithms.

The shift between two runs is Hodges and Lehmann's: the median of all differences between a round of
one and a round of the other, which single outliers do not move. It is named if it is above a floor
and above several times its standard error. That comes from the spread of the rounds within each run
and, since a few rounds may happen to agree, from the spread of all scenarios if that is larger.

Of 300 simulated pairs of runs each (15 scenarios; 3 to 6 % of noise; two speeds a quarter apart,
each for 16 to 64 s; a measurement of a hundred at 0.7 of its rate), 5 rounds: 2 % of the pairs of
the same build have something named; of slowdowns by 1.2 in one scenario 94 % are found. With 3
rounds: 3 % and 58 %. Without changes of speed, 5 rounds: 0.3 % and 95 %.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TextIO

from fastsock.bench._report import errors_of, has_rich, number, pinning
from fastsock.bench._results import (
    FASTSOCK,
    MULTIPLEXING,
    OURS,
    REFERENCE,
    STANDARD,
    Key,
    Measurement,
    ResultsError,
    Run,
)

#: a row of the table: what was measured, and of which server
Row = tuple[Key, str]
#: a change below this is never named; of what has no reference, below the larger
FLOOR, FLOOR_ALONE = math.log(1.08), math.log(1.35)
#: standard errors that a shift has to exceed: of one metric, or of rate and CPU together
CERTAIN, TOGETHER = 5.0, 4.2
COST = "rate and CPU"
#: the spread (standard deviation of the logarithm) that is assumed at least, and without any rounds
LEAST_SPREAD, UNKNOWN_SPREAD = 0.01, 0.08
#: speeds that a machine may have, as logarithms; how far a figure may be from it, and what a change
#: costs, in the same unit; how often levels and speeds are computed from each other
GRID = [step / 50 for step in range(-40, 41)]
FAR = 0.15
CHANGES = (0.5, 0.35, 0.25, 0.18, 0.12, 0.12)
STEP = math.log(1.10)  # speeds that differ by less are taken for the same
#: the part of a shift that has to be left without the two rounds that support it most
SUPPORT = 0.6
MANY = 100  # connections, from which memory and opening are compared


@dataclass(frozen=True)
class Metric:
    """A figure of a measurement: None where it does not exist."""

    name: str
    unit: str
    sign: int  # 1: more is better
    timed: bool  # depends on the speed of the machine
    clock: str  # the metric of which that is computed
    speed: int  # -1: the more of that, the less of this
    value: Callable[[Measurement], float | None]


def _if_many(value: Callable[[Measurement], float | None]) -> Callable[[Measurement], float | None]:
    return lambda one: value(one) if one.connections >= MANY else None


METRICS = (
    Metric("rate", "/s", 1, True, "rate", 1, lambda one: one.rate),
    Metric("CPU", " µs", -1, True, "CPU", 1, lambda one: one.cpu),
    Metric("memory", " KB", -1, False, "rate", 1, _if_many(lambda one: one.memory)),
    Metric("opening", " s", -1, True, "rate", -1, _if_many(lambda one: one.opening)),
)


@dataclass(frozen=True)
class Shift:
    """How one metric changed."""

    metric: str
    unit: str
    before: float  # the median of the rounds, as measured
    after: float
    change: float  # 0.1: a tenth more than before; what the speed of the machine did is taken off
    noise: float  # the standard error of that
    relative: bool  # to the other servers

    def __str__(self) -> str:
        relative = " beside the other servers" if self.relative else ""
        return (
            f"{self.metric} {self.change:+.0%} ± {self.noise:.0%}{relative} "
            f"({number(self.before)} → {number(self.after)}{self.unit})"
        )


@dataclass(frozen=True)
class Change:
    """What changed, for the better or for the worse, in one row of the table."""

    key: Key
    title: str
    shifts: tuple[Shift, ...] = ()
    errors: dict[str, int] = field(default_factory=dict)  # kinds that did not occur before
    server: str = OURS

    def __str__(self) -> str:
        told = [str(shift) for shift in self.shifts]
        told += [f"new errors: {count:,} {kind}" for kind, count in self.errors.items()]
        return f"{_name((self.key, self.server), self.title)}: {'; '.join(told)}"


def _name(row: Row, title: str) -> str:
    key, server = row
    what = f"{key.scenario} ({title})" if title else key.scenario
    whose = "" if server == OURS else f", {server}"
    return f"{what}, {key.connections:,} connections, {pinning(key.pinned)}{whose}"


@dataclass(frozen=True)
class Comparison:
    """All that changed. ``unchanged`` counts rows of the table in which nothing is named."""

    regressions: list[Change]
    improvements: list[Change]
    unchanged: int
    warnings: list[str]

    @property
    def status(self) -> int:
        """The exit status of the command: 1 if something became worse, else 0."""
        return 1 if self.regressions else 0

    def lines(self) -> list[tuple[str, str]]:
        """The report: (style of rich, line)."""
        told = [("bold yellow", f"! {warning}") for warning in self.warnings]
        for title, style, changes in (
            ("worse", "bold red", self.regressions),
            ("better", "bold green", self.improvements),
        ):
            told.append((style if changes else "", f"{title}: {len(changes) or 'nothing'}"))
            told += [("", f"  {change}") for change in changes]
        told.append(("", f"no change beyond the noise: {self.unchanged}"))
        return told

    def render(self, stream: TextIO, rich: bool | None = None) -> None:
        """Write it. ``rich``: in colour; None: if rich is installed and it is a terminal."""
        if rich is None:
            rich = stream.isatty()
        if not (rich and has_rich()):
            stream.writelines(f"{line}\n" for _, line in self.lines())
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(file=stream, highlight=False)
        for style, line in self.lines():
            console.print(Text(line, style), soft_wrap=True)


# --- the noise


def _by_round(found: Iterable[Measurement], metric: Metric) -> dict[int, float]:
    """Logarithms of those that have one."""
    values = {one.round: metric.value(one) for one in found}
    return {number: math.log(value) for number, value in values.items() if value}


def _deviation(runs: Iterable[list[float]]) -> float | None:
    """The standard deviation within the runs, from the median distance to each run's median.

    None, if there are not two rounds of any.
    """
    distances: list[float] = []
    for values in runs:
        if len(values) < 2:
            continue
        middle = statistics.median(values)
        apart = sorted(abs(value - middle) for value in values)
        # One of an odd number is the median itself: that says nothing.
        distances += apart[len(values) % 2 :]
    if not distances:
        return None
    return statistics.median(distances) * 1.4826


def _trimmed(runs: Iterable[list[float]]) -> float:
    """The standard deviation within the runs, without the one value that is farthest off.

    Of few values it is more exact than :func:`_deviation`; 0, if there are too few for it.
    """
    squares: list[float] = []
    free = -1
    for values in runs:
        middle = statistics.fmean(values) if len(values) < 3 else statistics.median(values)
        squares += [(value - middle) ** 2 for value in values]
        free += len(values) - 1
    return 1.15 * math.sqrt(sum(sorted(squares)[:-1]) / free) if free > 0 else 0.0


def _hodges_lehmann(before: list[float], after: list[float]) -> float:
    return statistics.median(new - old for new in after for old in before)


def _least_shift(before: list[float], after: list[float]) -> float:
    """What is left of a shift, when from each run the round that supports it most is left out.

    0, if nothing is left. The shift of one round each is all there is.
    """
    shift = _hodges_lehmann(before, after)
    up = shift > 0
    old, new = sorted(before, reverse=not up), sorted(after, reverse=up)
    left = _hodges_lehmann(old[1:] or old, new[1:] or new)
    return left if (left > 0) == up else 0.0


@dataclass(frozen=True)
class _Series:
    """A metric of fastsock in a row of the table, in both runs, with the speed taken off."""

    relative: bool  # the speed is known
    before: dict[int, float]
    after: dict[int, float]
    shown: tuple[float, float]

    @property
    def rounds(self) -> list[list[float]]:
        """Of both runs."""
        return [[*self.before.values()], [*self.after.values()]]

    @property
    def shift(self) -> float:
        return _hodges_lehmann(*self.rounds)

    @property
    def supported(self) -> bool:
        """Is it more than what a round or two say?"""
        return abs(_least_shift(*self.rounds)) > SUPPORT * abs(self.shift)

    def error(self, pooled: float) -> float:
        """The standard error of the shift; ``pooled``: the least spread to reckon with."""
        spread = max(_trimmed(self.rounds), pooled)
        # Hodges and Lehmann's estimate has nearly the error of a difference of means.
        return spread * math.sqrt(1.05 * (1 / len(self.before) + 1 / len(self.after)))


def _cost(rate: _Series, cpu: _Series) -> _Series | None:
    """What rate and CPU say together: either may be the better witness of one cause."""
    both = [
        {which: (cpu_of[which] - rate_of[which]) / 2 for which in rate_of if which in cpu_of}
        for rate_of, cpu_of in ((rate.before, cpu.before), (rate.after, cpu.after))
    ]
    relative = rate.relative and cpu.relative
    return _Series(relative, both[0], both[1], rate.shown) if all(both) else None


#: of a row of the table and a round: at the server before fastsock and at the one after it
Speeds = dict[tuple[Row, int], tuple[float, float]]


def _references(before: Run, after: Run) -> set[Row]:
    """Rows and servers that are the same in both runs."""
    each = [
        {(Key(one.scenario, one.connections, one.pinned), one.server) for one in run.measurements}
        for run in (before, after)
    ]
    same = {pair for pair in each[0] & each[1] if pair[1] not in FASTSOCK}
    if before.machine.peers != after.machine.peers:  # then only those that come along
        same = {pair for pair in same if pair[1] == STANDARD or pair[1].startswith(REFERENCE)}
    return same


def _steps(residuals: list[float], price: float) -> list[float]:
    """The speed at each time: what keeps the same for a while and is near to the residuals.

    Of all sequences of speeds the one with the least sum of distances, of which none counts for
    more than ``FAR``, and of ``price`` for every change (Viterbi's algorithm).
    """
    costs = [0.0] * len(GRID)
    came: list[list[int]] = []
    for residual in residuals:
        best = min(range(len(GRID)), key=costs.__getitem__)
        change = costs[best] + price
        origin = [best if change < cost else place for place, cost in enumerate(costs)]
        came.append(origin)
        costs = [min(cost, change) for cost in costs]
        costs = [
            cost + min(abs(residual - speed), FAR) for cost, speed in zip(costs, GRID, strict=True)
        ]
    place = min(range(len(GRID)), key=costs.__getitem__)
    found = []
    for origin in reversed(came):
        found.append(GRID[place])
        place = origin[place]
    return found[::-1]


def _speeds(before: Run, after: Run, metric: Metric) -> list[Speeds]:
    """The speed of the machine when fastsock was measured, for each run; empty if unknown."""
    references = _references(before, after)
    places: list[list[tuple[Row, int, int]]] = []  # of fastsock: where among the others
    others: list[list[tuple[Row, float]]] = []
    for run in (before, after):
        ours: list[tuple[Row, int, int]] = []
        theirs: list[tuple[Row, float]] = []
        for one in run.measurements:
            row = Key(one.scenario, one.connections, one.pinned), one.server
            value = metric.value(one)
            if one.server in FASTSOCK:
                ours.append((row, one.round, len(theirs)))
            elif value and row in references:
                theirs.append((row, math.log(value)))
        places.append(ours)
        others.append(theirs)
    if not all(others):
        return [{}, {}]
    speeds: list[list[float]] = []
    for change in CHANGES:
        if not speeds:  # the fast mode's, but not the outermost value; a median may be of either
            levels = {
                which: sorted(values, reverse=metric.sign > 0)[min(1, len(values) - 1)]
                for which, values in _grouped(others, [[0.0] * len(one) for one in others]).items()
            }
        else:
            levels = {
                which: statistics.median(values)
                for which, values in _grouped(others, speeds).items()
            }
        speeds = [_steps([value - levels[which] for which, value in one], change) for one in others]
    found: list[Speeds] = []
    for ours, speed in zip(places, speeds, strict=True):
        known: Speeds = {}
        for row, which, place in ours:
            sides = speed[max(place - 1, 0) : place + 1]
            known[row, which] = (sides[0], sides[-1])
        found.append(known)
    return found


def _grouped(
    others: list[list[tuple[Row, float]]], speeds: list[list[float]]
) -> dict[Row, list[float]]:
    """What remains of each server's figures when the speeds are taken off."""
    rests: dict[Row, list[float]] = {}
    for one, speed in zip(others, speeds, strict=True):
        for (which, value), at in zip(one, speed, strict=True):
            rests.setdefault(which, []).append(value - at)
    return rests


def _rest(row: Row, mine: dict[int, float], speed: Speeds, metric: Metric) -> dict[int, float]:
    """What is left of the figures of fastsock when the speed is taken off, by round.

    If the machine changed its speed between the server before fastsock and the one after it, the
    figure has either speed: then that which is nearer to the rounds without such a change. Empty,
    if there are too few of those.
    """
    choices = {
        which: [value - at * metric.speed for at in speed[row, which]]
        for which, value in mine.items()
    }
    clear = [sum(pair) / 2 for pair in choices.values() if abs(pair[0] - pair[1]) < STEP]
    if len(clear) < min(2, len(choices)):
        return {}
    middle = statistics.median(clear)
    return {
        which: sum(pair) / 2
        if abs(pair[0] - pair[1]) < STEP
        else min(pair, key=lambda one: abs(one - middle))
        for which, pair in choices.items()
    }


def _series(
    before: Run, after: Run, row: Row, metric: Metric, speeds: list[Speeds]
) -> _Series | None:
    """None, if there is nothing to compare."""
    ours = [_by_round(run.of(*row), metric) for run in (before, after)]
    if not all(ours):
        return None
    relative = metric.timed and all(speeds)
    rest = ours
    if relative:
        rest = [_rest(row, mine, speed, metric) for mine, speed in zip(ours, speeds, strict=True)]
        if not all(rest):
            return None
    shown = [math.exp(statistics.median(mine.values())) for mine in ours]
    return _Series(relative, rest[0], rest[1], (shown[0], shown[1]))


# --- what is named


def _differences(before: Run, after: Run) -> list[str]:
    """Of the machines and the settings."""
    found = []
    for what in ("cpu", "cores", "kernel", "python", "compiler"):
        old, new = getattr(before.machine, what), getattr(after.machine, what)
        if old != new:
            found.append(f"not the same machine: {what} {old or 'none'} → {new or 'none'}")
    for what in ("seconds", "backlog"):
        old, new = getattr(before.settings, what), getattr(after.settings, what)
        if old != new:
            found.append(f"not measured alike: {what} {old:g} → {new:g}")
    return found


def _comparable(before: Run, after: Run) -> tuple[list[Row], list[str]]:
    """The rows of the table that both have, and what is to be said of the others."""
    told = []
    for when, one, other in (("before", before, after), ("after", after, before)):
        if MULTIPLEXING in one.servers() and MULTIPLEXING not in other.servers():
            told.append(f"measured {when} only: {MULTIPLEXING}")
    ours = [
        {
            (key, server): None
            for key in run.rows()
            for server in FASTSOCK
            if run.of(key, server) and not (told and server == MULTIPLEXING)
        }
        for run in (before, after)
    ]
    rows = []
    for row in ours[0]:
        old = before.scenarios[row[0].scenario]
        if row not in ours[1]:
            told.append(f"measured before only: {_name(row, old.title)}")
            continue
        new = after.scenarios[row[0].scenario]
        loads = [dataclasses.replace(one, title="") for one in (old, new)]
        if loads[0] != loads[1]:
            told.append(f"not the same load, not compared: {_name(row, new.title)}")
            continue
        rows.append(row)
    for row in ours[1]:
        if row not in ours[0]:
            title = after.scenarios[row[0].scenario].title
            told.append(f"measured after only: {_name(row, title)}")
    return rows, told


def _new_errors(before: Run, after: Run, row: Row) -> dict[str, int]:
    known = errors_of(before.of(*row))
    found = errors_of(after.of(*row))
    return {kind: count for kind, count in found.items() if kind not in known}


def compare(before: Run, after: Run) -> Comparison:
    """Name what changed of fastsock.

    Raises:
        ResultsError: the runs have nothing in common.
    """
    rows, told = _comparable(before, after)
    if not rows:
        raise ResultsError(
            "the two runs have nothing in common to compare: no scenario with fastsock at the same "
            "number of connections, pinned or not in both"
        )
    warnings = _differences(before, after) + told
    fewest = min(len(run.of(*row)) for run in (before, after) for row in rows)
    if fewest < 3:
        warnings.append(
            f"{fewest} round{'s' if fewest > 1 else ''} only: small changes are not told from noise"
        )
    every = _all_series(before, after, rows)
    pooled = {name: _pooled(found.values()) for name, found in every.items()}
    regressions, improvements, unchanged = [], [], 0
    for row in rows:
        worse, better = _shifts(row, every, pooled)
        key, server = row
        title = after.scenarios[key.scenario].title
        errors = _new_errors(before, after, row)
        if worse or errors:
            regressions.append(Change(key, title, tuple(worse), errors, server))
        if better:
            improvements.append(Change(key, title, tuple(better), server=server))
        unchanged += not (worse or better or errors)
    return Comparison(regressions, improvements, unchanged, warnings)


def _all_series(before: Run, after: Run, rows: list[Row]) -> dict[str, dict[Row, _Series]]:
    """By metric, and ``COST``."""
    speeds = {metric.name: _speeds(before, after, metric) for metric in METRICS[:2]}
    every: dict[str, dict[Row, _Series]] = {COST: {}}
    for metric in METRICS:
        found = {row: _series(before, after, row, metric, speeds[metric.clock]) for row in rows}
        every[metric.name] = {row: one for row, one in found.items() if one is not None}
    for row, rate in every["rate"].items():
        if (cpu := every["CPU"].get(row)) and (cost := _cost(rate, cpu)):
            every[COST][row] = cost
    return every


def _pooled(series: Iterable[_Series]) -> float:
    """The spread of all scenarios."""
    found = _deviation(rounds for one in series for rounds in one.rounds)
    return UNKNOWN_SPREAD if found is None else max(found, LEAST_SPREAD)


def _shifts(
    row: Row, every: dict[str, dict[Row, _Series]], pooled: dict[str, float]
) -> tuple[list[Shift], list[Shift]]:
    """What became worse and what better in this row."""

    def certainty(one: _Series | None, name: str, timed: bool = True) -> float:
        """The shift in standard errors, upward or downward; 0 if it is not to be named."""
        if one is None or not one.supported:
            return 0.0
        floor = FLOOR if one.relative or not timed else FLOOR_ALONE
        return one.shift / one.error(pooled[name]) if abs(one.shift) > floor else 0.0

    together = certainty(every[COST].get(row), COST)
    worse: list[Shift] = []
    better: list[Shift] = []
    for metric in METRICS:
        one = every[metric.name].get(row)
        if one is None:
            continue
        worsening = -metric.sign * one.shift
        named = abs(certainty(one, metric.name, metric.timed)) > CERTAIN
        if metric.name in ("rate", "CPU") and abs(together) > TOGETHER:
            named = named or (worsening * together > 0 and abs(worsening) > FLOOR / 2)
        if named:
            told = Shift(
                metric.name,
                metric.unit,
                *one.shown,
                math.expm1(one.shift),
                one.error(pooled[metric.name]),
                one.relative,
            )
            (worse if worsening > 0 else better).append(told)
    return worse, better
