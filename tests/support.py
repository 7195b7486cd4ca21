"""What the tests share: implementations, kinds of server, clients, traces of hook calls."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from implementations import SPECS, is_fastsock, multiplexes
from implementations import load_implementation as load_implementation  # for the tests

TESTS = Path(__file__).resolve().parent
TIMEOUT = 20.0  # of every blocking operation; a test that needs it has failed
POLL = 0.002  # the poll_interval of servers that run in a thread
ESCAPED = 99  # exit status of a child that came back into pytest
WORKER_NAME = re.compile(r"Thread-\d+ \(process_request_thread\)")


# --- implementations


def event(ss: ModuleType) -> Any:
    """An Event that a handler can wait for, and any thread can set."""
    if multiplexes(ss):
        return importlib.import_module("fastsock.multiplexing").Event()
    return threading.Event()


about_threads = pytest.mark.about_threads  # (reason): not so where each handler is a greenlet


def requires(ss: ModuleType, version: tuple[int, int], what: str) -> None:
    """Skip where `ss` is a standard library older than `version`; fastsock has it everywhere."""
    if not is_fastsock(ss) and sys.version_info < version:
        pytest.skip(f"{what} is new in Python {'.'.join(map(str, version))}")


# --- kinds of server


@dataclass(frozen=True)
class Kind:
    flavour: str  # '', 'Threading', 'Forking'
    transport: str  # 'TCP', 'UDP', 'UnixStream', 'UnixDatagram'

    @property
    def name(self) -> str:
        return f"{self.flavour}{self.transport}Server"

    @property
    def stream(self) -> bool:
        return self.transport in ("TCP", "UnixStream")

    def server(self, ss: ModuleType) -> Any:
        """The ready-made class, or its equivalent where the standard library is too old for it."""
        if hasattr(ss, self.name):
            return getattr(ss, self.name)
        mixin, base = getattr(ss, self.flavour + "MixIn"), getattr(ss, self.transport + "Server")
        return type(self.name, (mixin, base), {})

    def handler(self, ss: ModuleType) -> Any:
        return ss.StreamRequestHandler if self.stream else ss.DatagramRequestHandler

    def __str__(self) -> str:
        return f"{self.flavour or 'Sync'}{self.transport}"


FLAVOURS = ("", "Threading", "Forking")
TRANSPORTS = ("TCP", "UDP", "UnixStream", "UnixDatagram")


def kinds(
    flavours: tuple[str, ...] = FLAVOURS, transports: tuple[str, ...] = TRANSPORTS
) -> pytest.MarkDecorator:
    """Parametrize a test over `kind`."""
    chosen = [Kind(flavour, transport) for flavour in flavours for transport in transports]
    return pytest.mark.parametrize("kind", chosen, ids=str)


def new(name: str, *bases: Any, **attributes: Any) -> Any:
    """A class in one expression."""
    return type(name, bases, attributes)


def handling(ss: ModuleType, handle: Callable[[Any], Any], **attributes: Any) -> Any:
    return new("Handler", ss.StreamRequestHandler, handle=handle, **attributes)


def upper(base: Any) -> Any:
    """A handler for streams and datagrams that answers a line in upper case."""

    def handle(self: Any) -> None:
        self.wfile.write(self.rfile.readline().upper())

    return new("Upper", base, handle=handle)


def fresh_address(server_class: Any, folder: str) -> Any:
    if server_class.address_family == socket.AF_UNIX:
        return os.path.join(folder, f"s{len(os.listdir(folder))}")
    return ("::1" if server_class.address_family == socket.AF_INET6 else "127.0.0.1", 0)


class FakeRequest:
    """Stands in for an accepted connection where only calls of its methods are looked at."""

    def __init__(self, shutdown_error: BaseException | None = None) -> None:
        self.calls: list[Any] = []
        self.shutdown_error = shutdown_error

    def shutdown(self, how: int) -> None:
        self.calls.append(("shutdown", how))
        if self.shutdown_error is not None:
            raise self.shutdown_error

    def close(self) -> None:
        self.calls.append("close")


# --- clients


def connect(server: Any) -> socket.socket:
    sock = socket.socket(server.address_family, server.socket_type)
    sock.settimeout(TIMEOUT)
    if (server.address_family, server.socket_type) == (socket.AF_UNIX, socket.SOCK_DGRAM):
        sock.bind("")  # Linux: an abstract name of its own, so that the server can answer
    sock.connect(server.server_address)
    return sock


def receive(sock: socket.socket) -> bytes:
    """Everything up to the end of a stream; one datagram."""
    if sock.type == socket.SOCK_DGRAM:
        return sock.recv(65536)
    chunks = []
    while chunk := sock.recv(65536):
        chunks.append(chunk)
    return b"".join(chunks)


def ask(server: Any, data: bytes = b"hello\n") -> bytes:
    with connect(server) as sock:
        sock.sendall(data)
        return receive(sock)


def ended(sock: socket.socket) -> bool:
    """Has the server closed this connection?"""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def hang_up(sock: socket.socket) -> None:
    """Close for good, though forked children may hold copies of the descriptor."""
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()


# --- running


def wait_until(predicate: Callable[[], Any], timeout: float = TIMEOUT) -> Any:
    """Poll for a state that has no event to wait on."""
    deadline = time.monotonic() + timeout
    while not (result := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout} s: {predicate}")
        time.sleep(0.0005)
    return result


class Background(threading.Thread):
    """Run a function in a thread; result() joins and hands on what it returned or raised."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self.call = lambda: function(*args, **kwargs)
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        pid = os.getpid()
        try:
            self.value = self.call()
        except BaseException as error:
            self.error = error
        finally:
            if os.getpid() != pid:
                os._exit(ESCAPED)

    def result(self, timeout: float = TIMEOUT) -> Any:
        self.join(timeout)
        assert not self.is_alive(), f"still running after {timeout} s"
        error, self.error = self.error, None
        if error is not None:
            raise error
        return self.value


