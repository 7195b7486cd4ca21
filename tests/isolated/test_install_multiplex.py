"""``fastsock.install(multiplex=True)``: ThreadingMixIn in the program means multiplexing."""

from __future__ import annotations

import pytest
from programs import RUN, Ended, Programs

DONE = Ended(0, "done\n", "")
THREADING = [
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "ThreadingUnixDatagramServer",
    "ThreadingUnixStreamServer",
]
NEEDED = "multiplexing needs the package greenlet: pip install 'fastsock[multiplex]'"


def check(programs: Programs, text: str, *how: str) -> None:
    """The program reaches its last line, in silence, with warnings as errors."""
    programs.write("program.py", text + "\nprint('done')\n")
    assert programs.run("-W", "error", *how, "program.py") == DONE


# --- names and classes


def test_names(programs: Programs) -> None:
    """Five are others; all the rest is what it is in fastsock, now and later."""
    check(
        programs,
        f"""
import fastsock
assert fastsock.install(multiplex=True) is None
import importlib, socketserver
assert socketserver is importlib.import_module('socketserver') is not fastsock
others = {THREADING}
for name in others:
    ours, theirs = getattr(socketserver, name), getattr(fastsock, name)
    assert ours is not theirs and ours.__name__ == theirs.__name__ == name
    assert issubclass(ours, fastsock.MultiplexingMixIn) and issubclass(ours, theirs.__base__)
    assert issubclass(ours, fastsock.ThreadingMixIn)
    assert not issubclass(theirs, fastsock.MultiplexingMixIn)
assert set(dir(socketserver)) >= set(dir(fastsock))
for name in {{*dir(fastsock)}} - {{*others}}:
    if not name.startswith('__'):
        assert getattr(socketserver, name) is getattr(fastsock, name), name
def version(module):  # and of what it warns: since Python 3.15 of itself
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        return module.__version__, [str(warning.message) for warning in caught]
import sys, warnings
assert version(socketserver) == version(fastsock)
assert len(version(fastsock)[1]) == (sys.version_info >= (3, 15))
fastsock.TCPServer = new = type('New', (fastsock.TCPServer,), {{}})
assert socketserver.TCPServer is new
assert not hasattr(socketserver, 'nothing') and not hasattr(socketserver, '__path__')
""",
    )


def test_from_import(programs: Programs) -> None:
    check(
        programs,
        """
import fastsock
fastsock.install(multiplex=True)
import socketserver as module
names = {}
exec('from socketserver import *', names)
assert set(module.__all__) == set(fastsock.__all__) == set(names) - {'__builtins__'}
for name in module.__all__:
    assert names[name] is getattr(module, name)
from socketserver import ThreadingMixIn, TCPServer, _SocketWriter, _Threads
assert ThreadingMixIn is module.ThreadingMixIn is not fastsock.ThreadingMixIn
assert TCPServer is fastsock.TCPServer
""",
    )


def test_it_is_a_module_as_any_other(programs: Programs) -> None:
    """It can be found, reloaded, inspected; its classes can be pickled."""
    check(
        programs,
        """
import fastsock
fastsock.install(multiplex=True)
import importlib, inspect, pickle, socketserver, sys
assert socketserver.__spec__.name == socketserver.__name__
assert sys.modules[socketserver.__name__] is socketserver
assert socketserver.__package__ == 'fastsock'
assert 'ThreadingMixIn' in inspect.getsource(socketserver)
assert 'socketserver' in socketserver.__doc__
for name in socketserver.__all__:
    value = getattr(socketserver, name)
    assert pickle.loads(pickle.dumps(value)) is value
    assert value.__doc__ or name == 'UDPServer', name
assert dict(inspect.getmembers(socketserver))['TCPServer'] is fastsock.TCPServer
assert importlib.reload(socketserver) is socketserver
import socketserver as again
assert again is socketserver
""",
    )


