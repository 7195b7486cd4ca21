"""Clients that would stop a server, for some seconds; ci/soak does it for longer, with more."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastsock

pytestmark = pytest.mark.once("of clients, and seconds long")
TESTS = Path(__file__).resolve().parent.parent
COMMANDS = {
    "shortage": ["--seconds", "2"],
    "slow": ["--clients", "300", "--threads", "100", "--deadline", "1", "--seconds", "3"],
    "unread": ["--clients", "50", "--deadline", "1"],
}


@pytest.fixture(autouse=True)
def long_limit() -> Iterator[None]:
    """The limit of one test is for what waits, not for what works."""
    import faulthandler
    import signal

    signal.setitimer(signal.ITIMER_REAL, 150)
    faulthandler.dump_traceback_later(180, exit=True)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.parametrize("implementation", ["fastsock", "multiplexing"])
@pytest.mark.parametrize("command", COMMANDS)
def test_they_do_not(command: str, implementation: str) -> None:
    if implementation == "multiplexing" and importlib.util.find_spec("greenlet") is None:
        pytest.skip("greenlet is not installed")
    arguments = [command, *COMMANDS[command], "--implementations", implementation]
    arguments += ["--allowance", "300"]  # ms: other tests may run beside
    done = subprocess.run(
        [sys.executable, "-m", "soak", *arguments],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(Path(fastsock.__file__).parent.parent)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "soak: passed" in done.stdout, done.stdout
