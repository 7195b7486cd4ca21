"""``python -m fastsock bench``, as a user calls it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from programs import Ended, Programs, end
from support import TIMEOUT, wait_until

from fastsock.bench import _results, _scenarios

# That every kind of load runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the command: the load is C, each server a program of a page")

# `python -m fastsock bench`, but behind whatever else is tested at the same time: what it measures
# here does not matter, and it takes all cores.
NICE = """
import os, sys
os.nice(19)
if sys.path[:1] == [""]:
    del sys.path[0]
from fastsock.__main__ import main
sys.exit(main(["bench", *sys.argv[1:]]))
"""
BENCH = ("-c", NICE)
BOTH = ("--servers", "socketserver,fastsock")
SHORT = ("--rounds", "1", "--seconds", "0.05")
NAMES = list(_scenarios.scenarios())
COLD = "http_cold"  # takes some seconds: see test_bench_kinds.py


def bench(programs: Programs, *arguments: str | Path) -> Ended:
    return programs.run(*BENCH, *arguments)


def check(run: _results.Run, scenario: str, connections: set[int], rounds: int = 1) -> None:
    """All is there, nothing failed, every byte was compared."""
    info = run.scenarios[scenario]
    assert run.left_out == []
    assert {key.connections for key in run.rows()} == connections
    assert len(run.measurements) == 2 * rounds * len(connections)
    for one in run.measurements:
        assert one.server in ("socketserver", "fastsock")
        # Beside other tests, a server may get no processor for 200 ms.
        allowed = {"lost"} if info.load == "datagrams" else set()
        assert set(one.errors) <= allowed, one
        assert sum(one.errors.values()) <= one.operations / 10, one
        assert one.operations > 0 and one.seconds > 0
        assert one.cpu is not None and one.cpu > 0
        assert one.load_cpu is not None and one.load_cpu > 0
        # What was under way when the counting began had partly been compared before.
        border = one.connections * info.depth
        assert one.verified >= (one.operations - border) * info.payload
        assert one.operations > border or info.load == "opening"
        if info.load != "opening":
            assert 0 < one.latency.p50 <= one.latency.p99 <= one.latency.p999 <= one.latency.max
        if info.load in ("lines", "http", "opening"):
            assert one.served == one.connections + (info.idle if info.load == "opening" else 0)
            assert one.memory is not None and one.opening is not None and one.opening > 0
        else:
            assert one.memory is one.opening is None


@pytest.mark.parametrize("scenario", [name for name in NAMES if name != COLD])
def test_every_scenario_on_both(programs: Programs, scenario: str) -> None:
    extra: tuple[str | Path, ...] = ()
    found = _scenarios.scenarios()[scenario]
    if not found.quick:  # thousands of threads: with fewer of them here
        text = found.path.read_text().replace("IDLE = 9000", "IDLE = 300")
        assert "IDLE = 300" in text
        extra = ("--add", programs.write(f"{scenario}.py", text.replace("QUICK = False\n", "")))
    for last in (False, False, True):  # half a second may be too short for it beside other tests
        ended = bench(
            programs,
            *BOTH,
            "--quick",
            "--rounds",
            "1",
            "--seconds",
            "0.5",
            "--json",
            *extra,
            scenario,
        )
        assert ended.status == 0, ended
        run = _results.from_json(ended.out)
        left_out = [one for one in run.left_out if not one.why.endswith("--quick")]
        quick = {number for number in found.connections if number <= 100}
        done = _results.Run(run.machine, run.settings, run.scenarios, run.measurements, left_out)
        try:
            check(done, scenario, quick)
        except AssertionError:
            if last:
                raise
        else:
            return


def test_the_table_says_how_it_was_measured(programs: Programs) -> None:
    ended = bench(programs, *BOTH, *SHORT, "--backlog", "77", "--markdown", "sync", "lines")
    assert ended.status == 0, ended
    for words in ("not pinned", "77", "64", "socketserver", "fastsock", "Linux", "Python"):
        assert words in ended.out, words


def test_only_the_import_differs(programs: Programs) -> None:
    """The standard library's server has nothing of fastsock; ours is installed before the file."""
    path = programs.write(
        "who.py",
        """
        import socketserver, sys

        TITLE, LOAD, CONNECTIONS = "who", "http-close", (1,)
        BODY = b"yes"
        REQUEST = b"GET / HTTP/1.0\\r\\n\\r\\n"
        if sys.argv[0].endswith("_serve.py"):  # the command itself reads the file as well
            ours = "fastsock" in sys.modules
            assert ours == socketserver.TCPServer.__module__.startswith("fastsock")
            assert ours == (sys.argv[3] == "fastsock")

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                self.rfile.readline(), self.rfile.readline()
                size = self.server.request_queue_size
                says = b"yes" if size == 99 else b"no"
                self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + says)

        Server = socketserver.TCPServer
        """,
    )
    ended = bench(programs, *BOTH, *SHORT, "--backlog", "99", "--json", "--add", path, "who")
    assert ended.status == 0, ended
    check(_results.from_json(ended.out), "who", {1})


