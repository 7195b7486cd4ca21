"""The subcommands about what fails, and who goes without a word: faults, starts, resets."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

NAMES = ("faults", "starts", "resets")
IMPLEMENTATIONS = ("fastsock", "socketserver")


def add(commands: Any) -> None:
    faults = commands.add_parser("faults", help="system calls that fail; needs a C compiler")
    faults.add_argument("--times", type=int, default=1000, help="of each errno at each call")
    faults.add_argument("--transfers", type=int, default=1_000_000, help="reads and writes")
    faults.add_argument("--percent", type=int, default=10, help="of them that do not go smoothly")
    starts = commands.add_parser("starts", help="threads and forks that fail; needs a C compiler")
    starts.add_argument("--times", type=int, default=1000)
    resets = commands.add_parser("resets", help="clients that are killed, or reset the connection")
    resets.add_argument("--clients", type=int, default=100_000)
    resets.add_argument("--processes", type=int, default=2, help="of clients")
    resets.add_argument("--seed", type=int, default=0)
    for parser in (faults, starts, resets):
        parser.add_argument(
            "--implementations", nargs="+", choices=IMPLEMENTATIONS, default=list(IMPLEMENTATIONS)
        )
        parser.add_argument("--kinds", nargs="+", help="of servers; default: all")


def run(options: argparse.Namespace) -> int:
    status: int = importlib.import_module(f".{options.command}", __package__).run(options)
    return status
