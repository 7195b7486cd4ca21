"""What may be asked of a load; descriptors, signals, threads."""

from __future__ import annotations

import errno
import gc
import math
import os
import resource
import signal
import socket
import threading
from typing import Any

import hostile
import pytest
from hostile import spoiling
from loads import LINE, LONG, descriptors, each_kind, echoing, opened
from support import Background

from fastsock.bench._load import DatagramLoad, Load, StreamLoad

# The load is C and its reports plain Python; that it runs on every Python is test_bench_kinds.py's.
pytestmark = pytest.mark.once("of the load and the reports")

BODY = b"The body of a response.\n"


# --- bounds


@pytest.mark.parametrize(
    "address",
    [
        ("0.0.0.0", 80),
        ("10.0.0.1", 80),
        ("128.0.0.1", 80),
        ("127.0.0", 80),
        ("127.0.0.1.example.com", 80),
        ("localhost", 80),
        ("", 80),
        ("::", 80),
        ("::2", 80),
        ("::ffff:127.0.0.1", 80),
        ("127.0.0.1",),
        ("127.0.0.1", 80, 0),
        (b"127.0.0.1", 80),
        ("\udc80", 80),
        ("127.0.0.1\0", 80),
        ["127.0.0.1", 80],
        "127.0.0.1:80",
        "relative/path",
        "",
        None,
        b"/bytes",
        8000,
    ],
)
def test_loopback_only(address: Any) -> None:
    with pytest.raises(ValueError, match="loopback only"):
        StreamLoad(address, "once", 1, LINE)
    with pytest.raises(ValueError, match="loopback only"):
        DatagramLoad(address, 1, 8)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports(port: int) -> None:
    with pytest.raises(ValueError, match="the port must be from 1 to 65535"):
        StreamLoad(("127.0.0.1", port), "once", 1, LINE)


def test_a_port_is_a_number() -> None:
    for port in ("80", 80.0, None):
        with pytest.raises(TypeError):
            StreamLoad(("127.0.0.1", port), "once", 1, LINE)


@pytest.mark.parametrize("path", ["/" + 107 * "x", "\0" + 107 * "x", "/a\0b", "\0a\0b"])
def test_unix_addresses(path: str) -> None:
    with pytest.raises(ValueError, match="at most 107 bytes"):
        StreamLoad(path, "once", 1, LINE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kind": "twice"}, "kind must be one of once, lines, http, http-close"),
        ({"connections": 0}, "connections must be from 1 to 60000"),
        ({"connections": 60001}, "connections must be from 1 to 60000"),
        ({"connections": 2**80}, "connections must be from 1 to 60000"),
        ({"idle": -1}, "idle must be from 0"),
        ({"connections": 60000, "idle": 1}, "idle must be from 0 to 0"),
        ({"depth": 0}, "depth must be from 1 to 1024"),
        ({"depth": 1025}, "depth must be from 1 to 1024"),
        ({"kind": "once", "depth": 2}, "connections that last"),
        ({"kind": "once", "idle": 1}, "connections that last"),
        ({"kind": "http-close", "body": BODY, "depth": 2}, "connections that last"),
        ({"request": b""}, "the request's size must be from 1"),
        ({"request": bytes(2**24 + 1)}, "the request's size must be from 1"),
        ({"request": bytes(2**20), "depth": 65}, "the size of all requests"),
        ({"kind": "http"}, "needs the body"),
        ({"body": BODY}, "a body is of HTTP"),
        ({"kind": "http", "body": bytes(2**26 + 1)}, "the body's size"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"timeout": math.nan}, "timeout must be above 0"),
        ({"timeout": 601}, "timeout must be above 0"),
    ],
)
def test_limits_of_streams(changed: dict[str, Any], said: str) -> None:
    arguments = {
        "address": ("127.0.0.1", 80),
        "kind": "lines",
        "connections": 1,
        "request": LINE,
        **changed,
    }
    with pytest.raises(ValueError, match=said):
        StreamLoad(**arguments)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"connections": 0}, "connections must be from 1 to 60000"),
        ({"connections": 60001}, "connections must be from 1 to 60000"),
        ({"size": -1}, "size must be from 0 to 8192"),
        ({"size": 8193}, "size must be from 0 to 8192"),
        ({"window": 0}, "window must be from 1 to 4096"),
        ({"window": 4097}, "window must be from 1 to 4096"),
        ({"connections": 60000, "window": 4096}, "all datagrams under way"),
        ({"timeout": -1}, "timeout must be above 0"),
    ],
)
def test_limits_of_datagrams(changed: dict[str, Any], said: str) -> None:
    arguments = {"address": ("127.0.0.1", 80), "connections": 1, "size": 8, **changed}
    with pytest.raises(ValueError, match=said):
        DatagramLoad(**arguments)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, 600.1])
