"""Where a TLS connection waits: nobody else is kept waiting, and it is woken when it must be."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from support import TIMEOUT, Background, load_implementation, wait_until
from tls_support import WAYS, answers, client_context, connected, echo, exactly, serving_tls, silent

#: bytes, more than the sockets of a connection hold
MUCH = 1 << 24
#: bytes that they do hold
ROOM = 1 << 20


@pytest.fixture
def mux(fastsock_dir: str | None) -> ModuleType:
    """A module with the names of socketserver, whose threads are greenlets."""
    return load_implementation("multiplex", fastsock_dir)


@pytest.fixture
def multiplexing(mux: ModuleType) -> Any:
    import fastsock.multiplexing

    return fastsock.multiplexing


@pytest.fixture
def serve(mux: ModuleType, time_limit: None) -> Iterator[Callable[..., Any]]:
    """As ``serving_tls()``, for the rest of the test."""
    with contextlib.ExitStack() as stack:

        def serve(*arguments: Any, **attributes: Any) -> Any:
            return stack.enter_context(serving_tls(mux, *arguments, **attributes))

        yield serve


def tasks_of(server: Any) -> Any:
    return vars(server)["_fastsock_tasks"]


class Hold:
    """Called in a task, it keeps all others from running until release()."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ends = os.pipe()

    def __call__(self) -> None:
        self.begun.set()
        os.read(self.ends[0], 1)

    def release(self) -> None:
        os.write(self.ends[1], b"x")


@pytest.fixture
def hold(serve: Any) -> Iterator[Hold]:
    hold = Hold()
    yield hold
    hold.release()
    for end in hold.ends:
        os.close(end)


