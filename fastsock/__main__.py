"""``python -m fastsock``: demo | run | bench."""

from __future__ import annotations

import argparse
import sys

import fastsock


def main(arguments: list[str]) -> int | str | None:
    """Run a command; return the exit status."""
    if arguments[:1] == ["run"]:  # what follows belongs to the program: not argparse's
        from fastsock import _run

        return _run.main(arguments[1:])
    if arguments[:1] == ["bench"]:  # has an argument parser of its own
        from fastsock.bench import _cli

        return _cli.main(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m fastsock", description="Python's socketserver on a Cython core."
    )
    parser.add_argument("--version", action="version", version=f"fastsock {fastsock.VERSION}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "run",
        help="run a program with fastsock in the place of socketserver",
        usage="python -m fastsock run [--multiplex] [-m] target [args ...]",
    )
    commands.add_parser(
        "bench",
        help="measure the standard library's servers, fastsock's, and others",
        usage="python -m fastsock bench [--help] ...",
    )
    demo = commands.add_parser(
        "demo", help="talk to the documented example servers, then compare two rates"
    )
    demo.add_argument(
        "--seconds",
        type=float,
        default=6.0,
        help="length of the load, over both implementations (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    from fastsock import _demo

    return _demo.main(chosen.seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
