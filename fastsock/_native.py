"""Loads the extension modules, which lie in one shared object.

As files of their own they would be a dozen mappings of the process each, and fork() copies those:
a request of a forking server would cost a fifth more. Each is a module as any other, with its own
``PyInit_`` function (PEP 489, "multiple modules in one library"), found in the file of ``_core``.
"""

from __future__ import annotations

import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder

#: what is in that file, each before those that use it
MODULES = (
    "_turn",
    "_genuine",
    "_channel",
    "_stream",
    "_reader",
    "_writer",
    "_accept",
    "_worker",
    "_control",
    "_leader",
    "_core",
)
_PACKAGE = __name__.rpartition(".")[0]


class _Finder:
    """Of ``sys.meta_path``, while the modules are imported."""

    def __init__(self, file: str) -> None:
        self.file = file

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, module = name.rpartition(".")
        if package != _PACKAGE or module not in MODULES:
            return None
        spec = ModuleSpec(name, ExtensionFileLoader(name, self.file), origin=self.file)
        spec.has_location = True
        return spec


def load() -> None:
    """Import all of them.

    Raises:
        ImportError: the package was not built for this interpreter.
    """
    core = f"{_PACKAGE}._core"
    found = PathFinder.find_spec(core, sys.modules[_PACKAGE].__path__)
    if found is None or found.origin is None:
        raise ImportError(
            f"{core} is not built for this interpreter ({sys.version.split()[0]}): install "
            "fastsock with its pip, and do not import it from the source tree",
            name=core,
        )
    finder = _Finder(found.origin)
    sys.meta_path.insert(0, finder)
    try:
        for module in MODULES:
            __import__(f"{_PACKAGE}.{module}")
    finally:
        sys.meta_path.remove(finder)


load()
