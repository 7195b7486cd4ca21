"""Random handlers give each client the same bytes in greenlets, in threads, and in theirs.

FASTSOCK_RANDOM_HANDLERS: how many programs (default 300; ci/soak handlers --count N for more).
FASTSOCK_RANDOM_SEED: which (default 0; `random` for others). The programs: tests/soak/handlers.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fastsock

TESTS = Path(__file__).resolve().parent.parent
COUNT = int(os.environ.get("FASTSOCK_RANDOM_HANDLERS", "300"))
SEED = os.environ.get("FASTSOCK_RANDOM_SEED", "0")


def handlers(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "soak", "handlers", *options]
    if SEED != "random":
        command += ["--seed", SEED]
    return subprocess.run(
        command,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(Path(fastsock.__file__).parent.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120 + COUNT,
        check=False,
    )


def test_the_same_bytes() -> None:
    done = handlers("--count", str(COUNT))
    assert done.returncode == 0, done.stdout
    assert "soak: passed" in done.stdout, done.stdout


def test_finds_what_is_broken() -> None:
    """A server class that loses a byte now and then is found."""
    done = handlers("--count", "60", "--broken")
    assert done.returncode == 1, done.stdout
    assert "differs" in done.stdout, done.stdout
