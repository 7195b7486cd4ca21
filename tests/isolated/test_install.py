"""``fastsock.install()`` and ``uninstall()``, each in a process of its own."""

from __future__ import annotations

import pytest
from programs import Ended, Programs

DONE = Ended(0, "done\n", "")


def check(programs: Programs, text: str) -> None:
    """The program reaches its last line, in silence, with warnings as errors."""
    programs.write("program.py", text + "\nprint('done')\n")
    assert programs.run("-W", "error", "program.py") == DONE


def test_later_imports_get_fastsock(programs: Programs) -> None:
    check(
        programs,
        """
import fastsock
assert fastsock.install() is None
import socketserver
import socketserver as other
from socketserver import StreamRequestHandler, TCPServer
import http.server, importlib, xmlrpc.server
assert socketserver is other is fastsock is importlib.import_module('socketserver')
assert TCPServer is fastsock.TCPServer
assert StreamRequestHandler is fastsock.StreamRequestHandler
assert issubclass(http.server.HTTPServer, fastsock.TCPServer)
assert issubclass(xmlrpc.server.SimpleXMLRPCRequestHandler, fastsock.StreamRequestHandler)
""",
    )


def test_import_alone_replaces_nothing(programs: Programs) -> None:
    check(
        programs,
        """
import fastsock, sys
assert 'socketserver' not in sys.modules
import socketserver
assert socketserver is not fastsock
assert socketserver.__file__.endswith('socketserver.py')
""",
    )


def test_uninstall_restores_absence(programs: Programs) -> None:
    check(
        programs,
        """
import fastsock, sys
fastsock.install()
assert sys.modules['socketserver'] is fastsock
assert fastsock.uninstall() is None
assert 'socketserver' not in sys.modules
import socketserver
assert socketserver is not fastsock
assert socketserver.TCPServer.__module__ == 'socketserver'
assert not issubclass(socketserver.TCPServer, fastsock.TCPServer)
""",
    )


def test_uninstall_restores_the_very_module(programs: Programs) -> None:
    check(
        programs,
        """
import fastsock, importlib, sys
importlib.import_module('socketserver')  # nobody keeps it
standard = [sys.modules['socketserver']]
fastsock.install()
assert sys.modules['socketserver'] is fastsock
fastsock.uninstall()
assert sys.modules['socketserver'] is standard[0]
assert standard[0].TCPServer.__module__ == 'socketserver'
""",
    )


@pytest.mark.parametrize("before", ["", "__import__('importlib').import_module('socketserver')"])
def test_idempotent(programs: Programs, before: str) -> None:
    """However often it was installed, one uninstall() undoes it, and may be repeated."""
    check(
        programs,
        f"""
import fastsock, sys
{before}
standard = [sys.modules.get('socketserver')]
fastsock.uninstall()
assert [sys.modules.get('socketserver')] == standard
for _ in range(3):
    fastsock.install()
    fastsock.install()
    import http.server
    fastsock.install()
    assert sys.modules['socketserver'] is fastsock
    fastsock.uninstall()
    assert [sys.modules.get('socketserver')] == standard
    fastsock.uninstall()
    assert [sys.modules.get('socketserver')] == standard
""",
    )


def test_modules_keep_what_they_imported(programs: Programs) -> None:
    """After uninstall(), what was imported meanwhile still has fastsock, and works."""
    check(
        programs,
        """
import fastsock, threading, urllib.request
fastsock.install()
import http.server
fastsock.uninstall()
import socketserver
assert http.server.socketserver is fastsock is not socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()
    def log_message(self, *args):
        pass
with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
    assert isinstance(server, fastsock.TCPServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = 'http://127.0.0.1:%d/' % server.server_address[1]
    with urllib.request.urlopen(url, timeout=10) as reply:
        assert reply.status == 204
    server.shutdown()
    thread.join()
""",
    )


def test_somebody_elses_module_stays(programs: Programs) -> None:
    """What another program has put under the name since is not taken away."""
    check(
        programs,
        """
import fastsock, sys, types
fastsock.install()
other = types.ModuleType('socketserver')
sys.modules['socketserver'] = other
fastsock.uninstall()
assert sys.modules['socketserver'] is other
""",
    )


