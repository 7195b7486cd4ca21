"""Which tests are for multiplexing servers, too: those of a ThreadingMixIn flavour."""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
THREADING = "Threading"  # what the names of those classes begin with
DATA = (str, bytes, tuple, list, dict, set, frozenset)


def without_needless(items: list[Any], implementation: str) -> list[Any]:
    """The items, less those of `implementation` in which no threading server is made."""
    groups: dict[Any, list[Any]] = defaultdict(list)  # the parametrizations of one test
    for item in items:
        if parameters(item).get("ss") == implementation:
            groups[item.parent, getattr(item, "originalname", item.name)].append(item)
    needless = {
        id(item) for group in groups.values() for item in group if not is_wanted(item, group)
    }
    return [item for item in items if id(item) not in needless]


def parameters(item: Any) -> dict[str, Any]:
    found: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return found


def is_wanted(item: Any, group: list[Any]) -> bool:
    """Where parameters choose the class they decide, else what the test's code names."""
    deciding = {
        name
        for other in group
        for name, value in parameters(other).items()
        if name != "ss" and THREADING in repr(value)
    }
    if deciding:
        return any(THREADING in repr(parameters(item)[name]) for name in deciding)
    return names_threading(item)


def names_threading(item: Any) -> bool:
    """Does the test name such a class: itself, in a fixture, or in what they call?"""
    definitions = item._fixtureinfo.name2fixturedefs
    fixtures = [found[-1].func for found in definitions.values()]
    return any(THREADING in text for text in texts([item.function, *fixtures]))


def texts(roots: Iterable[Any]) -> Iterator[str]:
    """Names and constants in the code of functions and classes, and of ours that they use."""
    waiting, seen = list(roots), set()
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, DATA):
            yield repr(found)
        elif isinstance(found, type):
            waiting += [value for value in vars(found).values() if is_ours(value)]
        elif isinstance(code := getattr(found, "__code__", None), types.CodeType):
            for part in codes(code):
                yield from part.co_names
                yield from map(repr, part.co_consts)
                known = [found.__globals__.get(name) for name in part.co_names]
                waiting += [value for value in known if is_ours(value)]


def codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from codes(constant)


def is_ours(value: Any) -> bool:
    """Is it data, or something of a test module? Not of support and conftest, which serve all."""
    if isinstance(value, DATA):
        return True
    code = getattr(value, "__code__", None)
    if isinstance(code, types.CodeType):
        where = Path(code.co_filename)
        return where.is_relative_to(TESTS) and where.name not in ("support.py", "conftest.py")
    return isinstance(value, type) and value.__module__ not in ("builtins", "support", "conftest")
