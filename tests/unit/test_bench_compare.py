"""The comparison of two runs: what it names, and what it takes for noise."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import bench_runs
import pytest

from fastsock.bench import _compare
from fastsock.bench._compare import Comparison, compare
from fastsock.bench._results import Key, ResultsError, Run

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

SCENARIOS = tuple(name for name in bench_runs.TABLE if name not in ("opening", "connections"))


def simulate(seed: int, **options: Any) -> Run:
    return bench_runs.simulate(seed, **{"scenarios": SCENARIOS, "rounds": 5, **options})


def slowed(scenario: str, by: float = 1.2) -> Callable[[str, str], float]:
    return lambda name, server: by if (name, server) == (scenario, "fastsock") else 1.0


def quiet(*, scenarios: Any = ("lines", "sync", "udp"), **options: Any) -> Run:
    """With next to no noise, on a machine that keeps its speed."""
    quiet = {"noise": (0.005, 0.005), "slow": 1.0, "outliers": 0.0, "rounds": 3}
    return bench_runs.simulate(1, scenarios=scenarios, **{**quiet, **options})


def names(changes: list[Any]) -> list[str]:
    return [change.key.scenario for change in changes]


# --- with noise: the figures of 300 pairs each are in the docstring of _compare


def test_two_runs_of_the_same_are_the_same() -> None:
    named = []
    for seed in range(24):
        found = compare(simulate(2 * seed), simulate(2 * seed + 1))
        named += [str(change) for change in found.regressions + found.improvements]
        assert found.warnings == []
    assert len(named) <= 1, named


def test_a_slowdown_is_named() -> None:
    missed = 0
    for seed in range(24):
        scenario = SCENARIOS[seed % len(SCENARIOS)]
        after = simulate(2 * seed + 1, factor=slowed(scenario))
        missed += scenario not in names(compare(simulate(2 * seed), after).regressions)
    assert missed <= 3


@pytest.mark.parametrize("whole", [False, True])
def test_a_slower_machine_is_no_regression(whole: bool) -> None:
    """Neither during all of a run nor for half of it."""

    def slower(run: Run) -> Run:
        half = 0 if whole else len(run.measurements) // 2
        for index, one in enumerate(run.measurements):
            if index >= half:
                changed = {"operations": round(one.operations / 1.25), "cpu": 1.25 * one.cpu}
                run.measurements[index] = type(one)(**{**vars(one), **changed})
        return run

    found = compare(
        quiet(),
        slower(
            bench_runs.simulate(
                2,
                scenarios=("lines", "sync", "udp"),
                noise=(0.005, 0.005),
                slow=1.0,
                outliers=0,
                rounds=3,
            )
        ),
    )
    assert (found.regressions, found.improvements, found.unchanged) == ([], [], 3)


# --- what is named


def test_rate_and_cpu_are_one_change() -> None:
    found = compare(quiet(), quiet(factor=slowed("sync")))
    assert (names(found.regressions), found.improvements, found.unchanged) == (["sync"], [], 2)
    (change,) = found.regressions
    assert [shift.metric for shift in change.shifts] == ["rate", "CPU"]
    assert [shift.change for shift in change.shifts] == pytest.approx([1 / 1.2 - 1, 0.2], abs=0.02)
    assert "sync (TCPServer, a connection per request), 16 connections, not pinned: rate -1" in str(
        change
    )
    assert found.status == 1


def test_an_improvement() -> None:
    found = compare(quiet(factor=slowed("sync")), quiet())
    assert (names(found.improvements), found.regressions) == (["sync"], [])
    assert found.status == 0


def test_a_change_below_the_floor_is_not_named() -> None:
    found = compare(quiet(), quiet(factor=slowed("sync", 1.06)))
    assert (found.regressions, found.unchanged) == ([], 3)


def change(run: Run, server: str, connections: int, **factors: float) -> Run:
    """Multiply figures of a server."""
    for index, one in enumerate(run.measurements):
        if one.server == server and one.connections == connections:
            changed = {name: getattr(one, name) * factor for name, factor in factors.items()}
            run.measurements[index] = type(one)(**{**vars(one), **changed})
    return run


@pytest.mark.parametrize("name", ["memory", "opening"])
def test_memory_and_opening_of_many_connections(name: str) -> None:
    after = quiet(scenarios=("connections",))
    for connections in (10, 1000):
        change(after, "fastsock", connections, **{name: 1.5})
    found = compare(quiet(scenarios=("connections",)), after)
    assert [one.key.connections for one in found.regressions] == [1000]
    assert [shift.metric for shift in found.regressions[0].shifts] == [name]


def test_another_server_may_change() -> None:
    """It is no reference for long, and no regression."""
    found = compare(quiet(), change(quiet(), "socketserver", 16, cpu=1.3))
    assert (found.regressions, found.improvements) == ([], [])


def test_new_errors_are_a_regression() -> None:
    before, after = quiet(), quiet()
    for run, errors in ((before, {"reset": 1}), (after, {"reset": 5, "timeout": 2})):
        one = next(one for one in run.measurements if one.server == "fastsock")
        one.errors.update(errors)
    other = next(one for one in after.measurements if one.server == "C")
    other.errors["refused"] = 7
    found = compare(before, after)
    assert [change.errors for change in found.regressions] == [{"timeout": 2}]
    assert "new errors: 2 timeout" in str(found.regressions[0])


def test_rates_of_zero_and_no_cpu() -> None:
    before, after = quiet(), quiet()
    for run in (before, after):
        for index, one in enumerate(run.measurements):
            changed = {"operations": 0, "cpu": None}
            run.measurements[index] = type(one)(**{**vars(one), **changed})
    assert compare(before, after).unchanged == 3


def test_without_other_servers_only_large_changes_are_named() -> None:
    before = quiet(servers=("fastsock",))
    for factor, expected in ((1.25, []), (1.6, ["sync"])):
        found = compare(before, quiet(servers=("fastsock",), factor=slowed("sync", factor)))
        assert names(found.regressions) == expected


def test_one_round() -> None:
    found = compare(quiet(rounds=1), quiet(rounds=1, factor=slowed("sync")))
    assert found.regressions == []
    assert found.warnings == ["1 round only: small changes are not told from noise"]
    found = compare(quiet(rounds=1), quiet(rounds=1, factor=slowed("sync", 3.0)))
    assert names(found.regressions) == ["sync"]


def test_what_single_rounds_say_is_not_enough() -> None:
    """Outliers, or a speed that was taken for the other."""

    def supported(before: list[float], after: list[float]) -> bool:
        series = [dict(enumerate(values)) for values in (before, after)]
        return _compare._Series(True, series[0], series[1], (1.0, 1.0)).supported

    even = [0.0] * 5
    assert supported(even, [0.2] * 5) and supported([0.2] * 5, even)
    assert supported(even, [0.2, 0.2, 0.2, 0.2, 0.0])
    assert supported([0.0], [0.2])
    assert not supported([0.0, 0.01, 0.02], [0.36, 0.34, 0.0])
    assert not supported([0.0, 0.35], [0.35] * 5)


# --- what is said of the runs


def test_another_machine() -> None:
    after = quiet(cpu="Another CPU", python="CPython 3.14.0", seconds=1.0, fastsock="0.2.0")
    assert compare(quiet(), after).warnings == [
        "not the same machine: cpu Made-up CPU @ 2.50GHz \N{RIGHTWARDS ARROW} Another CPU",
        "not the same machine: python CPython 3.11.7 \N{RIGHTWARDS ARROW} CPython 3.14.0",
        "not measured alike: seconds 2 \N{RIGHTWARDS ARROW} 1",
    ]


def test_what_only_one_run_has() -> None:
    before, after = quiet(scenarios=("lines", "sync")), quiet(scenarios=("lines", "udp"))
    found = compare(before, after)
    sync, udp = bench_runs.info("sync").title, bench_runs.info("udp").title
    assert found.warnings == [
        f"measured before only: sync ({sync}), 16 connections, not pinned",
        f"measured after only: udp ({udp}), 50 connections, not pinned",
    ]
    assert found.unchanged == 1


def test_another_load_is_not_compared() -> None:
    after = quiet()
    after.scenarios["sync"] = bench_runs.info("sync", payload=1)
    found = compare(quiet(), after)
    assert found.unchanged == 2
    assert found.warnings[0].startswith("not the same load, not compared: sync ")


@pytest.mark.parametrize(
    "after", [quiet(scenarios=("udp",)), quiet(servers=("C",)), quiet(pinned=(True,))]
)
def test_nothing_in_common(after: Run) -> None:
    with pytest.raises(ResultsError, match="nothing in common"):
        compare(quiet(scenarios=("lines", "sync")), after)


# --- how it is shown


def rendered(found: Comparison, **options: Any) -> str:
    stream = io.StringIO()
    found.render(stream, **options)
    return stream.getvalue()


def test_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compare(quiet(), quiet(factor=slowed("sync"), cpu="Another CPU"))
    lines = rendered(found).splitlines()
    assert lines[0].startswith("! not the same machine: cpu")
    assert lines[1] == "worse: 1"
    assert lines[2] == f"  {found.regressions[0]}"
    assert lines[3:] == ["better: nothing", "no change beyond the noise: 2"]
    if _compare.has_rich():
        assert rendered(found, rich=True).splitlines() == lines
    monkeypatch.setitem(sys.modules, "rich", None)
    assert rendered(found, rich=True).splitlines() == lines


def test_the_key_says_what_it_is() -> None:
    found = compare(quiet(pinned=(True,)), quiet(pinned=(True,), factor=slowed("udp")))
    assert [change.key for change in found.regressions] == [Key("udp", 50, True)]
    assert "50 connections, pinned: " in str(found.regressions[0])


# --- fastsock multiplexing


BOTH = (*bench_runs.SERVERS[:2], "fastsock multiplexing", "C")


def test_of_multiplexing_too() -> None:
    """Each of the two servers of fastsock for itself; neither is a reference for the other."""

    def slower(name: str, server: str) -> float:
        return 1.2 if (name, server) == ("sync", "fastsock multiplexing") else 1.0

    found = compare(quiet(servers=BOTH), quiet(servers=BOTH, factor=slower))
    (change,) = found.regressions
    assert (change.key.scenario, change.server) == ("sync", "fastsock multiplexing")
    assert "16 connections, not pinned, fastsock multiplexing: rate -1" in str(change)
    assert (found.improvements, found.unchanged, found.warnings) == ([], 5, [])

    found = compare(quiet(servers=BOTH), quiet(servers=BOTH, factor=slowed("sync")))
    assert [change.server for change in found.regressions] == ["fastsock"]


def test_only_one_run_has_multiplexing() -> None:
    """As when a run of an older version is compared with: said once, not for each row."""
    found = compare(quiet(), quiet(servers=BOTH))
    assert found.warnings == ["measured after only: fastsock multiplexing"]
    assert found.unchanged == 3
    found = compare(quiet(servers=BOTH), quiet(factor=slowed("sync")))
    assert found.warnings == ["measured before only: fastsock multiplexing"]
    assert names(found.regressions) == ["sync"]
