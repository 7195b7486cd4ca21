"""The subcommands about clients that would stop a server: shortage, slow, unread."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

NAMES = ("shortage", "slow", "unread")
ALL = ("socketserver", "fastsock", "multiplexing")


def add(commands: Any) -> None:
    shortage = commands.add_parser("shortage", help="no descriptor is left, and many clients wait")
    shortage.add_argument("--seconds", type=float, default=60.0)
    shortage.add_argument("--clients", type=int, default=120)
    slow = commands.add_parser("slow", help="thousands of clients that send a byte a second")
    slow.add_argument("--clients", type=int, default=5_000, help="of the multiplexing server")
    slow.add_argument("--threads", type=int, default=1_000, help="clients of the threaded ones")
    slow.add_argument("--deadline", type=float, default=10.0)
    slow.add_argument("--seconds", type=float, default=30.0)
    unread = commands.add_parser("unread", help="clients that ask for much and never read")
    unread.add_argument("--clients", type=int, default=500)
    unread.add_argument("--deadline", type=float, default=5.0)
    for parser in (shortage, slow, unread):
        parser.add_argument(
            "--allowance", type=float, default=1.0, help="ms that a p99 may be beyond twice another"
        )
    for parser in (shortage, slow, unread):
        parser.add_argument("--implementations", nargs="+", choices=ALL, default=list(ALL))


def run(options: argparse.Namespace) -> int:
    status: int = importlib.import_module(f".{options.command}", __package__).run(options)
    return status