class SlowEnd:
    """While begin() says so, the main thread's close() and detach() are kept from what they do.

    By then they have told those who wait.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: threading.Event | None = None
        for name in ("_real_close", "detach"):
            monkeypatch.setattr(
                ssl.SSLSocket, name, self._slow(getattr(ssl.SSLSocket, name)), raising=False
            )

    def begin(self) -> threading.Event:
        """What is set when they are told."""
        self.told = threading.Event()
        return self.told

    def _slow(self, genuine: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def slow(sock: Any) -> Any:
            if self.told and threading.current_thread() is threading.main_thread():
                self.told.set()
                time.sleep(0.1)
            return genuine(sock)

        return slow


@pytest.fixture
def slow_end(monkeypatch: pytest.MonkeyPatch) -> SlowEnd:
    return SlowEnd(monkeypatch)


# --- nobody else is kept waiting


def test_many_that_say_nothing(serve: Any) -> None:
    server = serve(echo)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(silent(server))
        wait_until(lambda: len(tasks_of(server).running) == 200)
        with connected(server) as client:
            assert answers(client)
    assert all(isinstance(error, OSError) for error in server.failures)


@pytest.mark.parametrize("way", ["listener", "get_request"])
def test_a_handshake_in_the_loop_keeps_no_handler_waiting(serve: Any, way: str) -> None:
    server = serve(echo, way)
    with connected(server) as first, connected(server) as second:
        assert answers(first)
        with silent(server) as third:
            third.sendall(b"\x16\x03")
            wait_until(lambda: tasks_of(server).hub.foreign_waits)  # the loop's
            for _ in range(10):
                assert answers(first)
                assert answers(second)
            with silent(server) as fourth:
                late = client_context().wrap_socket(
                    fourth, server_hostname="localhost", do_handshake_on_connect=False
                )
                with late:
                    shaking = Background(late.do_handshake)
                    assert answers(first)
                    assert shaking.is_alive()  # the loop is not there yet
                    third.close()
                    shaking.result()
                    assert answers(late)


@pytest.mark.parametrize("way", WAYS)
def test_a_writer_that_nobody_reads_keeps_no_handler_waiting(serve: Any, way: str) -> None:
    written = []

    def handle(self: Any) -> None:
        if self.rfile.readline() == b"much\n":
            self.request.sendall(bytes(MUCH))
            written.append(True)
        echo(self)

    server = serve(handle, way)
    with connected(server) as slow, connected(server) as quick:
        slow.sendall(b"much\n")
        quick.sendall(b"go on\n")
        for _ in range(10):
            assert answers(quick)
        assert not written
        assert exactly(slow, MUCH) == bytes(MUCH)
        assert answers(slow)


@pytest.mark.parametrize("call", ["sendall", "sendfile"])
def test_plain_bytes_after_unwrap_keep_no_handler_waiting(serve: Any, call: str) -> None:
    def handle(self: Any) -> None:
        if self.rfile.readline() == b"plain\n":
            plain = self.request.unwrap()
            assert plain.recv(10) == b"on and on"
            with tempfile.TemporaryFile() as file:
                file.write(bytes(MUCH))
                getattr(plain, call)(file if call == "sendfile" else bytes(MUCH))
        else:
            echo(self)

    server = serve(handle)
    with connected(server) as client, connected(server) as other:
        other.sendall(b"hello\n")
        client.sendall(b"plain\n")
        plain = client.unwrap()
        assert answers(other)
        plain.sendall(b"on and on")
        assert exactly(plain, 1) == b"\0"
        assert answers(other)
        assert exactly(plain, MUCH) == bytes(MUCH - 1)
    assert server.failures == []


def test_a_timeout_that_is_set_later_keeps_no_handler_waiting(serve: Any) -> None:
    def handle(self: Any) -> None:
        line = self.rfile.readline()
        self.request.settimeout(TIMEOUT)
        self.wfile.write(line)
        echo(self)

    server = serve(handle)
    with connected(server) as client, connected(server) as other:
        for _ in range(3):
            assert answers(client)
            assert answers(other)


def test_one_that_never_waits_lets_others_run(serve: Any, multiplexing: Any) -> None:
    filled, turns, seen = threading.Event(), 0, []
    records = 200

    def handle(self: Any) -> None:
        nonlocal turns
        if self.request.recv(1) == b"c":
            while not seen:
                multiplexing.sleep(0)
                turns += 1
        else:
            while not filled.is_set():
                multiplexing.sleep(0.001)
            before = turns
            for _ in range(records):
                self.request.recv(10)
            seen.append(turns - before)

    server = serve(handle)
    with connected(server) as client, connected(server) as other:
        client.sendall(b"r")
        other.sendall(b"c")
        for _ in range(records):
            client.sendall(b"x")
        filled.set()
        wait_until(lambda: seen)
    assert seen[0] >= 2


# --- the thread, and other threads


def test_a_thread_may_go_on_with_it(serve: Any, multiplexing: Any) -> None:
    """It blocks that thread alone."""
    found: list[Any] = []

    def handle(self: Any) -> None:
        if self.rfile.readline() != b"thread\n":
            return echo(self)
        self.request.settimeout(TIMEOUT)
        reading = Background(lambda: [self.request.recv(10), self.request.gettimeout()])
        while reading.is_alive():
            multiplexing.sleep(0.001)
        found.extend(reading.result())
        self.request.settimeout(0.02)
        reading = Background(self.request.recv, 10)
        while reading.is_alive():
            multiplexing.sleep(0.001)
        found.append(reading.error)
        self.request.settimeout(None)
        self.wfile.write(b"thanks")

    server = serve(handle)
    with connected(server) as client, connected(server) as other:
        client.sendall(b"thread\n")
        other.sendall(b"hello\n")
        assert answers(other)
        client.sendall(b"for it")
        assert exactly(client, 6) == b"thanks"
    assert found[:2] == [b"for it", TIMEOUT]
    assert (type(found[2]), str(found[2])) == (TimeoutError, "The read operation timed out")


# --- who waits is woken


@pytest.mark.parametrize("end", ["close", "detach"])
def test_a_close_wakes_who_waits(serve: Any, multiplexing: Any, end: str) -> None:
    requests: list[Any] = []
    errors: list[BaseException] = []

    def handle(self: Any) -> None:
        line = self.rfile.readline()
        self.rfile.close()  # or it would be its close() that closes the connection
        if line == b"wait\n":
            requests.append(self.request)
            try:
                self.request.recv(1)
            except OSError as error:
                errors.append(error)
            return
        request = requests[0]
        number = request.fileno()
        if end == "close":
            request.close()
        else:
            socket.socket(fileno=request.detach()).close()
        near, far = socket.socketpair()
        with near, far:  # under the same number, with something to read
            assert number in (near.fileno(), far.fileno())
            near.sendall(b"x")
            far.sendall(b"x")
            self.wfile.write(b"closed")
            while not errors:
                multiplexing.sleep(0)
            self.wfile.write(b"%d" % len(near.recv(10)))

    server = serve(handle)
    with connected(server) as waiting, connected(server) as closing:
        waiting.sendall(b"wait\n")
        wait_until(lambda: requests)
        closing.sendall(b"close\n")
        assert exactly(closing, 7) == b"closed1"
    assert [error.errno for error in errors] == [9]


def test_a_close_between_the_event_and_the_read(serve: Any, hold: Hold, multiplexing: Any) -> None:
    """Under the number there is something else to be read by then."""
    requests: list[Any] = []
    found: list[Any] = []

    def handle(self: Any) -> None:
        if len(requests) == 2:
            hold()
            return
        self.rfile.close()
        requests.append(self.request)
        if len(requests) == 1:
            try:
                found.append(self.request.recv(10))
            except OSError as error:
                found.append(error.errno)
            return
        self.request.recv(10)
        requests[0].close()
        near, far = socket.socketpair()
        with near, far:
            near.sendall(b"x")
            far.sendall(b"x")
            while not found:
                multiplexing.sleep(0)

    server = serve(handle)
    with connected(server) as waiting, connected(server) as closing:
        wait_until(lambda: len(requests) == 2 and tasks_of(server).hub.asleep)
        with connected(server):
            assert hold.begun.wait(TIMEOUT)
            first, second = (waiting, closing) if same(requests[0], waiting) else (closing, waiting)
            second.sendall(b"close")  # its task runs first
            first.sendall(b"more")
            hold.release()
            wait_until(lambda: found)
    assert found == [9]


def same(request: Any, client: Any) -> bool:
    """Whether these are the two ends of a connection."""
    ends: bool = request.getpeername() == client.getsockname()
    return ends


def test_a_close_in_another_thread_wakes_who_waits(serve: Any) -> None:
    requests: list[Any] = []
    errors: list[BaseException] = []

    def handle(self: Any) -> None:
        self.rfile.close()
        requests.append(self.request)
        try:
            self.request.recv(1)
        except OSError as error:
            errors.append(error)

    server = serve(handle)
    with connected(server):
        wait_until(lambda: requests and tasks_of(server).hub.asleep)
        requests[0].close()
        wait_until(lambda: errors)
    assert [error.errno for error in errors] == [9]


@pytest.mark.parametrize("end", ["close", "detach"])
@pytest.mark.parametrize("where", ["task", "loop"])
def test_who_begins_to_wait_during_a_close(
    serve: Any, slow_end: SlowEnd, where: str, end: str
) -> None:
    """It is another thread's, which has told those who wait, but not closed yet."""
    requests: list[Any] = []
    errors: list[BaseException] = []
    told, ended = slow_end.begin(), threading.Event()

    class Reads:
        """In the place of a socket's object of OpenSSL's."""

        def __init__(self, made: Any) -> None:
            self.made = made

        def read(self, *arguments: Any) -> Any:
            requests.append(request)
            assert told.wait(TIMEOUT)
            return self.made.read(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.made, name)

    request: Any = None

    def receive(sock: Any) -> None:
        nonlocal request
        request = sock
        sock._sslobj = Reads(vars(sock)["_sslobj"])
        try:
            sock.recv(1)
        except OSError as error:
            errors.append(error)
        assert ended.wait(TIMEOUT)  # or the server would close it first

    def handle(self: Any) -> None:
        self.rfile.close()
        if where == "task":
            receive(self.request)

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        if where == "loop":
            receive(request)
        return where == "task"

    server = serve(handle, "get_request", verify_request=verify_request)
    with connected(server):
        wait_until(lambda: requests)
        if end == "close":
            requests[0].close()
        else:
            socket.socket(fileno=requests[0].detach()).close()
        ended.set()
        wait_until(lambda: errors)
    assert [error.errno for error in errors] == [9]


