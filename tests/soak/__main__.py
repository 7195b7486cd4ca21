"""ci/soak: long proofs, one a subcommand; each has --help."""

from __future__ import annotations

import argparse
import sys

from . import bad_clients, failures, mixed


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="ci/soak", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    many = commands.add_parser("connections", help="many connections that behave differently")
    many.add_argument("--connections", type=int, default=10_000)
    many.add_argument("--minutes", type=float, default=10.0)
    many.add_argument("--rate", type=int, default=2_000, help="actions of clients per second")
    many.add_argument("--processes", type=int, default=2, help="of clients")
    many.add_argument("--seed", type=int, default=None, help="default: from the clock")
    torture = commands.add_parser("torture", help="connections closed while somebody waits")
    torture.add_argument("--rounds", type=int, default=1_000_000)
    torture.add_argument("--seed", type=int, default=None, help="default: from the clock")
    torture.add_argument(
        "--kind", choices=("multiplexing", "threading", "socketserver"), default="multiplexing"
    )
    handlers = commands.add_parser("handlers", help="random handlers, by three implementations")
    handlers.add_argument("--count", type=int, default=10_000)
    handlers.add_argument("--first", type=int, default=0, help="number of the first one")
    handlers.add_argument("--seed", type=int, default=None, help="default: from the clock")
    handlers.add_argument("--broken", action="store_true", help=argparse.SUPPRESS)
    drain = commands.add_parser("drain", help="a server ends that has much to do; the stdlib's too")
    drain.add_argument("--working", type=int, default=1000, help="requests that end in time")
    drain.add_argument("--stuck", type=int, default=100, help="requests that do not")
    drain.add_argument("--timeout", type=float, default=2.0, help="seconds, of the drain")
    drain.add_argument("--work", type=float, default=1.0, help="seconds that a request takes")
    exits = commands.add_parser("exits", help="interpreters that end while handlers run")
    exits.add_argument("--count", type=int, default=1000)
    exits.add_argument("--handlers", type=int, default=100)
    exits.add_argument("--seed", type=int, default=0)
    bad_clients.add(commands)
    failures.add(commands)
    mixed.add(commands)
    options = parser.parse_args(arguments)
    if options.command in bad_clients.NAMES:
        return bad_clients.run(options)
    if options.command in failures.NAMES:
        return failures.run(options)
    if options.command == "mixed":
        return mixed.run(options)
    if options.command == "drain":
        from .drain import run as run_drain

        return run_drain(options)
    if options.command == "exits":
        from .exits import run as run_exits

        return run_exits(options)
    if options.command == "connections":
        from .connections import run

        return run(options)
    if options.command == "handlers":
        from .handlers import run as run_handlers

        return run_handlers(options)
    from .torture import run as run_torture

    return run_torture(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
