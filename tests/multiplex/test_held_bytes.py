"""What a task has written leaves in order, once, and before anything else happens to it."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import TIMEOUT, receive
from talks import Served

from fastsock import multiplexing

Serve = Callable[..., Served]


def in_thread(function: Callable[..., Any], *args: Any) -> None:
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def in_child(function: Callable[..., Any], *args: Any) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            function(*args)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


OTHERS = {
    "to_thread": multiplexing.to_thread,
    "thread": in_thread,
    "child": in_child,
    "spawned": lambda *call: multiplexing.spawn(*call).join(TIMEOUT),
}


@pytest.mark.parametrize("other", list(OTHERS))
@pytest.mark.parametrize("by", ["wfile", "sendall", "send", "sendmsg", "descriptor"])
def test_others_write_after_it(serve: Serve, other: str, by: str) -> None:
    def handle(self: Any) -> None:
        write: Any = self.wfile.write if by == "wfile" else getattr(self.request, by, None)
        for number in range(3):
            self.wfile.write(b"%d header\n" % number)
            if by == "sendmsg":
                OTHERS[other](write, [b"%d bo" % number, b"dy\n"])
            elif by == "descriptor":
                OTHERS[other](os.write, self.request.fileno(), b"%d body\n" % number)
            else:
                OTHERS[other](write, b"%d body\n" % number)
            self.wfile.write(b"%d end\n" % number)

    with serve(handle).connect() as client:
        assert receive(client) == b"".join(
            b"%d header\n%d body\n%d end\n" % (number, number, number) for number in range(3)
        )


@pytest.mark.parametrize("wbufsize", [-1, 5, 4096])
def test_a_buffered_wfile_and_a_fork(serve: Serve, wbufsize: int) -> None:
    """What was flushed is not sent again by the child, and leaves before what that writes."""

    def handle(self: Any) -> None:
        self.wfile.write(b"header\n")
        self.wfile.flush()
        in_child(os.write, self.request.fileno(), b"body\n")
        self.wfile.write(b"end\n")

    with serve(handle, handler={"wbufsize": wbufsize}).connect() as client:
        assert receive(client) == b"header\nbody\nend\n"


@pytest.mark.parametrize("wbufsize", [0, -1])
def test_two_threads_and_a_task_send(serve: Serve, wbufsize: int) -> None:
    """Each line whole, each one's in order."""
    count = 300

    def handle(self: Any) -> None:
        def write(name: bytes) -> None:
            for number in range(count):
                self.wfile.write(name + b" %d\n" % number)
                if number % 7 == 0:
                    self.wfile.flush()

        threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b")]
        for thread in threads:
            thread.start()
        spawned = multiplexing.spawn(write, b"c")
        write(b"d")
        spawned.join(TIMEOUT)
        multiplexing.to_thread(lambda: [thread.join(TIMEOUT) for thread in threads])

    with serve(handle, handler={"wbufsize": wbufsize}).connect() as client:
        found = receive(client).splitlines()
    for name in (b"a", b"b", b"c", b"d"):
        mine = [line for line in found if line.startswith(name)]
        assert mine == [name + b" %d" % number for number in range(count)]
    assert len(found) == 4 * count


# --- the end


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("buffering", [0, -1, 3])
@pytest.mark.parametrize("order", ["file last", "file first"])
def test_a_file_of_its_own(serve: Serve, handed_over: bool, buffering: int, order: str) -> None:
    """Written to when the connection is closed but for that file: as programs of old."""

    def handle(self: Any) -> None:
        if handed_over:
            self.request.getpeername()
        file = self.request.makefile("wb", buffering)
        if order == "file last":
            self.request.close()
        file.write(b"last ")
        file.write(b"words\n")
        file.close()
        if order == "file first":
            self.request.close()
        self.rfile.close()

    with serve(handle, handler={"finish": lambda self: None}).connect() as client:
        assert receive(client) == b"last words\n"


@pytest.mark.parametrize("handed_over", [False, True])
def test_closed_by_a_thread(serve: Serve, handed_over: bool) -> None:
    def handle(self: Any) -> None:
        def close() -> None:
            self.wfile.close()
            self.rfile.close()
            if handed_over:
                self.request.getpeername()
            self.request.close()

        self.wfile.write(b"last words\n")
        in_thread(close)

    with serve(handle).connect() as client:
        assert receive(client) == b"last words\n"