@pytest.mark.parametrize("attribute", ["daemon_threads", "block_on_close"])
def test_the_end_of_the_server_unwinds_who_waits(serve: Any, attribute: str) -> None:
    begun, unwound = threading.Event(), []

    def handle(self: Any) -> None:
        try:
            begun.set()
            self.request.recv(1)
        except BaseException as error:
            unwound.append(type(error).__name__)
            raise

    server = serve(handle, **{attribute: attribute == "daemon_threads"})
    with connected(server) as client, silent(server) as shaking:
        tasks = tasks_of(server)
        wait_until(lambda: begun.is_set() and len(tasks.running) == 2 and tasks.hub.asleep)
        server.shutdown()
        assert client.recv(1) == b""
        assert shaking.recv(1) == b""
    assert unwound == ["GreenletExit"]
    assert server.failures == []


def test_two_tasks_write_to_one(serve: Any, hold: Hold, multiplexing: Any) -> None:
    """One after the other, as two threads that share it: the second is there when there is room."""
    requests: list[Any] = []
    ended: list[bytes] = []

    def handle(self: Any) -> None:
        letter = self.rfile.readline()[:1]
        requests.append(self.request)
        if letter == b"b":
            hold()
        requests[0].send(letter * MUCH)  # a send, not sendall(): it is one write of OpenSSL's
        ended.append(letter)
        while len(ended) < 2:
            multiplexing.sleep(0.001)

    server = serve(handle)
    with connected(server) as first:
        first.sendall(b"a\n")
        wait_until(lambda: requests and tasks_of(server).hub.asleep)
        with connected(server) as second:
            second.sendall(b"b\n")
            assert hold.begun.wait(TIMEOUT)
            assert exactly(first, ROOM) == b"a" * ROOM
            hold.release()
            assert exactly(first, 2 * MUCH - ROOM) == b"a" * (MUCH - ROOM) + b"b" * MUCH
    assert server.failures == []


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_close_wakes_who_is_to_write_next(
    serve: Any, multiplexing: Any, slow_end: SlowEnd, late: bool, slow: bool
) -> None:
    """The one that writes is a thread. The next one may be too late to be seen by the close.

    Or be there again before the close has closed anything, if that is slow.
    """
    requests: list[Any] = []
    queued, closed = threading.Event(), threading.Event()

    class Queue(list[Any]):
        def append(self, turn: Any) -> None:
            queued.set()
            if late:
                assert closed.wait(TIMEOUT)
            super().append(turn)

    errors: list[Any] = []

    def handle(self: Any) -> None:
        self.rfile.close()
        requests.append(self.request)
        if len(requests) == 1:
            vars(self.request)["_fastsock_queue"] = Queue()
            writing = Background(self.request.send, bytes(MUCH))
            while writing.is_alive():
                multiplexing.sleep(0.001)
            errors.append(writing.error)
            return
        while "_fastsock_writer" not in vars(requests[0]):
            multiplexing.sleep(0.001)
        try:
            requests[0].send(b"too late")
        except OSError as error:
            errors.append(error)

    server = serve(handle)
    with connected(server) as first, connected(server) as second:
        assert queued.wait(TIMEOUT)
        written_to = first if same(requests[0], first) else second
        if slow:
            slow_end.begin()
        requests[0].close()
        closed.set()
        wait_until(lambda: errors)  # both of them: the thread had not begun to wait
        written_to.close()
        wait_until(lambda: len(errors) == 2)
    assert [error.errno for error in errors] == [9, 9]