def test_a_server_that_answers_wrongly_is_reported(programs: Programs) -> None:
    path = programs.write(
        "wrong.py",
        """
        import socketserver

        TITLE, LOAD, CONNECTIONS, PAYLOAD = "wrong", "once", (4,), 10
        answers = 0

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                global answers
                answers += 1
                data = self.request.recv(100)
                self.request.sendall(data if answers % 7 else b"x" + data[1:])

        Server = socketserver.TCPServer
        """,
    )
    ended = bench(programs, *BOTH, *SHORT, "--save", "a.json", "--add", path, "wrong")
    assert ended.status == 0, ended
    assert "corrupted" in ended.out
    run = _results.load(programs.folder / "a.json")
    assert all(one.errors["corrupted"] > 0 for one in run.measurements)


def test_a_server_that_does_not_start(programs: Programs) -> None:
    path = programs.write(
        "broken.py",
        """
        import socketserver

        TITLE, LOAD, CONNECTIONS, PAYLOAD = "broken", "once", (4,), 10
        Handler = socketserver.BaseRequestHandler

        def Server(address, handler):
            raise RuntimeError("no such luck")
        """,
    )
    ended = bench(programs, *BOTH, *SHORT, "--json", "--add", path, "broken", "sync")
    assert ended.status == 0, ended
    run = _results.from_json(ended.out)
    assert {one.scenario for one in run.measurements} == {"sync"}
    assert [(one.scenario, one.server) for one in run.left_out] == [
        ("broken", "socketserver"),
        ("broken", "fastsock"),
    ]
    assert all("no such luck" in one.why for one in run.left_out)


ONCE = """
import os, socketserver, time

TITLE, LOAD, CONNECTIONS, PAYLOAD = "once", "once", (4,), 10

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        {}
        self.request.sendall(self.request.recv(100))

Server = socketserver.TCPServer
"""


def test_a_server_that_prints(programs: Programs) -> None:
    """Neither is it taken for the port, nor does it block: a pipe holds 64 KiB."""
    if_served = 'if "_serve" in __import__("sys").argv[0]: print("hello")\n'
    path = programs.write("prints.py", if_served + ONCE.format('print("x" * 100_000)'))
    ended = bench(programs, *BOTH, *SHORT, "--json", "--add", path, "prints")
    assert ended.status == 0, ended
    check(_results.from_json(ended.out), "prints", {4})


def test_a_server_that_does_not_answer(programs: Programs) -> None:
    """Within the time that it is measured no request is given up: yet it is not without error."""
    path = programs.write("silent.py", ONCE.format("time.sleep(60)"))
    ended = bench(programs, *BOTH, *SHORT, "--json", "--add", path, "silent", "sync")
    assert ended.status == 0, ended
    run = _results.from_json(ended.out)
    assert {one.scenario for one in run.measurements} == {"sync"}
    assert len(run.left_out) == 2
    assert all("no answer within" in one.why for one in run.left_out)


def test_a_server_that_cannot_be_run(programs: Programs) -> None:
    """Such as the one in C, where /tmp has noexec: what else was measured is not lost."""
    program = """
        import sys
        from fastsock.bench import _measure
        from fastsock.__main__ import main
        _measure.Bench._reference = lambda self: self._work
        sys.exit(main(["bench", *sys.argv[1:]]))
    """
    servers = ("--servers", "socketserver,C")
    ended = programs.run_script(program, *servers, *SHORT, "--json", "sync")
    assert ended.status == 0, ended
    run = _results.from_json(ended.out)
    assert [one.server for one in run.measurements] == ["socketserver"]
    if not any(one.server == "C" and one.why.startswith("no C compiler") for one in run.left_out):
        assert [one.server for one in run.left_out] == ["C"]
        assert "Permission denied" in run.left_out[0].why