def detached(self: Any) -> None:
    with socket.socket(fileno=self.request.detach()) as sock:
        sock.sendall(b"then\n")


def duplicated(self: Any) -> None:
    with self.request.dup() as sock:
        sock.sendall(b"then\n")


def by_descriptor(self: Any) -> None:
    os.write(self.request.fileno(), b"then\n")


def from_descriptor(self: Any) -> None:
    with socket.fromfd(self.request.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.sendall(b"then\n")


def by_a_file(self: Any) -> None:
    with self.request.makefile("wb") as file:
        file.write(b"then\n")


def by_a_text_file(self: Any) -> None:
    with self.request.makefile("w") as file:
        file.write("then\n")


def by_sendmsg(self: Any) -> None:
    self.request.sendmsg([b"th", b"en\n"])


def by_sendfile(self: Any) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"and then\n")
        file.flush()
        self.request.sendfile(file, 4)


def by_sendfile_of_no_file(self: Any) -> None:
    self.request.sendfile(io.BytesIO(b"and then\n"), 4)


@pytest.mark.parametrize(
    "then",
    [
        detached,
        duplicated,
        by_descriptor,
        from_descriptor,
        by_a_file,
        by_a_text_file,
        by_sendmsg,
        by_sendfile,
        by_sendfile_of_no_file,
    ],
)
def test_other_ways_to_write(serve: Serve, then: Any) -> None:
    def handle(self: Any) -> None:
        self.request.sendall(b"held ")
        then(self)

    handler = {"setup": lambda self: None, "finish": lambda self: None}
    with serve(handle, "TCP", "BaseRequestHandler", handler=handler).connect() as client:
        assert receive(client) == b"held then\n"


def test_dropped_without_close(serve: Serve) -> None:
    """Of a connection that nobody refers to the client sees the end, and all bytes before it."""

    def handle(self: Any) -> None:
        self.rfile.readline()
        self.wfile.write(b"bye\n")

    served = serve(handle, shutdown_request=lambda self, request: None)
    with pytest.warns(ResourceWarning), served.connect(b"x\n") as client:
        assert receive(client) == b"bye\n"


def test_one_that_never_waits_but_lets_others_run(serve: Serve) -> None:
    over = threading.Event()

    def handle(self: Any) -> None:
        self.wfile.write(b"a line\n")
        while not over.is_set():
            multiplexing.sleep(0)

    with serve(handle).connect() as client:
        try:
            assert client.recv(100) == b"a line\n"
        finally:
            over.set()


@pytest.mark.skipif(sys.version_info >= (3, 15), reason="http.server has no CGI since Python 3.15")
def test_cgi(serve: Serve, folder: str, monkeypatch: Any) -> None:
    """The headers come before what the child prints, which may be another user's process."""
    scripts = Path(folder) / "cgi-bin"
    scripts.mkdir()
    script = scripts / "x.sh"
    script.write_text("#!/bin/sh\necho Content-Type: text/plain\necho\necho hello\n")
    for path in (Path(folder), scripts, script):
        path.chmod(0o755)
    monkeypatch.chdir(folder)
    quiet = {"log_message": lambda *args: None}
    served = serve(lambda self: None, server_name="x", server_port=1)
    cgi = http.server.CGIHTTPRequestHandler
    served.server.RequestHandlerClass = type("Handler", (cgi,), quiet)
    with served.connect(b"GET /cgi-bin/x.sh HTTP/1.0\r\n\r\n") as client:
        answer = receive(client)
    assert answer.startswith(b"HTTP/1.0 200 ")
    assert answer.endswith(b"\r\nContent-Type: text/plain\n\nhello\n")


# --- timeouts


def fill(sock: Any) -> int:
    """Send until nothing is taken; how much was."""
    sock.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 8192)
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"y")
    return sent


def test_a_small_send_that_is_not_taken(serve: Serve) -> None:
    """Of a non-blocking connection: it is refused, not taken and lost."""
    found: list[Any] = []
    over = threading.Event()

    def handle(self: Any) -> None:
        self.request.sendall(b"#")
        multiplexing.sleep(0)
        sent = fill(self.request)
        for call in (self.request.send, self.request.sendall):
            with pytest.raises(BlockingIOError):
                call(b"z" * 100)
        found.append(1 + sent)
        over.set()

    with serve(handle).connect() as client:
        assert over.wait(TIMEOUT)
        assert len(receive(client)) == found[0]


