"""hypothesis around the comparison: draw programs, shrink one that shows a difference."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisWarning

from .differences import compare
from .drawing import programs
from .program import Program

SHRINKING = 30.0  # seconds; programs that get stuck take long
DEFAULTS = ("socketserver", "fastsock")


def load(name: str) -> ModuleType:
    """An implementation by its module name, or by the path of a file that stands in for one."""
    if "/" not in name:
        return importlib.import_module("socketserver" if name == "stdlib" else name)
    path = Path(name).resolve()
    unique = f"differential_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:6]}"
    if unique not in sys.modules:
        spec = importlib.util.spec_from_file_location(unique, path)
        assert spec is not None and spec.loader is not None, name
        sys.modules[unique] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[unique]


def check(count: int, start: int, left: str, right: str, shrink: bool = True) -> str:
    """Run `count` programs drawn from the seed `start`; '' or the smallest that differs."""
    modules = load(left), load(right)
    smallest: list[str] = []
    found_at = 0.0

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(programs())
    def holds(program: Program) -> None:
        nonlocal found_at
        if smallest and time.monotonic() > found_at + SHRINKING:
            return
        text = compare(program, *modules)
        if text:
            found_at = found_at or time.monotonic()
            smallest[:] = [text]  # hypothesis runs the smallest one last
            raise AssertionError("the implementations differ")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)  # about long reprs
            holds()
    except AssertionError:
        return smallest[0]
    except Exception as error:
        if not smallest:
            raise
        # hypothesis says that the difference did not come again
        return "\n".join([*smallest, f"hypothesis: {type(error).__name__}"])
    return ""
