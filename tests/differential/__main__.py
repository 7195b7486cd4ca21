"""ci/differential: run many random programs on two implementations."""

from __future__ import annotations

import argparse
import faulthandler
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from .check import DEFAULTS, check

BATCH = 250  # programs for one process
TESTS = Path(__file__).resolve().parent.parent


def place(name: str) -> str:
    """The path of an implementation holds in another folder too."""
    return str(Path(name).resolve()) if "/" in name else name


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/differential", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="programs to run")
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--left", type=place, default=DEFAULTS[0], help="a module, or the path of one"
    )
    parser.add_argument("--right", type=place, default=DEFAULTS[1])
    parser.add_argument(
        "--no-shrink", action="store_true", help="show the first program that differs, as it is"
    )
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run_batch(options: argparse.Namespace) -> None:
    """One process's part; exit status 1 after a difference."""
    faulthandler.enable()
    report = check(options.batch, options.seed, options.left, options.right, not options.no_shrink)
    if report:
        print(report, flush=True)
    os._exit(1 if report else 0)  # threads of a program that got stuck may be left


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if options.batch is not None:
        run_batch(options)
    seed = options.seed if options.seed is not None else int(time.time())
    started, done, different = time.monotonic(), 0, 0
    batch = min(BATCH, -(-options.count // options.jobs))
    queue = [min(batch, options.count - first) for first in range(0, options.count, batch)]
    todo = list(enumerate(queue))
    running: dict[subprocess.Popen[str], tuple[int, int]] = {}
    while todo or running:
        while todo and len(running) < options.jobs:
            index, count = todo.pop(0)
            command = [
                sys.executable,
                "-m",
                "differential",
                "--batch",
                str(count),
                "--seed",
                str(seed * 100_000 + index),
                *(["--no-shrink"] if options.no_shrink else []),
                "--left",
                options.left,
                "--right",
                options.right,
            ]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=TESTS)
            running[process] = index, count
        process = next(iter(running))
        output = process.communicate()[0]
        index, count = running.pop(process)
        done += count
        if process.returncode:
            different += 1
            print(output, f"batch {index} ended with status {process.returncode}", sep="\n")
        print(f"{done} of {options.count} programs, {time.monotonic() - started:.0f} s", flush=True)
    print(
        f"differential: {done} programs, {different} batches with a difference, "
        f"{time.monotonic() - started:.0f} s, seed {seed}, {options.left} and {options.right}, "
        f"Python {platform.python_version()}"
    )
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
