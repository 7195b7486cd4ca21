"""Handlers in threads and in greenlets; programs as in tests/isolated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from crews import CASTS, Cast, Crew, module_of
from talks import Served

TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(TESTS / "isolated"))

from programs import Programs  # noqa: E402


@pytest.fixture(params=["threading", "multiplexing"])
def each(request: pytest.FixtureRequest) -> str:
    """What a handler is: a thread, a greenlet."""
    return str(request.param)


@pytest.fixture
def module(each: str, fastsock_dir: str | None) -> Any:
    return module_of(each, fastsock_dir)


@pytest.fixture
def make_crew(
    fastsock_dir: str | None, time_limit: None, nothing_left_over: None
) -> Iterator[Callable[..., Crew]]:
    """make_crew(kind, **attributes of the server)"""
    crews = []

    def make(kind: str, **attributes: Any) -> Crew:
        crews.append(Crew(kind, fastsock_dir, **attributes))
        return crews[-1]

    yield make
    for crew in crews:
        crew.close()


@pytest.fixture
def crew(each: str, make_crew: Callable[..., Crew]) -> Crew:
    """Either kind."""
    return make_crew(each)


@pytest.fixture
def tasks(make_crew: Callable[..., Crew]) -> Crew:
    """Greenlets, which are unwound when the loop ends."""
    return make_crew("multiplexing", daemon_threads=True)


@pytest.fixture(params=list(CASTS))
def cast(
    request: pytest.FixtureRequest,
    fastsock_dir: str | None,
    time_limit: None,
    nothing_left_over: None,
) -> Iterator[Cast]:
    """Who shares a primitive."""
    cast = Cast(CASTS[request.param], fastsock_dir)
    yield cast
    cast.close()


@pytest.fixture
def programs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Programs]:
    """Programs that import the fastsock under test, in an empty folder."""
    given = request.config.getoption("fastsock_dir")
    parent = None
    if given is not None:
        folder = Path(given).resolve()
        parent = folder.parent if (folder / "__init__.py").exists() else folder
    elif request.config.getoption("allow_source_tree"):
        parent = TESTS.parent
    programs = Programs(tmp_path, parent)
    yield programs
    programs.close()


@pytest.fixture
def serve(
    ss: ModuleType, time_limit: None, nothing_left_over: None
) -> Iterator[Callable[..., Served]]:
    """serve(handle, transport, base, handler attributes, **attributes of the server)

    The server is a threading one of each implementation: `Threading...Server`.
    """
    made = []

    def serve(handle: Callable[[Any], Any], *args: Any, **attributes: Any) -> Served:
        made.append(Served(ss, handle, *args, **attributes))
        return made[-1]

    yield serve
    for served in made:
        served.close()
