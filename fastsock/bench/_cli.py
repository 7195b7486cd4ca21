"""``python -m fastsock bench``: what it is asked for, and who is called for it."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import io
import os
import signal
import sys
import time
from pathlib import Path

from fastsock.bench import _compare, _measure, _progress, _report, _results, _scenarios
from fastsock.bench._results import (
    FASTSOCK,
    MULTIPLEXING,
    OURS,
    REFERENCE,
    STANDARD,
    LeftOut,
    Run,
    Settings,
)
from fastsock.bench._scenarios import Peer, Scenario

QUICK_SERVERS = frozenset((STANDARD, *FASTSOCK, REFERENCE, "C batched"))
QUICK_SECONDS = 50  # after which --quick begins no further round
EPILOG = """
The servers run in processes of their own, and so does the load, which is native code. Of
socketserver and fastsock the very same source file is run; only what `import socketserver` means
differs; "fastsock multiplexing" is that file as well, its threads replaced by greenlets. It, gevent
and uvloop take part if they (or greenlet) are installed, a small C server if there is a compiler.
The servers of a scenario take turns in every round; shown are medians, the least and the most.

exit status: 0; 1 if --compare names a regression, or nothing could be measured; 2 for wrong usage;
130 when interrupted, after what was measured has been shown
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="python -m fastsock bench",
        description="Measures the standard library's socketserver, fastsock, and others, on "
        "loopback.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("scenario", nargs="*", help="default: all; --list shows them")
    made.add_argument("--list", action="store_true", help="show scenarios and servers, and end")
    made.add_argument("--quick", action="store_true", help="a first look, within a minute")
    where = made.add_mutually_exclusive_group()
    where.add_argument(
        "--pinned", action="store_true", help="server and load on a core each; default: not pinned"
    )
    where.add_argument("--both", action="store_true", help="measure pinned and not pinned")
    made.add_argument("--rounds", type=int, metavar="N", help="default: 5, with --quick 2")
    made.add_argument("--seconds", type=float, metavar="S", help="of each; default: 1, quick: 0.2")
    made.add_argument(
        "--backlog", type=int, default=4096, metavar="N", help="of all; 0: as each comes (4096)"
    )
    made.add_argument(
        "--servers", metavar="A,B", help="only these; a word of a name will do; default: all"
    )
    made.add_argument("--add", action="append", default=[], metavar="FILE", help="a scenario more")
    made.add_argument("--json", action="store_true", help="print JSON instead of the table")
    made.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    made.add_argument("--save", metavar="FILE", help="write what was found, as JSON")
    made.add_argument("--chart", metavar="FILE", help="draw it, as .svg or .png")
    instead = made.add_mutually_exclusive_group()
    instead.add_argument("--show", metavar="FILE", help="measure nothing: show a saved run")
    instead.add_argument(
        "--compare",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="measure nothing: name what changed between two saved runs beyond the noise",
    )
    return made


def chosen_scenarios(options: argparse.Namespace) -> list[Scenario]:
    """In their order, not the command line's.

    Raises:
        ScenarioError: there is none of that name, or a file is none.
    """
    there = _scenarios.scenarios([Path(path) for path in options.add])
    wanted = options.scenario or list(there)
    if unknown := [name for name in wanted if name not in there]:
        raise _scenarios.ScenarioError(
            f"no scenario {', '.join(unknown)}; there are {', '.join(there)}"
        )
    return [scenario for name, scenario in there.items() if name in wanted]


def chosen_servers(options: argparse.Namespace, peers: list[Peer]) -> frozenset[str] | None:
    """None: all.

    Raises:
        ScenarioError: there is none of that name.
    """
    if options.servers is None:
        return QUICK_SERVERS if options.quick else None
    there = [*sorted(QUICK_SERVERS), *(peer.name for peer in peers)]
    wanted: set[str] = set()
    unknown = []
    for name in filter(None, map(str.strip, options.servers.split(","))):
        # "multiplexing" is fastsock's, "uvloop" both of its servers; "fastsock" but the one
        meant = [name] if name in there else [one for one in there if name in one.split()]
        wanted.update(meant)
        unknown += [] if meant else [name]
    if unknown:
        raise _scenarios.ScenarioError(
            f"no server {', '.join(unknown)}; there are {', '.join(there)}"
        )
    return frozenset(wanted)


def show_list(scenarios: list[Scenario], peers: list[Peer]) -> None:
    """What there is."""
    width = max(len(scenario.name) for scenario in scenarios)
    for scenario in scenarios:
        counts = ", ".join(f"{count:,}" for count in scenario.connections)
        print(f"{scenario.name:{width}}  {scenario.info.title} ({counts})")
    print()
    print(", ".join((STANDARD, OURS, REFERENCE, "C batched")))
    missing = "" if _scenarios.version_of("greenlet") else f" ({_measure.NO_GREENLET})"
    print(f"{MULTIPLEXING}{missing}")
    for peer in peers:
        print(f"{peer.name}{'' if peer.version else f' ({peer.distribution} is not installed)'}")


def writable(path: str | None) -> None:
    """Now, not after half an hour of measuring.

    Raises:
        OSError: no file can be written there.
    """
    if path is not None:
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise NotADirectoryError(20, "no such folder", folder)
        if os.path.isdir(path):
            raise IsADirectoryError(21, "is a folder", path)
        if not os.access(path if os.path.exists(path) else folder, os.W_OK):
            raise PermissionError(13, "cannot be written", path)


