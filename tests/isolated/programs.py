"""Python programs in processes of their own, with the fastsock under test."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from support import TIMEOUT, wait_until


@dataclass(frozen=True)
class Ended:
    """What a program did; status is negative after a signal, as in subprocess."""

    status: int
    out: str
    err: str


class Programs:
    """Writes programs into a folder and runs them there."""

    version = sys.version_info[:2]

    def __init__(self, folder: Path, package_parent: Path | None) -> None:
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if name[:6] != "PYTHON"},
            "PYTHONDONTWRITEBYTECODE": "1",  # or a second run would find what the first has left
            "PYTHONFAULTHANDLER": "1",
            "NO_COLOR": "1",
        }
        if package_parent is not None:
            self.environment["PYTHONPATH"] = str(package_parent)
        self.processes: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(textwrap.dedent(text).encode() if isinstance(text, str) else text)
        return path

    def start(self, *args: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start `python args...`; whatever is left of it ends with the test."""
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=cwd or self.folder,
            env=self.environment,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def script(self, text: str, *args: str | Path) -> subprocess.Popen[str]:
        """Start a program given as text."""
        return self.start("-c", textwrap.dedent(text), *args)

    def run(self, *args: str | Path, stdin: str = "", cwd: Path | None = None) -> Ended:
        return end(self.start(*args, cwd=cwd), stdin)

    def run_script(self, text: str, *args: str | Path, stdin: str = "") -> Ended:
        return end(self.script(text, *args), stdin)

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with process:
                pass


def end(process: subprocess.Popen[str], stdin: str = "") -> Ended:
    """Wait for the end of a program."""
    try:
        out, err = process.communicate(stdin, TIMEOUT)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler shows where it hangs
        out, err = process.communicate(timeout=TIMEOUT)
        raise AssertionError(f"still running after {TIMEOUT} s:\n{out}\n{err}") from None
    return Ended(process.returncode, out, err)


def wait_until_asleep(process: subprocess.Popen[str]) -> None:
    """Wait until the only thread of a process waits in the kernel."""

    def asleep() -> bool:
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state != "Z", end(process)
        return state == "S"

    wait_until(asleep)


# --- python -m fastsock run

RUN = ("-m", "fastsock", "run")
NOT_COMPARED = re.compile(r"\b0x[0-9a-f]+|(?<=\[Previous line repeated )\d+")
HEADING_OF_NOTHING = re.compile(r'Traceback .*:\n(?=  File "[^"\n]*", line \d+\n)')
FRAMES_OF_RUNPY = re.compile(
    r'  File "[^"\n]*\brunpy(?:\.py)?>?", line .*\n(?:    .*\n)*'
    r'(?:  File "<frozen importlib[^"\n]*", line .*\n)*'
)

as_script_and_module = pytest.mark.parametrize("target", [["app.py"], ["-m", "app"]], ids=" ".join)


def both(
    programs: Programs, *args: str, stdin: str = "", flags: tuple[str, ...] = ()
) -> tuple[Ended, Ended]:
    """What `python args...` and `python -m fastsock run args...` do."""
    python = programs.start(*flags, *args)
    ours = programs.start(*flags, *RUN, *args)
    expected, found = end(python, stdin), end(ours, stdin)
    # What python shows of its own machinery before the program's first frame, we do not.
    shown = FRAMES_OF_RUNPY.sub("", expected.err)
    if shown != expected.err:
        shown = HEADING_OF_NOTHING.sub("", shown)
    return comparable(expected, shown), comparable(found, found.err)


def comparable(ended: Ended, err: str) -> Ended:
    return replace(ended, err=NOT_COMPARED.sub("", err))


def check_alike(
    programs: Programs, *args: str, stdin: str = "", flags: tuple[str, ...] = ()
) -> Ended:
    expected, found = both(programs, *args, stdin=stdin, flags=flags)
    assert found == expected, f"\npython: {expected}\n  ours: {found}"
    return found


def check_no_frame_of_ours(found: Ended) -> None:
    frames = [line for line in found.err.splitlines() if line.startswith('  File "')]
    assert not [line for line in frames if re.search(r"/fastsock/_|\brunpy|<frozen ", line)]
