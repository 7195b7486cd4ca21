"""What the tests in processes of their own share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Programs

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def package_parent(request: pytest.FixtureRequest) -> Path | None:
    """The folder of the fastsock under test, where it is not the installed one."""
    given = request.config.getoption("fastsock_dir")
    if given is not None:
        folder = Path(given).resolve()
        return folder.parent if (folder / "__init__.py").exists() else folder
    return ROOT if request.config.getoption("allow_source_tree") else None


@pytest.fixture
def programs(package_parent: Path | None, tmp_path: Path) -> Iterator[Programs]:
    """Programs that import the fastsock under test, in an empty folder."""
    programs = Programs(tmp_path, package_parent)
    yield programs
    programs.close()