@contextlib.contextmanager
def serving(server: Any, poll_interval: float | None = POLL) -> Iterator[Background]:
    """serve_forever() in a thread, ended by shutdown(). Does not close the server."""
    thread = Background(server.serve_forever, poll_interval)
    try:
        yield thread
    finally:
        if thread.is_alive():
            server.shutdown()
        thread.join(TIMEOUT)
    thread.result()


@contextlib.contextmanager
def serving_seldom(server: Any, poll_interval: float | None = 60) -> Iterator[Background]:
    """The same with a poll_interval too long to wait for: a client wakes the loop in the end."""
    thread = Background(server.serve_forever, poll_interval)
    try:
        yield thread
    finally:
        server._BaseServer__shutdown_request = True
        with connect(server) as sock:
            if sock.type == socket.SOCK_DGRAM:
                sock.send(b"")
            thread.join(TIMEOUT)
    thread.result()


def run_script(
    ss: ModuleType, fastsock_dir: str | None, script: str, *args: str
) -> subprocess.Popen[str]:
    """Start a Python process in which `ss` is the implementation under test."""
    prelude = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import implementations\n"
        f"ss = implementations.load_implementation({SPECS[ss.__name__]!r}, {fastsock_dir!r})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + script, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )


def outcome(function: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """What a call did, to be compared between implementations."""
    try:
        return "returned", function(*args, **kwargs)
    except Exception as error:
        return type(error), getattr(error, "errno", None), error.args


# --- traces


@dataclass(frozen=True)
class Event:
    name: str
    args: tuple[str, ...]
    pid: int
    thread: str
    exception: str | None

    @property
    def call(self) -> str:
        return f"{self.name}({', '.join(self.args)})"


class Trace:
    """A list of events which threads and forked children append to alike."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("trace")
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)
        self.start = 0

    def close(self) -> None:
        os.close(self.fd)

    def clear(self) -> None:
        self.start = os.fstat(self.fd).st_size

    def log(self, name: str, *args: Any) -> None:
        kind = sys.exc_info()[0]
        event = [
            name,
            [str(arg) for arg in args],
            os.getpid(),
            threading.current_thread().name,
            kind.__name__ if kind is not None else None,
        ]
        os.write(self.fd, json.dumps(event).encode() + b"\n")

    def events(self) -> list[Event]:
        # A write that crosses a page is seen in two parts: the last line may not be whole yet.
        size = os.fstat(self.fd).st_size - self.start
        written = os.pread(self.fd, size, self.start) if size else b""
        lines = written[: written.rfind(b"\n") + 1].splitlines()
        return [Event(name, tuple(args), *rest) for name, args, *rest in map(json.loads, lines)]

    def named(self, *names: str) -> list[Event]:
        return [event for event in self.events() if event.name in names]

    def names(self, *without: str) -> list[str]:
        return [event.name for event in self.events() if event.name not in without]

    def wait(self, name: str, count: int = 1) -> list[Event]:
        """All events, once `count` of them have this name."""
        try:
            wait_until(lambda: len(self.named(name)) >= count)
        except TimeoutError:
            raise AssertionError(f"no {count} x {name} in {self.names()}") from None
        return self.events()


SERVER_HOOKS = (
    "server_bind",
    "server_activate",
    "get_request",
    "verify_request",
    "process_request",
    "process_request_thread",
    "finish_request",
    "shutdown_request",
    "close_request",
    "service_actions",
    "handle_timeout",
    "handle_error",
    "collect_children",
    "server_close",
)
HANDLER_HOOKS = ("setup", "handle", "finish")


def describe(server: Any, argument: Any) -> str:
    request, address = getattr(server, "last_request", (None, None))
    for value, name in ((request, "request"), (address, "address"), (server, "server")):
        if argument is value and value is not None:
            return name
    return repr(argument)


def recording(base: Any, trace: Trace, raising: dict[str, BaseException] | None = None) -> Any:
    """A subclass of a server or handler class that records its hooks, and lets some raise."""
    raising = raising if raising is not None else {}

    def recorded(name: str) -> Callable[..., Any]:
        def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
            server = getattr(self, "server", self)
            options = [f"{key}={value}" for key, value in kwargs.items()]
            trace.log(name, *(describe(server, argument) for argument in args), *options)
            if name in raising:
                raise raising[name]
            result = getattr(super(Recording, self), name)(*args, **kwargs)
            if name == "get_request":
                self.last_request = result
            return result

        hook.__name__ = name  # a thread is named after it
        return hook

    def init(self: Any, request: Any, client_address: Any, server: Any) -> None:
        arguments = (request, client_address, server)
        trace.log("Handler", *(describe(server, argument) for argument in arguments))
        if "Handler" in raising:
            raise raising["Handler"]
        base.__init__(self, *arguments)

    names = [name for name in SERVER_HOOKS + HANDLER_HOOKS if hasattr(base, name)]
    namespace: dict[str, Any] = {name: recorded(name) for name in names}
    if hasattr(base, "handle"):
        namespace["__init__"] = init
    Recording: Any = type("Recording" + base.__name__, (base,), namespace)
    return Recording
