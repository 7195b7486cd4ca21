"""What the figures depend on: the machine, and the versions."""

from __future__ import annotations

import datetime
import os
import platform
import shutil
import subprocess
from pathlib import Path

import fastsock
from fastsock.bench._results import Machine
from fastsock.bench._scenarios import Peer


def cpu_model() -> str:
    """As the kernel names it (proc(5), cpuinfo); some architectures don't: then the machine's."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return " ".join(value.split())
    return platform.machine()


def compiler() -> str:
    """The C compiler's path; '' if there is none."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or ""


def compiler_version(path: str) -> str:
    """The first line of what it says of itself."""
    if not path:
        return ""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    return (said.stdout.splitlines() or [path])[0].strip()


def describe(peers: list[Peer]) -> Machine:
    """This one."""
    return Machine(
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        fastsock=fastsock.VERSION,
        compiler=compiler_version(compiler()),
        peers={peer.distribution: peer.version for peer in peers if peer.distribution},
        when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
