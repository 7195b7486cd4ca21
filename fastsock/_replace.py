"""fastsock in the place of ``socketserver``, for a whole process."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

_NAME = "socketserver"
_NOTHING = object()

#: what sys.modules held before install(): a module, or nothing
_replaced: ModuleType | object | None = None


def install() -> None:
    """Make ``import socketserver`` mean fastsock from now on, in this process.

    Call it before anything imports ``socketserver``, ``http.server``, ``xmlrpc.server``,
    ``wsgiref.simple_server`` or ``logging.config``. Modules that already hold the standard
    library's classes keep them; a RuntimeWarning names them. A second call does nothing.
    """
    global _replaced
    package = sys.modules[__package__]
    if sys.modules.get(_NAME) is package:
        return
    standard = sys.modules.get(_NAME)
    keepers = _keepers(standard) if standard is not None else []
    if keepers:
        warnings.warn(
            "fastsock.install() came too late for "
            + ", ".join(keepers)
            + ": imported earlier, keeps the standard library's socketserver",
            RuntimeWarning,
            stacklevel=2,
        )
    _replaced = _NOTHING if standard is None else standard
    sys.modules[_NAME] = package


def uninstall() -> None:
    """Undo ``install()``: later imports of ``socketserver`` get the standard library's again.

    Modules that imported fastsock under that name keep it. Does nothing if not installed.
    """
    global _replaced
    if sys.modules.get(_NAME) is not sys.modules[__package__]:
        return
    if isinstance(_replaced, ModuleType):
        sys.modules[_NAME] = _replaced
    else:
        del sys.modules[_NAME]
    _replaced = None


def _keepers(standard: ModuleType) -> list[str]:
    """The modules that hold the standard module, one of its classes or a subclass of one."""
    names = []
    for name, module in list(sys.modules.items()):
        if module is standard or not isinstance(module, ModuleType):
            continue
        if any(value is standard or _derives(value) for value in list(vars(module).values())):
            names.append(name)
    return sorted(names)


def _derives(value: object) -> bool:
    if not issubclass(type(value), type):
        return False
    try:
        return any(base.__module__ == _NAME for base in type.mro(value))  # type: ignore[arg-type]
    except Exception:  # a metaclass that computes __module__
        return False
