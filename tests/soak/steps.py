"""What the handlers of ``handlers`` do in each step; what they see goes into their answers."""

from __future__ import annotations

import contextvars
import hashlib
import io
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from fastsock import multiplexing

from .programs import Program, Step

LIMIT = 30.0


class World:
    """What the handlers of one server share."""

    def __init__(self, programs: dict[int, Program], helper: Any, silent: Any, closed: Any) -> None:
        self.programs = programs
        self.helper, self.silent, self.closed = helper, silent, closed
        self.lock = multiplexing.Lock()
        self.inside = 0


def digest(data: bytes) -> bytes:
    return b"%d bytes %s" % (len(data), hashlib.sha1(data).hexdigest()[:8].encode())


class Handling:
    """Mixed into the implementation's StreamRequestHandler."""

    def setup(self) -> None:
        number = b""
        while not number.endswith(b"\n"):
            number += self.request.recv(1)  # type: ignore[attr-defined]
        program = self.program = self.server.world.programs[int(number)]  # type: ignore[attr-defined]
        self.rbufsize, self.wbufsize = program.rbufsize, program.wbufsize
        self.timeout = program.timeout
        super().setup()  # type: ignore[misc]

    def handle(self) -> None:
        for step in self.program.steps:
            take(self, self.server.world, step)  # type: ignore[attr-defined]


def say(handler: Any, *words: Any) -> None:
    handler.wfile.write(b"".join(w if isinstance(w, bytes) else repr(w).encode() for w in words))
    handler.wfile.write(b";")


def attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        return type(error).__name__


def flushed(handler: Any) -> Any:
    """The connection, after what the file holds back."""
    handler.wfile.flush()
    return handler.request


def take(handler: Any, world: World, step: Step) -> None:
    name, *rest = step
    value: Any = rest[0] if rest else None
    request, rfile = handler.request, handler.rfile
    if name == "readline":
        say(handler, name, digest(attempted(rfile.readline)))
    elif name == "read":
        say(handler, name, digest(attempted(rfile.read, value)))
    elif name == "readinto":
        buffer = bytearray(value)
        view, count = memoryview(buffer), 0
        while count < value:
            got = attempt(rfile.readinto, view[count:])
            if not isinstance(got, int) or got == 0:
                break
            count += got
        say(handler, name, digest(bytes(buffer[:count])))
    elif name in ("recv", "recv_into", "recvmsg"):
        say(handler, name, digest(receive(handler, name, value)))
    elif name == "some lines":
        for _ in range(value):
            handler.wfile.write(attempted(rfile.readline).upper())
    elif name == "lines":
        for line in rfile:
            handler.wfile.write(line)
    elif name == "read all":
        say(handler, digest(rfile.read()))
    elif name == "recv all":
        while data := request.recv(1000):
            handler.wfile.write(data)
    elif name == "say":
        handler.wfile.write(value)
        handler.wfile.flush()
    elif name in ("write", "writelines"):
        if name == "write":
            handler.wfile.write(value)
        else:
            handler.wfile.writelines([value, b"x", value[:10]])
    elif name == "small":
        for start in range(0, len(value), 700):
            handler.wfile.write(value[start : start + 700])
    elif name == "sendall":
        flushed(handler).sendall(value)
    elif name == "send":
        sent = 0
        while sent < len(value):
            sent += flushed(handler).send(value[sent:])
    elif name == "makefile":
        flushed(handler)
        with request.makefile("wb") as file:
            for start in range(0, len(value), 3000):
                file.write(value[start : start + 3000])
    elif name == "sendfile":
        flushed(handler)
        with tempfile.TemporaryFile() as file:
            file.write(value)
            say(handler, request.sendfile(file, 7))
    elif name == "raise":
        raise {"ValueError": ValueError, "OSError": OSError, "SystemExit": SystemExit}[value]("x")
    elif name == "close":
        if value == "wfile":
            handler.wfile.close()
        else:
            flushed(handler).close()
    else:
        say(handler, name, b" ", OTHER[name](handler, world, value))


def attempted(call: Callable[..., Any], *arguments: Any) -> bytes:
    got = attempt(call, *arguments)
    return got if isinstance(got, bytes) else repr(got).encode()


def receive(handler: Any, name: str, size: int) -> bytes:
    found, request = b"", flushed(handler)
    while len(found) < size:
        left = size - len(found)
        if name == "recv":
            got = request.recv(left)
        elif name == "recvmsg":
            got = request.recvmsg(left)[0]
        else:
            buffer = bytearray(left)
            got = bytes(buffer[: request.recv_into(buffer)])
        if not got:
            break
        found += got
    return found