@pytest.mark.parametrize("timeout", [0, 0.001])
def test_another_timeout_after_a_blocking_sendall(serve: Serve, timeout: float) -> None:
    """What that has returned for is sent with the timeout that it was called with."""
    found: list[Any] = []
    full = threading.Event()

    def handle(self: Any) -> None:
        sent = fill(self.request)
        self.request.setblocking(True)
        full.set()
        self.request.sendall(b"z" * 2000)
        self.request.settimeout(timeout)
        with pytest.raises((BlockingIOError, TimeoutError)):
            self.request.recv(1)
        multiplexing.sleep(0)
        found.append(sent + 2000)
        self.request.settimeout(None)

    with serve(handle).connect() as client:
        assert full.wait(TIMEOUT)
        assert len(receive(client)) == found[0]


def test_flush_when_nobody_reads(serve: Serve) -> None:
    """It waits for the peer, and others go on."""
    flushing = threading.Event()

    def handle(self: Any) -> None:
        if self.rfile.readline() == b"ask\n":
            self.wfile.write(b"answer\n")
            return
        fill(self.request)
        self.request.setblocking(True)
        flushing.set()
        self.wfile.write(b"end")
        self.wfile.flush()

    served = serve(handle)
    with served.connect(b"fill\n") as client:
        assert flushing.wait(TIMEOUT)
        assert served.ask(b"ask\n") == b"answer\n"
        assert receive(client).strip(b"xy") == b"end"


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("by", ["task", "thread"])
def test_detached_when_nobody_reads(serve: Serve, by: str, handed_over: bool) -> None:
    """As closed: it goes first, and whoever has the descriptor then comes after it."""
    full = threading.Event()

    def handle(self: Any) -> None:
        fill(self.request)
        self.request.setblocking(True)
        if handed_over:
            self.request.getpeername()
        full.set()
        self.request.sendall(b"last words\n")
        (in_thread if by == "thread" else lambda *call: call[0](call[1]))(detached, self)
        self.wfile.close()
        self.rfile.close()

    with serve(handle, handler={"finish": lambda self: None}).connect() as client:
        assert full.wait(TIMEOUT)
        assert receive(client).strip(b"xy") == b"last words\nthen\n"


@pytest.mark.parametrize("handed_over", [False, True])
@pytest.mark.parametrize("by", ["task", "thread"])
def test_not_detached_in_time(serve: Serve, by: str, handed_over: bool) -> None:
    """Nobody reads: either sendall() says that what it was given has not left, or detach()."""
    found: list[Any] = []
    over = threading.Event()

    def detach(self: Any) -> None:
        try:
            os.close(self.request.detach())
        except TimeoutError as error:
            found.append(str(error))

    def handle(self: Any) -> None:
        fill(self.request)
        self.request.settimeout(0.05)
        if handed_over:
            self.request.getpeername()
        try:
            self.request.sendall(b"last words\n")
        except TimeoutError as error:
            found.append(str(error))
        if by == "thread":
            in_thread(detach, self)
        else:
            detach(self)
        over.set()

    with serve(handle, handler={"finish": lambda self: None}).connect():
        assert over.wait(TIMEOUT)
    assert len(found) == 1


@pytest.mark.parametrize("closes", ["task", "thread"])
@pytest.mark.parametrize("handed_over", [False, True])
def test_closed_when_nobody_reads(serve: Serve, closes: str, handed_over: bool) -> None:
    """What sendall() has returned for is sent all the same."""
    full = threading.Event()

    def handle(self: Any) -> None:
        fill(self.request)
        self.request.setblocking(True)
        if handed_over:
            self.request.getpeername()
        self.wfile.close()
        self.rfile.close()
        full.set()
        self.request.sendall(b"last words\n")
        (in_thread if closes == "thread" else lambda call: call())(self.request.close)

    with serve(handle, handler={"finish": lambda self: None}).connect() as client:
        assert full.wait(TIMEOUT)
        assert receive(client).strip(b"xy") == b"last words\n"
