"""The charts of a run, with matplotlib: how much faster than the standard library, and by load.

Above, a bar for each server in each scenario; below, what was measured with several numbers of
connections, as lines. With and without pinning stand side by side.
"""

# ruff: noqa: RUF001  (the sign of multiplication is meant)

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastsock.bench._report import MissingExtra, number, pinning
from fastsock.bench._results import (
    FASTSOCK,
    MULTIPLEXING,
    OURS,
    REFERENCE,
    STANDARD,
    Key,
    Run,
    Spread,
    spread,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
#: Okabe and Ito's palette, which the colour-blind can tell apart, and one of Tol's colours; a
#: server's colour never changes
COLOURS = {
    STANDARD: "#8c8c8c",
    OURS: "#0072b2",
    MULTIPLEXING: "#882255",
    "asyncio streams": "#e69f00",
    "asyncio Protocol": "#d55e00",
    "uvloop streams": "#56b4e9",
    "uvloop Protocol": "#009e73",
    "gevent": "#cc79a7",
    REFERENCE: "#000000",
    "C batched": "#4d4d4d",
}
MARKERS = {
    STANDARD: "o",
    OURS: "D",
    MULTIPLEXING: "p",
    "asyncio streams": "v",
    "asyncio Protocol": "^",
    "uvloop streams": "<",
    "uvloop Protocol": ">",
    "gevent": "P",
    REFERENCE: "s",
    "C batched": "X",
}
#: of servers that aren't listed, in their order
OTHERS = (("#999933", "h"), ("#332288", "*"), ("#44aa99", "d"))

# inches
PANEL = 6.6  # the width of a plot
LABELS = 2.9  # left of the bars
MARGIN = 0.35
BETWEEN = 1.1  # two panels beside each other
BAR = 0.155
GROUP_GAP = 0.14
LABEL_LINE = 0.14
LINES = 3.6  # the height of a plot of lines
TITLE = 0.5  # above each plot
AXIS = 0.62  # below each plot
HEAD = 1.0
FOOT = 0.5
LABEL_WIDTH = 40  # characters in a line of a scenario's name
SMALL, NORMAL, LARGE = 8.0, 9.0, 13.0  # points


@dataclass(frozen=True)
class Group:
    """The bars of a scenario: a server and its rate over the standard library's."""

    label: str
    bars: list[tuple[str, Spread]]

    @property
    def height(self) -> float:
        """In inches; it is at least as tall as its label."""
        return max(len(self.bars) * BAR, (self.label.count("\n") + 1) * LABEL_LINE) + GROUP_GAP


@dataclass(frozen=True)
class Curves:
    """A scenario by connections: for each server (connections, operations a second)."""

    title: str
    unit: str
    lines: dict[str, list[tuple[int, Spread]]]


# --- what is drawn


def _several(run: Run, pinned: bool) -> dict[str, list[Key]]:
    """The keys of each scenario, by connections."""
    found: dict[str, list[Key]] = {}
    keys = run.rows()
    for key in keys:
        if key.pinned == pinned:
            found.setdefault(key.scenario, []).append(key)
    return {name: sorted(several) for name, several in found.items()}


def groups(run: Run, pinned: bool) -> list[Group]:
    """Of the scenarios measured with one number of connections, beside the standard library."""
    found = []
    for name, keys in _several(run, pinned).items():
        if len(keys) > 1:
            continue
        bars = []
        for server in run.servers(keys[0]):
            ratios = spread(run.ratios(keys[0], server, STANDARD, lambda one: one.rate))
            if server != STANDARD and ratios is not None and ratios.median > 0:
                bars.append((server, ratios))
        if bars:
            title = run.scenarios[name].title
            if any(run.bound_by_load(key) for key in keys):
                title += " (client at its limit)"
            label = textwrap.fill(title, LABEL_WIDTH)
            found.append(Group(label, sorted(bars, key=lambda bar: order(bar[0]))))
    return found


def curves(run: Run, pinned: bool) -> list[Curves]:
    """Of the scenarios measured with several numbers of connections."""
    found = []
    for name, keys in _several(run, pinned).items():
        if len(keys) < 2:
            continue
        lines: dict[str, list[tuple[int, Spread]]] = {}
        for key in keys:
            for server in run.servers(key):
                rates = spread(one.rate for one in run.of(key, server))
                if rates is not None and rates.median > 0:
                    lines.setdefault(server, []).append((key.connections, rates))
        if lines:
            info = run.scenarios[name]
            unit = "connections opened per second" if info.load == "opening" else "operations/s"
            ordered = {server: lines[server] for server in sorted(lines, key=order)}
            found.append(Curves(info.title, unit, ordered))
    return found


def order(server: str) -> tuple[int, str]:
    """The same in every chart: as in ``COLOURS``, then by name, and C last."""
    names = list(COLOURS)
    if server not in names:
        return names.index(REFERENCE), server
    return names.index(server) + (names.index(server) >= names.index(REFERENCE)), ""


def styles(servers: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each."""
    found, further = {}, 0
    for server in sorted(set(servers), key=order):
        if server in COLOURS:
            found[server] = (COLOURS[server], MARKERS[server])
        else:
            found[server] = OTHERS[further % len(OTHERS)]
            further += 1
    return found


# --- how


def _whiskers(found: Spread) -> tuple[float, float]:
    return found.median - max(found.least, found.median / 1e3), found.most - found.median


def _least(found: Spread) -> float:
    """What can be drawn on a logarithmic axis."""
    return max(found.least, found.median / 1e3)


def _draw_bars(axes: Axes, drawn: list[Group], used: dict[str, tuple[str, str]]) -> None:
    """From the top to the bottom; y is in inches."""
    top, ticks = 0.0, []
    for index, group in enumerate(drawn):
        middle = top - group.height / 2
        ticks.append(middle)
        for place, (server, found) in enumerate(group.bars):
            y = middle + (len(group.bars) / 2 - place - 0.5) * BAR
            colour = used[server][0]
            axes.barh(y, found.median - 1, BAR * 0.86, left=1, color=colour, zorder=2)
            axes.errorbar(
                found.median,
                y,
                xerr=[[found.median - _least(found)], [found.most - found.median]],
                fmt="none",
                ecolor="#a0a0a0" if server.startswith(REFERENCE) else "#555555",
                elinewidth=1.0,
                capsize=1.8,
                capthick=1.0,
                zorder=3,
            )
            axes.annotate(
                number(found.median),
                (max(found.most, 1.0), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center_baseline",
                fontsize=SMALL - 0.5,
                fontweight="bold" if server in FASTSOCK else "normal",
                zorder=4,
            )
        if index % 2:
            axes.axhspan(top - group.height, top, color="#f2f2f2", lw=0, zorder=0)
        top -= group.height
    axes.set_ylim(top, 0)
    axes.set_yticks(ticks, [group.label for group in drawn], fontsize=SMALL)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.axvline(1, color=COLOURS[STANDARD], lw=1.6, zorder=3)
    axes.set_xlabel("rate, relative to socketserver (= 1); logarithmic", fontsize=NORMAL)
    axes.grid(axis="x", color="#d9d9d9", lw=0.7, zorder=1)
    axes.set_axisbelow(True)


def _scale_bars(panels: list[tuple[Axes, list[Group]]]) -> None:
    """The same for all."""
    found = [ratios for _, drawn in panels for group in drawn for _, ratios in group.bars]
    low, high = min([1.0, *map(_least, found)]), max([1.0, *(one.most for one in found)])
    for axes, _ in panels:
        # On the right there has to be room for the figure at the longest bar.
        axes.set_xlim(low / 1.15, high * (high / low) ** 0.12 * 1.25)
        _plain_ticks(
            axes.xaxis, [step * 10.0**power for power in range(-3, 6) for step in (1, 2, 5)], "×"
        )


def _plain_ticks(axis: Axis, at: Iterable[float], unit: str = "") -> None:
    """Ticks at these values, as far as they are in view, as plain numbers."""
    low, high = axis.get_view_interval()
    shown = [value for value in at if low <= value <= high]
    labels = [f"{value:,.0f}" if value >= 1 else f"{value:g}" for value in shown]
    axis.set_ticks(shown, labels=[label + unit for label in labels], fontsize=SMALL)
    axis.set_ticks([], minor=True)


def _draw_lines(axes: Axes, drawn: Curves, used: dict[str, tuple[str, str]]) -> None:
    for server, line in drawn.lines.items():
        colour, marker = used[server]
        x = [count for count, _ in line]
        axes.fill_between(
            x,
            [_least(found) for _, found in line],
            [found.most for _, found in line],
            color=colour,
            alpha=0.15,
            lw=0,
            zorder=2,
        )
        axes.plot(
            x,
            [found.median for _, found in line],
            color=colour,
            marker=marker,
            ms=5.5,
            mec="white",
            mew=0.6,
            lw=2.4 if server in FASTSOCK else 1.5,
            zorder=4 if server in FASTSOCK else 3,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("connections; logarithmic", fontsize=NORMAL)
    axes.set_ylabel(f"{drawn.unit}; logarithmic", fontsize=NORMAL)
    axes.grid(color="#d9d9d9", lw=0.7)
    axes.set_axisbelow(True)


def _scale_lines(panels: list[tuple[Axes, Curves]]) -> None:
    """The same for all."""
    points = [point for _, drawn in panels for line in drawn.lines.values() for point in line]
    counts = sorted({count for count, _ in points})
    low = min(_least(found) for _, found in points) / 1.5
    high = max(found.most for _, found in points) * 1.5
    steps = (1,) if high / low > 200 else (1, 2, 5)
    for axes, _ in panels:
        axes.set_xlim(counts[0] / 1.4, counts[-1] * 1.4)
        axes.set_ylim(low, high)
        _plain_ticks(axes.xaxis, _apart(counts))
        _plain_ticks(axes.yaxis, [step * 10.0**power for power in range(-3, 10) for step in steps])


def _apart(counts: list[int]) -> list[int]:
    """Without those whose labels would touch the one before, on an axis that has all in view."""
    shown = counts[:1]
    for count in counts[1:]:
        if math.log(count / shown[-1]) > 0.09 * math.log(2 * counts[-1] / counts[0]):
            shown.append(count)
    return shown


def _footer(run: Run) -> str:
    machine, settings = run.machine, run.settings
    ways = sorted({one.pinned for one in run.measurements})
    return ", ".join(
        [
            f"fastsock {machine.fastsock}",
            machine.python,
            f"{machine.cpu} ({machine.cores} cores)",
            machine.kernel,
            machine.when[:10],
            f"{settings.rounds} × {settings.seconds:g} s",
            " and ".join(pinning(way) for way in ways),
            "bars and lines: medians of the rounds; whiskers and shading: least to most",
        ]
    )


def _legend(figure: Figure, used: dict[str, tuple[str, str]], columns: int, y: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, ms=6, lw=3, mec="white", mew=0.6, label=server)
        for server, (colour, marker) in used.items()
    ]
    figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, y),
        ncols=columns,
        frameon=False,
        fontsize=NORMAL,
        borderaxespad=0,
        columnspacing=1.6,
    )


def make(run: Run) -> Figure:
    """The whole figure.

    Raises:
        ValueError: there is nothing to draw.
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    ways = [way for way in (False, True) if any(one.pinned == way for one in run.measurements)]
    bars = {way: groups(run, way) for way in ways}
    lines = {way: curves(run, way) for way in ways}
    shown: set[str] = {server for each in bars.values() for g in each for server, _ in g.bars}
    shown |= {server for each in lines.values() for curve in each for server in curve.lines}
    if not shown:
        raise ValueError("nothing to draw: no scenario has the standard library beside another")
    if any(bars.values()):
        shown.add(STANDARD)
    used = styles(shown)

    rows = [max(sum(group.height for group in each) for each in bars.values())]
    rows += [LINES] * max(map(len, lines.values()))
    labels = [[group.label for group in each] for each in bars.values()]
    shared = len(labels) == 2 and labels[0] == labels[1]
    if not any(labels):
        del rows[0]
    gap = BETWEEN if shared or not any(labels) else LABELS
    left_of = (LABELS if any(labels) else BETWEEN) + MARGIN
    width = left_of + len(ways) * PANEL + (len(ways) - 1) * gap + MARGIN
    footer = textwrap.wrap(_footer(run), int(width * 14.5))
    columns = max(1, min(len(used), int(width / 1.75)))
    head = HEAD + 0.2 * (-(-len(used) // columns) - 1)
    foot = FOOT + 0.16 * (len(footer) - 1)
    height = head + sum(TITLE + row + AXIS for row in rows) + foot
    figure = Figure(figsize=(width, height), dpi=110, facecolor="white")
    figure.text(
        0.5,
        1 - 0.22 / height,
        "fastsock beside Python's socketserver and others",
        ha="center",
        va="top",
        fontsize=LARGE,
        fontweight="bold",
    )
    _legend(figure, used, columns, 1 - 0.58 / height)
    figure.text(
        MARGIN / width,
        0.16 / height,
        "\n".join(footer),
        fontsize=SMALL,
        color="#444444",
        va="bottom",
    )
    top = height - head
    for index, row in enumerate(rows):
        top -= TITLE + row
        barred = index == 0 and any(labels)
        charts: list[tuple[Axes, list[Group]]] = []
        graphs: list[tuple[Axes, Curves]] = []
        for column, way in enumerate(ways):
            left = left_of + column * (PANEL + gap)

            def panel(tall: float, title: str, left: float = left, way: bool = way) -> Axes:
                bottom = top + row - tall  # noqa: B023  (called at once)
                area = (left / width, bottom / height, PANEL / width, tall / height)
                axes = figure.add_axes(area)
                axes.set_title(f"{title} ({pinning(way)})", fontsize=NORMAL + 1.5, loc="left")
                for side in ("top", "right"):
                    axes.spines[side].set_visible(False)
                return axes

            which = index - any(labels)
            if barred and bars[way]:
                tall = sum(group.height for group in bars[way])
                axes = panel(tall, "Throughput by workload")
                _draw_bars(axes, bars[way], used)
                if column and shared:
                    axes.set_yticklabels([])
                charts.append((axes, bars[way]))
            elif not barred and which < len(lines[way]):
                axes = panel(row, lines[way][which].title)
                _draw_lines(axes, lines[way][which], used)
                graphs.append((axes, lines[way][which]))
        if charts:
            _scale_bars(charts)
        if graphs:
            _scale_lines(graphs)
        top -= AXIS
    return figure


def check(path: Path) -> None:
    """Could a chart be drawn there, as far as its name and what is installed go?

    Raises:
        ValueError: it doesn't end in .png or .svg.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name}: a chart ends in {' or '.join(SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtra("matplotlib", "a chart") from None


def draw(run: Run, path: Path) -> None:
    """Write the chart; the same run gives the same file.

    Args:
        path: ends in .png or .svg.

    Raises:
        ValueError: it ends otherwise, or there is nothing to draw.
        MissingExtra: matplotlib is not installed.
        OSError: the file can't be written.
    """
    check(path)
    from matplotlib import rc_context, style

    # Letters are drawn as shapes: it looks the same where the font is missing.
    fixed: dict[Any, Any] = {"svg.hashsalt": "fastsock", "svg.fonttype": "path"}
    with style.context("default"), rc_context(fixed):  # whatever a matplotlibrc says
        kind = path.suffix.lower()[1:]
        without = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
        make(run).savefig(path, format=kind, metadata=without[kind])
