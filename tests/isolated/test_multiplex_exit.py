"""The end of an interpreter with ten thousand suspended handlers, and forks beside a thousand.

The clients are a process of their own: both ends together would be too many descriptors. It says
when every handler waits, and in the end what it got beyond that.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from typing import Any

import pytest
from programs import Ended, Programs, end
from support import TIMEOUT

_HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
_MOST = 10_000 if _HARD == resource.RLIM_INFINITY or _HARD > 10_500 else 500
#: handlers that are suspended as the interpreter ends
COUNT = int(os.environ.get("FASTSOCK_EXIT_HANDLERS", str(_MOST)))
#: and as a process forks, or ends in a way that differs little from another one
FEW = min(COUNT, 1000)
PROMPT = 10.0  # seconds that an exit may take

CLIENT = """
    import collections, resource, socket, sys
    count = int(sys.argv[1])
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    clients = []
    for number in range(count):
        client = socket.socket(socket.AF_UNIX)
        client.connect("s")
        client.settimeout(30)
        clients.append(client)
    for client in clients:
        assert client.recv(5, socket.MSG_WAITALL) == b"ready"
    print("all wait", flush=True)
    how = sys.stdin.readline()
    if how == "end\\n":
        for client in clients:
            client.shutdown(socket.SHUT_WR)
    found = collections.Counter()
    for client in clients:
        got = b""
        try:
            while data := client.recv(100):
                got += data
        except ConnectionResetError:
            pass
        found[got] += 1
    print(dict(found))
