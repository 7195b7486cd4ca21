"""fastsock in the place of ``socketserver``, for a whole process."""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

_NAME = "socketserver"
_NOTHING = object()
_MULTIPLEXED = f"{__package__}._multiplexed"

#: what sys.modules held before install(): a module, or nothing
_replaced: ModuleType | object | None = None


def install(*, multiplex: bool = False) -> None:
    """Make ``import socketserver`` mean fastsock from now on, in this process.

    Call it before anything imports ``socketserver``, ``http.server``, ``xmlrpc.server``,
    ``wsgiref.simple_server`` or ``logging.config``. Modules that already hold the standard
    library's classes keep them; a RuntimeWarning names them. A second call does nothing, but for
    one with multiplex after one without, which holds for modules that are imported later.

    Args:
        multiplex: ``ThreadingMixIn``, and the ready-made servers with it, handle their requests in
            greenlets of the thread of ``serve_forever()``, as ``MultiplexingMixIn`` does. Handlers
            that wait for each other by means of ``threading`` or ``queue`` deadlock then; the
            logger ``fastsock`` tells where they wait. ``import fastsock`` is not affected.

    Raises:
        ImportError: multiplex, and greenlet is not installed. Nothing has changed then.
    """
    global _replaced
    current = sys.modules.get(_NAME)
    plain = sys.modules[__package__]
    module = _multiplexed() if multiplex else plain
    if current is module or (_is_ours(current) and not multiplex):
        return
    ours = _is_ours(current)
    keepers = [] if current is None else _keepers_of_threads(plain) if ours else _keepers(current)
    if keepers:
        warnings.warn(
            f"fastsock.install({'multiplex=True' if multiplex else ''}) came too late for "
            + ", ".join(keepers)
            + ": imported earlier, keeps "
            + ("its threads" if ours else "the standard library's socketserver"),
            RuntimeWarning,
            stacklevel=2,
        )
    if not ours:
        _replaced = _NOTHING if current is None else current
    sys.modules[_NAME] = module


def uninstall() -> None:
    """Undo ``install()``: later imports of ``socketserver`` get the standard library's again.

    Modules that imported fastsock under that name keep it. Does nothing if not installed.
    """
    global _replaced
    if not _is_ours(sys.modules.get(_NAME)):
        return
    if isinstance(_replaced, ModuleType):
        sys.modules[_NAME] = _replaced
    else:
        del sys.modules[_NAME]
    _replaced = None


def _is_ours(module: ModuleType | None) -> bool:
    return module is not None and (
        module is sys.modules[__package__] or module is sys.modules.get(_MULTIPLEXED)
    )


def _multiplexed() -> ModuleType:
    from fastsock import _hubs

    _hubs.check()
    from fastsock import _multiplexed

    return _multiplexed


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
    try:
        return any(base.__module__ == _NAME for base in _lineage(value))
    except Exception:  # a metaclass that computes __module__
        return False


def _lineage(value: object) -> list[type]:
    """A class and what it derives from; nothing, if it is no class."""
    if not issubclass(type(value), type):
        return []
    try:
        return type.mro(value)  # type: ignore[arg-type]
    except Exception:  # a metaclass with an order of its own
        return []


def _keepers_of_threads(plain: ModuleType) -> list[str]:
    """The modules that hold fastsock as socketserver, or a class whose requests are threads."""
    from fastsock._mixins import ThreadingMixIn
    from fastsock.multiplexing import MultiplexingMixIn

    def keeps(key: str, value: object) -> bool:
        if value is plain:
            return key != __package__
        lineage = _lineage(value)
        return ThreadingMixIn in lineage and MultiplexingMixIn not in lineage

    return sorted(
        name
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType)
        and module is not plain  # which is there as socketserver too
        and name.partition(".")[0] != __package__
        and any(keeps(*item) for item in list(vars(module).items()))
    )
