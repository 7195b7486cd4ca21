"""Figures 6 and 9, in short; ``ci/soak drain`` and ``ci/soak exits`` are the long ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastsock

TESTS = Path(__file__).resolve().parent.parent

pytest.importorskip("greenlet")


@pytest.fixture(autouse=True)
def long_limit() -> None:
    """The limit of one test is for what waits, not for what works."""
    import faulthandler
    import signal

    signal.setitimer(signal.ITIMER_REAL, 100)
    faulthandler.dump_traceback_later(120, exit=True)


@pytest.mark.parametrize(
    "command",
    [
        "drain --working 200 --stuck 20 --timeout 1 --work 0.3 --late 2",
        "exits --count 8",
    ],
)
def test_in_short(command: str) -> None:
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", "soak", name, *arguments],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(Path(fastsock.__file__).parent.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{name}: passed" in done.stdout, done.stdout
