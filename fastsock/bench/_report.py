"""The table of a run: in the terminal, with rich if it is installed, and as Markdown.

Both forms are made of the same :class:`Section`: one for each scenario, with and without pinning.
"""

# ruff: noqa: RUF001  (the signs of multiplication and of a range are meant)

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from fastsock.bench._results import (
    FASTSOCK,
    REFERENCE,
    STANDARD,
    Key,
    Measurement,
    Run,
    ScenarioInfo,
    Spread,
    spread,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

#: what to say, once, where rich is missing
HINT = "for a nicer table: pip install 'fastsock[bench]'"
WIDE = 160  # columns of a rich table that doesn't go to a terminal
GAP = 2  # between two columns of it
LASTING = ("lines", "http")  # loads of which Measurement.served is counted
NOTHING = "–"  # where there is no figure

DEFINITIONS = (
    ("rate", "operations a second, answered in full and verified"),
    ("× socketserver, × C", "the rate over theirs, formed within each round"),
    ("figures (least–most)", "the median of the rounds, and the least and the most of them"),
    ("CPU", "microseconds of the server and its children, per operation; median"),
    ("load", "microseconds of the load's, likewise; more than the server's: the load is the limit"),
    (
        "p50, p99, p99.9",
        (
            "latency in microseconds, from the send to the answer's last byte; median. Who waits "
            "for an answer sends nothing meanwhile: a pause of the server counts once a connection"
        ),
    ),
    ("memory", "anonymous memory of the server in KB (1,024 bytes) per connection; median"),
    (
        "CPU vs C",
        "the CPU of C over theirs, formed within each round: 0.5 is twice as much per operation",
    ),
    ("× alone", "the rate over that of as many connections just before the idle ones were there"),
    ("opening", "seconds until every connection had exchanged a line; median"),
    ("served", "of the connections, how many were answered at all, in the worst round"),
)


class MissingExtra(ImportError):
    """A package of the extra ``bench`` is asked for and not installed."""

    def __init__(self, package: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: pip install 'fastsock[bench]'",
            name=package,
        )


def has_rich() -> bool:
    """Is rich installed? If not, :data:`HINT` says what to do about it."""
    if "rich" in sys.modules:
        return sys.modules["rich"] is not None
    return importlib.util.find_spec("rich") is not None


# --- figures as text


def number(value: float) -> str:
    """Three significant digits, thousands separated: 123,000; 1,230; 12.3; 0.0123."""
    if not math.isfinite(value):
        return NOTHING
    if not value:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    digits = 2 - math.floor(math.log10(abs(rounded)))  # 9.999 has become 10.0
    return f"{rounded:,.{max(digits, 0)}f}"


def with_spread(found: Spread | None) -> str:
    """The median, and in parentheses the least and the most, if they differ from it as shown."""
    if found is None:
        return NOTHING
    median, least, most = (number(value) for value in found)
    return median if least == median == most else f"{median} ({least}–{most})"


def _median(values: Iterable[float | None]) -> str:
    found = spread(value for value in values if value is not None)
    return NOTHING if found is None else number(found.median)


def errors_of(found: Iterable[Measurement]) -> dict[str, int]:
    """Of all rounds together, by kind; a kind with no error is left out."""
    total: dict[str, int] = {}
    for one in found:
        for kind, count in one.errors.items():
            if count:
                total[kind] = total.get(kind, 0) + count
    return total


def _errors(found: Iterable[Measurement]) -> str:
    listed = [f"{count:,} {kind}" for kind, count in errors_of(found).items()]
    return ", ".join(listed) or "none"


def pinning(pinned: bool) -> str:
    """As it stands in titles."""
    return "pinned" if pinned else "not pinned"


# --- the contents, whatever form they get


@dataclass(frozen=True)
class Section:
    """One scenario, pinned or not.

    ``rows`` have one cell for each column; ``breaks`` are the rows before which the number of
    connections changes.
    """

    title: str
    load: str
    columns: list[str]
    rows: list[list[str]]
    breaks: frozenset[int]


@dataclass(frozen=True)
class _Row:
    """What the cells of one row are computed from."""

    run: Run
    key: Key
    server: str
    found: list[Measurement]

    def versus(self, base: str) -> str:
        if self.server == base:
            return "1"
        ratios = self.run.ratios(self.key, self.server, base, lambda one: one.rate)
        return with_spread(spread(ratios))

    def cpu_versus(self) -> str:
        if self.server == REFERENCE:
            return "1"
        ratios = self.run.ratios(self.key, REFERENCE, self.server, lambda one: one.cpu)
        return with_spread(spread(ratios))

    def beside(self) -> str:
        return with_spread(spread(one.rate / one.alone for one in self.found if one.alone))

    def served(self) -> str:
        if self.run.scenarios[self.key.scenario].load not in LASTING:
            return NOTHING
        return f"{min(one.served for one in self.found):,} of {self.key.connections:,}"


Column = tuple[str, Callable[[_Row], str]]


def _columns(run: Run, keys: list[Key], opening: bool) -> list[Column]:
    """Those that have something to say about these keys."""
    found = [one for one in run.measurements if (one.scenario, one.connections, one.pinned) in keys]
    servers = {one.server for one in found}
    columns: list[Column] = []
    if len(keys) > 1:
        columns.append(("connections", lambda row: f"{row.key.connections:,}"))
    columns += [
        ("server", lambda row: row.server),
        (
            f"{'connections' if opening else 'operations'}/s",
            lambda row: with_spread(spread(one.rate for one in row.found)),
        ),
    ]
    for base in (STANDARD, REFERENCE):
        if base in servers:
            columns.append((f"× {base}", lambda row, base=base: row.versus(base)))  # type: ignore[misc]
    columns += [
        ("CPU µs", lambda row: _median(one.cpu for one in row.found)),
    ]
    if REFERENCE in servers and any(one.cpu is not None for one in found):
        columns.append((f"CPU vs {REFERENCE}", _Row.cpu_versus))
    if any(one.load_cpu is not None for one in found):
        columns.append(("load µs", lambda row: _median(one.load_cpu for one in row.found)))
    columns += [
        ("p50 µs", lambda row: _median(one.latency.p50 for one in row.found)),
        ("p99 µs", lambda row: _median(one.latency.p99 for one in row.found)),
        ("p99.9 µs", lambda row: _median(one.latency.p999 for one in row.found)),
    ]
    if any(one.memory is not None for one in found):
        columns.append(("memory KB", lambda row: _median(one.memory for one in row.found)))
    if any(one.opening is not None for one in found):
        columns.append(("opening s", lambda row: _median(one.opening for one in row.found)))
    if any(one.alone for one in found):
        columns.append(("× alone", _Row.beside))
    columns.append(("errors", lambda row: _errors(row.found)))
    lasting = bool(found) and run.scenarios[found[0].scenario].load in LASTING
    if lasting and any(one.served < one.connections for one in found):
        columns.append(("served", _Row.served))
    return columns


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _transport(info: ScenarioInfo) -> str:
    if info.family == "unix":
        return "Unix socket"
    return "UDP" if info.load == "datagrams" else "TCP"


def _section(run: Run, name: str, pinned: bool) -> Section:
    info = run.scenarios[name]
    every = run.rows()
    keys = sorted(key for key in every if key.scenario == name and key.pinned == pinned)
    opening = info.load == "opening"
    columns = _columns(run, keys, opening)
    rows: list[list[str]] = []
    breaks = set()
    for key in keys:
        breaks.add(len(rows))
        for server in run.servers(key):
            row = _Row(run, key, server, run.of(key, server))
            rows.append([cell(row) for _, cell in columns])
    counts = [f"{key.connections:,}" for key in keys]
    if len(keys) == 1:
        load = [_plural(keys[0].connections, "connection")]
    else:
        load = [f"{', '.join(counts[:-1])} and {counts[-1]} connections"]
    load += [
        _plural(info.payload, "byte"),
        f"{info.depth:,} under way on each",
        f"{info.idle:,} idle beside them" if info.idle else "none idle",
        _transport(info),
    ]
    if info.cold:
        load.append("opened while it was counted, the backlog as each server comes")
    if opening:
        load.append("an operation is the opening of a connection, to its first answer")
    if any(run.bound_by_load(key) for key in keys):
        load.append("the client is at its limit: compare the CPU, not the rate")
    title = f"{info.title} ({pinning(pinned)})"
    return Section(title, ", ".join(load), [head for head, _ in columns], rows, frozenset(breaks))


def sections(run: Run) -> list[Section]:
    """By scenario, in the order in which they were measured first."""
    every = run.rows()
    kinds = list(dict.fromkeys((key.scenario, key.pinned) for key in every))
    names = list(dict.fromkeys(name for name, _ in kinds))
    return [
        _section(run, name, pinned) for name in names for other, pinned in kinds if other == name
    ]


def heading(run: Run) -> list[tuple[str, str]]:
    """What was measured, where and how: (what, value)."""
    machine, settings = run.machine, run.settings
    pinned = {one.pinned for one in run.measurements}
    ways = {
        frozenset({True}): "yes: server and load on a core each",
        frozenset({False}): "no: server and load wherever the kernel puts them",
        frozenset({True, False}): "both: with server and load on a core each, and without",
    }
    versions = [f"{name} {version or '(not installed)'}" for name, version in machine.peers.items()]
    rounds = f"{_plural(settings.rounds, 'round')} × {settings.seconds:g} s"
    return [
        ("fastsock", machine.fastsock),
        ("Python", machine.python),
        ("CPU", f"{machine.cpu}, {_plural(machine.cores, 'core')}"),
        ("kernel", machine.kernel),
        ("measured", f"{rounds}{', --quick' if settings.quick else ''}, {machine.when}"),
        ("backlog", f"{settings.backlog:,}" if settings.backlog else "as each server comes"),
        ("pinned", ways.get(frozenset(pinned), "nothing was measured")),
        ("C compiler", machine.compiler or "none"),
        ("peers", ", ".join(versions) or "none"),
    ]


def left_out(run: Run) -> list[str]:
    """What was not measured and why, one line each; the same reason of several stands once."""
    whom: dict[tuple[str, str], list[str]] = {}
    for one in run.left_out:
        whom.setdefault((one.scenario, one.why), []).append(one.server)
    lines = []
    for (scenario, why), servers in whom.items():
        named = list(dict.fromkeys(server for server in servers if server))
        what = [scenario] if scenario else []
        what += [", ".join(named)] if named else []
        lines.append(f"not measured: {': '.join([*what, why])}")
    return lines


# --- Markdown


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _left(column: str) -> bool:
    """Text is flush left, figures are flush right."""
    return column in ("server", "errors")


def _table(section: Section) -> list[str]:
    rows = [[_cell(text) for text in row] for row in [section.columns, *section.rows]]
    widths = [max(3, *(len(row[index]) for row in rows)) for index in range(len(section.columns))]
    lines = []
    for row in rows:
        cells = [
            text.ljust(width) if _left(column) else text.rjust(width)
            for text, width, column in zip(row, widths, section.columns, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rule = [
        "-" * width if _left(column) else "-" * (width - 1) + ":"
        for width, column in zip(widths, section.columns, strict=True)
    ]
    lines.insert(1, f"| {' | '.join(rule)} |")
    return lines


def markdown(run: Run) -> str:
    """The whole report as GitHub Markdown; ends with a line feed."""
    lines = [f"- {what}: {value}" for what, value in heading(run)]
    lines += ["", "What the columns are:", ""]
    lines += [f"- {what}: {meaning}" for what, meaning in DEFINITIONS]
    for section in sections(run):
        lines += ["", f"### {section.title}", "", f"{section.load}.", "", *_table(section)]
    if missing := left_out(run):
        lines += ["", "### Not measured", "", *(f"- {line}" for line in missing)]
    return "\n".join(lines) + "\n"


# --- rich


def _narrowest(section: Section) -> list[int]:
    """How wide each column has to be for no heading and no word to be broken; with the gap."""
    least = []
    for index, column in enumerate(section.columns):
        cells = [row[index] for row in section.rows]
        whole = column == "server"  # which is not broken at all
        words = [word for cell in cells for word in ([cell] if whole else cell.split(" "))]
        least.append(max(map(len, [*words, column])) + GAP)
    return least


def _portions(section: Section, width: int) -> list[list[int]]:
    """Which columns stand together in one table, so that none is wider than the terminal."""
    least = _narrowest(section)
    fixed = list(range(section.columns.index("server") + 1))  # they say what row it is
    portions = [list(fixed)]
    for index in range(len(fixed), len(least)):
        taken = portions[-1]
        full = sum(least[one] for one in taken) + least[index] > width
        if full and len(taken) > len(fixed):
            portions.append(list(fixed))
        portions[-1].append(index)
    return portions


def _widths(section: Section, portion: list[int], width: int) -> dict[int, int]:
    """Of each column: whole cells, as long as there is room; rich would break words instead."""
    least = _narrowest(section)
    spare = width - sum(least[index] for index in portion)
    widths = {}
    for index in portion:
        whole = max(len(row[index]) for row in section.rows) + GAP
        more = min(max(whole - least[index], 0), max(spare, 0))
        more = more if least[index] + more >= whole else 0
        spare -= more
        widths[index] = least[index] + more - GAP
    return widths


def _rich_table(section: Section, portion: list[int], width: int) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    widths = _widths(section, portion, width)
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.padding = (0, 1, 0, 0)
    for index in portion:
        column = section.columns[index]
        table.add_column(
            column,
            justify="left" if _left(column) else "right",
            no_wrap=column == "server",
            overflow="fold",
            width=widths[index],
        )
    where = section.columns.index("server")
    for number, row in enumerate(section.rows):
        if number and number in section.breaks:
            table.add_section()
        cells = []
        for index in portion:
            cell = Text(row[index])
            if section.columns[index] == "errors" and row[index] != "none":
                cell.stylize("bold red")
            elif (begin := row[index].find(" (")) > 0:
                cell.stylize("dim", begin)
            cells.append(cell)
        table.add_row(*cells, style="green" if row[where] in FASTSOCK else None)
    return table


def _render_rich(run: Run, stream: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = stream.isatty()
    console = Console(file=stream, width=None if terminal else WIDE, highlight=False)
    facts = Table.grid(padding=(0, 2))
    for what, value in heading(run):
        facts.add_row(Text(what, "bold"), Text(value))
    facts.add_row()
    for what, value in DEFINITIONS:
        facts.add_row(Text(what, "dim bold"), Text(value, "dim"))
    console.print(facts)
    for section in sections(run):
        console.print()
        console.print(Text(section.title, "bold underline"))
        console.print(Text(section.load, "dim"))
        for portion in _portions(section, console.width):
            console.print()
            console.print(_rich_table(section, portion, console.width))
    if missing := left_out(run):
        console.print()
        for line in missing:
            console.print(Text(line, "yellow"))


def render(run: Run, *, stream: TextIO, rich: bool | None = None) -> None:
    """Write the report.

    Args:
        rich: with rich's tables, or as Markdown; None: with rich if it is installed and the stream
            is a terminal.

    Raises:
        MissingExtra: ``rich`` is true and it is not installed.
    """
    if rich is None:
        rich = stream.isatty() and has_rich()
    if not rich:
        stream.write(markdown(run))
    elif has_rich():
        _render_rich(run, stream)
    else:
        raise MissingExtra("rich", "this table")
