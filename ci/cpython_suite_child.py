"""The half of `cpython_suite` that runs in a process of its own: a module's tests, recorded.

    python ci/cpython_suite_child.py SPEC

SPEC is JSON: module, implementation (empty: the standard library), ids (of the tests; empty: those
that MODULES has), timeout, results (the file to write).
"""

from __future__ import annotations

import faulthandler
import fnmatch
import importlib
import json
import os
import sys
import tempfile
import types
import unittest
from typing import Any

# The modules, and which of their tests: all (None), or those that use socketserver. Found by
# recording, on 3.10 to 3.15, in which tests a server is made; the rest of test_logging and of
# test_ssl (test.ssl_servers has a single user there) does without.
MODULES: dict[str, list[str] | None] = {
    "test_socketserver": None,
    "test_httpservers": None,
    "test_xmlrpc": None,
    "test_docxmlrpc": None,
    "test_wsgiref": None,
    "test_logging": [
        "SocketHandlerTest.*",
        "UnixSocketHandlerTest.*",
        "DatagramHandlerTest.*",
        "UnixDatagramHandlerTest.*",
        "SysLogHandlerTest.*",
        "UnixSysLogHandlerTest.*",
        "IPv6SysLogHandlerTest.*",
        "HTTPHandlerTest.*",
        "ConfigDictTest.test_listen_*",
    ],
    "test_ssl": ["ThreadedTests.test_socketserver"],
}

# fastsock with handlers that are greenlets: not only the servers with a ThreadingMixIn, which are
# few in these tests, but each that derives from TCPServer, UDPServer or the Unix ones.
MULTIPLEX = "fastsock.multiplexing"

EXCLUDED = {
    "test.test_socketserver.MiscTestCase.test_all": (
        "it collects the names whose __module__ is the string 'socketserver'; "
        "in another module there are none"
    ),
}

EXCLUDED_MULTIPLEX = {
    "test.test_socketserver.MiscTestCase.test_threads_reaped": "it counts server._threads",
}


def excluded(implementation: str) -> dict[str, str]:
    """Which tests are not for it, and why."""
    return EXCLUDED | EXCLUDED_MULTIPLEX if implementation == MULTIPLEX else EXCLUDED


# 'network' is what test_socketserver asks for, 'walltime' the slower half of test_xmlrpc. None of
# the selected tests needs a host outside (`refuse_outside` sees to it). 3.14 calls .get() on it.
RESOURCES = {"network": None, "walltime": None}

# The worst first: a test with failing and passing subtests has failed.
OUTCOMES = [
    "timed out",
    "crashed",
    "error",
    "failed",
    "unexpected success",
    "skipped",
    "expected failure",
    "passed",
]


class Recorder(unittest.TestResult):
    """Write what happens to each test to a file, line by line, so that a crash loses nothing."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.pid = os.getpid()
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self.passed_subtests = 0

    def emit(self, **record: Any) -> None:
        if os.getpid() == self.pid:  # not in a fork that got lost
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()

    def outcome(self, test: Any, outcome: str, detail: str = "") -> None:
        test = getattr(test, "test_case", test)  # of a subtest
        self.emit(id=test.id(), outcome=outcome, detail=detail[-6000:])

    def left_behind(self, where: str) -> None:
        """regrtest's 'environment altered': a test left threads or processes running."""
        from test import support

        if support.environment_altered:
            support.environment_altered = False
            reasons = getattr(support, "environment_altered_reasons", [])
            detail = "; ".join(reasons) or "threads or child processes left running"
            reasons.clear()
            self.emit(id=f"{where} (left behind)", outcome="failed", detail=detail)

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self.passed_subtests = 0
        self.emit(start=test.id())

    def stopTest(self, test: Any) -> None:
        super().stopTest(test)
        if self.passed_subtests:
            self.emit(id=test.id(), subtests=self.passed_subtests)
        self.left_behind(test.id())

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is None:
            self.passed_subtests += 1
        else:
            failed = issubclass(err[0], test.failureException)
            text = (self.failures if failed else self.errors)[-1][1]
            self.outcome(test, "failed" if failed else "error", f"{subtest}\n{text}")

    def addSuccess(self, test: Any) -> None:
        self.outcome(test, "passed")

    def addFailure(self, test: Any, err: Any) -> None:
        super().addFailure(test, err)
        self.outcome(test, "failed", self.failures[-1][1])

    def addError(self, test: Any, err: Any) -> None:
        super().addError(test, err)
        self.outcome(test, "error", self.errors[-1][1])

    def addSkip(self, test: Any, reason: str) -> None:
        self.outcome(test, "skipped", reason)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self.outcome(test, "expected failure")

    def addUnexpectedSuccess(self, test: Any) -> None:
        self.outcome(test, "unexpected success")


def refuse_outside(event: str, args: tuple[Any, ...]) -> None:
    """An audit hook: no packet leaves this machine."""
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        address = args[1]
        if isinstance(address, tuple) and address:
            host = address[0].decode() if isinstance(address[0], bytes) else str(address[0])
            local = host.startswith("127.") or host in {"", "::1", "::", "0.0.0.0", "localhost"}
            if not local:
                raise RuntimeError(f"cpython_suite: the test contacts {host}, which is outside")


def install(name: str, module: str) -> types.ModuleType:
    """Put the implementation in the place of socketserver, and return what is there then."""
    if name != MULTIPLEX:
        importlib.import_module(name).install()
        return sys.modules[name]
    import fastsock

    fastsock.install()
    sys.modules["socketserver"] = replacement = multiplexed(fastsock, module)
    return replacement


