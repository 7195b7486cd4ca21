"""A program type-checks with fastsock as with typeshed's socketserver; and hints at run time."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from programs import Programs

TYPING = Path(__file__).resolve().parent.parent / "typing"
# Of fastsock alone:
OURS = sorted((*TYPING.glob("*multiplexing*.py"), *TYPING.glob("*staying*.py")))
PROGRAMS = sorted({*TYPING.glob("*.py")} - {*OURS})
NAMES = [path.stem for path in PROGRAMS]
RIGHT = {"handlers", "servers"}


@pytest.fixture(scope="module")
def fastsock() -> ModuleType:
    return importlib.import_module("fastsock")


# --- mypy

Report = dict[str, list[str]]  # program -> lines


@pytest.fixture(scope="module")
def checked(
    package_parent: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Report, Report]]:
    """What mypy --strict says of each program, with socketserver and with fastsock."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    programs = Programs(tmp_path_factory.mktemp("typing"), None)
    if package_parent is not None:
        programs.environment["MYPYPATH"] = str(package_parent)
    for path in PROGRAMS:
        text, count = re.subn(
            r"^import socketserver$",
            "import fastsock as socketserver",
            path.read_text(),
            flags=re.M,
        )
        assert count == 1, path
        programs.write(f"std_{path.name}", path.read_bytes())
        text = text.replace("from socketserver import", "from fastsock import")
        programs.write(f"fast_{path.name}", text)
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", "--config-file="]
    files = sorted(file.name for file in programs.folder.glob("*.py"))
    found = programs.run("-m", "mypy", *options, *files)
    programs.close()
    assert (found.status, found.err) == (1, "")  # 1: there are errors, as there should be
    yield report("std", found.out), report("fast", found.out)


def report(prefix: str, text: str) -> Report:
    lines: Report = {name: [] for name in NAMES}
    for line in text.splitlines():
        file, _, message = line.partition(":")
        implementation, _, name = file.removesuffix(".py").partition("_")
        assert implementation in ("std", "fast"), line
        if implementation == prefix:
            lines[name].append(re.sub(r"\bfastsock(\._\w+)?\b", "socketserver", message))
    return lines


@pytest.mark.parametrize("name", NAMES)
def test_checked_alike(checked: tuple[Report, Report], name: str) -> None:
    standard, ours = checked[0][name], checked[1][name]
    assert ours == standard
    assert (standard == []) == (name in RIGHT)


def test_mistakes_are_found(checked: tuple[Report, Report]) -> None:
    """Else nothing would have been compared."""
    errors = [line for line in checked[1]["wrong"] if " error: " in line]
    assert len(errors) >= 60
    revealed = checked[1]["revealed"]
    assert len(revealed) == (TYPING / "revealed.py").read_text().count("reveal_")
    assert sum('"Any"' in line for line in revealed) == 3  # request, client_address, connection


EXPECTED = re.compile(r"# (?:-> (?P<type>.*)|error: (?P<code>[a-z-]+))$")


