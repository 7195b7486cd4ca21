"""The exit of an interpreter whose server has threads: resting, running, daemons or not."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import TIMEOUT, about_threads, is_fastsock, multiplexes, wait_until

Script = Callable[..., Any]

EXITS = int(os.environ.get("FASTSOCK_EXITS", "40"))
BATCH = 5
PROMPT = 2.0  # seconds that an exit may take; a thread rests for 10

COMMON = """
import atexit, os, signal, socket, threading, time
class Handler(ss.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"served")
class Server(ss.ThreadingTCPServer):
    block_on_close = False
    request_queue_size = 128
class Joining(ss.ThreadingTCPServer):
    request_queue_size = 128
def served(server, count=3):
    for _ in range(count):
        with socket.create_connection(server.server_address, timeout=10) as client:
            server.handle_request()
            assert client.recv(10) == b"served"
            assert client.recv(10) == b""
def show(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
class Held(Handler):
    begun, go_on = threading.Semaphore(0), threading.Event()
    def handle(self):
        self.begun.release()
        self.go_on.wait(30)
        super().handle()
        show("handled")
def begin(server, count=1):
    clients = [socket.create_connection(server.server_address, timeout=10) for _ in range(count)]
    for _ in clients:
        server.handle_request()
        assert Held.begun.acquire(timeout=10)
    return clients
"""


def finish(process: Any, status: int = 0) -> tuple[str, str]:
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    except Exception:
        process.send_signal(signal.SIGABRT)
        raise
    assert process.returncode == status, (out, err)
    return out, err


def prompt(process: Any, status: int = 0) -> str:
    """The last line of stderr of a process that says that it ends, and does."""
    assert process.stdout.readline() == "ends\n"
    begin = time.monotonic()
    out, err = finish(process, status)
    assert time.monotonic() - begin < PROMPT
    assert out == ""
    return err.splitlines()[-1] if err else ""


# What the main thread does at its end, its status, the last line of its error output.
ENDS: dict[str, tuple[str, int, str]] = {
    "return": ("pass", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "exception": ("raise ValueError('boom')", 1, "ValueError: boom"),
    "interrupt": (
        "signal.raise_signal(signal.SIGINT); time.sleep(5)",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
}
ends = pytest.mark.parametrize("how", ENDS)


@ends
@pytest.mark.parametrize("daemon", [0, 1])
@pytest.mark.parametrize("close", [0, 1])
def test_resting(script: Script, how: str, daemon: int, close: int) -> None:
    """The exit does not wait for threads that wait for requests."""
    statement, status, error = ENDS[how]
    process = script(
        COMMON
        + f"""
Server.daemon_threads = {bool(daemon)}
server = Server(("127.0.0.1", 0), Handler)
served(server)
if {close}:
    server.server_close()
show("ends")
{statement}
"""
    )
    assert prompt(process, status) == error


@ends
@pytest.mark.parametrize("daemon", [0, 1])
def test_amid_requests(script: Script, how: str, daemon: int) -> None:
    """The exit does not wait for a thread that is about to take the next one."""
    statement, status, error = ENDS[how]
    process = script(
        COMMON
        + f"""
Joining.daemon_threads = {bool(daemon)}
server = Joining(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, args=(30,), daemon=True).start()
for _ in range(200):
    with socket.create_connection(server.server_address, timeout=10) as client:
        assert client.recv(10) == b"served"
show("ends")
{statement}
"""
    )
    assert prompt(process, status) == error


def test_loop_that_forks_amid_requests(script: Script, ss: ModuleType) -> None:
    """Without the threads of its parent, the child's copy of the loop goes on."""
    process = script(
        COMMON
        + """
server = Joining(("127.0.0.1", 0), Handler)
children = []
def fork(*ignored):
    children.append(os.fork())
    server._BaseServer__shutdown_request = children[-1] != 0
signal.signal(signal.SIGUSR1, fork)
def ask():
    with socket.create_connection(server.server_address, timeout=10) as client:
        return client.recv(10)
def keep_asking():
    for number in range(300):
        assert ask() == b"served"
        if number == 200:
            os.kill(os.getpid(), signal.SIGUSR1)
for _ in range(5):
    asking = threading.Thread(target=keep_asking)
    asking.start()
    server.serve_forever(30)
    asking.join()  # the child serves the rest
    assert ask() == b"served"
    os.kill(children[-1], signal.SIGKILL)
    os.waitpid(children[-1], 0)
show("ends")
"""
    )
    prompt(process)


@about_threads("a handler waits in a threading.Event while others go on")
def test_signals_amid_requests(script: Script) -> None:
    """Nothing is accepted while a handler runs; a handler that waits does not stop the server."""
    process = script(
        COMMON
        + """
go_on = threading.Event()
class Waiting(Handler):
    waits = False
    def handle(self):
        begun.append(1)
        if Waiting.waits:
            Waiting.waits = False
            assert go_on.wait(10)
        super().handle()
begun, during = [], []
server = Joining(("127.0.0.1", 0), Waiting)
def pause(*ignored):
    before = len(begun)
    time.sleep(0.2)
    during.append(len(begun) - before)
signal.signal(signal.SIGUSR1, pause)
signal.signal(signal.SIGALRM, lambda *ignored: None)
def ask():
    with socket.create_connection(server.server_address, timeout=10) as client:
        return client.recv(10)
def client():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGALRM])
    for _ in range(3):
        for _ in range(200):
            ask()
        others = [threading.Thread(target=ask) for _ in range(20)]
        for other in others[:10]:
            other.start()
        os.kill(os.getpid(), signal.SIGUSR1)
        for other in others[10:]:
            other.start()
        for other in others:
            other.join()
    for _ in range(200):
        ask()
    Waiting.waits = True
    waiting = threading.Thread(target=ask)
    waiting.start()
    while Waiting.waits:
        pass
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)  # as a profiler does
    show(ask())
    signal.setitimer(signal.ITIMER_REAL, 0)
    go_on.set()
    waiting.join()
    server.shutdown()
threading.Thread(target=client).start()
server.serve_forever(0.05)
server.server_close()
show(max(during) <= 20 or during)  # those that were accepted before
show("ends")
"""
    )
    assert process.stdout.readline() == "b'served'\n"
    assert process.stdout.readline() == "True\n"
    prompt(process)


def test_resting_of_several_servers(script: Script) -> None:
    process = script(
        COMMON
        + """
for number in range(5):
    server = Server(("127.0.0.1", 0), Handler)
    Server.daemon_threads = number % 2 == 0
    served(server)
    if number == 3:
        keep = server
show("ends")
"""
    )
    assert prompt(process) == ""


@about_threads("its handlers wait in a threading.Event")
@ends
def test_daemons_running(script: Script, how: str) -> None:
    """The exit does not wait for them."""
    statement, status, error = ENDS[how]
    process = script(
        COMMON
        + f"""
Server.daemon_threads = True
server = Server(("127.0.0.1", 0), Held)
clients = begin(server, 5)
show("ends")
{statement}
"""
    )
    assert prompt(process, status) == error


@about_threads("threads that are no daemons and outlive the main thread")
@ends
@pytest.mark.parametrize("before", [0, 3])
def test_waits_for_running(script: Script, how: str, before: int) -> None:
    """The exit waits for the requests of threads that aren't daemons, then calls atexit's."""
    statement, status, error = ENDS[how]
    process = script(
        COMMON
        + f"""
atexit.register(show, "atexit")
server = Server(("127.0.0.1", 0), Handler)
served(server, {before})
server.RequestHandlerClass = Held
clients = begin(server, 3)
def release():
    threading.main_thread().join()
    show("main has ended")
    Held.go_on.set()
threading.Thread(target=release, daemon=True).start()
{statement}
"""
    )
    out, err = finish(process, status)
    assert out.splitlines() == ["main has ended", "handled", "handled", "handled", "atexit"]
    assert (err.splitlines() or [""])[-1] == error


@pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="no thread can be started any more (CPython 3.12)"
)
@pytest.mark.parametrize("before", [0, 3])
def test_serves_after_the_main_thread(script: Script, ss: ModuleType, before: int) -> None:
    """serve_forever() in a thread that is no daemon keeps the process, which ends with it."""
    # Without block_on_close the end of serve_forever() unwinds greenlets.
    kind = "Joining" if multiplexes(ss) else "Server"
    process = script(
        COMMON
        + f"""
class Late(ss.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        if line == b"shutdown\\n":
            self.server.shutdown()
        self.wfile.write(b"%d" % threading.main_thread().is_alive())
        self.wfile.flush()
        if line == b"hold\\n":
            self.rfile.readline()
            show("handled")
atexit.register(show, "atexit")
server = {kind}(("127.0.0.1", 0), Handler)
served(server, {before})
server.RequestHandlerClass = Late
threading.Thread(target=server.serve_forever, args=(0.01,)).start()
show(server.server_address[1])
"""
    )
    address = "127.0.0.1", int(process.stdout.readline())

    def ask(line: bytes) -> bytes:
        with socket.create_connection(address, timeout=TIMEOUT) as client:
            client.sendall(line)
            return client.recv(10)

    wait_until(lambda: ask(b"?\n") == b"0")
    for _ in range(5):
        assert ask(b"?\n") == b"0"
    with socket.create_connection(address, timeout=TIMEOUT) as client:
        client.sendall(b"hold\n")
        assert client.recv(10) == b"0"
        assert ask(b"shutdown\n") == b"0"
        assert process.poll() is None
        client.sendall(b"end\n")
        assert finish(process) == ("handled\natexit\n", "")


