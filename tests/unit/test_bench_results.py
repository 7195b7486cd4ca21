"""A run as JSON, and what is not one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_runs
import pytest

from fastsock.bench import _results
from fastsock.bench._results import Key, LeftOut, ResultsError, Run, Spread

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")


def made() -> Run:
    run = bench_runs.simulate(1, scenarios=("sync", "lines"), rounds=2)
    run.measurements[0].errors["reset"] = 3
    run.left_out.append(LeftOut("", "gevent", "gevent is not installed"))
    return run


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(made().to_json())
    assert _results.load(path) == made()


def test_fields_of_a_later_version_are_ignored() -> None:
    whole = json.loads(made().to_json())
    whole["measurements"][0]["temperature"] = 40
    assert _results.from_json(json.dumps(whole)) == made()


def test_what_an_earlier_version_did_not_have() -> None:
    whole = json.loads(made().to_json())
    del whole["measurements"][0]["load_cpu"]
    assert _results.from_json(json.dumps(whole)) == made()


def without(*path: Any) -> Any:
    """A change of a saved run: the last of the path is taken away."""

    def change(whole: Any) -> None:
        for step in path[:-1]:
            whole = whole[step]
        del whole[path[-1]]

    return change


def setting(*path: Any, value: Any) -> Any:
    def change(whole: Any) -> None:
        for step in path[:-1]:
            whole = whole[step]
        whole[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("format"), "not a saved run of this benchmark"),
        (setting("format", value=99), "format 99; this version of fastsock reads 1"),
        (without("machine"), "the file has no machine"),
        (without("measurements", 0, "round"), "a measurement has no round"),
        (without("measurements", 0, "latency", "p99"), "the latency of a measurement has no p99"),
        (setting("measurements", 0, value=[]), "a measurement is not an object"),
        (without("machine", "cpu"), "the machine has no cpu"),
        (without("settings", "backlog"), "the settings has no backlog"),
        (without("scenarios", "lines", "depth"), "the scenario lines has no depth"),
        (without("left_out", 0, "why"), "an entry of left_out has no why"),
        (setting("measurements", value=3), "the file: measurements is 3"),
        (setting("scenarios", value=[]), "the file: scenarios is []"),
        (setting("measurements", 0, "cpu", value="1"), "a measurement: cpu is '1'"),
        (setting("measurements", 0, "seconds", value=-1), "a measurement: seconds is -1"),
        (setting("measurements", 0, "operations", value=1.5), "a measurement: operations is 1.5"),
        (setting("measurements", 0, "pinned", value=0), "a measurement: pinned is 0"),
        (
            setting("measurements", 0, "errors", value={"a": []}),
            "a measurement: errors is {'a': []}",
        ),
        (setting("settings", "rounds", value=True), "the settings: rounds is True"),
        (setting("settings", "seconds", value=float("inf")), "the settings: seconds is inf"),
        (
            setting("measurements", 0, "scenario", value="x"),
            "a measurement is of 'x', which is no scenario of it",
        ),
    ],
)
def test_what_is_no_saved_run(tmp_path: Path, change: Any, expected: str) -> None:
    whole = json.loads(made().to_json())
    change(whole)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(ResultsError) as caught:
        _results.load(path)
    assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"{", "not JSON: "), (b"[1]", "not a saved run"), (b"\xff\xfe", "not a text file: ")],
)
def test_what_is_no_json(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError) as caught:
        _results.load(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        _results.load(tmp_path / "none.json")


def test_ratios_are_formed_within_rounds() -> None:
    rates = {("socketserver", 0): 10, ("socketserver", 1): 20, ("fastsock", 1): 60}
    rates |= {("fastsock", 0): 40, ("fastsock", 2): 1000}
    run = bench_runs.run(
        bench_runs.measurement(server=server, round=number, rate=rate)
        for (server, number), rate in rates.items()
    )
    key = Key("lines", 50, False)
    assert run.ratios(key, "fastsock", "socketserver", lambda one: one.rate) == [4.0, 3.0]
    assert [one.round for one in run.of(key, "fastsock")] == [0, 1, 2]


def test_spread() -> None:
    assert _results.spread([3.0, 1.0, float("nan"), 2.0]) == Spread(2.0, 1.0, 3.0)
    assert _results.spread([float("nan")]) is None
