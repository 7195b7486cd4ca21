"""Loops that end oddly and begin again, that fork; handlers that do not end, or not give way."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from crews import module_of
from support import TIMEOUT, connect, handling, multiplexes
from talks import Served, output, program

from fastsock import multiplexing

Serve = Callable[..., Served]


EARLIER = """
def handle(self):
    self.wfile.write(self.rfile.readline())

class Server(ss.ThreadingTCPServer):
    angry = False

    def service_actions(self):
        if self.angry:
            self.angry = False
            raise KeyError("serve_forever() is left, handlers stay suspended")

handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
extra = [Server(("127.0.0.1", 0), handler) for _ in range(40)]
server = Server(("127.0.0.1", 0), handler)
left = threading.Event()

def serve():
    try:
        ss.serve_forever(server, *extra, poll_interval=0.002)
    except KeyError:
        left.set()
    server.serve_forever(0.002)

loop = threading.Thread(target=serve)
loop.start()
waiting = socket.create_connection(server.server_address)
server.angry = True
assert left.wait(TIMEOUT)
junk = [bytearray(24) for _ in range(10000)]
others = [socket.create_connection(one.server_address) for one in extra for _ in range(2)]
for number in range(50):
    with socket.create_connection(server.server_address) as client:
        client.sendall(b"x\\n")
        assert client.recv(10) == b"x\\n"
waiting.sendall(b"y\\n")
assert waiting.recv(10) == b"y\\n"
waiting.close()
server.shutdown()
loop.join()
for one in (server, *extra):
    one.server_close()
print("served")
"""


@pytest.mark.fastsock_only("serve_forever() of several servers")
def test_events_of_an_earlier_loop(script: Any) -> None:
    """Of listeners that are still in the epoll, and not in what the loop polls now."""
    assert output(script(program(EARLIER))) == "served\n"


AGAIN = '''
import time

class Once(Exception):
    pass

def handle(self):
    while line := self.rfile.readline():
        self.wfile.write(line)

class Server(ss.ThreadingTCPServer):
    daemon_threads = True
    fail = False

    def service_actions(self):
        if self.fail:
            self.fail = False
            raise Once

handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
server = Server(("127.0.0.1", 0), handler)
same_thread = sys.argv[1] == "same thread"
left = threading.Event()

def serve(times):
    for _ in range(times):
        try:
            server.serve_forever(0.002)
        except Once:
            left.set()

def another(number):
    """A loop's thread with the number of one that has ended, if the system gives it to one."""
    over = threading.Event()

    def candidate(told):
        told.append(threading.get_ident())
        over.wait()
        if told[0] in (number, None):
            serve(1)

    told, threads = [], []
    while (not told or told[0] != number) and len(threads) < 20:
        told = []
        threads.append(threading.Thread(target=candidate, args=(told,)))
        threads[-1].start()
        while not told:
            time.sleep(0.001)
    if told[0] != number:
        told[0] = None
    over.set()
    return threads[-1]

def connect():
    return socket.create_connection(server.server_address, TIMEOUT)

loop = threading.Thread(target=serve, args=(1 + same_thread,))
loop.start()
with connect() as idle:
    idle.sendall(b"first\\n")
    assert idle.recv(10) == b"first\\n"
    server.fail = True
    assert left.wait(TIMEOUT)
    if not same_thread:
        number = loop.ident
        loop.join(TIMEOUT)
        loop = another(number)
    for number in range(3):
        with connect() as client:
            client.sendall(b"%d\\n" % number)
            assert client.recv(10) == b"%d\\n" % number
    if same_thread:
        idle.sendall(b"again\\n")
        assert idle.recv(10) == b"again\\n"
