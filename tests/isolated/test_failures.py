"""What failure does: the system calls of the loop, threads and forks that fail. fastsock only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import ask, connect, receive, upper

import fastsock

HERE = Path(__file__).parent
LOCAL = ("127.0.0.1", 0)

PRELUDE = """
    import errno, fastsock, json, os, resource, socket, sys, threading, time

    def report(**facts): print(json.dumps(facts))

    class Echo(fastsock.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                self.wfile.write(line)

    def ask(connection, data=b"hello\\n"):
        connection.sendall(data)
        answer = b""
        while len(answer) < len(data):
            more = connection.recv(100)
            if not more: break
            answer += more
        return answer == data

    def connect(server):
        return socket.create_connection(server.server_address, 10)

    def serve(server, **arguments):
        def run():
            try: server.serve_forever(**arguments)
            except OSError as error: errors.append(error.errno)
        thread = threading.Thread(target=run); thread.start(); return thread

    errors = []
"""


def run(script: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr}


def test_a_full_descriptor_table_pauses_the_listener_and_nothing_else() -> None:
    facts = run("""
        server = fastsock.ThreadingTCPServer(("127.0.0.1", 0), Echo)
        thread = serve(server, poll_interval=None)
        established = connect(server)
        assert ask(established)
        waiting = [socket.socket() for _ in range(5)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        filler = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        try:
            while True: filler.append(os.dup(0))
        except OSError: pass
        for client in waiting: client.connect(server.server_address)
        begin, cpu = time.monotonic(), time.process_time()
        asked = 0
        while time.monotonic() < begin + 1.0:  # the time that is looked at
            assert ask(established); asked += 1
        failures = server._fastsock.accept_errors[errno.EMFILE]
        # A descriptor that the server closes itself: a waiting client is served at once.
        time.sleep(0.3)
        before = time.monotonic()
        established.shutdown(socket.SHUT_WR)
        waiting[0].settimeout(10)
        first = ask(waiting[0]); took = time.monotonic() - before
        for descriptor in filler: os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in waiting: client.settimeout(10)
        rest = all(ask(client) for client in waiting)
        for client in [established, *waiting]: client.close()
        server.shutdown(); thread.join(10); server.server_close()
        report(failures=failures, asked=asked, first=first, rest=rest, took=took,
               alive=thread.is_alive())
    """)
    assert facts["failures"] <= 10  # 10 + 20 + 40 + ... ms
    assert facts["asked"] > 50
    assert facts["first"] and facts["rest"]
    assert not facts["alive"]
    assert facts["took"] < 0.5, "waited for the pause to end instead"
    lines = [line for line in facts["stderr"].splitlines() if "cannot take a request" in line]
    assert len(lines) == 1, facts["stderr"]
    assert "Too many open files" in lines[0]


def test_errors_are_printed_without_a_descriptor_to_read_traceback_with() -> None:
    """traceback is imported when it is needed; it may be too late then."""
    facts = run("""
        assert "traceback" not in sys.modules
        class Failing(Echo):
            def handle(self):
                filler = []
                resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
                try:
                    while True: filler.append(os.dup(0))
                except OSError: pass
                try: raise ValueError("the handler's own")
                finally: server.filler = filler
            def finish(self): pass
        server = fastsock.TCPServer(("127.0.0.1", 0), Failing)
        client = connect(server)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        server.handle_request()
        for descriptor in server.filler: os.close(descriptor)
        end = client.recv(1)
        client.close(); server.server_close()
        report(end=len(end))
    """)
    assert facts["end"] == 0
    lines = facts["stderr"].splitlines()
    assert "Exception occurred during processing of request from" in lines[1]
    assert lines[2] == "Traceback (most recent call last):"
    assert lines[-2] == "ValueError: the handler's own"
    assert lines[0] == lines[-1] == "-" * 40


def test_a_loop_without_a_descriptor_for_its_wakeup_still_stops() -> None:
    facts = run("""
        server = fastsock.TCPServer(("127.0.0.1", 0), Echo)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (server.fileno() + 1, hard))
        filler = []
        try:
            while True: filler.append(os.dup(0))
        except OSError: pass
        thread = serve(server, poll_interval=None)
        while not server._fastsock.accept_errors and not thread.is_alive(): pass
        begin = time.monotonic()
        server.shutdown(); thread.join(10)
        took = time.monotonic() - begin
        report(took=took, alive=thread.is_alive(), errors=errors)
    """)
    assert not facts["alive"] and not facts["errors"]
    assert facts["took"] < 5


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed, as for building fastsock"
    library = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run(
        [*compiler.split(), "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True
    )
    return library


SERVE_WITH_ERRORS = """
    number, times, kind = json.loads(sys.stdin.read())
    if kind == "stream":
        class Handler(fastsock.BaseRequestHandler):
            def handle(self): self.request.sendall(self.request.recv(100))
        server = fastsock.TCPServer(("127.0.0.1", 0), Handler)
    else:
        class Handler(fastsock.DatagramRequestHandler):
            def handle(self): self.wfile.write(self.packet)
        server = fastsock.UDPServer(("127.0.0.1", 0), Handler)
    with open(os.environ["SHIM"], "w") as file: file.write(f"{number} {times}      \\n")
    thread = serve(server, poll_interval=0.05)
    client = socket.socket(server.address_family, server.socket_type)
    client.settimeout(10)
    client.connect(server.server_address)
    begin, cpu = time.monotonic(), time.process_time()
    client.sendall(b"hello")
    if times < 100:
        answered = client.recv(100) == b"hello"
        alive = thread.is_alive()
    else:
        thread.join(10)
        answered, alive = None, thread.is_alive()
    took, cpu = time.monotonic() - begin, time.process_time() - cpu
    counted = server._fastsock.accept_errors.get(number)
    server.shutdown(); thread.join(10); client.close(); server.server_close()
    report(answered=answered, alive=alive, counted=counted, errors=errors, took=took, cpu=cpu)
"""

Serve = Callable[[str, int, str], dict[str, Any]]


@pytest.fixture
def serve_with_errors(shim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """serve_with_errors(errno's name, how often, stream or datagram) -> what happened."""

    def serve(name: str, times: int, kind: str) -> dict[str, Any]:
        script = SERVE_WITH_ERRORS.replace(
            "sys.stdin.read()", repr(json.dumps([getattr(errno, name), times, kind]))
        )
        return run(script, LD_PRELOAD=str(shim), SHIM=str(tmp_path / "errors"))

    return serve


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("name", ["ECONNABORTED", "EPROTO", "EPERM", "ENETDOWN", "EHOSTUNREACH"])
def test_an_error_of_the_connection_is_counted_and_the_loop_goes_on(
    serve_with_errors: Serve, name: str, kind: str
) -> None:
    facts = serve_with_errors(name, 5, kind)
    assert facts["answered"] and facts["alive"]
    # A refused recvmmsg() is tried again as recvmsg(), until that brings something.
    assert facts["counted"] == (2 if (name, kind) == ("EPERM", "datagram") else 5)
    assert facts["took"] < 1 and not facts["stderr"]


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("name", ["EINTR", "EAGAIN"])
def test_nothing_to_take_after_all_is_no_error(
    serve_with_errors: Serve, name: str, kind: str
) -> None:
    facts = serve_with_errors(name, 5, kind)
    assert facts["answered"] and facts["alive"]
    assert facts["counted"] is None


@pytest.mark.parametrize("kind", ["stream", "datagram"])
@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_a_shortage_is_waited_out(serve_with_errors: Serve, name: str, kind: str) -> None:
    facts = serve_with_errors(name, 4, kind)
    assert facts["answered"] and facts["alive"]
    assert facts["counted"] == 4
    assert facts["took"] >= 0.14  # 10 + 20 + 40 + 80 ms
    assert facts["stderr"].count("cannot take a request") == 1


@pytest.mark.parametrize("name", ["EBADF", "EINVAL", "ENOTSOCK"])
def test_a_broken_listener_ends_the_loop(serve_with_errors: Serve, name: str) -> None:
    facts = serve_with_errors(name, 100_000, "stream")
    assert facts["errors"] == [getattr(errno, name)]
    assert not facts["alive"]
    assert facts["took"] < 3 and facts["cpu"] < 0.3


def test_a_listener_that_recovers_goes_on(serve_with_errors: Serve) -> None:
    facts = serve_with_errors("EINVAL", 3, "stream")
    assert facts["answered"] and facts["alive"] and not facts["errors"]


def test_connection_errors_without_end_do_not_burn_the_processor(serve_with_errors: Serve) -> None:
    facts = serve_with_errors("EPROTO", 68, "stream")
    assert facts["answered"]
    assert facts["took"] >= 0.14, "no pause after many errors in a row"


SERVE_WITHOUT_RECVMMSG = """
    number, family = json.loads(sys.stdin.read())
    class Handler(fastsock.DatagramRequestHandler):
        def handle(self):
            if self.packet == b"first":
                self.wfile.write(self.socket.recv(100))
            self.wfile.write(self.packet)
    kind = fastsock.UDPServer if family == "UDP" else fastsock.UnixDatagramServer
    server = kind(("127.0.0.1", 0) if family == "UDP" else "\\0" + os.environ["SHIM"], Handler)
    client = socket.socket(server.address_family, server.socket_type)
    client.settimeout(10)
    if family != "UDP":
        client.bind("")
    client.connect(server.server_address)
    sent = [b"first", b"second"] + [b"%d" % index for index in range(6)]
    with open(os.environ["SHIM_RECVMMSG"], "w") as file:
        file.write(f"{number} 1000      \\n")
    for packet in sent:
        client.send(packet)
    thread = serve(server, poll_interval=0.05)
    answers = [client.recv(100).decode() for _ in range(7)]
    with open(os.environ["SHIM_RECVMMSG"]) as file:
        refusals = 1000 - int(file.read().split()[1])
    client.send(b"last")
    answers.append(client.recv(100).decode())
    alive = thread.is_alive()
    counted = server._fastsock.accept_errors
    server.shutdown(); thread.join(10); client.close(); server.server_close()
    report(answers=answers, alive=alive, counted=counted, errors=errors, refusals=refusals)
"""


@pytest.mark.parametrize("family", ["UDP", "Unix"])
@pytest.mark.parametrize("name", ["ENOSYS", "EPERM"])
def test_recvmmsg_is_refused(shim: Path, tmp_path: Path, name: str, family: str) -> None:
    """By an old kernel or a seccomp filter: datagrams are received one by one from then on."""
    script = SERVE_WITHOUT_RECVMMSG.replace(
        "sys.stdin.read()", repr(json.dumps([getattr(errno, name), family]))
    )
    files = {name: str(tmp_path / name) for name in ("SHIM", "SHIM_RECVMMSG")}
    facts = run(script, LD_PRELOAD=str(shim), **files)
    assert facts["answers"] == ["secondfirst", *map(str, range(6)), "last"]
    assert facts["alive"] and not facts["errors"] and not facts["counted"]
    assert facts["refusals"] == 1


SERVE_WITHOUT_ROOM_IN_EPOLL = """
    import fastsock.multiplexing as multiplexing
    class Handler(fastsock.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                multiplexing.sleep(0.001)
                self.wfile.write(line)
    with open(os.environ["SHIM_EPOLL"], "w") as file:
        file.write(f"{NUMBER} 1000000000      \\n")
    server = multiplexing.MultiplexingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = serve(server, poll_interval=60)
    clients = [connect(server) for _ in range(3)]
    answers = [ask(client) for client in clients]
    server.shutdown(); thread.join(10); alive = thread.is_alive()
    for client in clients: client.close()
    server.server_close()
    report(answers=answers, alive=alive, errors=errors)
"""


@pytest.mark.parametrize("name", ["ENOSPC", "ENOMEM"])
def test_a_multiplexing_loop_without_room_in_epoll(shim: Path, tmp_path: Path, name: str) -> None:
    """Its listener is polled now and then; the tasks run meanwhile."""
    script = SERVE_WITHOUT_ROOM_IN_EPOLL.replace("NUMBER", str(getattr(errno, name)))
    facts = run(script, LD_PRELOAD=str(shim), SHIM_EPOLL=str(tmp_path / "epoll"))
    assert facts["answers"] == [True] * 3
    assert not facts["alive"] and not facts["errors"]


def test_a_thread_that_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = fastsock.ThreadingTCPServer(LOCAL, upper(fastsock.StreamRequestHandler))
    with server:
        with monkeypatch.context() as patch:

            def fail(thread: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patch.setattr(threading.Thread, "start", fail)
            with connect(server) as client:
                server.handle_request()
                assert receive(client) == b""  # closed, not left open
        assert server._fastsock.start_failures == 1
        assert "can't start new thread" in capfd.readouterr().err
        with connect(server) as client:
            client.sendall(b"hello\n")
            server.handle_request()
            assert receive(client) == b"HELLO\n"
    # server_close() did not try to join the thread that never ran


def test_a_fork_that_fails(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = fastsock.ForkingTCPServer(LOCAL, upper(fastsock.StreamRequestHandler))
    with server:
        with monkeypatch.context() as patch:

            def fail() -> int:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

            patch.setattr(os, "fork", fail)
            with connect(server) as client:
                server.handle_request()
                assert receive(client) == b""
        assert server._fastsock.start_failures == 1
        assert "BlockingIOError" in capfd.readouterr().err
        with connect(server) as client:
            client.sendall(b"hello\n")
            server.handle_request()
            assert receive(client) == b"HELLO\n"


def test_a_listener_is_left_alone_while_threads_cannot_be_started(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Failing(fastsock.ThreadingTCPServer):
        attempts: list[float] = []

        def process_request(self, request: Any, client_address: Any) -> None:
            self.attempts.append(time.monotonic())
            start, threading.Thread.start = threading.Thread.start, refuse  # type: ignore
            try:
                super().process_request(request, client_address)
            finally:
                threading.Thread.start = start  # type: ignore[method-assign]

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = Failing(LOCAL, fastsock.BaseRequestHandler)
    serving = threading.Thread(target=server.serve_forever)
    with server:
        serving.start()
        try:
            for _ in range(4):
                assert ask(server, b"") == b""
        finally:
            server.shutdown()
            serving.join()
    pauses = [after - before for before, after in zip(server.attempts, server.attempts[1:])]
    assert all(pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.04), strict=True))
    assert server._fastsock.start_failures == 4