"""

SERVER = """
    import gc, os, resource, signal, socket, sys, threading, time, warnings
    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    import fastsock
    from fastsock import multiplexing

    ended = []

    class Handler(fastsock.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"ready")
            try:
                self.rfile.readline()
            finally:
                ended.append(1)
                self.wfile.write(b"bye")

    class Server(multiplexing.MultiplexingUnixStreamServer):
        request_queue_size = 4096
        slow_handler_threshold = 60  # thousands that begin at once: no news here

    def go():
        return sys.stdin.readline()

    def show(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    signal.signal(signal.SIGINT, signal.default_int_handler)
    server = Server("s", Handler)
    show("listens")
"""


class Scene:
    """A server whose handlers all wait, and the process of its clients."""

    def __init__(self, programs: Programs, rest: str, count: int) -> None:
        self.count = count
        programs.write("server.py", _join(SERVER, rest))
        programs.write("client.py", CLIENT)
        self.server = programs.start("server.py")
        self.expect(self.server, "listens")
        self.client = programs.start("client.py", str(count))
        self.expect(self.client, "all wait")

    @staticmethod
    def expect(process: Any, line: str) -> None:
        found = process.stdout.readline()
        assert found == line + "\n", (found, end(process))

    def ends(self, signal_number: int = 0) -> Ended:
        begin = time.monotonic()
        if signal_number:
            self.server.send_signal(signal_number)
        found = end(self.server, "go\n")
        assert time.monotonic() - begin < PROMPT
        return found

    def clients_got(self, how: str = "\n") -> Any:
        out = end(self.client, how)
        assert (out.status, out.err) == (0, ""), out
        return eval(out.out)


def _join(*parts: str) -> str:
    import textwrap

    return "".join(textwrap.dedent(part) for part in parts)


@pytest.fixture
def long_limit() -> None:
    """The limit of one test is for what waits, not for what works."""
    import faulthandler

    signal.setitimer(signal.ITIMER_REAL, 90)
    faulthandler.dump_traceback_later(120, exit=True)


THREAD = """
    loop = threading.Thread(target=server.serve_forever, daemon={daemon})
    loop.start()
    go()
"""
MAIN = """
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        show("interrupted", len(ended))
        {then}
"""

#: what the main thread does while a daemon thread serves: status, the last line of stderr
ENDS = {
    "return": ("pass", 0, ""),
    "sys.exit": ("sys.exit(3)", 3, ""),
    "exception": ("raise ValueError('boom')", 1, "ValueError: boom"),
    "os._exit": ("os._exit(4)", 4, ""),
    "SIGTERM": ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(20)", -signal.SIGTERM, ""),
    "SIGINT": (
        "os.kill(os.getpid(), signal.SIGINT); time.sleep(20)",
        -signal.SIGINT,
        "KeyboardInterrupt",
    ),
    "shutdown": ("server.daemon_threads = True; server.shutdown(); loop.join()", 0, ""),
}


@pytest.mark.parametrize("how", ENDS)
def test_served_by_a_daemon_thread(long_limit: None, programs: Programs, how: str) -> None:
    code, status, last = ENDS[how]
    count = COUNT if how in ("return", "shutdown") else FEW
    scene = Scene(programs, _join(THREAD.format(daemon=True), code), count)
    found = scene.ends()
    assert found.status == status, found
    assert (found.err.splitlines() or [""])[-1] == last, found
    assert found.err.count("Traceback") == (last != ""), found
    got = scene.clients_got()
    assert got == {b"bye" if how == "shutdown" else b"": count}


def test_served_by_a_thread_that_is_no_daemon(long_limit: None, programs: Programs) -> None:
    """The interpreter waits for it, as for any thread, and the handlers go on."""
    scene = Scene(programs, THREAD.format(daemon=False), FEW)
    scene.server.stdin.write("go\n")
    scene.server.stdin.flush()
    # Its main thread has ended, or is about to: nothing may change by that.
    assert scene.clients_got("end\n") == {b"bye": FEW}
    assert scene.server.poll() is None
    found = scene.ends(signal.SIGTERM)
    assert (found.status, found.err) == (-signal.SIGTERM, ""), found


INTERRUPTED = {
    # what follows serve_forever(): whether clients end their streams, status, output
    "unwound by server_close()": (
        "server.daemon_threads = True; server.server_close(); show('closed', len(ended))",
        "\n",
        f"closed {COUNT}",
    ),
    "waited for by server_close()": (
        "server.server_close(); show('closed', len(ended))",
        "end\n",
        f"closed {COUNT}",
    ),
    "unwound at the exit": ("show('left')", "\n", "left"),
    "sys.exit": ("show('left'); sys.exit()", "\n", "left"),
}


@pytest.mark.parametrize("how", INTERRUPTED)
def test_interrupted_in_the_main_thread(long_limit: None, programs: Programs, how: str) -> None:
    then, clients, line = INTERRUPTED[how]
    scene = Scene(programs, MAIN.format(then=then), COUNT)
    scene.server.send_signal(signal.SIGINT)
    Scene.expect(scene.server, "interrupted 0")
    got = scene.clients_got(clients)
    Scene.expect(scene.server, line)
    found = end(scene.server)
    assert (found.status, found.err) == (0, ""), found
    assert got == {b"bye": COUNT}


def test_an_interrupt_that_nobody_catches(long_limit: None, programs: Programs) -> None:
    scene = Scene(programs, "server.serve_forever()\n", COUNT)
    found = scene.ends(signal.SIGINT)
    assert found.status == -signal.SIGINT, found
    assert found.err.count("Traceback") == 1, found
    assert found.err.splitlines()[-1] == "KeyboardInterrupt", found
    assert scene.clients_got() == {b"bye": COUNT}


def test_sigterm_in_the_main_thread(long_limit: None, programs: Programs) -> None:
    scene = Scene(programs, "server.serve_forever()\n", FEW)
    found = scene.ends(signal.SIGTERM)
    assert (found.status, found.err) == (-signal.SIGTERM, ""), found
    assert scene.clients_got() == {b"": FEW}


def test_a_signal_handler_that_exits(long_limit: None, programs: Programs) -> None:
    code = """
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
        server.serve_forever()
    """
    scene = Scene(programs, code, FEW)
    found = scene.ends(signal.SIGTERM)
    assert (found.status, found.err) == (5, ""), found
    assert scene.clients_got() == {b"bye": FEW}


@pytest.mark.parametrize("where", ["MainThread", "daemon"])
def test_a_handler_that_ends_the_process(long_limit: None, programs: Programs, where: str) -> None:
    code = """
        def actions():
            if len(asked):
                os._exit(6)
        asked = []
        server.service_actions = actions
        threading.Thread(target=lambda: asked.append(go()), daemon=True).start()
    """
    served = "server.serve_forever()\n"
    if where == "daemon":
        served = "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        served += "time.sleep(30)\n"
    scene = Scene(programs, _join(code, served), FEW)
    found = scene.ends()
    assert (found.status, found.err) == (6, ""), found
    assert scene.clients_got() == {b"": FEW}


# --- forks

FORKS = """
    server.held = []

    def wait_for(pid):
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        show("child", status)

    def child_ends():
        {child}
"""

#: how a child ends, its status
CHILDREN = {
    "return": ("pass", 0),
    "collect": ("global server; server = None", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "os._exit": ("os._exit(4)", 4),
    "exec": ("os.execv(sys.executable, [sys.executable, '-c', 'exit(5)'])", 5),
}


@pytest.mark.parametrize("how", CHILDREN)
def test_a_fork_in_a_hook_of_the_loop(long_limit: None, programs: Programs, how: str) -> None:
    """In the main thread, which all the suspended handlers belong to: in the child to nobody."""
    child, status = CHILDREN[how]
    code = """
        class Over(BaseException):
            pass

        def actions():
            if asked:
                asked.clear()
                pid = os.fork()
                if pid == 0:
                    child_ends()
                    raise Over
                wait_for(pid)
                show("goes on", len(ended))

        asked = []
        server.service_actions = actions
        threading.Thread(target=lambda: asked.append(go()), daemon=True).start()
        try:
            server.serve_forever(0.01)
        except Over:
            pass
        gc.collect()
    """
    scene = Scene(programs, _join(FORKS.format(child=child), code), FEW)
    scene.server.stdin.write("go\n")
    scene.server.stdin.flush()
    Scene.expect(scene.server, f"child {status}")
    Scene.expect(scene.server, "goes on 0")
    assert scene.clients_got("end\n") == {b"bye": FEW}
    found = scene.ends(signal.SIGTERM)
    assert (found.status, found.err) == (-signal.SIGTERM, ""), found


@pytest.mark.parametrize("how", CHILDREN)
def test_a_fork_beside_the_loop(long_limit: None, programs: Programs, how: str) -> None:
    """In another thread than the loop's."""
    child, status = CHILDREN[how]
    code = """
        threading.Thread(target=server.serve_forever, daemon=True).start()
        go()
        pid = os.fork()
        if pid == 0:
            child_ends()
            gc.collect()
        else:
            wait_for(pid)
            show("goes on", len(ended))
            time.sleep(30)
    """
    scene = Scene(programs, _join(FORKS.format(child=child), code), FEW)
    scene.server.stdin.write("go\n")
    scene.server.stdin.flush()
    Scene.expect(scene.server, f"child {status}")
    Scene.expect(scene.server, "goes on 0")
    assert scene.clients_got("end\n") == {b"bye": FEW}
    found = scene.ends(signal.SIGTERM)
    assert (found.status, found.err) == (-signal.SIGTERM, ""), found


#: how a child ends that a handler has forked; its status, what its client gets from it; whether the
#: connection is shut down by that, as by any process that has it
HANDLERS_CHILDREN = {
    "return": ("pass", 0, b"child", True),
    "sys.exit": ("sys.exit(3)", 0, b"child", True),  # ends the handler only, as it ends a thread
    "exception": ("raise BaseException('boom')", 0, b"child", True),  # as of a thread
    "os._exit": ("self.wfile.flush(); os._exit(4)", 4, b"child", False),
    "exec": ("os.execv(sys.executable, [sys.executable, '-c', 'exit(5)'])", 5, b"child", False),
    "serves on": ("serve_on(self)", 0, b"child served", True),
}


@pytest.mark.parametrize("how", HANDLERS_CHILDREN)
def test_a_fork_in_a_handler(long_limit: None, programs: Programs, how: str) -> None:
    """While a thousand others are suspended, and bytes are held back, which leave once."""
    child, status, got, shuts_down = HANDLERS_CHILDREN[how]
    code = f"""
        def serve_on(handler):
            with Server("s2", Handler) as own:
                thread = threading.Thread(target=talk, args=(own, handler))
                thread.start()
                own.serve_forever()
                thread.join()

        def talk(own, handler):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect("s2")
                assert client.recv(5, socket.MSG_WAITALL) == b"ready"
                client.send(b"line\\n")
                assert client.recv(5) == b"bye", "no bye"
            handler.request.sendall(b" served")
            own.shutdown()

        class Forking(fastsock.StreamRequestHandler):
            def handle(self):
                reader, writer = os.pipe()
                self.wfile.write(b"held ")
                pid = os.fork()
                if pid == 0:
                    os.read(reader, 1)
                    self.wfile.write(b"child")
                    self.wfile.flush()
                    {child}
                    return
                self.wfile.flush()
                os.write(writer, b"x")
                found = multiplexing.to_thread(os.waitpid, pid, 0)[1]
                show("child", os.waitstatus_to_exitcode(found))
                if not {shuts_down}:
                    self.wfile.write(b" parent")

        second = Server("forking", Forking)
        fastsock.serve_forever(server, second)
    """
    scene = Scene(programs, code, FEW)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT)
        client.connect(str(programs.folder / "forking"))
        with client.makefile("rb") as file:
            whole = file.read()
    Scene.expect(scene.server, f"child {status}")
    assert whole == b"held " + got + (b"" if shuts_down else b" parent")
    assert scene.clients_got("end\n") == {b"bye": FEW}
    found = scene.ends(signal.SIGTERM)
    assert found.status == -signal.SIGTERM, found
    assert found.err.count("Traceback") == (how == "exception"), found


# --- signals


def test_signals_while_handlers_run(long_limit: None, programs: Programs) -> None:
    """A thousand times a second: every byte is right, and every one is handled."""
    code = """
        class Echo(fastsock.StreamRequestHandler):
            def handle(self):
                for line in self.rfile:
                    self.wfile.write(line)

        handled = []
        signal.signal(signal.SIGALRM, lambda *_: handled.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

        def client(number, line):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect("echo")
                with sock.makefile("rb") as file:
                    for _ in range(200):
                        sock.sendall(line)
                        assert file.readline() == line
            right.append(number)

        def talk():
            threads = [
                threading.Thread(target=client, args=(n, b"%d %s\\n" % (n, b"x" * 9000 * (n % 3))))
                for n in range(10)
            ]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
            echo.shutdown()

        right = []
        echo = Server("echo", Echo)
        threading.Thread(target=talk).start()
        echo.serve_forever()
        signal.setitimer(signal.ITIMER_REAL, 0)
        echo.server_close()
        show(sorted(right), len(handled) > 20)
    """
    programs.write("server.py", _join(SERVER, code))
    found = end(programs.start("server.py"))
    assert (found.status, found.err) == (0, ""), found
    assert found.out == f"listens\n{list(range(10))} True\n"
