"""Options, the implementation under test, and what must hold after every test."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import implementations
import pytest
import selection
import support

ROOT = Path(__file__).resolve().parent.parent
MULTIPLEX = ROOT / "tests" / "multiplex"
NO_GREENLET = "greenlet is not installed"
DEFAULT_IMPLEMENTATIONS = "stdlib,fastsock,multiplex"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastsock")
    group.addoption(
        "--impl",
        default=DEFAULT_IMPLEMENTATIONS,
        help="comma-separated implementations: stdlib, fastsock, multiplex (fastsock, Multiplexing "
        "for Threading; only tests that have such a server), or a copy of socketserver.py",
    )
    group.addoption(
        "--fastsock-dir", help="import fastsock from this package folder (a mutated copy)"
    )
    group.addoption(
        "--allow-source-tree",
        action="store_true",
        help="allow fastsock to be imported from the source tree (in-place builds)",
    )
    group.addoption("--test-limit", type=float, default=30.0, help="seconds that a test may take")


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts pytest in the background has it ignore SIGINT, and so would every program
    # that a test starts: Python then leaves the signal as it is.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup(1) has it ignore
    for line in (
        "fastsock_only(reason): a deliberate difference from the standard library",
        "stdlib_since(major, minor): not in the standard library of an older Python",
        "once(reason): does not depend on the Python; ci/matrix runs it on one of them",
        "about_threads(reason): not so where each handler is a greenlet",
    ):
        config.addinivalue_line("markers", line)
    config.addinivalue_line("filterwarnings", "ignore:.*use of fork:DeprecationWarning")
    if not config.getoption("allow_source_tree"):
        sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]
    config.stash[IMPLEMENTATIONS] = load_implementations(config)


IMPLEMENTATIONS = pytest.StashKey[dict[str, ModuleType]]()


def load_implementations(config: pytest.Config) -> dict[str, ModuleType]:
    loaded = {}
    for spec in config.getoption("impl").split(","):
        try:
            module = implementations.load_implementation(spec, config.getoption("fastsock_dir"))
        except (ImportError, OSError) as error:
            raise pytest.UsageError(f"--impl {spec}: {error}") from error
        if spec == "fastsock" and not config.getoption("allow_source_tree"):
            where = Path(module.__file__ or "").resolve()
            if where.is_relative_to(ROOT / "fastsock"):
                raise pytest.UsageError(
                    f"fastsock comes from the source tree ({where}); "
                    "install it, or say --allow-source-tree"
                )
        loaded[spec if "/" not in spec else Path(spec).stem] = module
    return loaded


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ss" in metafunc.fixturenames:
        names = list(metafunc.config.stash[IMPLEMENTATIONS])
        metafunc.parametrize("ss", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = selection.without_needless(items, "multiplex")
    if elsewhere := os.environ.get("FASTSOCK_ONCE_ON"):  # of ci/matrix
        for item in items:
            for mark in item.iter_markers("once"):
                why = f"{' '.join(mark.args)}: once is enough, on Python {elsewhere}"
                item.add_marker(pytest.mark.skip(reason=why))


def has_greenlet() -> bool:
    return importlib.util.find_spec("greenlet") is not None


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Where greenlet can't be had, tests/multiplex is left out, and the summary says so."""
    return True if collection_path.parent == MULTIPLEX and not has_greenlet() else None


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not has_greenlet():
        terminalreporter.write_line(f"NO MULTIPLEXING TESTED: {NO_GREENLET}", red=True)


@pytest.fixture
def ss(request: pytest.FixtureRequest) -> ModuleType:
    """The implementation of socketserver under test."""
    module = request.config.stash[IMPLEMENTATIONS][request.param]
    if not support.is_fastsock(module):
        for mark in request.node.iter_markers("fastsock_only"):
            reason = mark.kwargs.get("reason") or " ".join(mark.args) or "see the test"
            pytest.skip(f"deliberate difference: {reason}")
        for mark in request.node.iter_markers("stdlib_since"):
            support.requires(module, mark.args, request.node.name)
    if support.multiplexes(module):
        if not has_greenlet():
            pytest.skip(NO_GREENLET)
        for mark in request.node.iter_markers("about_threads"):
            pytest.skip(f"about threads: {' '.join(mark.args)}")
    return module


@pytest.fixture
def fastsock_dir(request: pytest.FixtureRequest) -> str | None:
    return request.config.getoption("fastsock_dir")


# --- building blocks of the tests


@pytest.fixture
def folder() -> Iterator[str]:
    """A directory whose name is short enough for Unix sockets."""
    path = tempfile.mkdtemp(prefix="fs")
    yield path
    shutil.rmtree(path)


@pytest.fixture
def trace() -> Iterator[support.Trace]:
    trace = support.Trace()
    yield trace
    trace.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client's and a server's end of a connection."""
    client, request = socket.socketpair()
    for sock in (client, request):
        sock.settimeout(support.TIMEOUT)
    with client, request:
        yield client, request


@pytest.fixture
def make(
    ss: ModuleType, folder: str, trace: support.Trace, time_limit: None
) -> Iterator[Callable[..., Any]]:
    """make(server class, handler, **class attributes): a server, closed before the trace is."""
    servers = []

    def make(base: Any, handler: Any = None, address: Any = None, **attributes: Any) -> Any:
        server_class = support.new("Server", base, **attributes) if attributes else base
        if address is None:
            address = support.fresh_address(server_class, folder)
        server = server_class(address, handler or ss.BaseRequestHandler)
        servers.append(server)
        return server

    yield make
    while servers:
        servers.pop().server_close()


@pytest.fixture
def script(ss: ModuleType, fastsock_dir: str | None) -> Iterator[Callable[..., Any]]:
    """script(text, *args): a Python process in which `ss` is the implementation under test."""
    processes = []

    def start(text: str, *args: str) -> Any:
        processes.append(support.run_script(ss, fastsock_dir, text, *args))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        with process:
            pass


# --- what holds after every test


def open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@pytest.fixture(autouse=True)
def nothing_left_over() -> Iterator[None]:
    """No descriptor, thread or child process outlives its test."""
    descriptors, threads = open_descriptors(), set(threading.enumerate())

    def left_over() -> list[Any]:
        found: list[Any] = [thread for thread in threading.enumerate() if thread not in threads]
        found += [item for item in open_descriptors().items() if item[0] not in descriptors]
        return found + (["a child process"] if has_children() else [])

    yield
    if left_over():
        gc.collect()
        try:
            support.wait_until(lambda: not left_over(), 2)
        except TimeoutError:
            pytest.fail(f"left over: {left_over()}")


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """End a test that hangs: by an exception if the main thread still runs Python, else hard."""
    limit = request.config.getoption("test_limit")

    def on_alarm(signum: int, frame: Any) -> None:
        pytest.fail(f"the test took longer than {limit} s")  # no OSError: those get caught

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, limit)
    faulthandler.dump_traceback_later(2 * limit, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Any:
    """A child which the code under test let escape must not go on running tests."""
    pid = os.getpid()
    try:
        return (yield)
    finally:
        if os.getpid() != pid:
            os._exit(support.ESCAPED)