def finishing(base: Any) -> Any:
    """In the place of a plain server: whoever calls its handle_request() may next wait for what
    the handler does, which is then to have been done."""

    class Finishing(base):
        def handle_request(self) -> None:
            super().handle_request()
            tasks = vars(self).get("_fastsock_tasks")
            if tasks is not None and tasks.running:
                tasks.join()

    return Finishing


class Tasks:
    """How many handlers ran as tasks, and how many did not."""

    inside = outside = 0


def multiplexed(package: types.ModuleType, module: str) -> types.ModuleType:
    """The package, with a MultiplexingMixIn in its servers."""
    from fastsock import _hubs, multiplexing

    replacement = types.ModuleType(package.__name__, package.__doc__)
    vars(replacement).update(vars(package))
    mixin = multiplexing.MultiplexingMixIn
    if module == "test_socketserver":  # of one server class after the other: no mix-in for all
        bases = {}
    else:
        names = ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer")
        bases = {name: finishing(getattr(multiplexing, f"Multiplexing{name}")) for name in names}
        # Beside a base that has it already, where it is to come first.
        mixin = type("ThreadingMixIn", (mixin,), {"__module__": package.__name__})
    vars(replacement).update(bases, ThreadingMixIn=mixin)
    for name in ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer"):
        ready_made = getattr(multiplexing, f"Multiplexing{name}")
        setattr(replacement, f"Threading{name}", ready_made)

    init = package.BaseRequestHandler.__init__

    def counted(self: Any, *args: Any) -> None:
        if _hubs.here() is not None:
            Tasks.inside += 1
        else:
            Tasks.outside += 1
        init(self, *args)

    package.BaseRequestHandler.__init__ = counted
    return replacement


def check_replaced(name: str, replacement: types.ModuleType) -> None:
    """Raise unless `replacement` is what everybody gets who imports socketserver."""
    import http.server
    import socketserver

    if name == MULTIPLEX:
        name = "fastsock"
    for what, holds in {
        f"sys.modules['socketserver'] is {name}": sys.modules["socketserver"] is replacement,
        f"its __name__ is {name!r}": socketserver.__name__ == name,
        f"http.server.HTTPServer derives from {name}.TCPServer": issubclass(
            http.server.HTTPServer, replacement.TCPServer
        ),
    }.items():
        if not holds:
            raise RuntimeError(f"not so: {what}")


SITECUSTOMIZE = """\
import os, {name}
{name}.install()
with open(os.path.join(os.path.dirname(__file__), 'started'), 'a') as f:
    f.write('x')
"""


def replace_in_subprocesses(name: str) -> str:
    """Let Python processes that a test starts (`python -m http.server` in 3.15) install it too."""
    folder = tempfile.mkdtemp(prefix="site")
    with open(os.path.join(folder, "sitecustomize.py"), "w") as f:
        f.write(SITECUSTOMIZE.format(name=name))
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, inherited] if inherited else [folder])
    return os.path.join(folder, "started")


def flatten(suite: Any) -> list[Any]:
    if not isinstance(suite, unittest.TestSuite):
        return [suite]
    return [test for part in suite for test in flatten(part)]


def select(tests: list[Any], module: str, ids: list[str]) -> list[Any]:
    """Those named by `ids` (a test, class or module), else those that MODULES has."""
    patterns = MODULES[module]
    if ids:
        return [t for t in tests if any(t.id() == i or t.id().startswith(i + ".") for i in ids)]
    if patterns is None or any("unittest.loader." in t.id() for t in tests):
        return tests  # in the second case they are 'the module failed' or 'was skipped'
    full = [f"test.{module}.{pattern}" for pattern in patterns]
    for pattern in full:
        if not any(fnmatch.fnmatchcase(t.id(), pattern) for t in tests):
            raise RuntimeError(f"no test is called {pattern}: see MODULES here")
    return [t for t in tests if any(fnmatch.fnmatchcase(t.id(), pattern) for pattern in full)]


def main(spec: dict[str, Any]) -> None:
    name, module = spec["implementation"], spec["module"]
    faulthandler.dump_traceback_later(spec["timeout"] * 0.9)  # where it hangs, into the log
    sys.addaudithook(refuse_outside)
    recorder = Recorder(spec["results"])
    started = ""
    if name:
        if "socketserver" in sys.modules:
            raise RuntimeError("socketserver was imported before it could be replaced")
        replacement = install(name, module)
        check_replaced(name, replacement)
        started = replace_in_subprocesses(name.partition(".")[0])
    from test import support
    from test.support import script_helper

    support.verbose = 0
    support.use_resources = RESOURCES
    # Otherwise subprocesses are started with -E, and don't look at PYTHONPATH.
    setattr(script_helper, "__cached_interp_requires_environment", True)
    tests = flatten(unittest.defaultTestLoader.loadTestsFromName(f"test.{module}"))
    tests = select(tests, module, spec["ids"])
    if name:
        for test in tests:
            if test.id() in excluded(name):
                recorder.emit(excluded=test.id())
        tests = [test for test in tests if test.id() not in excluded(name)]
    unittest.TestSuite(tests).run(recorder)
    recorder.left_behind(f"test.{module}")
    if name:
        check_replaced(name, replacement)  # still
    size = os.path.getsize(started) if started and os.path.exists(started) else 0
    faulthandler.cancel_dump_traceback_later()
    recorder.emit(end=True, subprocesses=size, tasks=[Tasks.inside, Tasks.outside])


if __name__ == "__main__":
    here = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [p for p in sys.path if os.path.realpath(p) != here]
    main(json.loads(sys.argv[1]))
