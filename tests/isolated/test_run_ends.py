"""How ``python -m fastsock run`` ends: exit status and traceback, and what cannot be run."""

from __future__ import annotations

import signal

import pytest
from programs import (
    RUN,
    Ended,
    Programs,
    as_script_and_module,
    both,
    check_alike,
    check_no_frame_of_ours,
    end,
    wait_until_asleep,
)

ENDS = {
    "exit 3": "import sys; sys.exit(3)",
    "exit None": "import sys; sys.exit()",
    "exit text": "raise SystemExit('text')",
    "exit object": "raise SystemExit(['a', 1])",
    "exit large": "raise SystemExit(256 + 7)",
    "exit in function": "def f(): exit(5)\nf()",
    "exit in thread": "import sys, threading; threading.Thread(target=sys.exit, args=(3,)).start()",
    "os._exit": "import os; os._exit(6)",
    "exception": "def inner():\n    1 / 0\ndef outer():\n    inner()\nouter()\n",
    "chained": """
        def f():
            try:
                {}['x']
            except KeyError as error:
                try:
                    raise ValueError('1') from error
                except ValueError:
                    raise RuntimeError('2')
        f()
    """,
    "library": "import json\njson.loads('{')\n",
    "keyboard": "def f():\n    raise KeyboardInterrupt\nf()\n",
    "base": "class Odd(BaseException): pass\nraise Odd('x')\n",
    "generator exit": "raise GeneratorExit",
    "recursion": "import sys\nsys.setrecursionlimit(60)\ndef f(): f()\nf()\n",
    "excepthook": """
        import sys
        def hook(kind, error, trace):
            print(kind, error, error.__traceback__ is trace)
            while trace.tb_next is not None:
                trace = trace.tb_next
            print(trace.tb_frame.f_code.co_filename)
        sys.excepthook = hook
        1 / 0
    """,
    "excepthook raises": "import sys\ndef hook(*x): raise OSError\nsys.excepthook = hook\n1 / 0",
    "last": """
        import atexit, sys
        @atexit.register
        def show():
            print(sys.last_type, sys.last_value, sys.last_traceback is not None)
        1 / 0
    """,
    "syntax": "x = 1\nx = = 2\n",
    "indentation": "def f():\nreturn 1\n",
    "syntax in import": "import wrong\n",
    "import": "import there_is_no_such_module\n",
    "exception in thread": "import threading\ndef f(): 1/0\nthreading.Thread(target=f).start()\n",
    "exception in atexit": "import atexit\ndef f(): 1/0\natexit.register(f)\n",
    "signal": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "interrupt": "import signal\ndef f():\n    signal.raise_signal(signal.SIGINT)\nf()\n",
    "exit after interrupt": """
        import signal
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemExit(4)
    """,
}


@as_script_and_module
@pytest.mark.parametrize("name", ENDS)
def test_ends(programs: Programs, name: str, target: list[str]) -> None:
    programs.write("app.py", ENDS[name])
    programs.write("wrong.py", "def f(:\n")
    found = check_alike(programs, *target)
    check_no_frame_of_ours(found)


@pytest.mark.parametrize("source", [b"x = '\xff'\n", b"x = 'a\0b'\n", b"# coding: nope\nx = 1\n"])
def test_unreadable_source(programs: Programs, source: bytes) -> None:
    programs.write("app.py", source)
    expected, found = both(programs, "app.py")
    assert (found.status, found.out) == (expected.status, expected.out) == (1, "")
    assert "Error" in found.err
    check_no_frame_of_ours(found)


@pytest.mark.parametrize("error", ["1 / 0", "import there_is_no_such_module", "x = = 1"])
@pytest.mark.parametrize("target", ["package", "package.module"])
def test_package_that_fails(programs: Programs, target: str, error: str) -> None:
    programs.write("package/__init__.py", f"{error}\n")
    programs.write("package/__main__.py")
    programs.write("package/module.py")
    found = check_alike(programs, "-m", target)
    assert found.status == 1
    check_no_frame_of_ours(found)


def test_module_that_its_package_imports(programs: Programs) -> None:
    """Runs twice, of which runpy warns."""
    programs.write("package/__init__.py", "from . import module\n")
    programs.write("package/module.py", "print(__name__)\n")
    found = programs.run(*RUN, "-m", "package.module")
    assert found.out.splitlines() == ["package.module", "__main__"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing.py"],
        ["folder/nothing.py"],
        ["app.py/nothing"],
        ["app.py/"],
        ["empty"],
    ],
    ids=" ".join,
)
def test_path_that_is_none(programs: Programs, arguments: list[str]) -> None:
    programs.write("app.py", "print('ran')\n")
    (programs.folder / "empty").mkdir()
    found = check_alike(programs, *arguments)
    assert found.status == (1 if arguments == ["empty"] else 2)
    check_one_line(found)


@pytest.mark.parametrize(
    "module",
    [
        "nothing",
        "nothing.at.all",
        "package",
        "package.nothing",
        "package.nothing.more",
        "app.nothing",
        "app.py",
        "sys",
        "a b",
        "",
        ".app",
        "..",
        "package.",
    ],
)
def test_module_that_is_none(programs: Programs, module: str) -> None:
    programs.write("app.py")
    programs.write("package/__init__.py")
    found = programs.run(*RUN, "-m", module, "argument")
    assert found.status == 2
    check_one_line(found)
    assert module.partition(".")[0] in found.err


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--nothing"], ["-x", "app.py"]], ids=" ".join)
def test_wrong_arguments(programs: Programs, arguments: list[str]) -> None:
    programs.write("app.py", "print('ran')\n")
    found = programs.run(*RUN, *arguments)
    assert found.status == 2
    check_one_line(found)
    assert "usage" in found.err


def check_one_line(found: Ended) -> None:
    assert found.out == ""
    assert found.err.count("\n") == 1, found.err
    assert found.err.endswith("\n")


@as_script_and_module
def test_interrupted_by_a_signal(programs: Programs, target: list[str]) -> None:
    """Ctrl-C in a server without a handler for it: the shell sees a death by SIGINT."""
    programs.write(
        "app.py",
        """
        import socketserver
        with socketserver.TCPServer(('127.0.0.1', 0), None) as server:
            print('ready', flush=True)
            server.serve_forever()
        """,
    )
    process = programs.start(*RUN, *target)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    wait_until_asleep(process)
    process.send_signal(signal.SIGINT)
    found = end(process)
    assert found.status == -signal.SIGINT
    lines = found.err.splitlines()
    assert lines[0].startswith("Traceback")
    assert str(programs.folder / "app.py") in lines[1]
    assert lines[-1] == "KeyboardInterrupt"
    assert "runpy" not in found.err
