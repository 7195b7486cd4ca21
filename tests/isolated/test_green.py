"""With gevent in the place of sockets and threads: no wait stops the other greenlets.

Each program runs with gevent's monkey-patching before fastsock is imported, after it, and started
by ``python -m fastsock run``. A wait in native code would stop its greenlets, the watchdog among
them: then SIGALRM kills it.
"""

from __future__ import annotations

import importlib.util

import pytest
from programs import RUN, Ended, Programs, end

GEVENT = importlib.util.find_spec("gevent") is not None
needs_gevent = pytest.mark.skipif(not GEVENT, reason="gevent is not installed")
PATCH = "from gevent import monkey; monkey.patch_all()"
ORDERS = {
    "patch first": f"{PATCH}\nimport fastsock as ss",
    "import first": f"import fastsock as ss\n{PATCH}",
    "run": f"{PATCH}\nimport socketserver as ss",
}

COMMON = """
import errno, os, signal, sys, tempfile, threading, time
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.alarm(8)
import gevent, gevent.socket, socket
assert ss.__name__ == 'fastsock'

class Ticker:
    'A greenlet that counts how often it had its turn.'
    def __init__(self):
        self.count = 0
        self.greenlet = gevent.spawn(self.run)
    def run(self):
        while True:
            self.count += 1
            gevent.sleep(0.001)
    def wait(self, number):
        until = self.count + number
        while self.count < until:
            gevent.sleep(0.001)
ticker = Ticker()

class Upper(ss.StreamRequestHandler):
    timeout = 5
    def handle(self):
        assert isinstance(self.request, gevent.socket.socket), self.request
        self.wfile.write(self.rfile.readline().upper())

class Together(Upper):
    'Answers only when 20 requests are being handled at once.'
    barrier = threading.Barrier(20)
    def handle(self):
        self.barrier.wait(5)
        super().handle()

class UpperDatagram(ss.DatagramRequestHandler):
    def handle(self):
        assert isinstance(self.request[1], gevent.socket.socket), self.request
        self.wfile.write(self.rfile.read().upper())

def ask(server, number):
    with socket.socket(server.address_family, server.socket_type) as sock:
        sock.settimeout(5)
        if server.address_family == socket.AF_UNIX and server.socket_type == socket.SOCK_DGRAM:
            sock.bind('')
        sock.connect(server.server_address)
        sock.sendall(b'hello %d\\n' % number)
        answer = sock.recv(100)
        assert answer == b'HELLO %d\\n' % number, answer

def address_for(server_class):
    if server_class.address_family == socket.AF_UNIX:
        return os.path.join(tempfile.mkdtemp(dir='.'), 's')
    return ('127.0.0.1', 0)

def make(name, handler=None):
    server_class = getattr(ss, name)
    default = UpperDatagram if server_class.socket_type == socket.SOCK_DGRAM else Upper
    return server_class(address_for(server_class), handler or default)
"""


def run(programs: Programs, order: str, body: str, *args: str) -> None:
    programs.write("program.py", ORDERS[order] + COMMON + body + "\nprint('done')\n")
    starting = (*RUN, "program.py") if order == "run" else ("program.py",)
    assert end(programs.start(*starting, *args)) == Ended(0, "done\n", "")


in_both_orders = pytest.mark.parametrize("order", ["patch first", "import first"])


@needs_gevent
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "name", ["TCPServer", "ThreadingTCPServer", "UDPServer", "UnixDatagramServer"]
)
def test_serves_while_greenlets_run(programs: Programs, order: str, name: str) -> None:
    run(
        programs,
        order,
        """
with make(sys.argv[1], Together if sys.argv[1] == 'ThreadingTCPServer' else None) as server:
    serving = gevent.spawn(server.serve_forever, 60)
    ticker.wait(20)  # the loop is idle
    clients = [gevent.spawn(ask, server, number) for number in range(20)]
    gevent.joinall(clients, raise_error=True)
    ticker.wait(20)
    begin = time.monotonic()
    server.shutdown()
    assert time.monotonic() - begin < 2
    serving.get(timeout=2)
""",
        name,
    )


