"""ForkingMixIn: a child per request, its exceptions and exit status, reaping, max_children."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import (
    TIMEOUT,
    Background,
    Trace,
    ask,
    connect,
    ended,
    hang_up,
    kinds,
    new,
    receive,
    recording,
    serving,
    upper,
    wait_until,
)

Make = Callable[..., Any]

forking = kinds(flavours=("Forking",), transports=("TCP", "UDP"))
END = ["shutdown_request", "close_request"]


def only_child(server: Any) -> int:
    (pid,) = server.active_children
    return pid


def exit_status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def has_exited(pid: int) -> bool:
    """Without reaping it; one that was reaped has exited, too."""
    try:
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        return os.waitid(os.P_PID, pid, flags) is not None
    except ChildProcessError:
        return True


def recorded(ss: ModuleType, kind: Any, make: Make, trace: Trace, **raising: Any) -> Any:
    quiet = new("Quiet", kind.server(ss), handle_error=lambda self, request, address: None)
    handler = recording(upper(kind.handler(ss)), trace, raising)
    return make(recording(quiet, trace, raising), handler)


def run(server: Any, trace: Trace) -> tuple[list[str], int]:
    """One request: what the child called, and its exit status."""
    trace.clear()
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        status = exit_status(only_child(server))
    return [event.name for event in trace.events() if event.pid != os.getpid()], status


# --- the child


@forking
def test_exit_status(ss: ModuleType, kind: Any, make: Make, trace: Trace) -> None:
    server = recorded(ss, kind, make, trace)
    assert server.active_children is None
    called, status = run(server, trace)
    assert (called[0], called[-2:], status) == ("finish_request", END, 0)
    assert {event.pid for event in trace.named("handle")} == server.active_children


@forking
@pytest.mark.parametrize("step", ["finish_request", "setup", "handle", "finish"])
def test_exception(ss: ModuleType, kind: Any, make: Make, trace: Trace, step: str) -> None:
    """handle_error() in the child and inside the exception; the child's exit status is 1."""
    server = recorded(ss, kind, make, trace, **{step: ValueError("boom")})
    called, status = run(server, trace)
    assert called[-3:] == ["handle_error", *END]
    assert ("finish" in called) == (step in ("handle", "finish"))
    assert status == 1
    (event,) = trace.named("handle_error")
    assert event.call == "handle_error(request, address)"
    assert event.exception == "ValueError"


