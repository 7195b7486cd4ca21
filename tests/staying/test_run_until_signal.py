"""fastsock.run(): serve until a signal, drain, and leave everything as it was."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from living import LATE, Living, until_end
from programs import Programs, end
from support import TIMEOUT, Background, wait_until

Live = Callable[..., Living]

PROGRAM = """
import os, signal, sys, time
import fastsock
flavour, timeout, handler = sys.argv[1:]

class Handler(fastsock.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            if line == b"stuck\\n":
                self.wfile.write(b"stuck\\n")
                self.wfile.flush()
                STUCK[handler]()
            self.wfile.write(line)

def sleep():
    time.sleep(60)

def compute():
    while True:
        pass

STUCK = {"sleep": sleep, "compute": compute}
Server = getattr(fastsock, flavour + "TCPServer")
with Server(("127.0.0.1", 0), Handler) as server:
    server.daemon_threads = True
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    wakeup = os.pipe()
    os.set_blocking(wakeup[1], False)
    signal.set_wakeup_fd(wakeup[1], warn_on_full_buffer=False)
    print(server.server_address[1], flush=True)
    report = fastsock.run(server, drain_timeout=float(timeout))
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert signal.set_wakeup_fd(-1) == wakeup[1]
print(report.finished, report.idle_closed, report.cut_off)
"""
NAMES = {"sync": "", "threading": "Threading", "forking": "Forking", "multiplexing": "Multiplexing"}


class Running:
    """The program, and a client."""

    def __init__(self, programs: Programs, flavour: str, timeout: float, stuck: str = "sleep"):
        self.process = programs.script(PROGRAM, NAMES[flavour], str(timeout), stuck)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, end(self.process)
        self.address = ("127.0.0.1", int(line))
        self.client = socket.create_connection(self.address, TIMEOUT)

    def ask(self, line: bytes) -> bytes:
        self.client.sendall(line)
        return self.client.recv(len(line))

    def send_signal(self, number: int) -> None:
        self.signalled = time.monotonic()
        self.process.send_signal(number)

    def end(self) -> tuple[str, float]:
        ended = end(self.process)
        seconds = time.monotonic() - self.signalled
        self.client.close()
        assert ended.status == 0, ended
        return ended.out.strip(), seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(programs: Programs, flavour: str, number: int) -> None:
    running = Running(programs, flavour, 0.5 if flavour == "forking" else 600)
    assert running.ask(b"hello\n") == b"hello\n"
    running.send_signal(number)
    report, seconds = running.end()
    # What a child does its parent does not know: it has its time.
    assert report == ("0 0 1" if flavour == "forking" else "0 1 0")
    assert seconds < 2


@pytest.mark.parametrize("stuck", ["sleep", "compute"])
def test_what_is_stuck_does_not_keep_it(programs: Programs, flavour: str, stuck: str) -> None:
    """Not even a handler in the main thread."""
    running = Running(programs, flavour, 0.5, stuck)
    assert running.ask(b"stuck\n") == b"stuck\n"
    running.send_signal(signal.SIGTERM)
    report, seconds = running.end()
    assert report == "0 0 1"
    assert 0.5 <= seconds < 2


def test_a_second_signal_ends_it_at_once(programs: Programs, flavour: str) -> None:
    running = Running(programs, flavour, 600)
    assert running.ask(b"stuck\n") == b"stuck\n"
    running.send_signal(signal.SIGTERM)
    if flavour in ("threading",):  # the others have their listener open, in the process or a child
        wait_until(lambda: not is_listening(running.address))
    else:
        time.sleep(0.2)  # or the two may come as one
    running.send_signal(signal.SIGINT)
    report, seconds = running.end()
    assert report.endswith(" 0 1")
    assert seconds < 2


def is_listening(address: tuple[str, int]) -> bool:
    """As the kernel says: to connect would be one more request."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    entries = [line.split()[1:4] for line in lines]
    return any(
        local.endswith(f":{address[1]:04X}") and state == "0A" for local, _, state in entries
    )


def test_children_do_not_heed_ctrl_c(programs: Programs) -> None:
    """A terminal sends it to all of the group; the request of a child is to finish."""
    running = Running(programs, "forking", 600)
    assert running.ask(b"hello\n") == b"hello\n"
    running.signalled = time.monotonic()
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.ask(b"more\n") == b"more\n"
    running.client.shutdown(socket.SHUT_WR)
    assert until_end(running.client) == b""
    assert running.end()[0].endswith(" 0 0")  # nothing was cut off


def test_shutdown_ends_it_too(live: Live, fastsock_dir: str | None) -> None:
    before = signal.getsignal(signal.SIGTERM)
    living = live("threading", lambda handler: handler.wfile.write(b"x"), serves=False)
    run = living.module.run

    def stop() -> None:
        with socket.create_connection(living.server.server_address, TIMEOUT) as client:
            assert client.recv(1) == b"x"
        living.server.shutdown()

    stopping = Background(stop)
    assert run(living.server) is None
    stopping.result()
    assert signal.getsignal(signal.SIGTERM) is before


def main_thread_sleeps() -> bool:
    """A signal that came right before a handler waits, in that thread, would not wake it."""
    stat = Path(f"/proc/self/task/{os.getpid()}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "S"


def test_several_servers(live: Live, flavour: str) -> None:
    living = [live(flavour, lambda handler: handler.rfile.read(), serves=False) for _ in range(2)]
    clients = [one.connect(b"hello") for one in living]

    def interrupt() -> None:
        living[0].await_active(1)
        if flavour != "sync":
            living[1].await_active(1)
        if flavour != "forking":
            living[0].await_state("reading")
        wait_until(main_thread_sleeps)
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: living[1].server._fastsock.draining)
        for client in clients:
            client.shutdown(socket.SHUT_WR)

    interrupting = Background(interrupt)
    report = living[0].module.run(*(one.server for one in living), drain_timeout=TIMEOUT)
    interrupting.result()
    assert (report.finished, report.cut_off) == (2, 0)


def test_a_report_of_several(live: Live) -> None:
    def handle(handler: Any) -> None:
        for line in handler.rfile:
            handler.wfile.write(line)
            if line == b"stuck\n":
                handler.gate.wait()

    living = [live("threading", handle, serves=False) for _ in range(2)]

    def interrupt() -> None:
        idle = [one.connect(b"hello\n") for one in living]
        stuck = [one.connect(b"stuck\n") for one in living]
        assert [client.recv(10) for client in idle + stuck] == [b"hello\n"] * 2 + [b"stuck\n"] * 2
        for one in living:
            one.await_state("idle")
        os.kill(os.getpid(), signal.SIGTERM)
        assert [until_end(client) for client in idle] == [b"", b""]
        for one in living:
            wait_until(lambda one=one: one.server._fastsock.ledger.active == 1)
        os.kill(os.getpid(), signal.SIGTERM)

    interrupting = Background(interrupt)
    report = living[0].module.run(*(one.server for one in living), drain_timeout=None)
    interrupting.result()
    assert (report.finished, report.idle_closed, report.cut_off) == (0, 2, 2)


def test_further_signals_leave_a_handler_that_goes_on(programs: Programs) -> None:
    """In the main thread."""
    process = programs.script("""
        import threading, time
        import fastsock

        class Handler(fastsock.BaseRequestHandler):
            def handle(self):
                for _ in range(3):
                    try:
                        print("stuck", flush=True)
                        time.sleep(60)
                    except BaseException as error:
                        print("left", isinstance(error, Exception), flush=True)

        def watch():
            while not server._fastsock.draining:
                time.sleep(0.001)
            print("drains", flush=True)

        with fastsock.TCPServer(("127.0.0.1", 0), Handler) as server:
            print(server.server_address[1], flush=True)
            threading.Thread(target=watch, daemon=True).start()
            print(fastsock.run(server, drain_timeout=None).cut_off)
    """)
    assert process.stdout is not None
    with socket.create_connection(("127.0.0.1", int(process.stdout.readline())), TIMEOUT):
        assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "drains\n"
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "left False\n"
            assert process.stdout.readline() == "stuck\n"
        process.send_signal(signal.SIGTERM)
        ended = end(process)
    assert (ended.status, ended.out) == (0, "left False\n1\n"), ended


def test_it_is_for_the_main_thread(live: Live) -> None:
    living = live("threading", lambda handler: None, serves=False)
    with pytest.raises(ValueError, match="main thread"):
        Background(living.module.run, living.server).result()


def test_what_is_no_server(live: Live) -> None:
    living = live("threading", lambda handler: None, serves=False)
    run = living.module.run
    with pytest.raises(ValueError, match="no server"):
        run()
    with pytest.raises(TypeError, match="not a fastsock server"):
        run(living)
    for what in ("soon", float("nan")):
        with pytest.raises((TypeError, ValueError)):
            run(living.server, drain_timeout=what)
    living.server.server_close()
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="Invalid file descriptor"):
        run(living.server)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored(programs: Programs) -> None:
    ended = programs.run_script("""
        import os, signal, threading
        import fastsock
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        server = fastsock.TCPServer(("127.0.0.1", 0), fastsock.BaseRequestHandler)

        class Server(fastsock.TCPServer):
            passes = 0
            def service_actions(self):
                self.passes += 1
                if self.passes == 2:
                    os.kill(os.getpid(), signal.SIGINT)
                elif self.passes == 5:
                    os.kill(os.getpid(), signal.SIGTERM)

        with Server(("127.0.0.1", 0), fastsock.BaseRequestHandler) as server:
            print(fastsock.run(server, poll_interval=0.01).cut_off, server.passes >= 5)
    """)
    assert (ended.status, ended.out) == (0, "0 True\n"), ended