def test_the_standard_librarys_servers(programs: Programs) -> None:
    check(
        programs,
        """
import fastsock
fastsock.install(multiplex=True)
import http.server, logging.config, socketserver, wsgiref.simple_server, xmlrpc.server
assert issubclass(http.server.ThreadingHTTPServer, fastsock.MultiplexingMixIn)
assert issubclass(http.server.ThreadingHTTPServer, socketserver.ThreadingMixIn)
assert issubclass(logging.config.ThreadingTCPServer, fastsock.MultiplexingMixIn)
assert not issubclass(xmlrpc.server.SimpleXMLRPCServer, fastsock.MultiplexingMixIn)
class Both(socketserver.ThreadingMixIn, xmlrpc.server.SimpleXMLRPCServer): pass
Both(('127.0.0.1', 0), logRequests=False).server_close()
class Wsgi(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer): pass
with wsgiref.simple_server.make_server('127.0.0.1', 0, None, Wsgi) as server:
    assert isinstance(server, fastsock.MultiplexingMixIn)
""",
    )


# --- where requests run

ONE_THREAD = """
import fastsock
fastsock.install(multiplex=True)
import os, socket, socketserver, sys, tempfile, threading
from concurrent.futures import ThreadPoolExecutor
kind = sys.argv[1]
stream = 'Datagram' not in kind and 'UDP' not in kind
threads = set()
waiting = fastsock.multiplexing.Event()

class Handler(socketserver.StreamRequestHandler if stream else socketserver.DatagramRequestHandler):
    def handle(self):
        threads.add(threading.current_thread())
        line = self.rfile.readline()
        if line == b'first\\n':
            waiting.wait()
        else:
            waiting.set()
        self.wfile.write(line.upper())

folder = tempfile.mkdtemp()
address = folder + '/s' if 'Unix' in kind else ('127.0.0.1', 0)
with getattr(socketserver, kind)(address, Handler) as server:
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    clients = []
    for name in ('first', 'second'):
        client = socket.socket(server.address_family, server.socket_type)
        client.settimeout(20)
        if 'UnixDatagram' in kind:
            client.bind(folder + '/' + name)
        client.connect(server.server_address)
        client.send(name.encode() + b'\\n')
        clients.append(client)
    print([client.recv(100) for client in clients], threads == {loop})
    for client in clients:
        client.close()
    server.shutdown()
    loop.join()
"""


@pytest.mark.parametrize("kind", THREADING[1:])
def test_one_thread(programs: Programs, kind: str) -> None:
    """The first request is served by waiting for the second one, in the thread of the loop."""
    programs.write("program.py", ONE_THREAD)
    found = programs.run("-W", "error", "program.py", kind)
    assert found == Ended(0, "[b'FIRST\\n', b'SECOND\\n'] True\n", "")


HANDLE_REQUEST = """
import fastsock
fastsock.install(multiplex=True)
import select, socket, socketserver, threading
inside, ended, threads = threading.Event(), threading.Event(), []

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        threads.append(threading.current_thread())
        inside.set()
        self.wfile.write(self.rfile.readline().upper())

class Server(socketserver.ThreadingTCPServer):
    def own_loop(self):
        while not ended.is_set():
            if select.select([self.socket.fileno()], [], [], 0.01)[0]:
                self.handle_request()
"""


def test_a_loop_of_the_programs_own(programs: Programs) -> None:
    """As that of logging.config.listen(): no handler depends on the next request."""
    check(
        programs,
        HANDLE_REQUEST
        + """
with Server(('127.0.0.1', 0), Handler) as server:
    loop = threading.Thread(target=server.own_loop)
    loop.start()
    with socket.create_connection(server.server_address, 20) as client:
        assert inside.wait(20)  # only now is there a line
        client.sendall(b'line\\n')
        assert client.recv(100) == b'LINE\\n'
    ended.set()
    loop.join()
assert threads[0] is not loop
""",
    )


