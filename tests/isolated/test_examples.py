"""examples/sql_queue.py: a server without a socket, on both implementations."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import RUN, Ended, Programs
from support import POLL, Background, about_threads, ask, new, serving, upper, wait_until

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "sql_queue.py"
NO_SOCKET = "handle_request() without self.socket: AttributeError in the standard library"

both_ways = pytest.mark.parametrize("how", [(), RUN], ids=["python", "fastsock run"])


# --- the program


@both_ways
def test_program(programs: Programs, how: tuple[str, ...]) -> None:
    """What its docstring says."""
    found = programs.run("-W", "error", *how, EXAMPLE, "hello", "world")
    assert found == Ended(0, "1: hello -> HELLO\n2: world -> WORLD\n", "")
    docstring = EXAMPLE.read_text().split('"""')[1]
    assert "".join(f"    {line}\n" for line in found.out.splitlines()) in docstring


@both_ways
def test_program_with_a_database(programs: Programs, how: tuple[str, ...]) -> None:
    for number in (1, 2):
        found = programs.run(*how, EXAMPLE, "--database", "queue.db", f"entry {number}")
        assert found == Ended(0, f"{number}: entry {number} -> ENTRY {number}\n", "")


def test_program_runs_on_fastsock(programs: Programs) -> None:
    programs.write("sql_queue.py", EXAMPLE.read_bytes())
    programs.write("app.py", "import sql_queue; print(sql_queue.QueueServer.__base__.__module__)\n")
    assert programs.run("app.py").out == "socketserver\n"
    assert programs.run(*RUN, "app.py").out == "fastsock._servers\n"


# --- its classes