# --- forks

LEAVING = {
    "_exit": ("os._exit(3)", 3),
    "return": ("return", 0),
    "sys.exit": ("sys.exit(3)", 0),  # of a thread
}


@about_threads("its handlers wait in a threading.Event")
@pytest.mark.parametrize("how", LEAVING)
@pytest.mark.parametrize("before", [0, 2])
def test_child_of_a_handler(script: Script, how: str, before: int) -> None:
    """Its end is prompt, whatever threads the parent has; so is the parent's."""
    statement, status = LEAVING[how]
    process = script(
        COMMON
        + f"""
import warnings
warnings.simplefilter("ignore")
class Forking(ss.StreamRequestHandler):
    def handle(self):
        pid = os.fork()
        if pid:
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            ended.release()
            return
        {statement}
statuses, ended = [], threading.Semaphore(0)
server = Server(("127.0.0.1", 0), Handler)
served(server, {before})
server.RequestHandlerClass = Held
clients = begin(server, 3)
server.RequestHandlerClass = Forking
for _ in range(3):
    clients.append(socket.create_connection(server.server_address, timeout=10))
    server.handle_request()
    assert ended.acquire(timeout=10)
assert statuses == [{status}] * 3, statuses
Held.go_on.set()
"""
    )
    assert finish(process) == ("handled\n" * 3, "")