def test_both_kinds_of_loop_in_turn(programs: Programs) -> None:
    check(
        programs,
        HANDLE_REQUEST
        + """
with Server(('127.0.0.1', 0), Handler) as server:
    def ask(client):
        client.sendall(b'line\\n')
        assert client.recv(100) == b'LINE\\n'
        client.close()
    for turn in range(3):
        clients = [socket.create_connection(server.server_address, 20)]
        server.handle_request()
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        clients.append(socket.create_connection(server.server_address, 20))
        for client in reversed(clients):
            ask(client)
        server.shutdown()
        loop.join()
        assert threads.pop(0) is not loop
        assert threads.pop(0) is loop
        server.timeout = 0
        server.handle_request()
        server.timeout = None
""",
    )


def test_closing_waits_for_both(programs: Programs) -> None:
    """For the thread of handle_request() and the greenlet of serve_forever()."""
    check(
        programs,
        HANDLE_REQUEST
        + """
class Patient(Handler):
    def finish(self):
        over.append(self.client_address)
        super().finish()
over = []
server = Server(('127.0.0.1', 0), Patient)
one = socket.create_connection(server.server_address, 20)
server.handle_request()
loop = threading.Thread(target=server.serve_forever)
loop.start()
other = socket.create_connection(server.server_address, 20)
while len(threads) < 2:
    inside.wait(20)
server.shutdown()
closing = threading.Thread(target=server.server_close)
closing.start()
for client in (one, other):
    assert closing.is_alive() and len(over) < 2
    client.sendall(b'line\\n')
    assert client.recv(100) == b'LINE\\n'
closing.join()
assert set(over) == {one.getsockname(), other.getsockname()}
loop.join()
one.close()
other.close()
""",
    )


def test_attributes_of_threads(programs: Programs) -> None:
    """Programs set them on the class, read them of a server, and look into _threads."""
    check(
        programs,
        """
import fastsock
fastsock.install(multiplex=True)
import socket, socketserver, threading
unwound = []
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.server.entered.set()
        try:
            self.rfile.read()
        finally:
            unwound.append(threading.current_thread())
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    max_threads = 7
for attributes in ({'daemon_threads': True}, {'daemon_threads': False, 'block_on_close': False}):
    with Server(('127.0.0.1', 0), Handler) as server:
        assert (server.max_threads, server.reuse_threads) == (7, True)
        server.entered = threading.Event()
        vars(server).update(attributes)
        server._threads.join()
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        with socket.create_connection(server.server_address, 20) as client:
            assert server.entered.wait(20)
            server._threads.join()
            server.shutdown()
            loop.join()
            assert client.recv(1) == b''
    assert unwound.pop() is loop
""",
    )


def test_a_program_that_starts_the_threads_itself(programs: Programs) -> None:
    """With the lines of the standard library's process_request()."""
    check(
        programs,
        """
import fastsock
fastsock.install(multiplex=True)
import socket, socketserver, threading
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(threading.current_thread().name.encode() + self.rfile.readline())
        self.server.served = True
class Server(socketserver.ThreadingTCPServer):
    def process_request(self, request, client_address):
        vars(self).setdefault('_threads', socketserver._Threads())
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address), name='mine'
        )
        self._threads.append(thread)
        thread.start()
server = Server(('127.0.0.1', 0), Handler)
loop = threading.Thread(target=server.serve_forever)
loop.start()
with socket.create_connection(server.server_address, 20) as client:
    client.sendall(b' own\\n')
    with client.makefile('rb') as file:
        assert file.read() == b'mine own\\n'
server.shutdown()
server.server_close()
assert server.served
loop.join()
""",
    )


def test_the_mixin_behind_the_server(programs: Programs) -> None:
    """Has no effect there, as in the standard library."""
    check(
        programs,
        """
import fastsock
fastsock.install(multiplex=True)
import socket, socketserver, threading
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())
class Server(socketserver.TCPServer, socketserver.ThreadingMixIn): pass
with Server(('127.0.0.1', 0), Handler) as server:
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    for _ in range(3):
        with socket.create_connection(server.server_address, 20) as client:
            client.sendall(b'line\\n')
            assert client.recv(100) == b'line\\n'
    server.shutdown()
    loop.join()
""",
    )