@forking
@pytest.mark.parametrize("ending", [SystemExit(0), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_ending(ss: ModuleType, kind: Any, make: Make, trace: Trace, ending: BaseException) -> None:
    server = recorded(ss, kind, make, trace, handle=ending)
    called, status = run(server, trace)
    assert called[-3:] == ["finish", *END]
    assert status == 1


@forking
@pytest.mark.parametrize(
    ("raising", "last", "expected"),
    [
        (["handle", "handle_error"], ["handle_error", *END], 1),
        (["shutdown_request"], ["finish", "shutdown_request"], 0),
        (["handle", "shutdown_request"], ["handle_error", "shutdown_request"], 1),
    ],
    ids=["handle_error", "shutdown_request", "handle and shutdown_request"],
)
def test_exception_at_the_end(
    ss: ModuleType,
    kind: Any,
    make: Make,
    trace: Trace,
    raising: list[str],
    last: list[str],
    expected: int,
) -> None:
    server = recorded(ss, kind, make, trace, **{name: ValueError(name) for name in raising})
    called, status = run(server, trace)
    assert called[-len(last) :] == last
    assert status == expected


@forking
def test_exception_in_the_parent(ss: ModuleType, kind: Any, make: Make, trace: Trace) -> None:
    """close_request() of the parent is within process_request()."""

    def close_request(self: Any, request: Any) -> None:
        super(Closing, self).close_request(request)
        if os.getpid() == parent and not failed:
            failed.append(True)
            raise ValueError("boom")

    parent = os.getpid()
    failed: list[bool] = []
    Closing: Any = new(
        "Closing",
        kind.server(ss),
        close_request=close_request,
        handle_error=lambda self, request, client_address: None,
    )
    server = make(recording(Closing, trace), upper(kind.handler(ss)))
    trace.clear()
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        mine = [event.name for event in trace.events() if event.pid == parent]
        assert mine[-4:] == ["close_request", "handle_error", *END]
        assert len(server.active_children) == 1


def test_handle_error_inside_the_exception(ss: ModuleType, make: Make, trace: Trace) -> None:
    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        trace.log("handle_error", sys.exc_info()[1])
        raise  # noqa: PLE0704

    def handle(self: Any) -> None:
        raise ValueError("boom")

    handler = new("Handler", ss.BaseRequestHandler, handle=handle)
    server = make(ss.ForkingTCPServer, handler, handle_error=handle_error)
    _, status = run(server, trace)
    assert [event.call for event in trace.events()] == ["handle_error(boom)"]
    assert status == 1


EXIT_HANDLERS = """
import atexit, socket
atexit.register(print, "at exit")
class Handler(ss.StreamRequestHandler):
    def handle(self):
        print("buffered in the child")
        self.wfile.write(b"x")
server = ss.ForkingTCPServer(("127.0.0.1", 0), Handler)
with socket.create_connection(server.server_address, timeout=10) as client:
    server.handle_request()
    client.recv(1)
server.server_close()
"""


def test_child_ends_by_os_exit(script: Callable[..., Any]) -> None:
    """No exit handler of the parent's runs in the child, no buffer of it is written."""
    assert script(EXIT_HANDLERS).communicate(timeout=TIMEOUT) == ("at exit\n", "")


def test_fork_that_fails(
    ss: ModuleType, make: Make, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is closed, handle_error() told, and the server goes on."""

    def no_fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        trace.log("handle_error", sys.exc_info()[0].__name__)

    server = make(ss.ForkingTCPServer, upper(ss.StreamRequestHandler), handle_error=handle_error)
    with connect(server) as client, monkeypatch.context() as patch:
        patch.setattr(os, "fork", no_fork)
        server.handle_request()
        assert ended(client)
    assert [event.call for event in trace.events()] == ["handle_error(BlockingIOError)"]
    with serving(server):
        assert ask(server) == b"HELLO\n"


# --- reaping


@forking
def test_service_actions_collect(ss: ModuleType, kind: Any, make: Make) -> None:
    server = make(kind.server(ss), upper(kind.handler(ss)))
    with serving(server):
        assert ask(server) == b"HELLO\n"
        wait_until(lambda: server.active_children == set())


def test_handle_timeout_collects(ss: ModuleType, make: Make) -> None:
    server = make(ss.ForkingTCPServer, upper(ss.StreamRequestHandler))
    with connect(server) as client:
        client.sendall(b"hello\n")
        server.handle_request()
        assert receive(client) == b"HELLO\n"
    wait_until(lambda: has_exited(only_child(server)))
    server.timeout = 0
    server.handle_request()
    assert server.active_children == set()


def wait_for_the_end(handler: Any) -> None:
    handler.request.recv(1)


class Waiting:
    """A server with children that wait until their client hangs up."""

    def __init__(self, ss: ModuleType, make: Make) -> None:
        handler = new("Handler", ss.BaseRequestHandler, handle=wait_for_the_end)
        self.server = make(ss.ForkingTCPServer, handler)
        self.clients: list[Any] = []

    def start(self, children: int = 1) -> Any:
        for _ in range(children):
            self.clients.append(connect(self.server))
            self.server.handle_request()
        return self.server

    def release(self) -> None:
        while self.clients:
            hang_up(self.clients.pop())


@pytest.fixture
def waiting(ss: ModuleType, make: Make) -> Iterator[Waiting]:
    waiting = Waiting(ss, make)
    yield waiting
    waiting.release()


def test_collect_children(waiting: Waiting) -> None:
    """Not blocking, unless asked to."""
    server = waiting.start(2)
    assert server.collect_children() is None
    assert len(server.active_children) == 2
    assert server.collect_children(blocking=False) is None
    assert len(server.active_children) == 2
    hang_up(waiting.clients.pop())
    wait_until(lambda: server.collect_children() or len(server.active_children) == 1)
    blocked = Background(server.collect_children, blocking=True)
    assert len(server.active_children) == 1
    waiting.release()
    assert blocked.result() is None
    assert server.active_children == set()


def test_collect_children_before_the_first_request(ss: ModuleType, make: Make) -> None:
    server = make(ss.ForkingTCPServer)
    assert server.collect_children() is None
    assert server.collect_children(blocking=True) is None
    assert server.active_children is None


def test_child_reaped_by_somebody_else(waiting: Waiting) -> None:
    server = waiting.start()
    waiting.release()
    assert exit_status(only_child(server)) == 0
    server.collect_children()
    assert server.active_children == set()


def test_collect_children_of_the_program(ss: ModuleType, make: Make) -> None:
    """active_children is a set of process ids that a program may add to."""
    server = make(ss.ForkingTCPServer)
    child = os.fork()
    if child == 0:
        os._exit(0)
    server.active_children = {child}
    server.collect_children(blocking=True)
    assert server.active_children == set()
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)


@pytest.mark.parametrize("block_on_close", [True, False])
def test_block_on_close(waiting: Waiting, block_on_close: bool) -> None:
    server = waiting.start()
    server.block_on_close = block_on_close
    pid = only_child(server)

    def release() -> None:
        wait_until(lambda: server.fileno() == -1)  # the listener goes first
        waiting.release()

    if block_on_close:
        thread = Background(release)
        server.server_close()
        thread.result()
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    else:
        server.server_close()
        assert not has_exited(pid)
        assert server.active_children == {pid}
        waiting.release()
        assert exit_status(pid) == 0


# --- max_children


@pytest.mark.parametrize("where", ["subclass", "instance", "library"])
@pytest.mark.parametrize("limit", [1, 2])
def test_max_children(
    ss: ModuleType,
    make: Make,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    where: str,
) -> None:
    """So many at a time, and the others wait."""

    def handle(self: Any) -> None:
        trace.log("begin")
        time.sleep(0.03)
        trace.log("end")

    handler = new("Handler", ss.BaseRequestHandler, handle=handle)
    server = make(new("Server", ss.ForkingTCPServer), handler)
    if where == "library":
        monkeypatch.setattr(ss.ForkingMixIn, "max_children", limit)
    else:
        (server if where == "instance" else type(server)).max_children = limit
    clients = [connect(server) for _ in range(limit + 2)]
    with serving(server):
        trace.wait("end", limit + 2)
    running = most = 0
    for name in trace.names():
        running += 1 if name == "begin" else -1
        most = max(most, running)
    assert 1 <= most <= limit
    for client in clients:
        client.close()


@pytest.mark.fastsock_only(reason="a full house leaves other children of the program alone")
def test_max_children_leaves_others_alone(ss: ModuleType, make: Make, trace: Trace) -> None:
    def handle(self: Any) -> None:
        trace.log("begin")
        wait_for_the_end(self)

    other = os.fork()
    if other == 0:
        os._exit(7)
    wait_until(lambda: has_exited(other))
    handler = new("Handler", ss.BaseRequestHandler, handle=handle)
    server = make(ss.ForkingTCPServer, handler, max_children=1)
    first, second = connect(server), connect(server)
    with serving(server):
        trace.wait("begin")
        hang_up(first)
        trace.wait("begin", 2)
        hang_up(second)
    assert exit_status(other) == 7


@pytest.mark.fastsock_only(reason="a full house pauses accepting, the loop goes on")
def test_full_house_does_not_block_the_loop(ss: ModuleType, make: Make) -> None:
    class Counting(ss.ForkingTCPServer):
        max_children = 1
        cycles = 0

        def service_actions(self) -> None:
            super().service_actions()
            self.cycles += 1

    handler = new("Handler", ss.BaseRequestHandler, handle=wait_for_the_end)
    server = make(Counting, handler)
    clients = [connect(server), connect(server)]
    with serving(server):
        wait_until(lambda: server.active_children)
        seen = server.cycles
        wait_until(lambda: server.cycles > seen + 5)
        assert len(server.active_children) == 1
        for client in clients:
            hang_up(client)


def test_ended_while_a_hook_collects_twice(ss: ModuleType, make: Make) -> None:
    """One that a hook collects in the loop's place makes room for the next request."""

    class Collecting(ss.ForkingTCPServer):
        max_children = 1

        def process_request(self, request: Any, client_address: Any) -> None:
            super().process_request(request, client_address)
            pid = only_child(self)
            self.collect_children()  # a full house: waits, or has the loop wait
            collected.set()
            wait_until(lambda: has_exited(pid))
            self.collect_children()

    handler = new("Handler", ss.BaseRequestHandler, handle=wait_for_the_end)
    server = make(Collecting, handler)
    with serving(server):
        for _ in range(2):
            collected = threading.Event()
            client = connect(server)
            wait_until(lambda: server.active_children)
            collected.wait(0.1)
            hang_up(client)
            assert collected.wait(TIMEOUT)


# --- what is done in a child


def test_killed_child(waiting: Waiting) -> None:
    """Nobody shuts its connection down; that the parent holds no copy of it is enough."""
    server = waiting.start()
    os.kill(only_child(server), signal.SIGKILL)
    assert ended(waiting.clients[0])
    server.server_close()
    assert server.active_children == set()


def test_cgi(ss: ModuleType, make: Make) -> None:
    """A child puts its files on descriptors 0 and 1 and becomes another program."""
    shell = shutil.which("sh")
    assert shell is not None

    class Handler(ss.StreamRequestHandler):
        rbufsize = 0  # as a CGI server does: what it hasn't read is for the program

        def handle(self) -> None:
            self.rfile.readline()
            os.dup2(self.rfile.fileno(), 0)
            os.dup2(self.wfile.fileno(), 1)
            os.execv(shell, ["sh", "-c", "read line; echo got $line"])

    server = make(ss.ForkingTCPServer, Handler)
    with serving(server):
        assert ask(server, b"header\nbody\n") == b"got body\n"


@pytest.mark.parametrize("base", ["ForkingTCPServer", "ThreadingTCPServer", "TCPServer"])
def test_subprocess_on_the_connection(ss: ModuleType, make: Make, base: str) -> None:
    """subprocess takes rfile and wfile, or the request itself."""

    class Handler(ss.StreamRequestHandler):
        rbufsize = 0

        def handle(self) -> None:
            self.rfile.readline()
            command = ["sh", "-c", "read line; echo got $line"]
            subprocess.run(command, stdin=self.rfile, stdout=self.wfile, check=True)
            subprocess.run(command, stdin=self.request, stdout=self.connection, check=True)

    server = make(getattr(ss, base), Handler)
    with serving(server), connect(server) as client:
        client.sendall(b"header\nbody\n")
        assert client.recv(100) == b"got body\n"
        client.sendall(b"more\n")
        assert receive(client) == b"got more\n"


def test_server_in_a_child_of_a_serving_process(ss: ModuleType, make: Make) -> None:
    """The handler's process may run a server of its own; the parent's is undisturbed."""

    class Handler(ss.StreamRequestHandler):
        def handle(self) -> None:
            inner = ss.ThreadingTCPServer(("127.0.0.1", 0), upper(ss.StreamRequestHandler))
            with inner, serving(inner):
                self.wfile.write(ask(inner, self.rfile.readline()))

    server = make(ss.ForkingTCPServer, Handler)
    with serving(server):
        assert ask(server) == b"HELLO\n"
        assert ask(server) == b"HELLO\n"


def test_other_threads_may_wait_for_children(ss: ModuleType, make: Make) -> None:
    """subprocess in another thread gets its exit status while the server reaps."""
    server = make(ss.ForkingTCPServer, upper(ss.StreamRequestHandler))
    with serving(server):
        codes = []
        thread = threading.Thread(
            target=lambda: codes.append(subprocess.run(["sh", "-c", "exit 5"]).returncode)
        )
        thread.start()
        for _ in range(3):
            assert ask(server) == b"HELLO\n"
        thread.join(TIMEOUT)
    assert codes == [5]