@needs_gevent
@in_both_orders
@pytest.mark.parametrize("poll_interval", ["60", "None", "0.01", "0"])
def test_idle_loop_lets_others_run(programs: Programs, order: str, poll_interval: str) -> None:
    """Also in what monkey-patching makes of a thread; shutdown() comes from another greenlet."""
    run(
        programs,
        order,
        """
with make('TCPServer') as server:
    thread = threading.Thread(target=server.serve_forever, args=(eval(sys.argv[1]),))
    thread.start()
    ticker.wait(20)
    stopping = gevent.spawn(server.shutdown)
    stopping.get(timeout=2)
    thread.join(2)
    assert not thread.is_alive()
    # and once more, ended by the name that programs assign to
    thread = threading.Thread(target=server.serve_forever, args=(eval(sys.argv[1]),))
    thread.start()
    ticker.wait(5)
    server._BaseServer__shutdown_request = True
    thread.join(2)
    assert not thread.is_alive()
""",
        poll_interval,
    )


@needs_gevent
@in_both_orders
def test_actions_and_shutdown_in_a_handler(programs: Programs, order: str) -> None:
    run(
        programs,
        order,
        """
class Server(ss.ThreadingTCPServer):
    actions = 0
    def service_actions(self):
        self.actions += 1
class Stop(Upper):
    def handle(self):
        super().handle()
        self.server.shutdown()
with Server(('127.0.0.1', 0), Stop) as server:
    client = gevent.spawn(ask, server, 1)
    server.serve_forever(0.02)
    client.get(timeout=2)
    assert server.actions >= 1
    gevent.spawn_later(0.3, server.shutdown)
    server.actions = 0
    server.serve_forever(0.02)
    assert 3 <= server.actions <= 16, server.actions
""",
    )


@needs_gevent
@in_both_orders
def test_handle_request(programs: Programs, order: str) -> None:
    run(
        programs,
        order,
        """
class Server(ss.TCPServer):
    timeouts = 0
    timeout = 0.2
    def handle_timeout(self):
        self.timeouts += 1
with Server(('127.0.0.1', 0), Upper) as server:
    before, begin = ticker.count, time.monotonic()
    server.handle_request()
    assert server.timeouts == 1
    assert 0.2 <= time.monotonic() - begin < 2
    assert ticker.count >= before + 10, (before, ticker.count)
    server.timeout = None
    handling = gevent.spawn(server.handle_request)
    ticker.wait(20)
    assert not handling.ready()
    ask(server, 1)
    handling.get(timeout=2)
    assert server.timeouts == 1
    server.timeout = 0
    server.handle_request()
    assert server.timeouts == 2
""",
    )


@needs_gevent
@in_both_orders
def test_forking(programs: Programs, order: str) -> None:
    run(
        programs,
        order,
        """
class Pid(Upper):
    def handle(self):
        self.wfile.write(b'%d' % os.getpid())
def ask_pid(server):
    with socket.create_connection(server.server_address, 5) as sock:
        return int(sock.recv(100))
with make('ForkingTCPServer', Pid) as server:
    serving = gevent.spawn(server.serve_forever, 0.02)
    clients = [gevent.spawn(ask_pid, server) for _ in range(3)]
    gevent.joinall(clients, raise_error=True)
    pids = {client.value for client in clients}
    assert len(pids) == 3
    assert os.getpid() not in pids
    ticker.wait(5)
    server.shutdown()
    serving.get(timeout=2)
assert not server.active_children
try:
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)  # of the kernel, not gevent's memory
except ChildProcessError:
    pass
else:
    raise AssertionError('a child is left')
""",
    )


@needs_gevent
@in_both_orders
def test_several_servers_in_one_greenlet(programs: Programs, order: str) -> None:
    run(
        programs,
        order,
        """
import fastsock
with make('TCPServer') as one, make('UDPServer') as other:
    serving = gevent.spawn(fastsock.serve_forever, one, other, poll_interval=None)
    ticker.wait(5)
    ask(one, 1)
    ask(other, 2)
    one.shutdown()
    ask(other, 3)
    ticker.wait(5)
    other.shutdown()
    serving.get(timeout=2)
""",
    )


