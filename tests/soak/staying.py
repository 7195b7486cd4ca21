"""What shortage, slow and unread share: the server's process, a good client, a table."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


def raise_limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def start(module: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"soak.{module}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=TESTS,
        **options,
    )


class Server:
    """A server in a process of its own, by one of the implementations."""

    def __init__(
        self,
        implementation: str,
        *,
        descriptors: int | None = None,
        server: dict[str, Any] | None = None,
        handler: dict[str, Any] | None = None,
    ) -> None:
        arguments: list[object] = [implementation]
        if descriptors is not None:
            arguments += ["--descriptors", descriptors]
        arguments += ["--server", json.dumps(server or {}), "--handler", json.dumps(handler or {})]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = start("stays", *arguments, stderr=self.errors)
        assert self.process.stdout is not None
        self.address = tuple(json.loads(self.process.stdout.readline()))
        self.folder = Path("/proc", str(self.process.pid))

    def cpu(self) -> float:
        """Seconds of processor time, so far."""
        fields = (self.folder / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> float:
        """KB that are resident."""
        for line in (self.folder / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return float(line.split()[1])
        raise AssertionError("no VmRSS")

    def descriptors(self) -> int:
        return len(os.listdir(self.folder / "fd"))

    def log_lines(self) -> int:
        self.errors.seek(0)
        return len(self.errors.readlines())

    def close(self) -> dict[str, Any]:
        """What it has counted."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        counted: dict[str, Any] = json.loads(self.process.stdout.readline())
        self.process.wait(30)
        self.process.stdout.close()
        self.errors.close()
        return counted


class Good:
    """A good client in a process of its own."""

    def __init__(self, server: Server, kind: str, rate: float, seconds: float) -> None:
        self.process = start("good", server.address[1], kind, rate, seconds)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def result(self) -> dict[str, float]:
        assert self.process.stdin is not None and self.process.stdout is not None
        found: dict[str, float] = json.loads(self.process.stdout.readline())
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        return found


def until(ready: Any, seconds: float = 30.0) -> float:
    """Wait for something; how many seconds it took."""
    begin = time.monotonic()
    while not ready():
        if time.monotonic() - begin > seconds:
            raise SystemExit(f"soak: not within {seconds} s")
        time.sleep(0.001)
    return time.monotonic() - begin


def show(title: str, rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    cells = [names, *([str(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    print(title)
    for line in cells:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  " + "  ".join(padded).rstrip())


def verdict(wrong: list[str]) -> int:
    for line in wrong:
        print(f"wrong: {line}")
    print("soak: failed" if wrong else "soak: passed")
    return 1 if wrong else 0