@about_threads("its handlers wait in a threading.Event")
def test_child_of_the_main_thread(script: Script) -> None:
    """Exits through sys.exit(), atexit and all; the parent's requests are not its own."""
    process = script(
        COMMON
        + """
import warnings
warnings.simplefilter("ignore")
atexit.register(show, "atexit")
server = Server(("127.0.0.1", 0), Handler)
served(server)
server.RequestHandlerClass = Held
clients = begin(server, 3)
pid = os.fork()
if not pid:
    server.RequestHandlerClass = Handler
    with socket.create_connection(server.server_address, timeout=10) as client:
        server.handle_request()
        assert client.recv(10) == b"served"
    show("child")
    sys.exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
show("parent")
Held.go_on.set()
"""
    )
    assert finish(process) == ("child\natexit\nparent\n" + "handled\n" * 3 + "atexit\n", "")


# --- threads in trouble


@about_threads("the end of a thread")
def test_exception_raised_in_a_thread_that_is_ending(script: Script) -> None:
    """Raised or not, the thread can be joined and the next request is not hit."""
    process = script(
        COMMON
        + """
import ctypes, functools, weakref
threading.excepthook = sys.unraisablehook = lambda args: None
raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
raise_in.argtypes = [ctypes.c_ulong, ctypes.py_object, ctypes.py_object]
local, references, threads = threading.local(), [], []
class Value:
    pass
class Raising(Handler):
    def handle(self):
        super().handle()
        threads.append(threading.current_thread())
        # Called when the local is dropped: in C only, where nothing can be raised.
        last = functools.partial(raise_in, threading.get_ident(), KeyboardInterrupt)
        local.value = Value()
        references.append(weakref.ref(local.value, last))
server = Server(("127.0.0.1", 0), Raising)
for _ in range(5):
    server.RequestHandlerClass = Raising
    served(server, 1)
    threads.pop().join()
    server.RequestHandlerClass = Handler
    served(server, 1)
show("ends")
"""
    )
    assert prompt(process) == ""


