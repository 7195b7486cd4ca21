"""Imports in fastsock/ go downward only, and never out of the standard library.

The table is the layering. Compiled or not, a module is looked at as source; what stands under
``if TYPE_CHECKING`` and in stubs does not count, since nothing is imported there at run time.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "fastsock"

# From the bottom to the top: module -> modules of fastsock that it may import.
NATIVE: dict[str, set[str]] = {
    "_sys": set(),
    "_clock": {"_sys"},
    "_turn": set(),
    "_genuine": set(),
    "_hooks": set(),
    "_log": set(),
    "_ledger": {"_sys", "_clock"},
    "_deadlines": {"_clock"},
    "_waiter": {"_sys", "_clock", "_ledger", "_deadlines"},
    "_limits": {"_sys", "_hooks", "_ledger"},
    "_visitors": {"_sys", "_clock", "_ledger", "_waiter"},
    "_channel": {"_sys", "_clock", "_ledger", "_turn", "_waiter", "_visitors"},
    "_methods": {"_deadlines", "_sys", "_clock", "_ledger", "_visitors", "_waiter", "_channel"},
    "_ending": {"_sys", "_channel", "_ledger", "_waiter"},
    "_post": {"_sys", "_channel", "_ledger", "_waiter"},
    "_stream": {"_waiter", "_channel"},
    "_reader": {"_sys", "_waiter", "_channel", "_stream"},
    "_writer": {"_clock", "_channel", "_ledger", "_stream"},
    "_direct": {"_channel"},
    "_timers": {"_clock"},
    "_tasks": {"_sys", "_clock", "_timers", "_waiter"},
    "_main_greenlet": {"_sys", "_clock", "_tasks"},
    "_descriptors": {"_sys", "_clock", "_visitors", "_waiter", "_tasks", "_main_greenlet"},
    "_hub": {"_sys", "_clock", "_ledger", "_waiter", "_channel", "_tasks", "_descriptors"},
    "_sync": {"_clock", "_tasks", "_main_greenlet"},
    "_accept": {"_sys", "_genuine", "_waiter", "_channel"},
    "_worker": {"_turn", "_genuine"},
    "_inbox": {"_sys", "_waiter", "_accept"},
    "_datagram": {"_sys", "_turn", "_genuine", "_waiter", "_accept", "_inbox"},
    "_control": {"_sys", "_clock", "_datagram", "_hooks", "_inbox", "_ledger", "_limits", "_log"},
    "_dispatch": {
        "_sys",
        "_accept",
        "_channel",
        "_clock",
        "_control",
        "_datagram",
        "_deadlines",
        "_hooks",
        "_inbox",
        "_ledger",
        "_limits",
        "_worker",
    },
    "_leader": {
        "_sys",
        "_limits",
        "_clock",
        "_turn",
        "_accept",
        "_worker",
        "_control",
        "_dispatch",
        "_hooks",
        "_inbox",
        "_datagram",
    },
    "_core": {
        "_sys",
        "_limits",
        "_clock",
        "_waiter",
        "_accept",
        "_worker",
        "_control",
        "_dispatch",
        "_leader",
        "_hooks",
        "_datagram",
        "_hub",
    },
}
# The benchmark, which uses the package as anybody does. Its scenarios and peers are programs.
BENCH: dict[str, set[str]] = {
    "bench.__init__": set(),
    "bench._results": set(),
    "bench._calls": {"_sys"},
    "bench._histogram": set(),
    "bench._response": {"bench._calls"},
    "bench._load_base": {"_sys", "_clock", "bench._calls", "bench._histogram"},
    "bench._load_streams": {
        "_sys",
        "_clock",
        "bench._calls",
        "bench._histogram",
        "bench._load_base",
        "bench._response",
    },
    "bench._load_datagrams": {
        "_sys",
        "_clock",
        "bench._calls",
        "bench._histogram",
        "bench._load_base",
    },
    "bench._load": {
        "bench._histogram",
        "bench._load_base",
        "bench._load_streams",
        "bench._load_datagrams",
    },
    "bench._scenarios": {"bench._results"},
    "bench._serve": {"__init__"},
    "bench._client": {"bench._load"},
    "bench._machine": {"__init__", "bench._results", "bench._scenarios"},
    "bench._measure": {"bench._machine", "bench._results", "bench._scenarios"},
    "bench._report": {"bench._results"},
    "bench._progress": {"bench._report"},
    "bench._chart": {"bench._results", "bench._report"},
    "bench._compare": {"bench._results", "bench._report"},
    "bench._cli": {
        "bench._results",
        "bench._scenarios",
        "bench._measure",
        "bench._report",
        "bench._progress",
        "bench._chart",
        "bench._compare",
    },
    **{
        f"bench.{path.parent.name}.{path.stem}": set()
        for folder in ("peers", "scenarios")
        for path in sorted((SOURCE / "bench" / folder).glob("*.py"))
    },
}
LAYERS: dict[str, set[str]] = {
    **NATIVE,
    "_types": set(),
    "_plain": {"_types"},
    "_bounded": {"_reader", "_types"},
    "_calls": {"_channel", "_methods", "_types", "_visitors"},
    "_connection": {"_accept", "_calls", "_channel", "_methods", "_post", "_visitors", "_types"},
    "_threads": {"_genuine", "_plain", "_types", "_worker"},
    "_children": set(),
    "_datagram_socket": {"_connection", "_datagram", "_types"},
    "_names": {"_types"},
    "_handlers": {
        "_bounded",
        "_names",
        "_methods",
        "_direct",
        "_types",
        "_reader",
        "_writer",
        "_connection",
        "_datagram",
        "_datagram_socket",
    },
    "_stats": {"_control", "_datagram_socket", "_ledger", "_types", "_worker"},
    "_broadcast": {"_control", "_ledger", "_post", "_stats", "_types"},
    "_drain": {"_control", "_ending", "_types"},
    "_linger": {"_visitors", "_ending", "_plain", "_types"},
    "_serving": {"_control", "_types"},
    "_servers": {
        "_names",
        "_serving",
        "_broadcast",
        "_stats",
        "_drain",
        "_linger",
        "_log",
        "_hooks",
        "_core",
        "_control",
        "_dispatch",
        "_accept",
        "_channel",
        "_plain",
        "_types",
        "_connection",
        "_datagram_socket",
        "_handlers",
    },
    "metrics": {"_servers", "_serving", "_stats", "_types"},
    "_mixins": {
        "_control",
        "_dispatch",
        "_datagram_socket",
        "_drain",
        "_names",
        "_worker",
        "_plain",
        "_threads",
        "_children",
        "_types",
        "_handlers",
        "_servers",
    },
    "_hubs": {"_visitors", "_hub", "_log", "_tasks", "_sync", "_types"},
    "_offload": {"_hub", "_hubs", "_sync", "_types"},
    "_tls": {"_accept", "_descriptors", "_hub", "_hubs", "_sync", "_types", "_visitors"},
    "_guests": {"_accept", "_calls", "_connection", "_hubs", "_tls", "_types", "_visitors"},
    "_cooperative": {
        "_channel",
        "_connection",
        "_hub",
        "_hubs",
        "_offload",
        "_sync",
        "_tasks",
        "_types",
    },
    "multiplexing": {
        "_drain",
        "_mixins",
        "_channel",
        "_connection",
        "_dispatch",
        "_cooperative",
        "_guests",
        "_hub",
        "_hubs",
        "_offload",
        "_servers",
        "_sync",
        "_tasks",
        "_tls",
        "_types",
    },
    "_multiplexed": {"_hubs", "_mixins", "_servers", "_types", "multiplexing"},
    "_replace": {"_hubs", "_mixins", "_multiplexed", "multiplexing"},
    "_running": {"_drain", "_servers", "_serving", "_types"},
    "_run": {"_replace"},
    "_native": set(),  # whose imports are a list of names
    "__init__": {
        "_native",
        "_deadlines",
        "_reader",
        "_connection",
        "_datagram_socket",
        "_plain",
        "_types",
        "_handlers",
        "_servers",
        "_mixins",
        "_replace",
        "_running",
        "_drain",
        "multiplexing",
    },
    # Programs, which use the package as anybody does, and that nothing but __main__ imports:
    "_demo": {"__init__"},
    **BENCH,
    "__main__": {"__init__", "_run", "_demo", "bench._cli"},
}
# What is imported where the installed package has no dependency on it:
EXTRAS = {
    "_hubs": {"greenlet"},
    "metrics": {"prometheus_client"},
    "_cooperative": {"_typing"},  # of Python 3.12 and later, not yet in the list of 3.10
    "bench._report": {"rich"},
    "bench._progress": {"rich"},
    "bench._compare": {"rich"},
    "bench._chart": {"matplotlib"},
    "bench.peers.asynchronous": {"uvloop"},
    "bench.peers.green": {"gevent"},
}
CYTHON = {"cpython", "cython", "libc", "posix"}  # what Cython itself brings along
SUFFIXES = {".py", ".pyx", ".pxd"}

Import = tuple[str, str]  # a module, and a name imported from it, or ''


# --- what a file imports


def imports_of_python(text: str) -> Iterator[Import]:
    """Also those in functions; not those under TYPE_CHECKING."""
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "fastsock" * bool(node.level) + "." * bool(node.level and node.module)
            yield from ((module + (node.module or ""), alias.name) for alias in node.names)
        elif isinstance(node, ast.If) and is_type_checking(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


DOCSTRING = re.compile(r'"""(?:.|\n)*?"""')
PLAIN = re.compile(r"^[ \t]*c?import[ \t]+([^#\n]+)", re.MULTILINE)
FROM = re.compile(r"^[ \t]*from[ \t]+([\w.]+)[ \t]+c?import[ \t]*(\([^)]*\)|[^#\n]+)", re.MULTILINE)
EXTERN = re.compile(r"^[ \t]*cdef[ \t]+extern[ \t]+from[ \t]+.*", re.MULTILINE)
INCLUDE = re.compile(r"^[ \t]*include[ \t]+\"", re.MULTILINE)


def imports_of_cython(text: str) -> Iterator[Import]:
    """Of import and cimport statements."""
    text = EXTERN.sub("", DOCSTRING.sub("", text)).replace("\\\n", " ")
    assert not INCLUDE.search(text), "textual include: say what is imported instead"
    for names in PLAIN.findall(text):
        yield from ((name.split()[0], "") for name in names.split(","))
    for module, names in FROM.findall(text):
        if module.startswith("."):
            module = f"fastsock{module.rstrip('.') if module.strip('.') else ''}"
        for name in re.sub(r"#[^\n]*", "", names).strip("() \t\n").split(","):
            if name.strip():
                yield module, name.split()[0]


def imports_of(path: Path) -> Iterator[Import]:
    read = imports_of_python if path.suffix == ".py" else imports_of_cython
    yield from read(path.read_text())


def inside(imported: Import, modules: set[str]) -> str | None:
    """The module of fastsock that is imported; None if it is somebody else's."""
    package, _, module = imported[0].partition(".")
    if package != "fastsock":
        return None
    if f"{module}.{imported[1]}" in modules:
        return f"{module}.{imported[1]}"
    if f"{module}.__init__" in modules:
        return f"{module}.__init__"
    if module:
        return module
    return imported[1] if imported[1] in modules else "__init__"