def show(run: Run, options: argparse.Namespace) -> None:
    """As asked for."""
    if options.save:
        Path(options.save).write_text(run.to_json(), "utf-8")
    if options.json:
        print(run.to_json(), end="")
    elif options.markdown:
        print(_report.markdown(run), end="")
    else:
        _report.render(run, stream=sys.stdout)
        if not _report.has_rich():
            print(_report.HINT, file=sys.stderr)
    sys.stdout.flush()
    if options.chart:
        from fastsock.bench import _chart

        _chart.draw(run, Path(options.chart))


def shown(options: argparse.Namespace) -> Run:
    """A saved run, or those of its scenarios that are asked for.

    Raises:
        ScenarioError: it has none of that name.
        ResultsError, OSError: as :func:`_results.load`.
    """
    run = _results.load(Path(options.show))
    if not options.scenario:
        return run
    if unknown := [name for name in options.scenario if name not in run.scenarios]:
        raise _scenarios.ScenarioError(
            f"{options.show} has no {', '.join(unknown)}; it has {', '.join(run.scenarios)}"
        )
    wanted = [one for one in run.measurements if one.scenario in options.scenario]
    return dataclasses.replace(run, measurements=wanted)


def measure(options: argparse.Namespace) -> Run:
    """Measure what is asked for, showing how far it is."""
    peers = _scenarios.peers()
    settings = Settings(
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (0.2 if options.quick else 1.0),
        backlog=options.backlog,
        quick=options.quick,
    )
    pinning = (True, False) if options.both else (options.pinned,)
    if any(pinning) and len(os.sched_getaffinity(0)) < 2:
        raise _scenarios.ScenarioError("--pinned needs two cores; there is one")
    servers = chosen_servers(options, peers)
    made = _measure.plan(chosen_scenarios(options), peers, settings, pinning, servers)
    if options.quick and options.servers is None:
        made.left_out.append(LeftOut("", "the peers", "--quick (--servers asks for them)"))
    if not made.steps:
        why = "; ".join(f"{left.scenario or left.server}: {left.why}" for left in made.left_out)
        raise _scenarios.ScenarioError(f"nothing to measure ({why})")
    until = time.monotonic() + QUICK_SECONDS if options.quick else None
    with _progress.Progress(sys.stderr) as progress:
        progress.begin(len(made.steps))
        return _measure.run(
            made,
            peers,
            began=lambda step: progress.step(describe(step), step.server),
            ended=lambda step: progress.done(),
            until=until,
        )


def describe(step: _measure.Step) -> str:
    """For the progress display."""
    pinned = "pinned" if step.pinned else "not pinned"
    return (
        f"round {step.round + 1}: {step.scenario.name}, {step.connections:,} connections, {pinned}"
    )


def check(options: argparse.Namespace) -> None:
    """What would fail at the end fails at once.

    Raises:
        ValueError, OSError, ImportError: as the message says.
    """
    if options.rounds is not None and not 1 <= options.rounds <= 100:
        raise ValueError(f"--rounds {options.rounds}: 1 to 100")
    if options.seconds is not None and not 0.01 <= options.seconds <= 60:
        raise ValueError(f"--seconds {options.seconds}: 0.01 to 60")
    if not 0 <= options.backlog <= 65535:
        raise ValueError(f"--backlog {options.backlog}: 0 to 65535")
    writable(options.save)
    writable(options.chart)
    if options.chart:
        from fastsock.bench import _chart

        _chart.check(Path(options.chart))


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for a character that the terminal doesn't have."""
    assert isinstance(error, UnicodeEncodeError)
    unknown = error.object[error.start : error.end]
    plain = {"×": "x", "–": "-", "→": "->", "±": "+-", "µ": "u"}  # noqa: RUF001
    return "".join(plain.get(letter, "?") for letter in unknown), error.end


def usable_streams() -> None:
    """Nothing that was measured is lost since it can't be written: closed streams are replaced."""
    codecs.register_error("fastsock-plain", _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.StringIO())
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fastsock-plain")


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    usable_streams()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)  # the temporary folder is removed on the way
    made = parser()
    options = made.parse_args(arguments)
    try:
        check(options)
        if options.list:
            show_list(chosen_scenarios(options), _scenarios.peers())
            return 0
        if options.compare:
            before, after = (_results.load(Path(path)) for path in options.compare)
            found = _compare.compare(before, after)
            found.render(sys.stdout)
            return 1 if found.regressions else 0
        run = shown(options) if options.show else measure(options)
        show(run, options)
    except (_results.ResultsError, _scenarios.ScenarioError, ValueError, ImportError) as error:
        made.exit(2, f"{made.prog}: {error}\n")
    except BrokenPipeError:  # as with `| head`: nobody reads on
        sys.stdout = io.StringIO()  # which the interpreter would flush
        return 0
    except OSError as error:
        made.exit(2, f"{made.prog}: {error}\n")
    interrupted = any(left.why.startswith("interrupted") for left in run.left_out)
    if interrupted and not options.show:
        return 130
    return 0 if run.measurements else 1
