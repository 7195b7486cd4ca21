"""The table of a run."""

from __future__ import annotations

import dataclasses
import io
import re
import sys

import bench_runs
import pytest

from fastsock.bench import _progress, _report
from fastsock.bench._results import LeftOut, Run, Spread

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def table(run: Run, title: str) -> list[list[str]]:
    """The cells of a section of the Markdown, the head first."""
    after = _report.markdown(run).split(f"### {title}\n")[1].split("\n### ")[0]
    lines = [line for line in after.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]
    return [cells[0], *cells[2:]]


def column(run: Run, title: str, name: str) -> list[str]:
    cells = table(run, title)
    return [row[cells[0].index(name)] for row in cells[1:]]


ECHO = "ThreadingTCPServer, line echo (not pinned)"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (123_456, "123,000"),
        (1234.5, "1,230"),
        (999.9, "1,000"),
        (99.96, "100"),
        (12.34, "12.3"),
        (9.996, "10.0"),
        (1, "1.00"),
        (0.012345, "0.0123"),
        (0, "0"),
        (-3.14159, "-3.14"),
        (float("nan"), "\N{EN DASH}"),
    ],
)
def test_three_digits(value: float, expected: str) -> None:
    assert _report.number(value) == expected


def test_a_spread_that_is_none_is_not_shown() -> None:
    assert _report.with_spread(Spread(2.0, 2.0, 2.001)) == "2.00"
    assert _report.with_spread(Spread(2.0, 1.5, 2.001)) == "2.00 (1.50\N{EN DASH}2.00)"


def small() -> Run:
    """fastsock is 2, 3 and 4 times as fast as socketserver; the machine got faster meanwhile."""
    found = []
    for number, (theirs, ours) in enumerate(((100, 200), (1000, 3000), (5000, 20_000))):
        for server, rate in (("socketserver", theirs), ("fastsock", ours), ("C", 2 * ours)):
            found.append(bench_runs.measurement(server=server, round=number, rate=rate))
    return bench_runs.run(found)


def test_medians_and_ratios_of_rounds() -> None:
    dash = "\N{EN DASH}"
    assert column(small(), ECHO, "server") == ["socketserver", "fastsock", "C"]
    rates = ["1,000 (100\N{EN DASH}5,000)", f"3,000 (200{dash}20,000)", f"6,000 (400{dash}40,000)"]
    assert column(small(), ECHO, "operations/s") == rates
    ratios = ["1", f"3.00 (2.00{dash}4.00)", f"6.00 (4.00{dash}8.00)"]
    assert column(small(), ECHO, "\N{MULTIPLICATION SIGN} socketserver") == ratios
    assert column(small(), ECHO, "\N{MULTIPLICATION SIGN} C")[1:] == ["0.500", "1"]
    assert column(small(), ECHO, "p99.9 µs") == ["1,500"] * 3


def test_columns_without_figures_are_left_out() -> None:
    one = bench_runs.measurement()
    assert table(bench_runs.run([one]), ECHO)[0] == [
        "server",
        "operations/s",
        "CPU µs",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "errors",
    ]
    load = dataclasses.replace(one, load_cpu=40.04)
    assert column(bench_runs.run([load]), ECHO, "load µs") == ["40.0"]
    held = dataclasses.replace(one, memory=9.876, opening=0.0123)
    assert column(bench_runs.run([held]), ECHO, "memory KB") == ["9.88"]
    assert column(bench_runs.run([held]), ECHO, "opening s") == ["0.0123"]


def test_errors_and_connections_that_were_not_served() -> None:
    run = bench_runs.run(
        [
            bench_runs.measurement(errors={"reset": 1200, "timeout": 1}),
            bench_runs.measurement(errors={"reset": 34, "wrong": 0}, round=1, served=48),
            bench_runs.measurement(server="C"),
        ]
    )
    assert column(run, ECHO, "errors") == ["1,234 reset, 1 timeout", "none"]
    assert column(run, ECHO, "served") == ["48 of 50", "50 of 50"]


def test_sections() -> None:
    """One for each scenario and pinning; numbers of connections share one."""
    run = bench_runs.simulate(1, scenarios=("sync", "opening"), pinned=(False, True), rounds=1)
    titles = re.findall(r"^### (.*)", _report.markdown(run), re.MULTILINE)
    sync, opening = bench_runs.info("sync").title, bench_runs.info("opening").title
    kinds = ("not pinned", "pinned")
    assert titles == [f"{title} ({kind})" for title in (sync, opening) for kind in kinds]
    counts = column(run, f"{opening} (pinned)", "connections")
    assert counts == ["100"] * 3 + ["1,000"] * 3 + ["9,000"] * 3
    assert "connections/s" in table(run, f"{opening} (pinned)")[0]
    assert "an operation is the opening of a connection" in _report.markdown(run)


def test_rows_are_by_connections() -> None:
    run = bench_runs.run(bench_runs.measurement(connections=count) for count in (1000, 1, 50))
    assert column(run, ECHO, "connections") == ["1", "50", "1,000"]
    assert "1, 50 and 1,000 connections, 64 bytes" in _report.markdown(run)