def timed_out(handler: Any, world: World, how: Any) -> Any:
    before = handler.request.gettimeout()
    handler.request.settimeout(0.002)
    call = handler.rfile.readline if how == "readline" else lambda: handler.request.recv(1)
    found = attempt(call)
    handler.request.settimeout(before)
    handler.wfile.write(f"{found} timed out".encode())
    handler.wfile.flush()
    return "then"


def in_thread(handler: Any, world: World, value: Any) -> Any:
    def work(number: int) -> int:
        time.sleep(0.001)
        return number * 2

    return multiplexing.to_thread(work, value)


def thread_raises(handler: Any, world: World, value: Any) -> Any:
    return attempt(multiplexing.to_thread, int, "no number")


def spawned(handler: Any, world: World, value: Any) -> Any:
    found: list[Any] = []

    def work() -> None:
        multiplexing.sleep(0.001)
        found.append(value)

    multiplexing.spawn(work).join()
    return found


def spawned_writer(handler: Any, world: World, value: Any) -> Any:
    request = flushed(handler)
    return multiplexing.spawn(request.sendall, value).join()


def with_lock(handler: Any, world: World, value: Any) -> Any:
    with world.lock:
        alone = world.inside == 0
        world.inside += 1
        multiplexing.sleep(value)
        world.inside -= 1
    return alone


def with_event(handler: Any, world: World, value: Any) -> Any:
    event = multiplexing.Event()
    found = [event.wait(0)]
    task = multiplexing.spawn(event.set)
    found += [event.wait(LIMIT), event.is_set()]
    task.join()
    return found


def with_queue(handler: Any, world: World, count: Any) -> Any:
    queue: Any = multiplexing.Queue(2)

    def put() -> None:
        for number in range(count):
            queue.put(number)

    task = multiplexing.spawn(put)
    found = [queue.get() for _ in range(count)]
    task.join()
    return found


def outbound(handler: Any, world: World, line: Any) -> Any:
    with multiplexing.create_connection(world.helper, LIMIT) as connection:
        connection.sendall(line)
        with connection.makefile("rb") as file:
            return digest(file.readline()).decode()


def refused(handler: Any, world: World, value: Any) -> Any:
    return attempt(multiplexing.create_connection, world.closed, LIMIT)


def outbound_timeout(handler: Any, world: World, value: Any) -> Any:
    with multiplexing.create_connection(world.silent, LIMIT) as connection:
        connection.settimeout(0.003)
        return attempt(connection.recv, 1)


def waited(handler: Any, world: World, value: Any) -> Any:
    one, other = socket.socketpair()
    with one, other:
        found = [multiplexing.wait(one, read=True, timeout=0.001)]
        other.send(b"x")
        found += [multiplexing.wait(one, read=True, timeout=LIMIT)]
        return [*found, multiplexing.wait(one, read=True, write=True)]


def context(handler: Any, world: World, value: Any) -> Any:
    """Contexts and exceptions are a handler's own."""
    before = VARIABLE.get()
    VARIABLE.set(value)
    try:
        raise KeyError(value)
    except KeyError as error:
        multiplexing.sleep(0.001)
        found = [before is None or type(before), VARIABLE.get(), sys.exc_info()[1] is error]
    VARIABLE.set(None)
    return [*found, sys.exc_info()[1]]


def error_in_error(handler: Any, world: World, value: Any) -> Any:
    try:
        try:
            raise ValueError("first")
        except ValueError:
            multiplexing.sleep(0)
            handler.wfile.flush()
            raise
    except ValueError as error:
        return repr(error), repr(error.__context__)


def facts(handler: Any, world: World, value: Any) -> Any:
    request = handler.request
    return [
        request.family.name,
        request.gettimeout(),
        handler.wfile.closed,
        isinstance(handler.wfile, io.BufferedIOBase),
        handler.wfile.fileno() == request.fileno(),
        request.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE),
    ]


def slept(handler: Any, world: World, value: Any) -> Any:
    return multiplexing.sleep(value)


def flush(handler: Any, world: World, value: Any) -> Any:
    return handler.wfile.flush()


VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable", default=None)

OTHER: dict[str, Callable[[Any, World, Any], Any]] = {
    "timeout": timed_out,
    "to_thread": in_thread,
    "to_thread raises": thread_raises,
    "spawn": spawned,
    "spawn writer": spawned_writer,
    "lock": with_lock,
    "event": with_event,
    "queue": with_queue,
    "outbound": outbound,
    "refused": refused,
    "outbound timeout": outbound_timeout,
    "wait": waited,
    "context": context,
    "error in error": error_in_error,
    "facts": facts,
    "sleep": slept,
    "flush": flush,
}