@pytest.mark.parametrize(
    ("wait", "where"),
    [
        ("threading.Event().wait(1.5)", "wait(1.5)"),
        ("queue.Queue().get(timeout=1.5)", "queue.Queue().get(timeout=1.5)"),
    ],
)
def test_the_watch_names_a_wait(programs: Programs, wait: str, where: str) -> None:
    """A handler that waits for another by means of threading keeps that from running."""
    programs.write(
        "program.py",
        f"""
import fastsock
fastsock.install(multiplex=True)
import contextlib, queue, socket, socketserver, threading
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(queue.Empty):
            {wait}
        self.request.sendall(b'over')
with socketserver.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
    loop = threading.Thread(target=server.serve_forever)
    loop.start()
    with socket.create_connection(server.server_address, 20) as client:
        assert client.recv(10) == b'over'
    server.shutdown()
    loop.join()
""",
    )
    found = programs.run("program.py")
    assert (found.status, found.out) == (0, "")
    assert "Handler for ('127.0.0.1', " in found.err
    assert "no other can run; it is at" in found.err
    assert where in found.err


# --- installing twice, and the opposite


@pytest.mark.parametrize("before", ["", "__import__('importlib').import_module('socketserver')"])
def test_uninstall(programs: Programs, before: str) -> None:
    check(
        programs,
        f"""
import fastsock, sys
{before}
standard = [sys.modules.get('socketserver')]
for multiplex in (True, False, True):
    fastsock.install(multiplex=multiplex)
    module = sys.modules['socketserver']
    assert (module is fastsock) is not multiplex
    fastsock.install(multiplex=multiplex)
    fastsock.install()  # as a program may that was started with run --multiplex
    assert sys.modules['socketserver'] is module
    for _ in range(2):
        fastsock.uninstall()
        assert [sys.modules.get('socketserver')] == standard
""",
    )


def test_multiplex_after_all(programs: Programs) -> None:
    """A second install() may add it; one uninstall() undoes both."""
    check(
        programs,
        """
import importlib, sys
standard = [importlib.import_module('socketserver')]
import fastsock
fastsock.install()
fastsock.install(multiplex=True)
import http.server
assert issubclass(http.server.ThreadingHTTPServer, fastsock.MultiplexingMixIn)
fastsock.uninstall()
assert sys.modules['socketserver'] is standard[0]
""",
    )


KEEPERS = {
    "has_module": "import socketserver",
    "has_alias": "import socketserver as something",
    "has_class": "from socketserver import ThreadingTCPServer",
    "has_subclass": "import fastsock\nclass S(fastsock.ThreadingMixIn): pass",
    "http.server": "",
}
INNOCENT = """
import fastsock
from socketserver import TCPServer, StreamRequestHandler
from fastsock.multiplexing import MultiplexingTCPServer
class S(MultiplexingTCPServer): pass
class Odd(type):
    def mro(cls): return super().mro()
class Class(metaclass=Odd): pass
"""


@pytest.mark.parametrize("name", KEEPERS)
def test_warns_of_modules_that_keep_their_threads(programs: Programs, name: str) -> None:
    if KEEPERS[name]:
        programs.write(f"{name}.py", KEEPERS[name])
    programs.write("innocent.py", INNOCENT)
    programs.write(
        "program.py",
        f"""
        import importlib, sys, warnings
        import fastsock
        fastsock.install()
        import innocent
        importlib.import_module({name!r})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            fastsock.install(multiplex=True)
            fastsock.install(multiplex=True)
        for warning in caught:
            print(warning.category.__name__, warning.filename == __file__, warning.lineno)
            print(warning.message)
        assert sys.modules['socketserver'] is not fastsock
        """,
    )
    text = f"fastsock.install(multiplex=True) came too late for {name}: imported earlier, keeps"
    assert programs.run("program.py") == Ended(
        0, f"RuntimeWarning True 9\n{text} its threads\n", ""
    )