@pytest.fixture
def example(ss: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module, made on the implementation under test."""
    monkeypatch.setitem(sys.modules, "socketserver", ss)
    spec = importlib.util.spec_from_file_location("sql_queue", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.QueueServer.__base__ is ss.BaseServer
    return module


@pytest.fixture
def queue(example: Any) -> Iterator[Callable[..., Any]]:
    """queue(*mix-ins, database=, handler=, **attributes): a server, closed after the test."""
    servers = []

    def make(
        *mixins: Any, database: Any = ":memory:", handler: Any = None, **attributes: Any
    ) -> Any:
        server_class = new("Server", *mixins, example.QueueServer, calls=[], **attributes)
        servers.append(server_class(str(database), handler or example.Upper))
        servers[-1].execute("PRAGMA synchronous = OFF")  # no test waits for the disk
        return servers[-1]

    yield make
    for server in servers:
        server.server_close()


def state(server: Any, number: int) -> str:
    ((found,),) = server.execute("SELECT state FROM queue WHERE number = ?", number)
    return str(found)


def stop_at(number: int, handler_class: Any) -> Any:
    """A handler that ends the loop, on both implementations, with a certain entry."""

    def handle(self: Any) -> None:
        handler_class.handle(self)
        if self.client_address == number:
            self.server._BaseServer__shutdown_request = True

    return new("Stopping", handler_class, handle=handle)


def test_entries_before_and_during_the_loop(queue: Callable[..., Any]) -> None:
    server = queue()
    before = [server.put(f"before {number}") for number in range(3)]
    with serving(server):
        assert [server.wait_for_answer(n) for n in before] == ["BEFORE 0", "BEFORE 1", "BEFORE 2"]
        assert server.wait_for_answer(server.put("during")) == "DURING"
    after = server.put("after")
    with serving(server):
        assert server.wait_for_answer(after) == "AFTER"


def test_an_entry_wakes_the_loop(queue: Callable[..., Any], example: Any) -> None:
    """By its descriptor: the poll_interval is too long to wait for."""
    server = queue(handler=stop_at(4, example.Upper))
    thread = Background(server.serve_forever, 60)
    for number in (1, 2, 3, 4):
        assert server.wait_for_answer(server.put(f"entry {number}")) == f"ENTRY {number}"
    thread.result()


def test_entries_of_an_earlier_run(queue: Callable[..., Any], tmp_path: Path) -> None:
    earlier = queue(database=tmp_path / "queue.db")
    number = earlier.put("left over")
    server = queue(database=tmp_path / "queue.db")
    with serving(server):
        assert server.wait_for_answer(number) == "LEFT OVER"


def test_two_servers_of_one_table(queue: Callable[..., Any], tmp_path: Path) -> None:
    """Each entry is served once, by whoever takes it; the other finds nothing."""
    finished: list[int] = []

    def finish_request(self: Any, request: str, client_address: int) -> None:
        finished.append(client_address)
        self.RequestHandlerClass(request, client_address, self)

    attributes = {"database": tmp_path / "queue.db", "finish_request": finish_request}
    one, other = queue(**attributes), queue(**attributes)
    with serving(one), serving(other):
        numbers = [one.put(f"entry {number}") for number in range(5)]
        other.ring()
        wait_until(lambda: {state(one, number) for number in numbers} == {"done"})
    assert sorted(finished) == numbers


HOOKS = (
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
    "handle_error",
)


def recorded(name: str, base: Any) -> Callable[..., Any]:
    def hook(self: Any, *args: Any) -> Any:
        self.calls.append((name, *args))
        return getattr(base, name)(self, *args)

    return hook


def test_hooks(queue: Callable[..., Any], example: Any) -> None:
    hooks = {name: recorded(name, example.QueueServer) for name in HOOKS}
    server = queue(handler=stop_at(1, example.Upper), **hooks)
    server.put("entry")
    server.serve_forever(POLL)
    assert server.calls == [
        ("get_request",),
        ("verify_request", "entry", 1),
        ("process_request", "entry", 1),
        ("finish_request", "entry", 1),
        ("shutdown_request", "entry"),
        ("close_request", "entry"),
    ]


def test_refused_entries(queue: Callable[..., Any], example: Any) -> None:
    def verify_request(self: Any, request: str, client_address: int) -> bool:
        return request != "refused"

    hooks = {name: recorded(name, example.QueueServer) for name in ("shutdown_request",)}
    server = queue(verify_request=verify_request, **hooks)
    with serving(server):
        refused = server.put("refused")
        assert server.wait_for_answer(server.put("accepted")) == "ACCEPTED"
    assert state(server, refused) == "taken"
    assert server.calls == [("shutdown_request", "refused"), ("shutdown_request", "accepted")]


def test_nothing_there_after_all(queue: Callable[..., Any]) -> None:
    """get_request() raises BlockingIOError: no request, no error, and the loop goes on."""
    raised = []

    def get_request(self: Any) -> Any:
        try:
            return type(self).__base__.get_request(self)
        except BlockingIOError as error:
            raised.append(error.errno)
            raise

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        self.calls.append(sys.exc_info())

    server = queue(get_request=get_request, handle_error=handle_error)
    with serving(server):
        for count in (1, 2, 3):
            wait_until(lambda count=count: len(raised) >= count)
            server.ring()
        assert server.wait_for_answer(server.put("entry")) == "ENTRY"
    assert server.calls == []


def test_get_request_fails(queue: Callable[..., Any], example: Any) -> None:
    failures = [OSError("first"), ConnectionResetError(), TimeoutError()]

    def get_request(self: Any) -> Any:
        if failures:
            raise failures.pop()
        return example.QueueServer.get_request(self)

    server = queue(get_request=get_request)
    with serving(server):
        assert server.wait_for_answer(server.put("entry")) == "ENTRY"
    assert not failures


def test_a_handler_that_fails(queue: Callable[..., Any], example: Any) -> None:
    def handle(self: Any) -> None:
        if self.request == "bad":
            raise ZeroDivisionError
        example.Upper.handle(self)

    def handle_error(self: Any, request: Any, client_address: Any) -> None:
        self.calls.append((sys.exc_info()[0], request, client_address))

    hooks = {"shutdown_request": recorded("shutdown_request", example.QueueServer)}
    server = queue(
        handler=new("H", example.Upper, handle=handle), handle_error=handle_error, **hooks
    )
    with serving(server):
        bad = server.put("bad")
        assert server.wait_for_answer(server.put("good")) == "GOOD"
    assert server.calls[:2] == [(ZeroDivisionError, "bad", bad), ("shutdown_request", "bad")]


@about_threads("its handlers wait for each other in a threading.Condition")
def test_with_threads(queue: Callable[..., Any], ss: ModuleType, example: Any) -> None:
    """The mix-in works for entries as for connections: the first waits for the second."""

    def handle(self: Any) -> None:
        if self.request == "first":
            assert self.server.wait_for_answer(2) == "SECOND"
        example.Upper.handle(self)

    server = queue(ss.ThreadingMixIn, handler=new("H", example.Upper, handle=handle))
    with serving(server):
        first = server.put("first")
        assert server.wait_for_answer(server.put("second")) == "SECOND"
        assert server.wait_for_answer(first) == "FIRST"


def test_close(queue: Callable[..., Any], example: Any) -> None:
    with example.QueueServer(":memory:", example.Upper) as server:
        descriptors = server.bell, server.rope
        assert server.fileno() == server.bell
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


# --- handle_request()


def counting_timeouts(queue: Callable[..., Any], timeout: float | None) -> Any:
    def handle_timeout(self: Any) -> None:
        self.calls.append("timeout")

    server = queue(handle_timeout=handle_timeout, timeout=timeout)
    with pytest.raises(BlockingIOError):  # silences the bell of the beginning
        server.get_request()
    return server


@pytest.mark.fastsock_only(reason=NO_SOCKET)
def test_handle_request_times_out(queue: Callable[..., Any]) -> None:
    server = counting_timeouts(queue, 0.1)
    begin = time.monotonic()
    assert server.handle_request() is None
    assert 0.1 <= time.monotonic() - begin < 5
    assert server.calls == ["timeout"]
    server.timeout = 0
    server.handle_request()
    assert server.calls == ["timeout", "timeout"]


@pytest.mark.fastsock_only(reason=NO_SOCKET)
@pytest.mark.parametrize("timeout", [None, 0, 60])
def test_handle_request_takes_one_entry(queue: Callable[..., Any], timeout: float | None) -> None:
    server = counting_timeouts(queue, timeout)
    one, other = server.put("one"), server.put("other")
    server.handle_request()
    assert (state(server, one), state(server, other)) == ("done", "waiting")
    server.handle_request()
    assert (state(server, one), state(server, other)) == ("done", "done")
    assert server.calls == []


@pytest.mark.fastsock_only(reason=NO_SOCKET)
@pytest.mark.parametrize("timeout", [None, 60])
def test_an_entry_wakes_handle_request(queue: Callable[..., Any], timeout: float | None) -> None:
    server = counting_timeouts(queue, timeout)
    thread = Background(server.handle_request)
    assert server.wait_for_answer(server.put("entry")) == "ENTRY"
    thread.result()
    assert server.calls == []


@pytest.mark.fastsock_only(reason=NO_SOCKET)
def test_handle_request_finds_nothing(queue: Callable[..., Any]) -> None:
    """BlockingIOError ends it as in the standard library: neither a request nor a timeout."""
    server = counting_timeouts(queue, 60)
    server.ring()
    assert server.handle_request() is None
    assert server.calls == []


@pytest.mark.fastsock_only(reason="serve_forever() of several servers")
def test_beside_a_server_with_a_socket(queue: Callable[..., Any], ss: Any) -> None:
    """One thread serves entries and connections."""
    server = queue()
    with ss.TCPServer(("127.0.0.1", 0), upper(ss.StreamRequestHandler)) as tcp:
        thread = Background(ss.serve_forever, server, tcp, poll_interval=60)
        assert server.wait_for_answer(server.put("entry")) == "ENTRY"
        assert ask(tcp) == b"HELLO\n"
        server.shutdown()
        assert ask(tcp) == b"HELLO\n"
        tcp.shutdown()
        thread.result()