@pytest.mark.parametrize("then", ["seen", "unseen", "another writes"])
def test_the_writer_is_done_right_before_the_next_one_waits(
    serve: Any, multiplexing: Any, then: str
) -> None:
    """It is a thread, and so may be done at any moment."""
    requests: list[Any] = []
    queued, done = threading.Event(), threading.Event()
    sent: list[int] = []

    class Queue(list[Any]):
        def append(self, turn: Any) -> None:
            if then == "seen":  # by the one that is done
                super().append(turn)
            queued.set()
            assert done.wait(TIMEOUT)
            if then != "seen":
                super().append(turn)

    def handle(self: Any) -> None:
        self.rfile.close()
        requests.append(self.request)
        if len(requests) == 1:
            vars(self.request)["_fastsock_queue"] = Queue()
            writing = Background(self.request.send, bytes(MUCH))
            wait_until(lambda: "_fastsock_writer" in vars(requests[0]))
            sent.append(self.request.send(b"next"))
            writing.result()

    server = serve(handle)
    with connected(server) as client:
        assert queued.wait(TIMEOUT)
        assert exactly(client, MUCH) == bytes(MUCH)
        wait_until(lambda: "_fastsock_writer" not in vars(requests[0]))
        if then == "another writes":
            Background(requests[0].send, bytes(MUCH))
            wait_until(lambda: "_fastsock_writer" in vars(requests[0]))
        done.set()
        if then == "another writes":
            assert exactly(client, MUCH) == bytes(MUCH)
        assert exactly(client, 4) == b"next"
        wait_until(lambda: sent)


def test_a_buffer_is_in_use_while_its_task_waits(serve: Any) -> None:
    buffers: list[bytearray] = []
    resized: list[bool] = []

    def handle(self: Any) -> None:
        self.rfile.close()
        buffers.append(buffer := bytearray(10))
        self.request.recv_into(buffer)
        buffer.extend(b"!")
        resized.append(True)

    server = serve(handle)
    with connected(server) as client:
        wait_until(lambda: buffers and tasks_of(server).hub.asleep)
        with pytest.raises(BufferError):
            buffers[0].extend(b"?")
        client.sendall(b"x")
        wait_until(lambda: resized)