def test_warns_of_the_standard_librarys(programs: Programs) -> None:
    programs.write(
        "program.py",
        "import http.server\nimport fastsock\nfastsock.install(multiplex=True)\nprint('done')\n",
    )
    found = programs.run("program.py")
    assert (found.status, found.out) == (0, "done\n")
    assert "program.py:3: RuntimeWarning: fastsock.install(multiplex=True) came too" in found.err
    assert "late for http.server: imported earlier, keeps the standard library's" in found.err


# --- without greenlet


@pytest.fixture
def without_greenlet(programs: Programs) -> Programs:
    programs.write("greenlet.py", "raise ImportError('there is none', name='greenlet')\n")
    return programs


def test_install_without_greenlet(without_greenlet: Programs) -> None:
    """It says what is missing, and leaves everything as it was."""
    check(
        without_greenlet,
        f"""
import fastsock, sys
for installed in (False, True):
    before = sys.modules.get('socketserver')
    try:
        fastsock.install(multiplex=True)
    except ImportError as error:
        assert str(error) == {NEEDED!r}, error
    else:
        raise AssertionError
    assert sys.modules.get('socketserver') is before
    fastsock.install()
    assert sys.modules['socketserver'] is fastsock
""",
    )


def test_import_without_greenlet(without_greenlet: Programs) -> None:
    """All names are there; only a server cannot be made."""
    check(
        without_greenlet,
        f"""
import fastsock
from fastsock import *
from fastsock import multiplexing
assert MultiplexingTCPServer is multiplexing.MultiplexingTCPServer
class Server(MultiplexingMixIn, TCPServer): pass
for server_class in (Server, MultiplexingTCPServer):
    try:
        server_class(('127.0.0.1', 0), None)
    except ImportError as error:
        assert str(error) == {NEEDED!r}, error
    else:
        raise AssertionError
multiplexing.sleep(0)
assert multiplexing.to_thread(len, 'abc') == 3
""",
    )


# --- import fastsock


@pytest.mark.parametrize("install", ["", "fastsock.install()", "import http.server"])
def test_nothing_of_it_is_imported_before_it_is_asked_for(programs: Programs, install: str) -> None:
    check(
        programs,
        f"""
import sys
import fastsock
{install}
names = [name for name in fastsock.__all__ if name.startswith('Multiplexing')]
assert len(names) == 5 and {{*names, 'multiplexing'}} <= set(dir(fastsock))
assert 'fastsock.multiplexing' not in sys.modules
had_ssl = 'ssl' in sys.modules
module = fastsock.multiplexing
assert module is sys.modules['fastsock.multiplexing'] and 'greenlet' not in sys.modules
assert ('ssl' in sys.modules) is had_ssl
for name in names:
    assert getattr(fastsock, name) is getattr(module, name)
assert set(names) <= set(module.__all__)
assert not hasattr(fastsock, 'Multiplexing') and not hasattr(fastsock, '_Multiplexing')
""",
    )


@pytest.mark.parametrize("first", ["from fastsock import multiplexing", "from fastsock import *"])
def test_imported_by_another_way(programs: Programs, first: str) -> None:
    check(
        programs,
        f"""
import sys
{first}
import fastsock.multiplexing
assert fastsock.multiplexing is sys.modules['fastsock.multiplexing']
assert fastsock.MultiplexingMixIn is fastsock.multiplexing.MultiplexingMixIn
""",
    )


# --- python -m fastsock run


def test_run_installs_it(programs: Programs) -> None:
    """And a program that calls install() itself does not undo it."""
    check(
        programs,
        """
import fastsock
fastsock.install()
import http.server
assert issubclass(http.server.ThreadingHTTPServer, fastsock.MultiplexingMixIn)
""",
        *RUN,
        "--multiplex",
    )