# --- modules that keep the standard library's

KEEPERS = {
    "has_module": "import socketserver",
    "has_alias": "import socketserver as something",
    "has_class": "from socketserver import BaseRequestHandler",
    "has_private": "from socketserver import _SocketWriter",
    "has_subclass": "import socketserver\nclass S(socketserver.TCPServer): pass\ndel socketserver",
    "has_mixture": "import socketserver as s\nclass S(dict, s.ThreadingMixIn): pass\ndel s",
    "has_http": "import http.server",
    "has_http_subclass": "from http.server import HTTPServer\nclass S(HTTPServer): pass",
    "package.module": "from socketserver import *",
}
WARNED = """
    import importlib, sys, warnings
    import fastsock
    import json, innocent  # noqa
    importlib.import_module({name!r})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        fastsock.install()
    for warning in caught:
        print(warning.category.__name__, warning.filename == __file__, warning.lineno)
        print(warning.message)
    assert sys.modules['socketserver'] is fastsock
"""


@pytest.mark.parametrize("name", KEEPERS)
def test_warns_of_modules_that_came_first(programs: Programs, name: str) -> None:
    programs.write("package/__init__.py")
    programs.write(name.replace(".", "/") + ".py", KEEPERS[name])
    programs.write("innocent.py", "import socket, threading\nclass S(threading.Thread): pass\n")
    programs.write("program.py", WARNED.format(name=name))
    found = programs.run("program.py")
    assert (found.status, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0] == "RuntimeWarning True 8"  # the line that called install()
    assert len(lines) == 2
    expected = {"http.server"} if name == "has_http" else {name}
    if name == "has_http_subclass":
        expected.add("http.server")
    listed = lines[1].partition("too late for ")[2].partition(":")[0]
    assert set(listed.split(", ")) == expected


def test_warns_of_the_program_itself(programs: Programs) -> None:
    programs.write(
        "program.py", "import socketserver\nimport fastsock\nfastsock.install()\nprint('done')\n"
    )
    found = programs.run("program.py")
    assert (found.status, found.out) == (0, "done\n")
    assert "program.py:3: RuntimeWarning:" in found.err
    assert "__main__" in found.err


def test_no_warning_when_nobody_keeps_it(programs: Programs) -> None:
    programs.write("gone.py", "import socketserver\nclass S(socketserver.TCPServer): pass\n")
    check(
        programs,
        """
import gone, sys
del sys.modules['gone'], gone
import fastsock
fastsock.install()
import socketserver
assert socketserver is fastsock
""",
    )


def test_warning_as_an_error(programs: Programs) -> None:
    """The exception is the caller's; nothing is half installed."""
    check(
        programs,
        """
import http.server, sys
standard = http.server.socketserver
import fastsock
try:
    fastsock.install()
except RuntimeWarning as warning:
    assert 'http.server' in str(warning)
else:
    raise AssertionError('no warning')
assert sys.modules['socketserver'] is standard
fastsock.uninstall()
assert sys.modules['socketserver'] is standard
""",
    )


def test_a_second_install_does_not_warn_again(programs: Programs) -> None:
    check(
        programs,
        """
import socketserver, warnings, fastsock
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    fastsock.install()
    assert len(caught) == 1
    fastsock.install()
    assert len(caught) == 1
""",
    )


def test_strange_modules_do_no_harm(programs: Programs) -> None:
    """sys.modules may hold anything, and modules any class."""
    check(
        programs,
        """
import importlib, sys, types
importlib.import_module('socketserver')
class Lazy:
    'As settings of Django that have not been configured: touched, it raises.'
    def __getattribute__(self, name):
        raise RuntimeError(name)
    def __eq__(self, other):
        raise RuntimeError
    __hash__ = None
class NoModule:
    pass
NoModule.__module__ = None
sys.modules['strange.none'] = None
sys.modules['strange.object'] = object()
strange = types.ModuleType('strange')
strange.values = [NoModule, Lazy()]
strange.no_module, strange.lazy = NoModule, Lazy()
sys.modules['strange'] = strange
import fastsock
fastsock.install()
import socketserver
assert socketserver is fastsock
""",
    )
