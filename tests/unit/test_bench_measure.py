"""What of a plan is measured when time runs out, and when a measurement fails."""

from __future__ import annotations

import time
from collections.abc import Iterator

import bench_runs
import pytest

from fastsock.bench import _measure, _scenarios
from fastsock.bench._measure import Bench, Step
from fastsock.bench._results import Measurement, Run, Settings

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

SERVERS = frozenset(("socketserver", "fastsock"))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """Nothing is; but here stands what would have been."""
    steps: list[Step] = []

    def measure(self: Bench, step: Step) -> Measurement:
        steps.append(step)
        return bench_runs.measurement(
            scenario=step.scenario.name, server=step.server, round=step.round
        )

    monkeypatch.setattr(Bench, "measure", measure)
    yield steps


def run(until: float | None = None) -> Run:
    """Three rounds of one scenario."""
    scenario = _scenarios.scenarios()["sync"]
    made = _measure.plan([scenario], [], Settings(3, 0.1, 0, True), (False,), SERVERS)
    made.left_out.clear()  # there may be no compiler
    return _measure.run(made, [], until=until)


@pytest.mark.parametrize(
    ("late", "rounds"),
    [(-100.0, [0, 0, 1, 1, 2, 2]), (0.0, [0, 0]), (_measure.GRACE + 1.0, [])],
)
def test_time_runs_out(measured: list[Step], late: float, rounds: list[int]) -> None:
    found = run(until=time.monotonic() - late)
    assert [step.round for step in measured] == rounds
    assert [one.round for one in found.measurements] == rounds
    said = [one.why for one in found.left_out]
    assert said == ([] if len(rounds) == 6 else ["what came last: --quick had no time left"])


def test_what_fails_takes_nothing_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Bench, step: Step) -> Measurement:
        if step.server == "fastsock" and step.round == 1:
            raise OSError(28, "No space left on device")
        return bench_runs.measurement(server=step.server, round=step.round)

    monkeypatch.setattr(Bench, "measure", measure)
    found = run()
    assert len(found.measurements) == 4
    assert [(one.server, "No space left" in one.why) for one in found.left_out] == [
        ("fastsock", True)
    ]


def test_patience_is_as_long_as_it_has_to_be() -> None:
    assert _measure.patience(1) < 30
    assert 200 < _measure.patience(9050) < 300
