"""Finds the extension modules, which lie in one shared object.

As files of their own they would be a dozen mappings of the process each, and fork() copies those:
a request of a forking server would cost a fifth more. Each is a module as any other, with its own
``PyInit_`` function (PEP 489, "multiple modules in one library"), found in the file of ``_core``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec, PathFinder
from types import ModuleType

_PACKAGE = __name__.rpartition(".")[0]

#: what is in that file
MODULES = frozenset(
    {
        "_accept",
        "_channel",
        "_control",
        "_core",
        "_datagram",
        "_deadlines",
        "_descriptors",
        "_direct",
        "_dispatch",
        "_ending",
        "_genuine",
        "_hooks",
        "_hub",
        "_inbox",
        "_leader",
        "_ledger",
        "_limits",
        "_log",
        "_main_greenlet",
        "_methods",
        "_post",
        "_reader",
        "_stream",
        "_sync",
        "_tasks",
        "_timers",
        "_turn",
        "_visitors",
        "_waiter",
        "_worker",
        "_writer",
    }
)


class Finder:
    """Of ``sys.meta_path``. Knows of no folder: it looks where the package is."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The importer protocol's (PEP 451).

        Raises:
            ImportError: the package was not built for this interpreter.
        """
        package, _, module = name.rpartition(".")
        if package != _PACKAGE or module not in MODULES:
            return None
        found = PathFinder.find_spec(f"{_PACKAGE}._core", path)
        if found is None or found.origin is None:
            version = sys.version.split()[0]
            raise ImportError(
                f"{_PACKAGE} is not built for this interpreter ({version}): install it with the "
                "interpreter's own pip, and do not import it from the source tree",
                name=name,
            )
        spec = ModuleSpec(name, ExtensionFileLoader(name, found.origin), origin=found.origin)
        spec.has_location = True
        return spec


# First, since an older build in the source tree may have left a file for each module. It stays: one
# that was taken away again while another thread imports would make that one skip a finder.
if not any(getattr(finder, "__module__", None) == __name__ for finder in sys.meta_path):
    sys.meta_path.insert(0, Finder)