def test_rounds_are_interleaved_and_shown_again(programs: Programs) -> None:
    ended = bench(programs, *BOTH, "--rounds", "2", "--seconds", "0.05", "--save", "a.json", "sync")
    assert ended.status == 0, ended
    run = _results.load(programs.folder / "a.json")
    order = [(one.round, one.server) for one in run.measurements]
    assert order == [(0, "socketserver"), (0, "fastsock"), (1, "socketserver"), (1, "fastsock")]
    again = bench(programs, "--show", "a.json")
    assert (again.status, again.out) == (0, ended.out)
    raw = bench(programs, "--show", "a.json", "--json")
    assert _results.from_json(raw.out) == run


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_pinned_and_not(programs: Programs) -> None:
    """The servers of both kinds say on which cores they may run."""
    path = programs.write(
        "cores.py",
        """
        import os, socketserver

        TITLE, LOAD, CONNECTIONS, PAYLOAD = "cores", "once", (1,), 10
        with open("cores", "a") as file:
            print(len(os.sched_getaffinity(0)), file=file)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(self.request.recv(100))

        Server = socketserver.TCPServer
        """,
    )
    ended = bench(programs, *BOTH, *SHORT, "--both", "--json", "--add", path, "cores")
    assert ended.status == 0, ended
    run = _results.from_json(ended.out)
    assert [one.pinned for one in run.measurements] == [True, True, False, False]
    cores = len(os.sched_getaffinity(0))
    said = (programs.folder / "cores").read_text().split()
    # the command itself reads the file as well, once
    assert [int(number) for number in said] == [cores, 1, 1, cores, cores]


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "no scenario nothing; there are sync, "),
        (["--servers", "nobody"], "no server nobody; there are "),
        (["--rounds", "0"], "--rounds 0: 1 to 100"),
        (["--seconds", "1000"], "--seconds 1000.0: 0.01 to 60"),
        (["--backlog", "-1"], "--backlog -1: 0 to 65535"),
        (["--save", "no/such/folder.json"], "no such folder"),
        (["--save", "."], "is a folder"),
        (["--chart", "a.gif"], "svg"),
        (["--add", "missing.py"], "missing.py"),
        (["--show", "missing.json"], "missing.json"),
        (["--show", "empty.json"], "empty.json: not a saved run"),
        (["--compare", "empty.json", "empty.json"], "empty.json: not a saved run"),
        (["--quick", "idle"], "nothing to measure (idle: "),
        (["--pinned", "--both"], "not allowed with"),
    ],
)
def test_wrong_usage(programs: Programs, arguments: list[str], says: str) -> None:
    if "--chart" in arguments:
        pytest.importorskip("matplotlib")
    programs.write("empty.json", "{}")
    ended = bench(programs, *SHORT[: 2 * ("--rounds" not in arguments)], *arguments)
    assert (ended.status, ended.out) == (2, ""), ended
    assert says in ended.err
    assert "Traceback" not in ended.err


def test_list(programs: Programs) -> None:
    ended = bench(programs, "--list")
    assert (ended.status, ended.err) == (0, "")
    for name in [*NAMES, "socketserver", "gevent", "asyncio Protocol"]:
        assert re.search(rf"^{name}\b", ended.out, re.MULTILINE), name


def test_without_the_extra(programs: Programs) -> None:
    """A plain table, and one line about what is missing; a chart is refused before measuring."""
    program = """
        import sys
        sys.modules["rich"] = sys.modules["matplotlib"] = None
        from fastsock.__main__ import main
        sys.exit(main(["bench", *sys.argv[1:]]))
    """
    ended = programs.run_script(program, *BOTH, *SHORT, "sync")
    assert ended.status == 0, ended
    assert "socketserver" in ended.out
    assert ended.err.count("fastsock[bench]") == 1
    chart = programs.run_script(program, *BOTH, *SHORT, "--chart", "a.svg", "sync")
    assert chart.status == 2
    assert "pip install 'fastsock[bench]'" in chart.err
    assert not (programs.folder / "a.svg").exists()


