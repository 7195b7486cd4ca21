"""ci/multiplexing_table: the goals of multiplexing beside a saved run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_runs
import pytest

from fastsock.bench import _scenarios
from fastsock.bench._results import MULTIPLEXING, Latency, Measurement, Run

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

PATH = Path(__file__).resolve().parents[2] / "ci" / "multiplexing_table"
SERVERS = ("socketserver", "fastsock", MULTIPLEXING, "uvloop Protocol", "uvloop streams", "C")


@pytest.fixture(scope="module")
def table() -> Any:
    before = list(sys.path)
    loader = importlib.machinery.SourceFileLoader("multiplexing_table", str(PATH))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # where its dataclasses look
    try:
        loader.exec_module(module)
        yield module
    finally:
        del sys.modules[loader.name]
        sys.path[:] = before


def run(table: Any, worse: Callable[[Measurement], Measurement] = lambda one: one) -> Run:
    """All goals are reached; ``worse``: what multiplexing was."""
    found = []
    for key in dict.fromkeys(row.key for row in table.rows()):
        for number in range(2):
            for server in SERVERS:
                one = bench_runs.measurement(
                    scenario=key.scenario,
                    server=server,
                    connections=key.connections,
                    pinned=key.pinned,
                    round=number,
                    rate=1_000 if server == "socketserver" else 100_000,
                    cpu=8.0 if server in ("C", MULTIPLEXING) else 9.0,
                    memory=7.0,
                    opening=0.5,
                    latency=Latency(1.0, 9_000.0, 3.0, 4.0),
                )
                one = replace(one, alone=one.rate if key.scenario == "idle" else None)
                found.append(worse(one) if server == MULTIPLEXING else one)
    return bench_runs.run(found, {one.scenario: bench_runs.info() for one in found})


def printed(
    table: Any, made: Run, folder: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[list[str]]]:
    path = folder / "a.json"
    path.write_text(made.to_json())
    status = table.main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    return status, [line[2:-2].split(" | ") for line in lines[2:]]


def test_rows_are_of_scenarios_that_there_are(table: Any) -> None:
    there = _scenarios.scenarios()
    for row in table.rows():
        assert row.key.connections in there[row.key.scenario].connections, row.key


def test_all_goals_are_reached(
    table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, cells = printed(table, run(table), tmp_path, capsys)
    assert (status, {row[-1] for row in cells}) == (0, {"yes"})
    assert cells[0][2:] == [
        "rate 0.0100, CPU 0.889",
        "rate 1.00, CPU 0.889",
        "1.00 uvloop Protocol",
        "\N{GREATER-THAN OR EQUAL TO} 0.92",
        "rate 1.00, CPU 1.00",
        "yes",
    ]
    assert [row[-2] for row in cells if row[0].startswith("memory")] == ["7.00"]


def test_the_best_peer(table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the peers: neither C, nor the standard library, nor what is worse."""
    made = run(table)
    for index, one in enumerate(made.measurements):
        figure = {"uvloop streams": 3.0, "C": 1.0, "socketserver": 2.0}.get(one.server, 4.0)
        made.measurements[index] = replace(one, memory=figure, opening=8 - figure)
    cells = {row[0]: row for row in printed(table, made, tmp_path, capsys)[1]}
    memory = cells["memory per idle connection, each having exchanged one line"]
    assert memory[4] == "3.00 uvloop streams"
    assert cells["opening 9,050 connections"][4] == "4.00 uvloop Protocol"


@pytest.mark.parametrize(
    ("worse", "missed"),
    [
        (lambda one: replace(one, memory=8.1), ["memory"]),
        (lambda one: replace(one, opening=0.7), ["opening"]),
        (lambda one: replace(one, alone=1.1 * one.rate), ["50 active"]),
        (
            lambda one: replace(one, latency=Latency(1.0, 11_000.0, 3.0, 4.0)),
            ["`http", "`http"],
        ),
        (
            lambda one: replace(one, cpu=10.0),
            # of the first, the rate reaches the goal
            ["50 connections, pinned", "50 connections, 16", "16 KiB"],
        ),
        (
            lambda one: replace(one, operations=int(0.03 * one.operations)),
            ["50 connections, not", "Unix", "1,000", "9,900", "50 active", "`http", "`http"],
        ),
    ],
)
def test_which_goal_is_missed(
    table: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    worse: Callable[[Measurement], Measurement],
    missed: list[str],
) -> None:
    made = run(table, worse)
    status, cells = printed(table, made, tmp_path, capsys)
    found = [row[0] for row in cells if row[-1] == "no"]
    assert status == 1
    assert len(found) == len(missed)
    assert all(one.startswith(name) for one, name in zip(found, missed, strict=True)), found


def test_what_was_not_measured_is_not_reached(
    table: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, cells = printed(table, bench_runs.run([]), tmp_path, capsys)
    assert status == 1
    assert {row[-1] for row in cells} == {"\N{EN DASH}"}
