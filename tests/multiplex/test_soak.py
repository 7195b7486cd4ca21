"""A thousand connections that behave differently, for some seconds; ci/soak does it for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastsock

TESTS = Path(__file__).resolve().parent.parent
SECONDS = float(os.environ.get("FASTSOCK_SOAK_SECONDS", "6"))


@pytest.fixture(autouse=True)
def long_limit() -> None:
    """The limit of one test is for what waits, not for what works."""
    import faulthandler
    import signal

    signal.setitimer(signal.ITIMER_REAL, 150)
    faulthandler.dump_traceback_later(180, exit=True)


def test_connections() -> None:
    command = [sys.executable, "-m", "soak", "connections", "--connections", "1000"]
    command += ["--minutes", str(SECONDS / 60), "--rate", "1500"]
    done = subprocess.run(
        command,
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(Path(fastsock.__file__).parent.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=140,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "soak: passed" in done.stdout, done.stdout
