"""Random programs do the same on the standard library and on fastsock.

The programs run in processes of their own (``python -m differential``, as ci/differential does):
one that gets stuck, or a native crash, costs no more than that process.

FASTSOCK_DIFFERENTIAL_COUNT: how many programs (default 300). FASTSOCK_DIFFERENTIAL_SEED: which
(default 0, so that the same ones are run every time; `random` for others).
"""

from __future__ import annotations

import importlib.util
import os
import socketserver
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
COUNT = int(os.environ.get("FASTSOCK_DIFFERENTIAL_COUNT", "300"))
SEED = os.environ.get("FASTSOCK_DIFFERENTIAL_SEED", "0")

#: changes of a copy of the standard library's module that have to be found
BROKEN = {
    "finish_request bypassed": (
        "self.finish_request(request, client_address)\n        self.shutdown_request",
        "self.RequestHandlerClass(request, client_address, self)\n        self.shutdown_request",
    ),
    "service_actions never called": ("                    self.service_actions()\n", ""),
    "finish() only after success": (
        "        try:\n            self.handle()\n        finally:\n            self.finish()",
        "        self.handle()\n        self.finish()",
    ),
}


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """In place of that of conftest.py: the processes here have one of their own."""
    yield


def differential(
    count: int, right: str, *options: str, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    seed = str(int(time.time())) if SEED == "random" else SEED
    command = [sys.executable, "-m", "differential", "--count", str(count), "--seed", seed]
    command += ["--left", "socketserver", "--right", right, *options]
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        command,
        cwd=TESTS,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120 + count,
        check=False,
    )


def test_does_the_same_as_the_standard_library(request: pytest.FixtureRequest) -> None:
    """With the implementations of --impl, if there is that option."""
    for name in request.config.getoption("impl", "fastsock").split(","):
        if name == "multiplex":  # no module of its own; its programs are those of tests/multiplex
            continue
        path = None
        if name == "fastsock":
            # The one that was asked for, and not a source tree that happens to be in the way.
            spec = importlib.util.find_spec("fastsock")
            assert spec is not None and spec.origin is not None
            path = str(Path(spec.origin).parent.parent)
        if name != "stdlib":
            right = str(Path(name).resolve()) if "/" in name else name
            result = differential(COUNT, right, path=path)
            assert result.returncode == 0, result.stdout


@pytest.mark.once("it only checks the test")
def test_the_test_is_stable() -> None:
    """The standard library does the same twice: what is compared depends on no chance."""
    result = differential(100, "socketserver")
    assert result.returncode == 0, result.stdout


@pytest.mark.once("it only checks the test")
@pytest.mark.parametrize("what", BROKEN)
def test_finds_what_is_broken(what: str, tmp_path: Path) -> None:
    before, after = BROKEN[what]
    text = Path(socketserver.__file__).read_text()
    assert before in text
    copy = tmp_path / "broken.py"
    copy.write_text(text.replace(before, after))
    result = differential(300, str(copy), "--no-shrink")
    assert result.returncode == 1, result.stdout
    assert "Program(" in result.stdout
