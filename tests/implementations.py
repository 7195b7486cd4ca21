"""Which socketserver is tested. Without pytest: programs in processes of their own begin here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SPECS: dict[str, str] = {}  # module name -> what load_implementation was asked for


def load_implementation(spec: str, fastsock_dir: str | None = None) -> ModuleType:
    """'stdlib', 'fastsock' or the path of a .py file that stands in for socketserver."""
    if spec == "stdlib":
        module = importlib.import_module("socketserver")
    elif spec == "fastsock":
        if fastsock_dir is not None:
            folder = Path(fastsock_dir).resolve()
            parent = str(folder.parent if (folder / "__init__.py").exists() else folder)
            if parent not in sys.path:
                sys.path.insert(0, parent)
        module = importlib.import_module("fastsock")
    elif spec == "multiplex":
        package = load_implementation("fastsock", fastsock_dir)
        multiplexing = importlib.import_module("fastsock.multiplexing")
        module = ModuleType("socketserver_multiplex")
        vars(module).update({k: v for k, v in vars(package).items() if k != "__name__"})
        for name in ("MixIn", "TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"):
            setattr(module, f"Threading{name}", getattr(multiplexing, f"Multiplexing{name}"))
    else:
        path = Path(spec).resolve()
        name = f"socketserver_{path.stem}"
        if name in sys.modules:
            return sys.modules[name]
        found = importlib.util.spec_from_file_location(name, path)
        assert found is not None and found.loader is not None, spec
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        found.loader.exec_module(module)
        spec = str(path)
    SPECS[module.__name__] = spec
    return module


def is_fastsock(ss: ModuleType) -> bool:
    return SPECS[ss.__name__] in ("fastsock", "multiplex")


def multiplexes(ss: ModuleType) -> bool:
    """Are its Threading servers multiplexing ones?"""
    return SPECS[ss.__name__] == "multiplex"
