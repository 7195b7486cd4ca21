"""What a server says itself: loggers below "fastsock", and what their records tell."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from books import echo, served, talk
from support import connect, hang_up, receive, wait_until

import fastsock
from fastsock import _log


def failing_once(error: int) -> Any:
    def get_request(self: Any) -> Any:
        request, address = fastsock.TCPServer.get_request(self)
        if not self.failed:
            self.failed = True
            request.close()
            raise OSError(error, "none is left")
        return request, address

    return get_request


def short_of_descriptors(**attributes: Any) -> Any:
    """A server that fails once to take a request."""
    return served(
        "threading", echo, get_request=failing_once(errno.EMFILE), failed=False, **attributes
    )


def test_a_request_that_cannot_be_taken(caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "fastsock"), short_of_descriptors() as server:
        with connect(server) as client:
            assert receive(client) == b""
        hang_up(talk(server))
        (record,) = caplog.records
        assert (record.name, record.levelname) == ("fastsock.accept", "WARNING")
        assert (record.event, record.peer) == ("cannot_take", None)
        assert record.server_address == server.server_address
        assert record.errno == errno.EMFILE
        assert "cannot take a request" in record.getMessage()
        assert "none is left" in record.getMessage()


def failing(times: int) -> Any:
    def get_request(self: Any) -> Any:
        request, address = fastsock.TCPServer.get_request(self)
        if self.failures < times:
            self.failures += 1
            request.close()
            raise OSError(errno.EMFILE, "none is left")
        return request, address

    return get_request


def test_not_each_time_it_cannot(caplog: Any) -> None:
    begin = time.monotonic()
    with (
        caplog.at_level(logging.WARNING, "fastsock"),
        served("threading", echo, get_request=failing(4), failures=0) as server,
    ):
        for _ in range(4):
            with connect(server) as client:
                assert receive(client) == b""
        hang_up(talk(server))
    assert server.stats().accept_errors == {errno.EMFILE: 4}
    assert 1 <= len(caplog.records) <= 1 + (time.monotonic() - begin) / 5


@pytest.mark.once("of the clock, and seconds long")
def test_but_again_after_five_seconds(caplog: Any) -> None:
    with (
        caplog.at_level(logging.WARNING, "fastsock"),
        served("threading", echo, get_request=failing(2), failures=0) as server,
    ):
        for count in (1, 2):
            with connect(server) as client:
                assert receive(client) == b""
            wait_until(lambda count=count: len(caplog.records) == count)
            if count == 1:
                time.sleep(5.1)
        hang_up(talk(server))


def test_a_handler_that_holds_the_loop(caplog: Any) -> None:
    def handle(self: Any) -> None:
        self.wfile.write(self.rfile.readline())
        end = time.monotonic() + 0.05
        while time.monotonic() < end:
            pass
        self.rfile.readline()

    with (
        caplog.at_level(logging.WARNING, "fastsock"),
        served("multiplexing", handle, slow_handler_threshold=0.01) as server,
    ):
        client = talk(server)
        address = client.getsockname()
        hang_up(client)

        def about_it() -> list[Any]:  # on a loaded machine hooks may have been slow, too
            return [record for record in caplog.records if getattr(record, "peer", "") == address]

        wait_until(about_it)
        record = about_it()[0]
        assert record.name == "fastsock.multiplexing"
        assert record.event == "held"
        assert record.server_address == server.server_address
        assert 0.04 < record.seconds < 20


@pytest.mark.parametrize("name", ["fastsock", "fastsock.accept"])
def test_a_level_that_says_no(caplog: Any, name: str) -> None:
    with caplog.at_level(logging.ERROR, name), short_of_descriptors() as server:
        with connect(server) as client:
            assert receive(client) == b""
        hang_up(talk(server))
        assert caplog.records == []


class Broken(logging.Handler):
    def emit(self, record: Any) -> None:
        raise RuntimeError("no room on this disk")


def test_a_handler_of_logging_that_fails(capfd: Any) -> None:
    """Is not the loop's affair."""
    logger = logging.getLogger("fastsock.accept")
    broken = Broken()
    logger.addHandler(broken)
    try:
        with short_of_descriptors() as server:
            with connect(server) as client:
                assert receive(client) == b""
            hang_up(talk(server))
    finally:
        logger.removeHandler(broken)
    told = capfd.readouterr().err
    assert "cannot take a request" in told
    assert "no room on this disk" in told


def test_what_a_record_has(caplog: Any) -> None:
    class Server:
        server_address = ("here", 1)

    with caplog.at_level(logging.DEBUG, "fastsock"):
        _log.report(
            "deadlines",
            "idle",
            "%s was idle for %d s",
            "somebody",
            3,
            server=Server(),
            peer=("there", 2),
            level="debug",
            seconds=3.0,
        )
    (record,) = caplog.records
    assert record.name == "fastsock.deadlines"
    assert record.levelno == logging.DEBUG
    assert record.getMessage() == "somebody was idle for 3 s"
    assert (record.event, record.peer, record.server_address) == ("idle", ("there", 2), ("here", 1))
    assert record.seconds == 3.0


def test_nothing_is_raised(capfd: Any) -> None:
    """Not even of a mistake in the call."""
    _log.report("accept", "x", "%d", "no number")  # which logging tells of by itself
    _log.report("accept", "x", "text", name="an attribute that records have")
    _log.report("accept", "x", "text", level="no level")  # type: ignore[arg-type]


def run(program: str, tmp_path: Path) -> Any:
    folder = Path(fastsock.__file__ or "").resolve().parent.parent
    text = f"import sys\nsys.path.insert(0, {str(folder)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done


def test_it_is_imported_by_who_has_something_to_say(tmp_path: Path) -> None:
    done = run(
        """\
import fastsock
from fastsock import _log
_log.report("accept", "x", "nobody wants to know", level="debug")
assert "logging" not in sys.modules
_log.report("accept", "x", "it is %s", "so")
assert "logging" in sys.modules
""",
        tmp_path,
    )
    assert done.stderr == "it is so\n"


def test_where_it_cannot_be_imported(tmp_path: Path) -> None:
    """No descriptor is left to read it with, say."""
    done = run(
        """\
import fastsock
from fastsock import _log

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "logging":
            raise OSError(24, "none is left")

sys.meta_path.insert(0, Finder)
_log.report("accept", "x", "it is %s", "so")
sys.stderr = None
_log.report("accept", "x", "it is %s", "so")
""",
        tmp_path,
    )
    assert done.stderr == "it is so\n"


def test_what_a_signal_handler_raises_leaves(tmp_path: Path) -> None:
    done = run(
        """\
import logging, signal, fastsock
from fastsock import _log

class Alarm(Exception):
    pass

def on_alarm(*arguments):
    raise Alarm

class Sends(logging.Handler):
    def emit(self, record):
        signal.raise_signal(signal.SIGALRM)

signal.signal(signal.SIGALRM, on_alarm)
logging.getLogger("fastsock").addHandler(Sends())
try:
    _log.report("accept", "x", "text")
except Alarm:
    print("left")
""",
        tmp_path,
    )
    assert done.stdout == "left\n"
