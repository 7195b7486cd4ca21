"""The server "fastsock multiplexing" of the benchmark: where it takes part, and what it is."""

from __future__ import annotations

import argparse

import pytest

from fastsock.bench import _cli, _measure, _scenarios
from fastsock.bench._results import MULTIPLEXING, STANDARD, Settings

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

SETTINGS = Settings(rounds=1, seconds=0.1, backlog=0, quick=False)
THREADING = {
    "threads",
    "lines",
    "lines_pipelined",
    "lines_long",
    "lines_unix",
    "udp_threads",
    "http_keepalive",
    "http_cold",
    "http_nodelay",
    "http_close",
    "idle",
    "opening",
    "connections",
}


def test_it_takes_part_where_threads_are_asked_for() -> None:
    found = _scenarios.scenarios()
    there = {name for name, one in found.items() if MULTIPLEXING in _measure.servers_for(one, [])}
    assert there == THREADING


def plan(scenario: str, *servers: str) -> _measure.Plan:
    chosen = [_scenarios.scenarios()[scenario]]
    return _measure.plan(chosen, [], SETTINGS, (False,), frozenset(servers) or None)


def test_without_greenlet(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out, and it is said what to install; not where nobody asked for it."""
    pytest.importorskip("greenlet")
    assert MULTIPLEXING in {step.server for step in plan("lines").steps}
    monkeypatch.setattr(_scenarios, "version_of", lambda distribution: "")
    made = plan("lines")
    assert MULTIPLEXING not in {step.server for step in made.steps}
    (left,) = (one for one in made.left_out if one.server == MULTIPLEXING)
    assert left.why == "greenlet is not installed: pip install 'fastsock[bench]'"
    for other in (plan("lines", STANDARD), plan("sync")):
        assert MULTIPLEXING not in {one.server for one in other.left_out}


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("multiplexing", {MULTIPLEXING}),
        ("fastsock", {"fastsock"}),
        ("C", {"C"}),
        ("uvloop, Protocol", {"uvloop streams", "uvloop Protocol", "asyncio Protocol"}),
        ("fastsock multiplexing,socketserver", {MULTIPLEXING, STANDARD}),
    ],
)
def test_a_word_of_a_name_will_do(asked: str, meant: set[str]) -> None:
    options = argparse.Namespace(servers=asked, quick=False)
    assert _cli.chosen_servers(options, _scenarios.peers()) == meant


def test_a_word_of_no_name() -> None:
    options = argparse.Namespace(servers="C,multi", quick=False)
    with pytest.raises(_scenarios.ScenarioError, match="no server multi; there are"):
        _cli.chosen_servers(options, [])