server.shutdown()
loop.join()
server.server_close()
print("served")
'''


@pytest.mark.parametrize("thread", ["same thread", "another"])
def test_served_again_after_an_exception(script: Any, thread: str) -> None:
    """While handlers of before are left, of which another thread's tasks can never go on."""
    assert output(script(program(AGAIN), thread)) == "served\n"


@pytest.mark.parametrize("how", ["bare except", "finally", "waits at its end"])
def test_a_handler_that_refuses_to_end(
    ss: ModuleType, time_limit: None, how: str, caplog: Any
) -> None:
    """The loop ends all the same, as it does where the handler is a daemon thread."""
    ready = threading.Event()
    over = threading.Event()
    requests: list[Any] = []

    def handle(self: Any) -> None:
        requests.append(self.request)
        ready.set()
        while not over.is_set():
            try:
                if not self.rfile.readline():
                    break
            except:  # noqa: E722
                if how == "finally":
                    with contextlib.suppress(BaseException):
                        multiplexing.sleep(TIMEOUT)
                elif how == "waits at its end":
                    with contextlib.suppress(BaseException):
                        self.request.recv(1)

    handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
    server_class = type("Server", (ss.ThreadingTCPServer,), {"daemon_threads": True})
    server = server_class(("127.0.0.1", 0), handler)
    loop = threading.Thread(target=server.serve_forever, args=(0.002,), daemon=True)
    loop.start()
    with caplog.at_level(logging.WARNING, "fastsock"):
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            assert ready.wait(TIMEOUT)
            client.sendall(b"line\n")
            server.shutdown()
            loop.join(TIMEOUT)
            assert not loop.is_alive()
            over.set()
        server.server_close()
    if multiplexes(ss):  # which has lost it, and its connection
        os.close(requests.pop().detach())
    told = [record for record in caplog.records if "does not end" in record.getMessage()]
    assert len(told) == multiplexes(ss)


FORK = """
import signal

def handle(self):
    self.wfile.write(b"%d\\n" % os.getpid())

class Server(ss.ThreadingTCPServer):
    forked = None

    def HOOK(self, *arguments):
        if Server.forked is None:
            Server.forked = os.fork()
        return super().HOOK(*arguments)

handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
server = Server(("127.0.0.1", 0), handler)
parent = os.fork()
if parent == 0:
    os.setpgid(0, 0)
    try:
        server.serve_forever(0.01)
    finally:
        os._exit(1)
seen = set()
for _ in range(2000):
    with socket.create_connection(server.server_address, TIMEOUT) as client:
        seen.add(client.makefile("rb").readline())
    if len(seen) == 2:
        break
print(len(seen))
os.killpg(parent, signal.SIGKILL)
os.waitpid(parent, 0)
"""


@pytest.mark.parametrize("hook", ["service_actions", "verify_request"])
def test_a_hook_that_forks(script: Any, hook: str) -> None:
    """Both processes go on serving."""
    assert output(script(program(FORK.replace("HOOK", hook)))) == "2\n"


FORK_WITH_READY_ONES = """
import gc

def handle(self):
    self.wfile.write(b"ready\\n")
    go_on.wait()
    self.wfile.write(b"parent\\n" if os.getpid() == parent else b"child\\n")

class Server(ss.ThreadingTCPServer):
    passes = 0

    def service_actions(self):
        if os.getpid() != parent:
            self.passes += 1
            if self.passes == 3:
                gc.collect()
                os._exit(0)
        elif asked.is_set():
            asked.clear()
            go_on.set()
            pid = os.fork()
            if pid != 0:
                statuses.append(os.waitpid(pid, 0)[1])

parent, statuses = os.getpid(), []
asked, go_on = threading.Event(), multiplexing.Event()
handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle})
with Server(("127.0.0.1", 0), handler) as server:
    loop = threading.Thread(target=server.serve_forever, args=(0.002,))
    loop.start()
    files = []
    for _ in range(10):
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            files.append(client.makefile("rb"))
        assert files[-1].readline() == b"ready\\n"
    asked.set()
    found = {file.read() for file in files}
    server.shutdown()
    loop.join()
print(found, statuses)
"""


def test_a_hook_that_forks_while_handlers_are_ready(script: Any) -> None:
    """They run in the parent only."""
    assert output(script(program(FORK_WITH_READY_ONES))) == "{b'parent\\n'} [0]\n"


DRAIN = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"flood\\n")
while sock.recv(1 << 20, socket.MSG_TRUNC):
    pass
"""


@pytest.mark.parametrize("how", ["sendall", "wfile", "send", "buffered"])
def test_a_handler_that_only_writes(serve: Serve, how: str) -> None:
    """To a peer that always takes it: others run meanwhile."""
    over = threading.Event()
    begun = threading.Event()

    def handle(self: Any) -> None:
        if self.rfile.readline() != b"flood\n":
            self.wfile.write(b"alive\n")
            return
        begun.set()
        chunk = bytes(65536 if how == "sendall" else 1000)
        write = getattr(self.request, how, self.wfile.write)
        with contextlib.suppress(OSError):
            while not over.is_set():
                write(chunk)

    buffered = {"wbufsize": -1 if how == "buffered" else 0}
    served = serve(handle, handler=buffered, handle_error=lambda *request: None)
    port = served.server.server_address[1]
    with subprocess.Popen([sys.executable, "-c", DRAIN, str(port)]) as drain:
        try:
            assert begun.wait(TIMEOUT)
            for _ in range(20):
                assert served.ask(b"hello\n") == b"alive\n"
        finally:
            over.set()
            drain.kill()


def test_a_fork_when_all_is_over_makes_nothing(fastsock_dir: str | None) -> None:
    """A hub that was closed is not opened again in the child."""
    module = module_of("multiplexing", fastsock_dir)
    handler = handling(module, lambda self: self.wfile.write(b"done\n"))
    with module.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        with connect(server) as client:
            server.handle_request()
            assert client.recv(10) == b"done\n"
    # Hubs of other tests, which an exception has left open, are closed in the child.
    before = set(os.listdir("/proc/self/fd"))
    pid = os.fork()
    if pid == 0:
        os._exit(len(set(os.listdir("/proc/self/fd")) - before))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