@about_threads("no thread is started")
def test_a_thread_that_could_not_be_started(script: Script) -> None:
    """Its request is refused; later ones are served as ever."""
    process = script(
        COMMON
        + """
class Strict(Server):
    def handle_error(self, request, client_address):
        show(sys.exc_info()[0].__name__)
class Showing(Handler):
    def handle(self):
        kinds.add(type(threading.current_thread()).__name__)
        super().handle()
kinds = set()
server = Strict(("127.0.0.1", 0), Showing)
threading.stack_size(1 << 47)
with socket.create_connection(server.server_address, timeout=10) as client:
    server.handle_request()
    assert client.recv(10) == b""
threading.stack_size(0)
served(server)
for thread in threading.enumerate()[1:]:
    thread.join()
assert threading.active_count() == 1, threading.enumerate()
show(len(kinds), kinds == {"Thread"} or ss.__name__ == "fastsock")
show(*kinds)
"""
    )
    out, err = finish(process)
    *lines, kind = out.splitlines()
    assert (lines, err) == (["RuntimeError", "1 True"], "")
    assert kind in ("Thread", "RequestThread")


@about_threads("reused threads")
@pytest.mark.fastsock_only(reason="thread_idle_timeout is not in the standard library")
@pytest.mark.parametrize("timeout", ["0", "0.0001", "1e18", "float('inf')", "-1"])
def test_odd_idle_timeouts(script: Script, timeout: str) -> None:
    process = script(
        COMMON
        + f"""
Server.thread_idle_timeout = {timeout}
server = Server(("127.0.0.1", 0), Handler)
served(server, 50)
show("ends")
"""
    )
    assert prompt(process) == ""


# --- many exits

STRESS = """
import random, socket, threading
sys.setswitchinterval(1e-4)
number = int(sys.argv[1])
random.seed(number)
begun, go_on = threading.Semaphore(0), threading.Event()
class Handler(ss.StreamRequestHandler):
    def handle(self):
        kind = self.rfile.read(1)
        begun.release()
        if kind == b"r":  # until the client is gone
            self.rfile.read()
        elif kind == b"e":
            go_on.wait()
        elif kind == b"c":
            go_on.wait()
            sum(range(20000))
        elif kind == b"f":  # for ever
            go_on.wait()
            while True:
                pass
class Server(ss.ThreadingTCPServer):
    block_on_close = False
    request_queue_size = 128
    def handle_error(self, request, client_address):
        if "at interpreter shutdown" not in str(sys.exc_info()[1]):  # no thread is started then
            super().handle_error(request, client_address)
    def process_request(self, request, client_address):
        self.daemon_threads = random.random() < 0.5
        super().process_request(request, client_address)
class Daemons(Server):
    def process_request(self, request, client_address):
        self.daemon_threads = True
        ss.ThreadingMixIn.process_request(self, request, client_address)
servers = [Server(("127.0.0.1", 0), Handler), Daemons(("127.0.0.1", 0), Handler)]
for server in servers:
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
clients = []
def connect(server, kind):
    client = socket.create_connection(server.server_address, timeout=10)
    client.sendall(kind)
    return client
for _ in range(50):
    for server, kinds in zip(servers, (b"rec", b"recf")):
        clients.append(connect(server, bytes([random.choice(kinds)])))
for _ in clients:
    assert begun.acquire(timeout=10)
for server in servers:  # some rest, some have just ended
    for _ in range(random.randrange(10)):
        connect(server, b"x").close()
if number % 4 == 1:
    for server in servers:
        server.shutdown()
        server.server_close()
if number % 4 == 2:
    def more():
        while True:
            for server in servers:
                connect(server, b"x").close()
    threading.Thread(target=more, daemon=True).start()
for client in random.sample(clients, 20):
    client.close()
go_on.set()
for client in clients:
    client.close()
if number % 2:
    sys.exit(0)
"""


@about_threads("its handlers wait in a threading.Event")
@pytest.mark.parametrize("batch", range((EXITS + BATCH - 1) // BATCH))
def test_many_exits(script: Script, ss: ModuleType, batch: int) -> None:
    """With a hundred requests under way: no status, no word, no end to wait for."""
    if batch and not is_fastsock(ss):
        pytest.skip("once is enough")
    for number in range(batch * BATCH, min(EXITS, (batch + 1) * BATCH)):
        process = script(STRESS, str(number))
        assert (number, *finish(process)) == (number, "", "")