# --- what it may import


def modules_of(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in SUFFIXES:
            found.setdefault(".".join(path.relative_to(folder).with_suffix("").parts), []).append(
                path
            )
    return found


def violations(folder: Path) -> list[str]:
    modules = modules_of(folder)
    known = set(modules) | set(LAYERS)
    found = []
    for module, paths in modules.items():
        if module not in LAYERS:
            found.append(f"{module}: unknown; add it to the table LAYERS in tests/test_layers.py")
            continue
        outside = sys.stdlib_module_names | EXTRAS.get(module, set())
        if any(path.suffix in (".pyx", ".pxd") for path in paths):
            outside |= CYTHON
        for path in paths:
            for imported in imports_of(path):
                name = inside(imported, known)
                if name is None and imported[0].partition(".")[0] not in outside:
                    found.append(f"{path.name}: imports {imported[0]}, not of the standard library")
                elif name is not None and name not in LAYERS[module] | {module}:
                    found.append(f"{path.name}: imports fastsock.{name}, which is not below it")
    return found


def test_imports_go_downward() -> None:
    assert SOURCE.is_dir()
    assert violations(SOURCE) == []


def test_no_module_of_the_table_is_missing() -> None:
    assert sorted(LAYERS) == sorted(modules_of(SOURCE))


def test_the_table_goes_downward() -> None:
    """Each module stands above all that it may import; native ones know native ones only."""
    below: set[str] = set()
    for module, allowed in LAYERS.items():
        assert allowed <= below, module
        below.add(module)
    for module, allowed in NATIVE.items():
        assert allowed <= set(NATIVE), module


# --- the test itself sees what it should


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("_plain.py", "import fastsock\n", "imports fastsock.__init__"),
        ("_plain.py", "def f():\n    from fastsock import _core\n", "imports fastsock._core"),
        ("_plain.py", "from fastsock._core import Loop\n", "imports fastsock._core"),
        ("_plain.py", "from . import _core\n", "imports fastsock._core"),
        ("_plain.py", "from ._core import Loop\n", "imports fastsock._core"),
        ("_plain.py", "import fastsock._core as c\n", "imports fastsock._core"),
        ("_servers.py", "from fastsock import BaseServer\n", "imports fastsock.__init__"),
        ("_run.py", "import gevent.monkey\n", "imports gevent.monkey"),
        ("_types.py", "if TYPE_CHECKING:\n    import a\nelse:\n    import b\n", "imports b"),
        ("_core.pyx", "from fastsock import _plain\n", "imports fastsock._plain"),
        ("_core.pyx", "from fastsock cimport _servers\n", "imports fastsock._servers"),
        ("_core.pyx", "cimport fastsock._servers\n", "imports fastsock._servers"),
        ("_core.pyx", "cdef f():\n    import fastsock._run\n", "imports fastsock._run"),
        ("_core.pyx", "import os, numpy as np\n", "imports numpy"),
        ("_core.pyx", "from fastsock cimport (_sys,\n    _accept, _types)\n", "fastsock._types"),
        ("_core.pyx", "from ._types import Any\n", "imports fastsock._types"),
        ("_accept.pxd", "from fastsock._core cimport Loop\n", "imports fastsock._core"),
        ("_new.py", "", "add it to the table"),
        ("new/module.py", "", "add it to the table"),
    ],
)
def test_a_violation_is_found(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    found = violations(tmp_path)
    assert len(found) == 1
    assert expected in found[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_types.py", "if TYPE_CHECKING:\n    from _typeshed import x\n"),
        ("_types.py", "if typing.TYPE_CHECKING:\n    from fastsock._core import Loop\n"),
        ("_servers.py", "import os.path\nfrom fastsock import _core, _plain\n"),
        ("_servers.py", "from . import _core\nfrom ._plain import wait\n"),
        ("_core.pyx", 'import math\nfrom libc.stdlib cimport free\ncdef extern from "a.h": pass\n'),
        ("_core.pyx", '"""\nimport nothing\nfrom where import it\n"""\n# import this\n'),
        ("_core.pyx", "from fastsock cimport _sys  # the import of gevent\n"),
    ],
)
def test_what_is_allowed(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert violations(tmp_path) == []
