"""``python -m fastsock run [-m] target [args ...]``: like python, with socketserver replaced."""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import io
import os
import pkgutil
import sys
from types import CodeType, ModuleType
from typing import Any

from fastsock import _replace

_USAGE = "usage: python -m fastsock run [-m] target [args ...]"


class _CannotRunError(Exception):
    """Why there is nothing to run; its second argument is the exit status."""


def main(arguments: list[str]) -> int | str | None:
    """Run the program in this process as ``__main__``; return the exit status.

    A file or module that doesn't exist is one line on standard error and status 2.
    """
    as_module = arguments[:1] == ["-m"]
    if as_module:
        arguments = arguments[1:]
    elif arguments and arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if not arguments or (not as_module and arguments[0].startswith("-")):
        print(_USAGE, file=sys.stderr)
        return 2
    _replace.install()
    try:
        target = arguments[0]
        code, names = _load_module(target) if as_module else _load_path(target)
    except _CannotRunError as error:
        message, status = error.args
        print(f"{sys.executable or 'python'}: {message}", file=sys.stderr)
        return int(status)
    except SyntaxError as error:
        sys.excepthook(SyntaxError, error.with_traceback(None), None)
        return 1
    sys.argv[:] = [names["__file__"] if as_module else target, *arguments[1:]]
    return _execute(code, names)


def _execute(code: CodeType, names: dict[str, Any]) -> int:
    program = ModuleType("__main__")
    vars(program).update(names, __name__="__main__", __builtins__=builtins)
    # Not restored: threads of the program, and whatever unpickles, look for it until the end.
    sys.modules["__main__"] = program
    try:
        exec(code, vars(program))
    except Exception as error:
        # As python prints it: from the program's first frame on.
        trace = error.__traceback__
        inner = trace.tb_next if trace is not None else None
        sys.excepthook(type(error), error.with_traceback(inner), inner)
        return 1
    return 0


def _load_path(path: str) -> tuple[CodeType, dict[str, Any]]:
    """A script, a compiled script, or a directory or zip file with a __main__ in it."""
    path = os.path.abspath(path)
    finder = pkgutil.get_importer(path)
    if (finder is not None and not os.path.isfile(path)) or _is_archive(finder):
        spec = finder.find_spec("__main__", None) if finder is not None else None
        if spec is None or spec.loader is None:
            raise _CannotRunError(f"can't find '__main__' module in {path!r}", 1)
        _set_path_entry(path)
        code = spec.loader.get_code("__main__")  # type: ignore[attr-defined]
        return code, {**_names_of(spec), "__package__": ""}
    try:
        with io.open_code(path) as file:
            code = pkgutil.read_code(file)
        if code is None:
            with io.open_code(path) as file:
                code = compile(file.read(), path, "exec", dont_inherit=True)
    except OSError as error:
        raise _CannotRunError(
            f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}",
            2,
        ) from None
    _set_path_entry(os.path.dirname(os.path.realpath(path)))
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    return code, {
        "__file__": path,
        "__cached__": None,
        "__loader__": loader,
        "__package__": None,
        "__spec__": None,
        "__doc__": None,
    }


def _is_archive(finder: object) -> bool:
    return finder is not None and type(finder).__name__ == "zipimporter"


def _set_path_entry(entry: str) -> None:
    """Put a script's directory where ``python -m`` has put the current one."""
    if getattr(sys.flags, "safe_path", False):
        return
    if sys.path:
        sys.path[0] = entry


def _load_module(name: str) -> tuple[CodeType, dict[str, Any]]:
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations is not None:
        package, name = name, f"{name}.__main__"
        spec = _find(name)
        if spec is None:
            raise _CannotRunError(
                f"No module named {name}; {package!r} is a package and cannot be directly executed",
                2,
            )
    if spec is None:
        raise _CannotRunError(f"No module named {name}", 2)
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(name) if get_code is not None else None
    if code is None:
        raise _CannotRunError(f"No code object available for {name}", 2)
    return code, _names_of(spec)


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise _CannotRunError(f"No module named {error.name}", 2) from None
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise _CannotRunError(
            f"Error while finding module specification for {name!r} "
            f"({type(error).__name__}: {error})",
            2,
        ) from None


def _names_of(spec: importlib.machinery.ModuleSpec) -> dict[str, Any]:
    return {
        "__file__": spec.origin,
        "__cached__": spec.cached,
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__spec__": spec,
        "__doc__": None,
    }
