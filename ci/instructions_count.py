"""Counts the instructions of a request and compares them with the kept ones.

``ci/instructions`` runs it, in an environment in which fastsock is installed. A workload
(``instructions_workload.py``) is run under callgrind with N requests and with 3 N; the difference
divided by 2 N is one request, without start and end. The figures are kept by interpreter and C
compiler, since each pair has its own.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
KEPT = HERE / "instructions.json"
WORKLOAD = HERE / "instructions_workload.py"
TOLERANCE = 0.05
TIME_LIMIT = 300  # seconds for one run under valgrind


class Workload(NamedTuple):
    requests: int  # N: whole blocks of instructions_workload.py
    pairs: int  # how often N and 3 N are run; the figure is the median
    what: str


WORKLOADS = {
    "tcp": Workload(1000, 1, "TCPServer, a connection per request, recv and sendall"),
    "threads": Workload(500, 3, "ThreadingTCPServer, the same, one at a time, 3 ms apart"),
    "udp": Workload(1000, 1, "UDPServer, wfile.write in a DatagramRequestHandler"),
    "read": Workload(5120, 1, "a line of 64 bytes from rfile"),
    "write": Workload(2560, 1, "wfile.write of 64 bytes, unbuffered"),
}

Figures = dict[str, int]


class Entry(NamedTuple):
    """What is kept for an interpreter and a compiler."""

    instructions: Figures
    counted_with: dict[str, str]  # versions of what else has a say


class CountFailed(Exception):
    """A workload did not run to its end."""


# ------------------------------------------------------------------ what figures belong to


def compiler_name(macros: str) -> str:
    """Name and version of a C compiler by the macros that it predefines (``cc -dM -E``)."""
    defined = dict(re.findall(r"^#define (\S+) (.*)$", macros, re.MULTILINE))
    for name, parts in (  # clang defines those of gcc too
        ("clang", ("__clang_major__", "__clang_minor__", "__clang_patchlevel__")),
        ("gcc", ("__GNUC__", "__GNUC_MINOR__", "__GNUC_PATCHLEVEL__")),
    ):
        if all(part in defined for part in parts):
            return f"{name} {'.'.join(defined[part] for part in parts)}"
    return "unknown compiler"


def build_name(compiler: str, arguments: str) -> str:
    """How an interpreter was built: its compiler, and what configure was told of optimisation."""
    optimised = [
        name
        for name, option in (("PGO", "--enable-optimizations"), ("LTO", "--with-lto"))
        if option in arguments
    ]
    return ", ".join([" ".join(compiler.split()[:2]), *(optimised or ["plain"])])


def make_key(version: str, build: str, compiler: str, machine: str) -> str:
    """The name of an entry."""
    return f"Python {version} ({build}), {compiler}, {machine}"


def key_here() -> str:
    """The key of this interpreter and of the compiler that builds extensions for it."""
    command = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    done = subprocess.run(
        [*command, "-dM", "-E", "-x", "c", "/dev/null"], capture_output=True, text=True
    )
    return make_key(
        platform.python_version(),
        build_name(platform.python_compiler(), sysconfig.get_config_var("CONFIG_ARGS") or ""),
        compiler_name(done.stdout),
        platform.machine(),
    )


def versions_here() -> dict[str, str]:
    """Versions that are not worth a key of their own, but may explain a change."""
    asked = subprocess.run(
        [sys.executable, "-c", "import sys, fastsock; print(*sys.modules)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    cython = re.search(r"\b_cython_(\d+(?:_\w+)*)", asked.stdout)
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True)
    return {
        "Cython": cython[1].replace("_", ".") if cython else "unknown",
        "C library": " ".join(platform.libc_ver()),
        "valgrind": valgrind.stdout.strip().removeprefix("valgrind-"),
    }


# ------------------------------------------------------------------ the file


def load(file: Path) -> dict[str, Entry]:
    """All entries; none if there is no file."""
    if not file.exists():
        return {}
    return {
        key: Entry(entry["instructions"], entry["counted with"])
        for key, entry in json.loads(file.read_text()).items()
    }


def save(file: Path, entries: Mapping[str, Entry]) -> None:
    """Write all entries, by version."""

    def order(key: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"\b", key)]

    content = {
        key: {
            "instructions": entries[key].instructions,
            "counted with": entries[key].counted_with,
        }
        for key in sorted(entries, key=order)
    }
    file.write_text(json.dumps(content, indent=2) + "\n")


def updated(
    entries: Mapping[str, Entry], key: str, figures: Mapping[str, int], versions: dict[str, str]
) -> dict[str, Entry]:
    """The entries with these figures under the key; workloads not counted keep theirs."""
    before = entries[key].instructions if key in entries else {}
    merged = {**before, **figures}
    kept = {name: merged[name] for name in WORKLOADS if name in merged}
    return {**entries, key: Entry(kept, versions)}


# ------------------------------------------------------------------ the comparison


def change(kept: int, now: int) -> float:
    """By what part of the kept figure it differs."""
    return (now - kept) / kept


def outside(kept: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """The workloads whose figure differs from the kept one by more than the tolerance."""
    return [
        name
        for name, figure in now.items()
        if name in kept and abs(change(kept[name], figure)) > TOLERANCE
    ]


def table(
    kept: Mapping[str, int], now: Mapping[str, int], beside: Mapping[str, int]
) -> Iterable[str]:
    """Lines: kept, now, change, and the other implementation where it was counted."""
    yield f"{'':9}{'kept':>9}{'now':>9}{'change':>9}" + (f"{'socketserver':>14}" if beside else "")
    for name, figure in now.items():
        line = f"{name:9}{kept.get(name, '-'):>9}{figure:>9}"
        line += f"{change(kept[name], figure):>+9.1%}" if name in kept else f"{'-':>9}"
        if beside:
            line += f"{beside.get(name, '-'):>14}"
        yield f"{line}   {WORKLOADS[name].what}"


# ------------------------------------------------------------------ counting


def per_request(fewer: int, more: int, requests: int) -> float:
    """One request, from the instructions of a run with N requests and of one with 3 N."""
    return (more - fewer) / (2 * requests)


def collected(report: str) -> int:
    """The number of instructions in what callgrind prints."""
    match = re.search(r"Collected : (\d+)", report)
    if match is None:
        raise CountFailed(report)
    return int(match[1])


def count_run(implementation: str, workload: str, requests: int) -> int:
    """The instructions of one run, all its threads together."""
    valgrind = shutil.which("valgrind") or "valgrind"
    command = [valgrind, "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    command += ["--fair-sched=yes"]  # threads take turns in the order in which they came
    command += [sys.executable, "-s", str(WORKLOAD), implementation, workload, str(requests)]
    try:
        done = subprocess.run(
            command,
            cwd="/",
            # nothing else: the environment lies on the stack, and moves it
            env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as error:
        raise CountFailed(f"{workload} takes longer than {TIME_LIMIT} s") from error
    if done.returncode != 0:
        raise CountFailed(done.stderr)
    return collected(done.stderr)


def count(
    implementation: str, names: Iterable[str], pool: concurrent.futures.Executor
) -> dict[str, list[float]]:
    """Instructions per request of each workload, once for each pair of runs."""
    runs = {
        name: [
            [
                pool.submit(count_run, implementation, name, factor * WORKLOADS[name].requests)
                for factor in (1, 3)
            ]
            for _ in range(WORKLOADS[name].pairs)
        ]
        for name in sorted(names, key=lambda name: -WORKLOADS[name].pairs)
    }
    return {
        name: [
            per_request(fewer.result(), more.result(), WORKLOADS[name].requests)
            for fewer, more in runs[name]
        ]
        for name in names
    }


def medians(taken: Mapping[str, list[float]]) -> Figures:
    return {name: round(statistics.median(figures)) for name, figures in taken.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/instructions", description="Instructions per request")
    parser.add_argument("--update", action="store_true", help="keep what is counted")
    parser.add_argument(
        "--implementation",
        choices=("fastsock", "socketserver"),
        default="fastsock",
        help="socketserver: count the standard library too, and print it beside",
    )
    parser.add_argument("-j", "--jobs", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--check", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("workload", nargs="*", help=", ".join(WORKLOADS))
    options = parser.parse_args()
    names = options.workload or list(WORKLOADS)
    for name in names:
        if name not in WORKLOADS:
            parser.error(f"no workload {name!r}; there are {', '.join(WORKLOADS)}")
    if options.check:
        return 0
    key, versions = key_here(), versions_here()
    entries = load(KEPT)
    entry = entries.get(key, Entry({}, {}))
    try:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            taken = count("fastsock", names, pool)
            beside = (
                count("socketserver", names, pool) if options.implementation != "fastsock" else {}
            )
    except CountFailed as error:
        print(f"ci/instructions: {error}", file=sys.stderr)
        return 1
    now = medians(taken)
    print(f"Instructions per request, {key}; {', '.join(map(' '.join, versions.items()))}")
    print("\n".join(table(entry.instructions, now, medians(beside))))
    for name, figures in taken.items():
        if len(figures) > 1:
            print(f"{name}: median of {len(figures)}, {min(figures):.0f} to {max(figures):.0f}")
    if options.update:
        save(KEPT, updated(entries, key, now, versions))
        print(f"Kept in {KEPT.relative_to(HERE.parent)}.")
        return 0
    if not entry.instructions:
        print("Nothing is kept for this interpreter and compiler: `ci/instructions --update` does.")
        return 0
    for name, version in versions.items():
        if entry.counted_with.get(name) != version:
            print(f"The kept figures were counted with {name} {entry.counted_with.get(name)}.")
    wrong = outside(entry.instructions, now)
    if wrong:
        print(
            f"FAILED: {', '.join(wrong)} differ by more than {TOLERANCE:.0%} from what is kept. "
            "If that is meant, run\n`ci/instructions --update`, commit ci/instructions.json with "
            "the change, and explain it in that commit."
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