def test_signs_that_the_terminal_lacks(programs: Programs) -> None:
    program = """
        import sys
        sys.stdout.reconfigure(encoding="ascii")
        from fastsock.__main__ import main
        sys.exit(main(["bench", *sys.argv[1:]]))
    """
    ended = programs.run_script(program, *BOTH, "--rounds", "2", "--seconds", "0.05", "sync")
    assert ended.status == 0, ended
    assert "figures (least-most)" in ended.out


def test_nobody_reads(programs: Programs) -> None:
    """Closed streams; a reader that has gone."""
    program = """
        import os, sys
        from fastsock.__main__ import main
        if sys.argv[1] == "closed":
            sys.stdout = sys.stderr = None
        else:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)
        sys.exit(main(["bench", *sys.argv[2:]]))
    """
    for how in ("closed", "gone"):
        saved = ("--save", f"{how}.json")
        ended = programs.run_script(program, how, *BOTH, *SHORT, *saved, "sync")
        assert (ended.status, ended.out) == (0, ""), ended
        assert "Traceback" not in ended.err and "Exception" not in ended.err
        assert len(_results.load(programs.folder / f"{how}.json").measurements) == 2


# --- the end


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def measuring(programs: Programs) -> tuple[subprocess.Popen[str], list[int]]:
    """The command, and the server and the load that it has started."""
    programs.environment["TMPDIR"] = str(programs.folder)  # when it is killed, something remains
    process = programs.start(*BENCH, *BOTH, "--rounds", "1", "--seconds", "60", "--json", "sync")
    wait_until(lambda: process.poll() is not None or len(children(process.pid)) == 2)
    assert process.poll() is None, end(process)
    return process, children(process.pid)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_interrupted(programs: Programs) -> None:
    process, started = measuring(programs)
    process.send_signal(signal.SIGINT)
    ended = end(process)
    assert ended.status == 130, ended
    assert "Traceback" not in ended.err
    whole: dict[str, Any] = json.loads(ended.out)
    assert whole["left_out"][-1]["why"].startswith("interrupted")
    wait_until(lambda: all(gone(pid) for pid in started))


def test_killed(programs: Programs) -> None:
    """Then the server ends too, and with it the load."""
    process, started = measuring(programs)
    process.kill()
    process.wait(TIMEOUT)
    wait_until(lambda: all(gone(pid) for pid in started))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated(programs: Programs, number: signal.Signals) -> None:
    """Nor is the temporary folder left over."""
    process, started = measuring(programs)
    assert len(list(programs.folder.glob("fastsock-bench-*"))) == 1
    process.send_signal(number)
    ended = end(process)
    assert ended.status == 128 + number, ended
    wait_until(lambda: all(gone(pid) for pid in started))
    assert list(programs.folder.glob("fastsock-bench-*")) == []


def test_killed_while_connections_are_opened(programs: Programs) -> None:
    """The load would try for as long as a minute."""
    programs.environment["TMPDIR"] = str(programs.folder)
    text = ONCE.format('open("asked", "w").close(); time.sleep(60)')
    text = text.replace('"once", (4,)', '"lines", (4,)')
    programs.write("mute.py", text)
    process = programs.start(*BENCH, *BOTH, *SHORT, "--json", "--add", "mute.py", "mute")
    asked = programs.folder / "asked"
    wait_until(lambda: process.poll() is not None or asked.exists())
    started = children(process.pid)
    process.kill()
    process.wait(TIMEOUT)
    wait_until(lambda: all(gone(pid) for pid in started))


def test_nothing_listens_any_more(programs: Programs) -> None:
    """What a scenario's server listened on is closed when the command ends."""
    path = programs.write(
        "where.py",
        """
        import socketserver

        TITLE, LOAD, CONNECTIONS, PAYLOAD = "where", "once", (1,), 10

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                self.request.sendall(self.request.recv(100))

        class Server(socketserver.TCPServer):
            def server_activate(self):
                super().server_activate()
                with open("ports", "a") as file:
                    print(self.server_address[1], file=file)
        """,
    )
    ended = bench(programs, *BOTH, *SHORT, "--add", path, "where")
    assert ended.status == 0, ended
    ports = (programs.folder / "ports").read_text().split()
    assert len(ports) == 2
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), TIMEOUT)
