"""``python -m fastsock run [--multiplex] [-m] target ...``: python, with socketserver replaced."""

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

_USAGE = "usage: python -m fastsock run [--multiplex] [-m] target [args ...]"


class _CannotRunError(Exception):
    """Why there is nothing to run; its second argument is the exit status."""


def main(arguments: list[str]) -> int | str | None:
    """Run the program in this process as ``__main__``; return the exit status.

    A file or module that doesn't exist is one line on standard error and status 2, and so is
    --multiplex without greenlet.
    """
    multiplex = arguments[:1] == ["--multiplex"]
    if multiplex:
        arguments = arguments[1:]
    as_module = arguments[:1] == ["-m"]
    if as_module:
        arguments = arguments[1:]
    elif arguments and arguments[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if not arguments or (not as_module and arguments[0].startswith("-")):
        print(_USAGE, file=sys.stderr)
        return 2
    try:
        _replace.install(multiplex=multiplex)
    except ImportError as error:
        if error.name != "greenlet":
            raise
        print(f"{sys.executable or 'python'}: {error}", file=sys.stderr)
        return 2
    try:
        target = arguments[0]
        code, names = _load_module(target) if as_module else _load_path(target)
    except _CannotRunError as error:
        message, status = error.args
        print(f"{sys.executable or 'python'}: {message}", file=sys.stderr)
        return int(status)
    except BaseException:  # of the program's source, or of the packages that it is in
        _hide_our_frames()
        raise
    sys.argv[:] = [names["__file__"] if as_module else target, *arguments[1:]]
    return _execute(code, names)


def _execute(code: CodeType, names: dict[str, Any]) -> int:
    program = ModuleType("__main__")
    vars(program).update(names, __name__="__main__", __builtins__=builtins)
    if sys.version_info < (3, 15):
        spec = names["__spec__"]
        vars(program)["__cached__"] = spec.cached if spec is not None else None
    # Not restored: threads of the program, and whatever unpickles, look for it until the end.
    sys.modules["__main__"] = program
    try:
        exec(code, vars(program))
    except SystemExit:
        raise
    except BaseException:
        _hide_our_frames()
        raise
    return 0


def _hide_our_frames() -> None:
    """Have the exception that ends the process shown as python shows it: without our frames."""
    program_hook = sys.excepthook

    def show(kind: Any, error: Any, trace: Any) -> None:
        while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        sys.last_traceback = trace
        try:
            program_hook(kind, error.with_traceback(trace), trace)
        except SystemExit:
            raise
        except BaseException as another:
            print("Error in sys.excepthook:", file=sys.stderr)
            inner = another.__traceback__
            assert inner is not None
            sys.__excepthook__(type(another), another.with_traceback(inner.tb_next), inner.tb_next)
            print("\nOriginal exception was:", file=sys.stderr)
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = show


def _is_ours(file: str) -> bool:
    return (
        os.path.dirname(file) == os.path.dirname(__file__)
        or file.startswith("<frozen ")
        or os.path.basename(file) == "runpy.py"
        or os.path.dirname(file) == os.path.dirname(importlib.util.__file__)
    )


def _load_path(path: str) -> tuple[CodeType, dict[str, Any]]:
    """A script, a compiled script, or a directory or zip file with a __main__ in it."""
    path = os.path.join(os.getcwd(), path) if path != "." else os.getcwd()
    finder = pkgutil.get_importer(path)
    if (finder is not None and not os.path.isfile(path)) or _is_archive(finder):
        spec = finder.find_spec("__main__", None) if finder is not None else None
        if spec is None or spec.loader is None:
            raise _CannotRunError(f"can't find '__main__' module in {path!r}", 1)
        if _safe_path():
            sys.path.insert(0, path)
        else:
            sys.path[0] = path
        code = spec.loader.get_code("__main__")  # type: ignore[attr-defined]
        return code, {**_names_of(spec), "__package__": ""}
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise _CannotRunError(
            f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}",
            2,
        ) from None
    compiled = pkgutil.read_code(io.BytesIO(source))
    code = compiled or compile(source, path, "exec", dont_inherit=True)
    if not _safe_path():
        sys.path[0] = os.path.dirname(os.path.realpath(path))
    loader = (
        importlib.machinery.SourcelessFileLoader
        if compiled
        else importlib.machinery.SourceFileLoader
    )("__main__", path)
    return code, {
        "__file__": path,
        "__loader__": loader,
        "__package__": None,
        "__spec__": None,
        "__doc__": None,
    }


def _is_archive(finder: object) -> bool:
    return finder is not None and type(finder).__name__ == "zipimporter"


def _safe_path() -> bool:
    return getattr(sys.flags, "safe_path", bool(sys.flags.isolated))


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
    if name.startswith("."):
        raise _CannotRunError("Relative module names not supported", 2)
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
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__spec__": spec,
        "__doc__": None,
    }
