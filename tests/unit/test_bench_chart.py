"""The charts of a run: that they say what they should, and that it can be read."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import bench_runs
import pytest

from fastsock.bench import _chart
from fastsock.bench._report import MissingExtra
from fastsock.bench._results import Run

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

pytest.importorskip("matplotlib")

RUNS = {
    "both": lambda: bench_runs.simulate(
        1, rounds=2, servers=bench_runs.ALL_SERVERS, pinned=(False, True)
    ),
    "one": lambda: bench_runs.simulate(2),
    "three servers, long footer": lambda: bench_runs.simulate(3, cpu="A CPU " * 20),
    "tiny": lambda: bench_runs.simulate(
        4, scenarios=("lines",), servers=("socketserver", "fastsock")
    ),
    "lines only": lambda: bench_runs.simulate(
        5, scenarios=("connections",), servers=("socketserver", "fastsock", "new", "newer")
    ),
}


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """matplotlib opens each font once, and for good: before descriptors are counted."""
    for make in RUNS.values():
        texts(_chart.make(make()))


def texts(figure: Any) -> list[tuple[str, Any]]:
    """All that are shown, and where."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    return [
        (text.get_text(), text.get_window_extent(renderer))
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip()
    ]


@pytest.mark.parametrize("name", RUNS)
def test_every_text_can_be_read(name: str) -> None:
    figure = _chart.make(RUNS[name]())
    found = texts(figure)
    assert found
    for text, box in found:
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in itertools.combinations(found, 2):
        assert not (
            first.x0 < second.x1 - 1
            and second.x0 < first.x1 - 1
            and first.y0 < second.y1 - 1
            and second.y0 < first.y1 - 1
        ), (one, other)


@pytest.mark.parametrize("name", RUNS)
def test_files(name: str, tmp_path: Path) -> None:
    run: Run = RUNS[name]()
    _chart.draw(run, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
    for which in ("a.svg", "b.SVG"):
        _chart.draw(run, tmp_path / which)
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.SVG").read_text()
    assert "<dc:date>" not in svg
    for server in run.servers():
        assert f"<!-- {server} -->" in svg
    for pinned in {one.pinned for one in run.measurements}:
        assert ("(pinned)" if pinned else "(not pinned)") in svg


def test_what_is_drawn() -> None:
    run = bench_runs.simulate(1, scenarios=("http", "lines", "connections"), rounds=3)
    figure = _chart.make(run)
    bars, lines = figure.axes
    assert bars.get_title(loc="left") == "Throughput by workload (not pinned)"
    assert [tick.get_text() for tick in bars.get_yticklabels()] == [
        "ThreadingHTTPServer, keep-alive",
        "ThreadingTCPServer, line echo",
    ]
    ends = [bar.get_x() + bar.get_width() for bar in bars.patches if bar.get_height() < 0.15]
    wanted = [ratios.median for group in _chart.groups(run, False) for _, ratios in group.bars]
    assert len(wanted) == 3
    assert ends == pytest.approx(wanted)
    assert [tick.get_text() for tick in lines.get_xticklabels()] == [
        "1",
        "10",
        "100",
        "1,000",
        "9,000",
    ]
    assert lines.get_xscale() == lines.get_yscale() == bars.get_xscale() == "log"
    drawn = [[float(y) for y in line.get_ydata()] for line in lines.lines]
    assert drawn == [
        [found.median for _, found in line] for line in _chart.curves(run, False)[0].lines.values()
    ]
    footer = max((text for text, _ in texts(figure)), key=len).replace("\n", " ")
    for part in ("CPython 3.11.7", "Made-up CPU", "Linux 6.1.0", "2026-01-02", "3 \xd7 2 s"):
        assert part in footer


def test_labels_of_close_numbers_of_connections() -> None:
    run = bench_runs.run(
        bench_runs.measurement(server=server, connections=count)
        for server in ("socketserver", "fastsock")
        for count in (1, 50, 55, 9000)
    )
    (axes,) = _chart.make(run).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "50", "9,000"]


def test_both_ways_have_the_same_scales() -> None:
    run = bench_runs.simulate(1, scenarios=("lines", "connections"), pinned=(False, True))
    bars, others, lines, rest = _chart.make(run).axes
    assert bars.get_xlim() == others.get_xlim()
    assert (lines.get_xlim(), lines.get_ylim()) == (rest.get_xlim(), rest.get_ylim())


def test_a_server_keeps_its_colour() -> None:
    few, many = _chart.styles(["C", "fastsock"]), _chart.styles(bench_runs.ALL_SERVERS)
    assert few["fastsock"] == many["fastsock"] and few["C"] == many["C"]
    assert len({colour for colour, _ in many.values()}) == len(many)
    assert list(_chart.styles(["zzz", "C", "fastsock"])) == ["fastsock", "zzz", "C"]


def test_both_of_ours_stand_out() -> None:
    run = bench_runs.simulate(1, scenarios=("lines", "connections"), servers=bench_runs.ALL_SERVERS)
    bars, lines = _chart.make(run).axes
    colours = _chart.styles(bench_runs.ALL_SERVERS)
    thick = [line.get_color() for line in lines.get_lines() if line.get_linewidth() > 2]
    assert thick == [colours[server][0] for server in ("fastsock", "fastsock multiplexing")]
    figures = [text for text in bars.texts if text.get_fontweight() == "bold"]
    assert len(figures) == 2 and len(bars.texts) == len(bench_runs.ALL_SERVERS) - 1


def test_servers_that_answered_nothing() -> None:
    run = bench_runs.run(
        bench_runs.measurement(server=server, rate=rate)
        for server, rate in (("socketserver", 100), ("fastsock", 200), ("C", 0))
    )
    assert [server for server, _ in _chart.groups(run, False)[0].bars] == ["fastsock"]
    _chart.make(run)


def test_nothing_to_draw() -> None:
    alone = bench_runs.run([bench_runs.measurement()])
    for run in (bench_runs.run([]), alone):
        with pytest.raises(ValueError, match="nothing to draw"):
            _chart.make(run)


@pytest.mark.parametrize("name", ["chart.pdf", "chart", "svg"])
def test_other_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{name}: a chart ends in \.png or \.svg"):
        _chart.draw(RUNS["tiny"](), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"matplotlib.*pip install 'fastsock\[bench\]'"):
        _chart.draw(RUNS["tiny"](), tmp_path / "chart.svg")
    assert issubclass(MissingExtra, ImportError)