@needs_gevent
@in_both_orders
def test_slow_and_failing_requests(programs: Programs, order: str) -> None:
    """A handler that waits holds up nobody, and one that raises ends nothing."""
    run(
        programs,
        order,
        """
class Server(ss.ThreadingTCPServer):
    errors = 0
    def handle_error(self, request, client_address):
        assert sys.exc_info()[0] is ZeroDivisionError
        self.errors += 1
release = threading.Event()
class Handler(Upper):
    def handle(self):
        line = self.rfile.readline()
        if line == b'wait\\n':
            release.wait(5)
        elif line == b'fail\\n':
            1 / 0
        self.wfile.write(line.upper())
with Server(('127.0.0.1', 0), Handler) as server:
    serving = gevent.spawn(server.serve_forever, None)
    waiting = socket.create_connection(server.server_address, 5)
    waiting.sendall(b'wait\\n')
    ask(server, 1)
    failing = socket.create_connection(server.server_address, 5)
    failing.sendall(b'fail\\n')
    assert failing.recv(100) == b''
    ask(server, 2)
    release.set()
    assert waiting.recv(100) == b'WAIT\\n'
    waiting.close(); failing.close()
    server.shutdown()
    serving.get(timeout=2)
    assert server.errors == 1
""",
    )


SELECTOR = """
import selectors, socket, sys, threading

class Mine(selectors.SelectSelector):
    selected = []
    def select(self, timeout=None):
        self.selected.append(timeout)
        return super().select(timeout)

class Handler(ss.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().upper())

def ask():
    with socket.create_connection(server.server_address, 5) as sock:
        sock.sendall(b'hello\\n')
        return sock.recv(100)

ss._ServerSelector = Mine
with ss.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    assert ask() == b'HELLO\\n'
    server.shutdown()
    thread.join()
    assert Mine.selected
    assert all(0 <= timeout <= 0.06 for timeout in Mine.selected), Mine.selected
    Mine.selected.clear()
    server.timeout = 0.05
    server.handle_request()
    assert Mine.selected
print('done')
"""


@pytest.mark.parametrize("module", ["socketserver", "fastsock"])
def test_a_selector_of_the_programs_own(programs: Programs, module: str) -> None:
    """What a program puts into _ServerSelector waits for it; shutdown() ends that wait too."""
    programs.write("program.py", f"import {module} as ss\n{SELECTOR}")
    assert programs.run("program.py") == Ended(0, "done\n", "")


def test_a_selector_of_ones_own_is_woken(programs: Programs) -> None:
    """fastsock only: shutdown() does not wait for the poll_interval."""
    body = SELECTOR.replace("(0.05,)", "(60,)").replace("<= 0.06", "<= 60")
    programs.write("program.py", f"import fastsock as ss\n{body}")
    assert programs.run("program.py") == Ended(0, "done\n", "")


@pytest.mark.parametrize("module", ["socketserver", "fastsock"])
def test_without_poll(programs: Programs, module: str) -> None:
    """As eventlet's monkey-patching leaves select and selectors: select() is all there is."""
    programs.write(
        "program.py",
        f"""
        import select, selectors
        del select.poll, select.epoll, selectors.PollSelector, selectors.EpollSelector
        import {module} as ss
        import socket, threading
        class Handler(ss.StreamRequestHandler):
            def handle(self):
                self.wfile.write(self.rfile.readline().upper())
        with ss.ThreadingTCPServer(('127.0.0.1', 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            with socket.create_connection(server.server_address, 5) as sock:
                sock.sendall(b'hello\\n')
                assert sock.recv(100) == b'HELLO\\n'
            server.shutdown()
            thread.join()
            server.timeout = 0.05
            server.handle_request()
        print('done')
        """,
    )
    assert programs.run("program.py") == Ended(0, "done\n", "")
