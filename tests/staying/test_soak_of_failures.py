"""What fails, and clients that go without a word, for some seconds; ci/soak does it for longer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastsock

TESTS = Path(__file__).resolve().parent.parent
COMMANDS = {
    "faults": ["--times", "2", "--transfers", "5000"],
    "starts": ["--times", "5"],
    "resets": ["--clients", "600"],
}
KINDS = ("sync", "threading", "forking", "multiplexing")
FURTHER = {("faults", "multiplexing"): ["unix multiplexing"], ("faults", "threading"): ["udp"]}


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


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (command, kind)
        for command in COMMANDS
        for kind in KINDS
        if (command, kind) not in (("faults", "forking"), ("starts", "sync"))
    ],
)
def test_in_short(command: str, kind: str) -> None:
    if kind == "multiplexing" and importlib.util.find_spec("greenlet") is None:
        pytest.skip("greenlet is not installed")
    kinds = [kind, *FURTHER.get((command, kind), ())]
    soak(command, *COMMANDS[command], "--implementations", "fastsock", "--kinds", *kinds)


def test_connections_are_taken_away_from_threads() -> None:
    pytest.importorskip("greenlet")
    soak("torture", "--kind", "threading", "--rounds", "1000", "--seed", "1")


def soak(*arguments: str) -> None:
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