def test_what_is_ours_alone_is_typed(package_parent: Path | None, tmp_path: Path) -> None:
    """Each line's comment says what mypy --strict says of it; what has none is right."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    programs = Programs(tmp_path, None)
    if package_parent is not None:
        programs.environment["MYPYPATH"] = str(package_parent)
    expected = set()
    for path in OURS:
        programs.write(path.name, path.read_bytes())
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if (match := EXPECTED.search(line)) is not None:
                expected.add((path.name, number, match["type"] or match["code"]))
    assert len(expected) >= 50
    options = ["--strict", "--follow-imports=silent", "--no-error-summary", "--config-file="]
    found = programs.run("-m", "mypy", *options, *(path.name for path in OURS))
    programs.close()
    assert found.err == ""
    told = set()
    for line in found.out.splitlines():
        file, number, kind, message = line.split(":", 3)
        if kind.strip() == "note" and not message.startswith(' Revealed type is "'):
            continue  # of the error before it
        code = re.search(r"\[([a-z-]+)\]$", message)
        plain = re.sub(r"\b(builtins|typing|socket|fastsock(\.\w+)*)\.", "", message)
        told.add((file, int(number), code[1] if code else plain.split('"')[1]))
    assert told == expected


# --- at run time


def members(owner: Any) -> Iterator[tuple[str, Any]]:
    """The functions of a class, those behind properties and decorators too."""
    for name, value in vars(owner).items():
        for part in ("fget", "fset", "__func__"):
            if isinstance(getattr(value, part, None), FunctionType):
                yield name, getattr(value, part)
        if isinstance(value, FunctionType):
            yield name, value


def test_hints_at_run_time(fastsock: ModuleType) -> None:
    """typing.get_type_hints() works on all public classes, their methods, and functions."""
    multiplexing = importlib.import_module(f"{fastsock.__name__}.multiplexing")
    values = [getattr(module, name) for module in (fastsock, multiplexing) for name in dir(module)]
    classes = [value for value in values if isinstance(value, type)]
    functions = [value for value in values if isinstance(value, FunctionType)]
    assert {*fastsock.__all__} <= {each.__name__ for each in (*classes, *functions)}
    seen = 0
    for owner in classes:
        typing.get_type_hints(owner)
        typing.get_type_hints(owner, include_extras=True)
        for name, function in members(owner):
            hints = typing.get_type_hints(function)
            assert "return" in hints or not function.__annotations__, (owner, name)
            seen += bool(hints)
    for function in functions:
        assert "return" in typing.get_type_hints(function), function
    assert seen >= 50


def test_hints_are_those_of_the_documentation(fastsock: ModuleType) -> None:
    hints = typing.get_type_hints(fastsock.ThreadingUnixStreamServer)
    assert hints["timeout"] == (float | None)
    assert hints["daemon_threads"] is bool
    assert hints["request_queue_size"] is int
    hints = typing.get_type_hints(fastsock.BaseServer.serve_forever)
    assert hints == {"poll_interval": float, "return": type(None)}
    hints = typing.get_type_hints(fastsock.BaseRequestHandler)
    assert hints["server"] in (object, fastsock.BaseServer)


def test_hints_of_a_programs_classes(fastsock: ModuleType) -> None:
    """Inherited ones are resolved where they were written, not where they are inherited."""

    class Server(fastsock.ThreadingTCPServer):  # type: ignore[name-defined,misc]
        own: int = 3

    hints = typing.get_type_hints(Server)
    assert hints["own"] is int
    assert hints["request_queue_size"] is int


# --- what is installed


@functools.cache
def folder(package: ModuleType) -> Path:
    return Path(str(package.__file__)).parent


def extensions(package: ModuleType) -> dict[str, Path]:
    """The extension modules, by name, and the file that each was loaded from."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    found = {}
    for name in package._native.MODULES:  # some are loaded by who needs them
        importlib.import_module(f"{package.__name__}.{name}")
    for name, module in list(sys.modules.items()):
        if name.rpartition(".")[0] == package.__name__ and any(
            str(module.__file__).endswith(suffix) for suffix in suffixes
        ):
            found[name.rpartition(".")[2]] = Path(str(module.__file__))
    return found


def test_extensions_share_a_file(fastsock: ModuleType) -> None:
    """Each file would be five mappings of memory, and a forking server copies them."""
    files = set(extensions(fastsock).values())
    assert files == set(folder(fastsock).glob("*.so"))
    assert len(files) == 1
    assert set(extensions(fastsock)) == {*fastsock._native.MODULES}
    assert {*fastsock._native.MODULES} == {path.stem for path in folder(fastsock).glob("*.pyx")}
    for name, path in extensions(fastsock).items():
        module = sys.modules[f"fastsock.{name}"]
        assert getattr(fastsock, name) is module
        assert module.__spec__ is not None
        assert (module.__name__, module.__spec__.origin) == (f"fastsock.{name}", str(path))
        assert module.__package__ == "fastsock"
        found = importlib.util.find_spec(f"fastsock.{name}")
        assert found is not None and found.origin == str(path)
    finders = [getattr(finder, "__module__", None) for finder in sys.meta_path]
    assert finders.count("fastsock._native") == 1


def test_typed_marker_and_stubs_are_installed(fastsock: ModuleType) -> None:
    assert (folder(fastsock) / "py.typed").is_file()
    found = extensions(fastsock)
    assert "_core" in found
    for name, path in found.items():
        assert (path.parent / f"{name}.pyi").is_file(), f"{name} has no stub"
    for stub in folder(fastsock).glob("*.pyi"):
        assert stub.stem in found, f"{stub.name} is a stub of nothing"
    bench = folder(fastsock) / "bench"  # which no server loads
    assert {path.stem for path in bench.glob("*.pyi")} == {
        path.stem for path in bench.glob("*.pyx")
    }


def stubbed(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The names that a stub defines, without what it imports."""
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def test_stubs_say_what_is_there(fastsock: ModuleType) -> None:
    """Every public name in the stub of an extension module, and in its classes, exists."""
    for name, path in extensions(fastsock).items():
        module = importlib.import_module(f"fastsock.{name}")
        stub = stubbed(ast.parse((path.parent / f"{name}.pyi").read_text()).body)
        assert {key for key in stub if not key.startswith("_")} <= set(vars(module)), name
        for key, node in stub.items():
            if isinstance(node, ast.ClassDef) and not key.startswith("_"):
                assert set(stubbed(node.body)) <= set(vars(getattr(module, key))), (name, key)
