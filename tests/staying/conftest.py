"""Servers of every kind, in a thread; programs as in tests/isolated."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from living import FLAVOURS, Living

TESTS = Path(__file__).resolve().parent.parent
sys.path.append(str(TESTS / "isolated"))

from programs import Programs  # noqa: E402


@pytest.fixture(params=list(FLAVOURS))
def flavour(request: pytest.FixtureRequest) -> str:
    """How requests are handled: one after another, in threads, processes, greenlets."""
    if request.param == "multiplexing":
        pytest.importorskip("greenlet")
    return str(request.param)


@pytest.fixture
def live(
    fastsock_dir: str | None, folder: str, time_limit: None, nothing_left_over: None
) -> Iterator[Callable[..., Living]]:
    """live(flavour, handle, **attributes of the server): a server that runs."""
    living = []

    def live(*args: Any, **attributes: Any) -> Living:
        living.append(Living(fastsock_dir, folder, *args, **attributes))
        return living[-1]

    yield live
    while living:
        living.pop().close()


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