def test_what_was_measured() -> None:
    info = bench_runs.info("pipelined", idle=9000)
    run = bench_runs.run([bench_runs.measurement()], {"lines": info}, quick=True, backlog=0)
    text = _report.markdown(run)
    for expected in (
        "50 connections, 64 bytes, 16 under way on each, 9,000 idle beside them, TCP.",
        "- CPU: Made-up CPU @ 2.50GHz, 2 cores",
        "- measured: 3 rounds \N{MULTIPLICATION SIGN} 2 s, --quick, 2026-01-02T03:04:05+00:00",
        "- backlog: as each server comes",
        "- peers: uvloop 0.21.0, gevent (not installed)",
        "- pinned: no",
    ):
        assert expected in text


def test_what_was_not_measured() -> None:
    left = [
        LeftOut("", "uvloop streams", "uvloop is not installed"),
        LeftOut("", "uvloop Protocol", "uvloop is not installed"),
        LeftOut("opening", "", "9,000 connections: --quick"),
    ]
    text = _report.markdown(bench_runs.run([bench_runs.measurement()], left_out=left))
    assert "- not measured: uvloop streams, uvloop Protocol: uvloop is not installed\n" in text
    assert "- not measured: opening: 9,000 connections: --quick\n" in text


def test_the_markdown_is_a_table() -> None:
    """All lines of a table have the same length, and as many cells as the head."""
    run = bench_runs.simulate(1, rounds=2, servers=bench_runs.ALL_SERVERS)
    run.measurements[0].errors["a|b"] = 1
    for block in re.findall(r"(?:^\|.*\n)+", _report.markdown(run), re.MULTILINE):
        lines = block.splitlines()
        assert len({len(line) for line in lines}) == 1
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert re.fullmatch(r"\|(?: -+:? \|)+", lines[1])


def test_a_run_with_nothing_in_it() -> None:
    assert "- pinned: nothing was measured" in _report.markdown(bench_runs.run([]))


# --- rich


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_nothing_is_cut_off(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr(_report, "WIDE", width)
    run = bench_runs.simulate(1, rounds=2, servers=bench_runs.ALL_SERVERS)
    stream = io.StringIO()
    _report.render(run, stream=stream, rich=True)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for section in _report.sections(run):
        assert section.title in text.replace("\n", " ")
        for row in section.rows:
            for cell in row:
                assert all(word in text for word in cell.split(" (")), cell


def test_markdown_unless_it_is_a_terminal_and_rich_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream, terminal = io.StringIO(), Terminal()
    _report.render(small(), stream=stream)
    assert stream.getvalue() == _report.markdown(small())
    monkeypatch.setitem(sys.modules, "rich", None)
    assert not _report.has_rich()
    _report.render(small(), stream=terminal)
    assert terminal.getvalue() == stream.getvalue()
    with pytest.raises(_report.MissingExtra, match=r"rich.*pip install 'fastsock\[bench\]'"):
        _report.render(small(), stream=stream, rich=True)


# --- progress


def test_progress_as_lines() -> None:
    stream = io.StringIO()
    with _progress.Progress(stream) as progress:
        progress.begin(4)
        for scenario, server in (("a", "C"), ("a", "fastsock"), ("b", "C"), ("b", "fastsock")):
            progress.step(scenario, server)
            progress.done()
    assert stream.getvalue() == "[1/4] a\n[3/4] b\n"


def test_progress_as_a_bar() -> None:
    pytest.importorskip("rich")
    stream = Terminal()
    with _progress.Progress(stream, rich=True) as progress:
        progress.begin(2)
        progress.step("lines [50]", "fastsock")
        progress.done()
        assert progress._bar is not None
        assert progress._bar.tasks[0].completed == 1
    assert "lines [50]: fastsock" in stream.getvalue()
    assert "1/2" in stream.getvalue()


# --- what only some scenarios have


def test_cpu_beside_that_of_c() -> None:
    """Half of it is twice the CPU; formed within each round."""
    found = []
    for number, (ours, theirs) in enumerate(((8.0, 4.0), (80.0, 20.0), (4.0, 4.0))):
        found.append(bench_runs.measurement(round=number, cpu=ours))
        found.append(bench_runs.measurement(server="C", round=number, cpu=theirs))
    expected = ["0.500 (0.250\N{EN DASH}1.00)", "1"]
    assert column(bench_runs.run(found), ECHO, "CPU vs C") == expected
    assert "CPU vs C" not in table(bench_runs.run(found[::2]), ECHO)[0]


def test_beside_idle_connections() -> None:
    one = bench_runs.measurement(rate=90_000)
    name = "\N{MULTIPLICATION SIGN} alone"
    assert name not in table(bench_runs.run([one]), ECHO)[0]
    two = dataclasses.replace(one, alone=100_000.0)
    assert column(bench_runs.run([two, one]), ECHO, name) == ["0.900"]


def test_a_cold_load_says_so() -> None:
    one = bench_runs.measurement()
    for cold in (False, True):
        text = _report.markdown(bench_runs.run([one], {"lines": bench_runs.info(cold=cold)}))
        assert cold == ("the backlog as each server comes." in text)
