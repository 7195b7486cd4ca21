"""``python -m fastsock bench``: multiplexing, idle connections, and those that come cold."""

from __future__ import annotations

import pytest
from programs import Ended, Programs

from fastsock.bench import _measure, _results

NICE = """
import os, sys
os.nice(19)
if sys.path[:1] == [""]:
    del sys.path[0]
from fastsock.__main__ import main
sys.exit(main(["bench", *sys.argv[1:]]))
"""
SHORT = ("--rounds", "1", "--seconds", "0.05", "--json")
MULTIPLEXING = "fastsock multiplexing"


def bench(programs: Programs, *arguments: str) -> Ended:
    return programs.run("-c", NICE, *arguments)


def found(ended: Ended) -> _results.Run:
    assert ended.status == 0, ended
    return _results.from_json(ended.out)


def test_every_kind_of_load(programs: Programs) -> None:
    """A connection per request, lasting ones of both families, HTTP of both kinds, datagrams."""
    pytest.importorskip("greenlet")
    names = ["threads", "lines_pipelined", "lines_unix", "http_nodelay", "http_close"]
    arguments = ("--servers", "multiplexing", *SHORT, *names, "udp_threads", "sync")
    run = found(bench(programs, *arguments))
    assert run.left_out == []
    assert run.servers() == [MULTIPLEXING]
    assert {one.scenario for one in run.measurements} == {*names, "udp_threads"}
    for one in run.measurements:
        allowed = {"lost"} if one.scenario == "udp_threads" else set()
        assert set(one.errors) <= allowed, one
        assert one.operations > 0


def test_one_thread_serves_all(programs: Programs) -> None:
    """It is what it says it is."""
    pytest.importorskip("greenlet")
    text = """
        import socketserver, threading

        TITLE, LOAD, CONNECTIONS, PAYLOAD = "which", "lines", (20,), 10
        seen = set()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                seen.add(threading.get_ident())
                with open("threads", "a") as file:
                    print(len(seen), file=file)
                for line in self.rfile:
                    self.wfile.write(line)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
    """
    programs.write("which.py", text)
    which = ("--add", "which.py", "which")
    run = found(bench(programs, "--servers", "multiplexing", *SHORT, *which))
    assert [one.served for one in run.measurements] == [20]
    assert set((programs.folder / "threads").read_text().split()) == {"1"}
    found(bench(programs, "--servers", "fastsock", *SHORT, *which))
    assert set((programs.folder / "threads").read_text().split()) != {"1"}


def test_without_greenlet(programs: Programs) -> None:
    program = """
        import sys
        from fastsock.bench import _scenarios
        genuine = _scenarios.version_of
        _scenarios.version_of = lambda name: "" if name == "greenlet" else genuine(name)
        from fastsock.__main__ import main
        sys.exit(main(["bench", *sys.argv[1:]]))
    """
    says = "fastsock multiplexing: greenlet is not installed: pip install 'fastsock[bench]'"
    ended = programs.run_script(program, "--servers", "multiplexing", *SHORT, "lines")
    assert (ended.status, ended.out) == (2, ""), ended
    assert says in ended.err
    servers = ("--servers", "multiplexing,fastsock")
    ended = programs.run_script(program, *servers, *SHORT[:-1], "--markdown", "lines")
    assert ended.status == 0, ended
    assert f"- not measured: {says}\n" in ended.out
    assert "| fastsock multiplexing" not in ended.out


def test_beside_idle_connections_and_alone(programs: Programs) -> None:
    text = """
        import socketserver

        TITLE, LOAD, CONNECTIONS, PAYLOAD, IDLE = "idle", "lines", (5,), 10, 40
        count = 0

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                global count
                count += 1
                with open("connections", "a") as file:
                    print(count, file=file)
                for line in self.rfile:
                    self.wfile.write(line)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
    """
    programs.write("beside.py", text)
    both = ("--servers", "socketserver", *SHORT, "--add", "beside.py", "beside", "lines")
    one, alone = found(bench(programs, *both)).measurements[::-1]
    if one.scenario != "beside":
        one, alone = alone, one
    assert (one.scenario, alone.scenario) == ("beside", "lines")
    assert one.alone is not None and one.alone > 0
    assert one.errors == {} and one.served == 5
    assert alone.alone is None
    # five alone, and then five beside forty
    assert len((programs.folder / "connections").read_text().split()) == 5 + 45


def test_clients_that_come_cold(programs: Programs) -> None:
    """The backlog is the server's own, and the connections are opened while it is counted."""
    text = """
        import socketserver

        TITLE, LOAD, CONNECTIONS, PAYLOAD, COLD = "cold", "lines", (5,), 10, True

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                with open("connections", "a") as file:
                    print(self.server.request_queue_size, file=file)
                for line in self.rfile:
                    self.wfile.write(line)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 17
    """
    programs.write("cold.py", text)
    arguments = ("--servers", "socketserver", *SHORT, "--backlog", "99", "--add", "cold.py", "cold")
    run = found(bench(programs, *arguments))
    (one,) = run.measurements
    assert run.scenarios["cold"].cold
    assert one.seconds >= _measure.COLD_SECONDS
    assert (one.errors, one.served) == ({}, 5)
    assert one.opening is one.memory is None
    assert (programs.folder / "connections").read_text().split() == ["17"] * 5
