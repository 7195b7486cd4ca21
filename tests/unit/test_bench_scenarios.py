"""The benchmark's scenarios and peers: what is read from their files, and what is refused."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from fastsock.bench import _measure, _scenarios
from fastsock.bench._results import Settings

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

WHOLE = """
    import socketserver
    TITLE = "one"
    LOAD = "lines"
    CONNECTIONS = (1, 2)
    PAYLOAD = 10
    Handler = socketserver.StreamRequestHandler
    Server = socketserver.TCPServer
"""
SETTINGS = Settings(rounds=2, seconds=0.1, backlog=128, quick=False)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(*replaced: tuple[str, str], name: str = "new.py") -> Path:
        text = WHOLE.replace("\n    ", "\n")
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_defaults(write: Any) -> None:
    found = _scenarios.read(write())
    assert (found.name, found.connections, found.quick) == ("new", (1, 2), True)
    assert (found.info.family, found.info.depth, found.info.idle) == ("tcp", 1, 0)
    assert found.request == b"abcdefghi\n"
    assert found.lasting and not found.info.cold
    assert not found.threading


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('TITLE = "one"', "", "TITLE has to be of type str"),
        ('"lines"', '"line"', "LOAD is 'line', not one of once, lines"),
        ("(1, 2)", "[1, 2]", "CONNECTIONS has to be of type tuple"),
        ("(1, 2)", "()", "CONNECTIONS has to be a tuple of positive numbers"),
        ("(1, 2)", "(1, 0)", "CONNECTIONS has to be a tuple of positive numbers"),
        ("(1, 2)", "(1, True)", "CONNECTIONS has to be a tuple of positive numbers"),
        ("PAYLOAD = 10", "", "PAYLOAD has to be of type int"),
        ("PAYLOAD = 10", "PAYLOAD = 0", "PAYLOAD is 0, less than 1"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nDEPTH = 0", "DEPTH is 0, less than 1"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nDEPTH = True", "DEPTH has to be of type int"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nIDLE = -1", "IDLE is -1, less than 0"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nQUICK = 1", "QUICK has to be of type bool"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nFAMILY = 'udp'", "FAMILY is 'udp', not one of tcp, unix"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nCOLD = 1", "COLD has to be of type bool"),
        ("PAYLOAD = 10", "PAYLOAD = 10\nCOLD, IDLE = True, 1", "COLD is of lasting connections"),
        ('"lines"', '"once"\nCOLD = True', "COLD is of lasting connections"),
        ('"lines"', '"http"', "REQUEST has to be of type bytes"),
        ("Server = socketserver.TCPServer", "", "Server and Handler have to be classes"),
        ("PAYLOAD = 10", "PAYLOAD = 1 / 0", "ZeroDivisionError: division by zero"),
        ("PAYLOAD = 10", "PAYLOAD = ", "SyntaxError: "),
    ],
)
def test_what_is_refused(write: Any, old: str, new: str, says: str) -> None:
    path = write((old, new))
    with pytest.raises(_scenarios.ScenarioError, match=re.escape(says)) as caught:
        _scenarios.read(path)
    assert str(path) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    for name in ("missing.py", "no_python.txt"):
        with pytest.raises(_scenarios.ScenarioError, match=name):
            _scenarios.read(tmp_path / name)


def test_dropping_a_file_into_the_folder_adds_it(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenarios").mkdir()
    for name in ("udp.py", "another.py", "sync.py", "_helpers.py"):
        write(name=f"scenarios/{name}")
    monkeypatch.setattr(_scenarios, "FOLDER", tmp_path)
    assert list(_scenarios.scenarios()) == ["sync", "udp", "another"]
    assert list(_scenarios.scenarios([write()])) == ["sync", "udp", "another", "new"]
    other = write(("10", "20"), name="udp.py")
    assert _scenarios.scenarios([other])["udp"].info.payload == 20


def test_those_that_come_along() -> None:
    found = _scenarios.scenarios()
    assert list(found)[: len(_scenarios.ORDER)] == list(_scenarios.ORDER)
    asked_for = {"once", "lines", "datagrams", "http", "http-close", "opening"}
    assert {scenario.info.load for scenario in found.values()} == asked_for
    assert found["connections"].connections == (1, 10, 100, 1000, 9900)
    for scenario in found.values():
        text = scenario.path.read_text()
        assert "import fastsock" not in text  # the same source for both
        assert ast.get_docstring(ast.parse(text))


def test_a_message_has_no_two_equal_neighbours() -> None:
    for size in (1, 2, 11, 64, 16384):
        line = _scenarios.message(size)
        assert len(line) == size
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert all(one != other for one, other in itertools.pairwise(line))
    assert _scenarios.message(0) == b""


def test_peers() -> None:
    found = {peer.name: peer for peer in _scenarios.peers()}
    names = {"gevent", "asyncio streams", "asyncio Protocol", "uvloop streams", "uvloop Protocol"}
    assert set(found) == names
    assert found["asyncio streams"].version  # the standard library's
    for peer in found.values():
        assert set(peer.works) <= set(_scenarios.LOADS)


# --- the plan


def plan(scenarios: list[Any], **changed: Any) -> Any:
    only = changed.pop("only", frozenset(("socketserver", "fastsock")))
    pinning = changed.pop("pinning", (False,))
    settings = Settings(**{**vars(SETTINGS), **changed})
    return _measure.plan(scenarios, _scenarios.peers(), settings, pinning, only)


def test_servers_take_turns_within_a_round(write: Any) -> None:
    made = plan([_scenarios.read(write())], pinning=(True, False))
    assert [(one.round, one.pinned, one.connections, one.server) for one in made.steps] == [
        (number, pinned, connections, server)
        for number in (0, 1)
        for pinned in (True, False)
        for connections in (1, 2)
        for server in ("socketserver", "fastsock")
    ]


def test_who_takes_part(write: Any) -> None:
    def servers(load: str) -> set[str]:
        return set(_measure.servers_for(_scenarios.read(write(('"lines"', f'"{load}"'))), peers))

    peers = _scenarios.peers()
    assert servers("lines") > {"socketserver", "fastsock", "gevent", "uvloop streams", "C"}
    assert servers("datagrams") > {"gevent", "C", "C batched"}
    assert "asyncio streams" not in servers("datagrams")
    http = write(('"lines"', '"http"'), ("PAYLOAD = 10", "REQUEST = BODY = b'x'"))
    assert _measure.servers_for(_scenarios.read(http), peers) == ["socketserver", "fastsock"]


def test_what_quick_leaves_out(write: Any) -> None:
    many = _scenarios.read(write(("(1, 2)", "(1, 101)")))
    made = plan([many], quick=True)
    assert {step.connections for step in made.steps} == {1}
    assert [(one.scenario, one.why) for one in made.left_out] == [
        ("new", "101 connections: --quick")
    ]
    slow = _scenarios.read(write(("PAYLOAD", "QUICK = False\nPAYLOAD")))
    assert plan([slow], quick=True).steps == []


def test_more_connections_than_descriptors(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure, "limit_of_files", lambda: 1000)
    made = plan([_scenarios.read(write(("(1, 2)", "(1, 950)")))])
    assert {step.connections for step in made.steps} == {1}
    (left,) = made.left_out
    assert "1,050 descriptors are needed, the limit is 1,000" in left.why


def test_no_compiler_and_no_library(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_measure._machine, "compiler", lambda: "")
    monkeypatch.setattr(
        _scenarios, "version_of", lambda distribution: "" if distribution == "gevent" else "1"
    )
    made = plan([_scenarios.read(write())], only=None)
    there = {step.server for step in made.steps}
    assert not there & {"C", "gevent"} and "uvloop streams" in there
    said = {one.server: one.why for one in made.left_out}
    assert said["gevent"] == "gevent is not installed"
    assert said["C"].startswith("no C compiler")
