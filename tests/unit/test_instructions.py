"""ci/instructions: what figures belong to, the comparison, and what is kept."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import fastsock

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "instructions_count.py"
KEPT = {"tcp": 20000, "udp": 10000}
VERSIONS = {"Cython": "3.1.0"}


def load_script() -> ModuleType:
    found = importlib.util.spec_from_file_location("instructions_count", SCRIPT)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # its NamedTuples look for it there
    found.loader.exec_module(module)
    return module


count = load_script()


@pytest.mark.parametrize(
    ("macros", "name"),
    [
        ({"__GNUC__": 12, "__GNUC_MINOR__": 2, "__GNUC_PATCHLEVEL__": 0}, "gcc 12.2.0"),
        (
            {
                "__GNUC__": 4,
                "__GNUC_MINOR__": 2,
                "__GNUC_PATCHLEVEL__": 1,
                "__clang_major__": 14,
                "__clang_minor__": 0,
                "__clang_patchlevel__": 6,
            },
            "clang 14.0.6",
        ),
        ({"__TINYC__": 927}, "unknown compiler"),
        ({}, "unknown compiler"),
    ],
)
def test_compiler(macros: dict[str, int], name: str) -> None:
    text = "".join(f"#define {macro} {value}\n" for macro, value in macros.items())
    assert count.compiler_name("#define __linux__ 1\n" + text) == name


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("'--prefix=/usr'", "GCC 12.2.0, plain"),
        ("'--enable-optimizations'", "GCC 12.2.0, PGO"),
        ("'--with-lto' '--enable-optimizations'", "GCC 12.2.0, PGO, LTO"),
    ],
)
def test_build(arguments: str, name: str) -> None:
    assert count.build_name("GCC 12.2.0", arguments) == name
    assert count.build_name("GCC 12.2.0 20220930", arguments) == name


def test_key() -> None:
    key = count.make_key("3.11.7", "GCC 12.2.0, plain", "gcc 12.2.0", "x86_64")
    assert key == "Python 3.11.7 (GCC 12.2.0, plain), gcc 12.2.0, x86_64"


@pytest.mark.parametrize(
    ("now", "found"),
    [
        ({"tcp": 20000, "udp": 10000}, []),
        ({"tcp": 21000, "udp": 9500}, []),  # exactly 5 %
        ({"tcp": 21001, "udp": 10000}, ["tcp"]),
        ({"tcp": 20000, "udp": 9499}, ["udp"]),  # quicker has to be explained as well
        ({"tcp": 30000, "udp": 1}, ["tcp", "udp"]),
        ({"udp": 10000}, []),  # counted alone
        ({"tcp": 20000, "udp": 10000, "read": 500}, []),  # not kept yet
    ],
)
def test_outside(now: dict[str, int], found: list[str]) -> None:
    assert count.outside(KEPT, now) == found


def test_nothing_kept_nothing_wrong() -> None:
    assert count.outside({}, KEPT) == []


def test_table() -> None:
    head, tcp, read = count.table(KEPT, {"tcp": 21500, "read": 538}, {"tcp": 42345})
    assert head.split() == ["kept", "now", "change", "socketserver"]
    assert tcp.split()[:5] == ["tcp", "20000", "21500", "+7.5%", "42345"]
    assert read.split()[:4] == ["read", "-", "538", "-"]
    assert "socketserver" not in next(iter(count.table(KEPT, KEPT, {})))


def test_per_request() -> None:
    """Start and end are in both runs."""
    start, each = 150_000_000, 17530
    runs = (start + n * each for n in (1000, 3000))
    assert count.per_request(*runs, 1000) == each


def test_collected() -> None:
    assert count.collected("==1== Events    : Ir\n==1== Collected : 188953431\n") == 188953431
    with pytest.raises(count.CountFailed, match="the client has failed"):
        count.collected("the client has failed")


def test_update_of_one() -> None:
    """Another entry is left alone; a workload that was not counted keeps its figure."""
    entries = {"a": count.Entry(dict(KEPT), {}), "b": count.Entry(dict(KEPT), {})}
    after = count.updated(entries, "b", {"udp": 9000, "read": 500}, VERSIONS)
    assert after["a"] == entries["a"] == count.Entry(KEPT, {})
    assert after["b"] == count.Entry({"tcp": 20000, "udp": 9000, "read": 500}, VERSIONS)
    assert entries["b"].instructions == KEPT


def test_update_of_a_new_one() -> None:
    after = count.updated({}, "a", KEPT, VERSIONS)
    assert after == {"a": count.Entry(KEPT, VERSIONS)}


def test_update_forgets_workloads_that_are_gone() -> None:
    entries = {"a": count.Entry({"gone": 1, "tcp": 2}, {})}
    assert count.updated(entries, "a", {"tcp": 3}, {})["a"].instructions == {"tcp": 3}


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "instructions.json"
    assert count.load(file) == {}
    entries = {
        f"Python 3.{minor} (x)": count.Entry({"tcp": minor}, VERSIONS) for minor in (13, 9, 10)
    }
    count.save(file, entries)
    assert count.load(file) == entries
    assert list(count.load(file)) == ["Python 3.9 (x)", "Python 3.10 (x)", "Python 3.13 (x)"]
    before = file.read_text()
    count.save(file, count.load(file))
    assert file.read_text() == before


def test_kept_file() -> None:
    """Every entry in the tree has all workloads and is within reason."""
    entries = count.load(count.KEPT)
    assert entries
    for key, entry in entries.items():
        assert list(entry.instructions) == list(count.WORKLOADS), key
        assert all(100 < figure < 1_000_000 for figure in entry.instructions.values()), key


def test_whole_blocks() -> None:
    """The workload refuses anything else, and is asked for nothing else."""
    found = importlib.util.spec_from_file_location("instructions_workload", count.WORKLOAD)
    assert found is not None and found.loader is not None
    workload = importlib.util.module_from_spec(found)
    found.loader.exec_module(workload)
    assert list(workload.BLOCKS) == list(count.WORKLOADS)
    for name, block in workload.BLOCKS.items():
        assert count.WORKLOADS[name].requests % block == 0


@pytest.mark.parametrize("implementation", ["socketserver", "fastsock"])
@pytest.mark.parametrize("name", list(count.WORKLOADS))
def test_workload(name: str, implementation: str) -> None:
    """Runs to its end, and the client too, without valgrind."""
    number = {"read": 512, "write": 128}.get(name, 100)
    command = [sys.executable, "-s", str(count.WORKLOAD), implementation, name, str(number)]
    environment = {**os.environ, "PYTHONPATH": str(Path(fastsock.__file__).parents[1])}
    done = subprocess.run(
        command, cwd="/", env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [["no-such"], ["--implementation", "no-such"]])
def test_arguments(arguments: list[str]) -> None:
    command = [sys.executable, str(SCRIPT), "--check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no-such" in done.stderr