def test_seconds(seconds: float) -> None:
    with StreamLoad(("127.0.0.1", 80), "once", 1, LINE) as load:
        with pytest.raises(ValueError, match="seconds must be above 0"):
            load.open(seconds)
        load.open(1)
        with pytest.raises(ValueError, match="seconds must be above 0"):
            load.run(seconds)
        with pytest.raises(ValueError, match="count must not be negative"):
            load.run(1, -1)


def test_a_load_is_open_or_not() -> None:
    for load in (
        StreamLoad(("127.0.0.1", 80), "once", 1, LINE),
        DatagramLoad(("127.0.0.1", 80), 1, 8),
    ):
        with pytest.raises(RuntimeError, match="not open"):
            load.run(1)
        load.close()
        load.open(1)
        with pytest.raises(RuntimeError, match="open already"):
            load.open(1)
        load.close()
        load.close()
        with pytest.raises(RuntimeError, match="not open"):
            load.run(1)


def test_the_base_is_not_to_be_made() -> None:
    with pytest.raises(TypeError, match="either"):
        Load()


def test_made_without_init() -> None:
    for kind in (StreamLoad, DatagramLoad):
        load = kind.__new__(kind)
        with pytest.raises(RuntimeError, match="__init__"):
            load.open(1)
        load.close()


# --- descriptors, signals, threads


def limit_in_a_child(files: int) -> tuple[int, str]:
    """The errno and the text of opening 100 sockets where so many files may be open."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
            StreamLoad(("127.0.0.1", 80), "lines", 100, LINE).open(1)
        except OSError as error:
            os.write(write, f"{error.errno} {descriptors()} {error.strerror}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as told:
        number, text = told.read().split(" ", 1)
    os.waitpid(pid, 0)
    return int(number), text


def test_too_few_files_are_said_before_anything_is_opened() -> None:
    before = descriptors()
    number, text = limit_in_a_child(150)
    assert number == errno.EMFILE
    assert "101 sockets and 64 other files are more than" in text and "150" in text
    assert int(text.split()[0]) <= before + 2


def test_the_soft_limit_of_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 200), hard))
    try:
        with StreamLoad(("127.0.0.1", 80), "once", 100, LINE) as load:
            load.open(1)
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@each_kind
@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_no_descriptor_is_left(kind: str, how: str) -> None:
    with echoing(spoiling(hostile.corrupting, 7, first=20), kind) as server:
        before = descriptors()
        load = opened(server.address, kind, 5)
        load.run(LONG, 40)
        assert descriptors() > before
        if how == "close":
            load.close()
        elif how == "with":
            with load:
                pass
        else:
            del load
            gc.collect()
    assert descriptors() == before - 1  # without the listener


@pytest.mark.parametrize("main_thread", [True, False])
def test_a_signal_interrupts_a_run(main_thread: bool) -> None:
    """Ctrl-C: while it works, and while it waits for a server that is silent."""
    main = threading.get_ident()

    def interrupt(connection: socket.socket, request: bytes) -> bool:
        signal.pthread_kill(main if main_thread else threading.get_ident(), signal.SIGINT)
        return hostile.silent(connection, request)

    for good in (0, 50):
        answer = spoiling(interrupt, 1, first=1 + good)
        with echoing(answer, "lines") as server, opened(server.address, "lines") as load:
            before = descriptors()
            with pytest.raises(KeyboardInterrupt):
                load.run(LONG)
            assert load.operations == good and 0 < load.seconds < LONG
            assert descriptors() == before
            load.run(0.05)  # it may go on
            assert load.operations == 0


def test_a_signal_interrupts_open() -> None:
    main = threading.get_ident()

    def interrupt(connection: socket.socket, request: bytes) -> bool:
        signal.pthread_kill(main, signal.SIGINT)
        return hostile.silent(connection, request)

    with echoing(interrupt, "lines") as server:
        load = StreamLoad(server.address, "lines", 1, LINE)
        with pytest.raises(KeyboardInterrupt):
            load.open(LONG)
        with pytest.raises(RuntimeError, match="not open"):
            load.run(1)


def test_other_threads_run_meanwhile_but_not_this_load() -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(connection: socket.socket, request: bytes) -> bool:
        asked.set()
        go_on.wait(LONG)
        return hostile.honest(connection, request)

    with (
        echoing(spoiling(answer, 1, first=1), "lines") as server,
        opened(server.address, "lines") as load,
    ):
        runner = Background(load.run, LONG, 3)
        try:
            assert asked.wait(LONG)
            for call in (load.close, lambda: load.run(1)):
                with pytest.raises(RuntimeError, match="in progress"):
                    call()
        finally:
            go_on.set()
        runner.result()
        assert (load.operations, load.errors) == (3, {})