def test_a_signal_while_it_gets_ready(programs: Programs) -> None:
    """What it needs is imported with the signals set: that takes some time."""
    ended = programs.run_script("""
        import os, signal, sys
        import fastsock

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "fastsock._drain":
                    os.kill(os.getpid(), signal.SIGTERM)

        sys.meta_path.insert(0, Finder())
        with fastsock.TCPServer(("127.0.0.1", 0), fastsock.BaseRequestHandler) as server:
            print(fastsock.run(server))
    """)
    expected = "DrainReport(finished=0, idle_closed=0, cut_off=0)\n"
    assert (ended.status, ended.out) == (0, expected), ended


def test_a_fork_of_the_program_s_own_has_its_signals(programs: Programs) -> None:
    ended = programs.run_script("""
        import os, signal
        import fastsock

        class Server(fastsock.TCPServer):
            def service_actions(self):
                child = os.fork()
                if child == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                    os._exit(1)
                print(os.WTERMSIG(os.waitpid(child, 0)[1]))
                os.kill(os.getpid(), signal.SIGTERM)

        with Server(("127.0.0.1", 0), fastsock.BaseRequestHandler) as server:
            fastsock.run(server, poll_interval=0.01)
    """)
    assert (ended.status, ended.out.splitlines()[0]) == (0, "15"), ended


def test_no_thread_is_left(live: Live) -> None:
    living = live("sync", lambda handler: None, serves=False)
    threads = threading.active_count()
    Background(lambda: (wait_until(lambda: living.server._fastsock.is_served),
                        os.kill(os.getpid(), signal.SIGINT)))  # fmt: skip
    begin = time.monotonic()
    assert living.module.run(living.server).cut_off == 0
    assert time.monotonic() - begin < 1 + LATE
    wait_until(lambda: threading.active_count() == threads)
