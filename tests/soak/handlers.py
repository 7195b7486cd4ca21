"""Random handlers: each client must get the same bytes, whatever the handlers are run by.

A program is a list of steps that a handler takes and of pieces that its client sends, with waits
in between. What a handler sees goes into its answers: what each read returned, which error came.
Several programs run at a time on one server; those of one batch share a lock, an event, a queue.
Steps are drawn so that the answer does not depend on timing: a read has an exact size or goes to a
newline or the end, a timeout comes where the client sends nothing more until it was told of it.
"""

from __future__ import annotations

import argparse
import contextvars
import hashlib
import io
import random
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import fastsock
from fastsock import multiplexing

LIMIT = 30.0
BATCH = 12  # programs at a time
AT_ONCE = 200_000  # bytes that are much: more than a socket takes at once

Step = tuple[Any, ...]


# --- drawing


def text(dice: random.Random, size: int) -> bytes:
    return dice.randbytes(size).replace(b"\n", b"_").replace(b"\x00", b"-")


class Program:
    """steps: of the handler. script: of the client: bytes to send, or what it waits for."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.dice = dice = random.Random(f"{seed} {number}")
        self.rbufsize = dice.choice((-1, -1, 0, 1, 16))
        self.wbufsize = dice.choice((0, 0, -1, 64))
        self.timeout = dice.choice((None, None, 20.0))
        self.reads_ahead = self.rbufsize != 0
        self.file_dead = False  # it has timed out once
        self.steps: list[Step] = []
        self.script: list[Step] = []
        for _ in range(dice.randrange(1, 9)):
            dice.choice(DRAWN)(self)
        end = dice.randrange(5)
        if end == 0:
            self.steps.append(("raise", dice.choice(("ValueError", "OSError", "SystemExit"))))
        elif end == 1:
            ways = ["recv all"] if self.file_dead else ["lines", "read all"]
            if not self.reads_ahead:
                ways.append("recv all")
            self.steps.append((dice.choice(ways),))
            self.script.append(("send", text(dice, dice.choice((0, 3, 3000))) + b"\nrest"))
            self.script.append(("shut",))
        elif end == 2:
            self.steps.append(("close", dice.choice(("wfile", "request"))))
        self.pauses = [dice.random() < 0.2 for _ in self.script]

    def size(self) -> int:
        most = 9 if self.rbufsize == -1 else 6
        return self.dice.choice((0, 1, 5, 100, 1000, 3000, 4095, 4096, 9000, 70_000)[:most])

    def __str__(self) -> str:
        shown = [
            f"program {self.number}: rbufsize {self.rbufsize}, wbufsize {self.wbufsize}, "
            f"timeout {self.timeout}"
        ]
        shown += [f"    handler: {brief(step)}" for step in self.steps]
        shown += [f"    client: {brief(step)}" for step in self.script]
        return "\n".join(shown)


def brief(step: Any) -> str:
    found = repr(step)
    return found if len(found) < 100 else f"{found[:60]}... ({len(found)})"


def draw_readline(program: Program) -> None:
    if program.file_dead:
        return
    line = text(program.dice, program.size()) + b"\n"
    program.script.append(("send", line))
    program.steps.append(("readline", len(line)))


def draw_pieces(program: Program) -> None:
    """A line that comes in pieces."""
    if program.file_dead:
        return
    line = text(program.dice, 40) + b"\n"
    for start in range(0, len(line), 15):
        program.script.append(("send", line[start : start + 15]))
    program.steps.append(("readline", len(line)))


def draw_read(program: Program) -> None:
    if program.file_dead:
        return
    size = program.size()
    program.script.append(("send", text(program.dice, size)))
    ways = ("read", "readinto") if program.reads_ahead else ("readinto",)
    program.steps.append((program.dice.choice(ways), size))


def draw_recv(program: Program) -> None:
    """All of it by recv(); rfile has nothing, as the client waits for an answer before."""
    size = max(1, program.size())
    program.steps.append(("say", b"go on"))
    program.script.append(("await", b"go on"))
    program.script.append(("send", text(program.dice, size)))
    program.steps.append((program.dice.choice(("recv", "recv_into", "recvmsg")), size))


def draw_some_lines(program: Program) -> None:
    if program.file_dead:
        return
    count = program.dice.randrange(1, 30)
    for _ in range(count):
        program.script.append(("send", text(program.dice, program.dice.randrange(60)) + b"\n"))
    program.steps.append(("some lines", count))


def draw_write(program: Program) -> None:
    how = program.dice.choice(("write", "sendall", "send", "writelines", "small", "makefile"))
    program.steps.append((how, text(program.dice, program.size())))


def draw_much(program: Program) -> None:
    how = program.dice.choice(("write", "sendall", "makefile", "sendfile"))
    program.steps.append((how, text(program.dice, AT_ONCE)))


def draw_other(program: Program) -> None:
    dice = program.dice
    program.steps.append(
        dice.choice(
            (
                ("flush",),
                ("sleep", dice.choice((0, 0.001, 0.003))),
                ("to_thread", dice.randrange(1000)),
                ("to_thread raises",),
                ("spawn", text(dice, 20)),
                ("spawn writer", text(dice, dice.choice((10, 5000, AT_ONCE)))),
                ("lock", dice.choice((0, 0.001))),
                ("event",),
                ("queue", dice.randrange(1, 20)),
                ("outbound", text(dice, dice.choice((1, 3000, 50_000))) + b"\n"),
                ("refused",),
                ("outbound timeout",),
                ("wait",),
                ("context", dice.randrange(1000)),
                ("error in error",),
                ("facts",),
            )
        )
    )


def draw_timeout(program: Program) -> None:
    program.steps.append(("timeout", program.dice.choice(("recv", "readline"))))
    program.script.append(("await", b"timed out"))
    if program.steps[-1][1] == "readline":
        # A file that has timed out cannot be read from any more.
        program.steps.append(("readline", 1))
        program.file_dead = True


DRAWN: tuple[Callable[[Program], None], ...] = (
    draw_readline,
    draw_readline,
    draw_pieces,
    draw_read,
    draw_recv,
    draw_some_lines,
    draw_write,
    draw_write,
    draw_much,
    draw_other,
    draw_other,
    draw_other,
    draw_timeout,
)

# --- the handler


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
    found = []

    def work(number: int) -> int:
        time.sleep(0.001)
        found.append(threading.get_ident())
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
    with multiplexing.create_connection(world.silent, 0.003) as connection:
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

# --- running


class Quiet:
    """What handlers raise is compared by what their clients get."""

    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(type(sys.exc_info()[1]).__name__)  # type: ignore[attr-defined]


def implementations(broken: bool) -> dict[str, tuple[Any, Any]]:
    """Mix-in and handler class by name."""

    class Losing(fastsock.StreamRequestHandler):
        def finish(self) -> None:
            if self.client_address[1] % 3:
                self.wfile.write(b"!")
            super().finish()

    return {
        "socketserver": (
            (socketserver.ThreadingMixIn, socketserver.TCPServer),
            socketserver.StreamRequestHandler,
        ),
        "ThreadingMixIn": (
            (fastsock.ThreadingMixIn, fastsock.TCPServer),
            fastsock.StreamRequestHandler,
        ),
        "MultiplexingMixIn": (
            (multiplexing.MultiplexingMixIn, fastsock.TCPServer),
            Losing if broken else fastsock.StreamRequestHandler,
        ),
    }


class Client(threading.Thread):
    def __init__(self, address: Any, program: Program) -> None:
        super().__init__(daemon=True)
        self.address, self.program = address, program
        self.got = b""
        self.error = ""

    def run(self) -> None:
        try:
            with socket.create_connection(self.address, LIMIT) as sock:
                sender = threading.Thread(target=self.send, args=(sock,), daemon=True)
                self.arrived = threading.Condition()
                self.over = False
                sender.start()
                try:
                    self.receive(sock)
                finally:
                    with self.arrived:
                        self.over = True
                        self.arrived.notify()
                    sender.join(LIMIT)
        except OSError as error:
            self.error = repr(error)

    def receive(self, sock: socket.socket) -> None:
        while True:
            try:
                data = sock.recv(1 << 16)
            except ConnectionResetError:
                return  # bytes that the handler has not read, by the time that it ended
            if not data:
                return
            with self.arrived:
                self.got += data
                self.arrived.notify()

    def send(self, sock: socket.socket) -> None:
        awaited = 0
        try:
            sock.sendall(b"%d\n" % self.program.number)
            for step, pause in zip(self.program.script, self.program.pauses):
                if pause:
                    time.sleep(0.001)
                if step[0] == "send":
                    sock.sendall(step[1])
                elif step[0] == "shut":
                    sock.shutdown(socket.SHUT_WR)
                else:
                    with self.arrived:
                        self.arrived.wait_for(
                            lambda word=step[1]: self.over or self.got.find(word, awaited) >= 0,
                            LIMIT,
                        )
                        awaited = self.got.find(step[1], awaited) + len(step[1])
        except OSError:
            pass  # the handler has ended


def run_batch(programs: dict[int, Program], bases: Any, handler: Any, world: World) -> Any:
    """What each client got, and what went to handle_error()."""
    server_class = type("Server", (Quiet, *bases), {})
    handler_class = type("Handler", (Handling, handler), {})
    with server_class(("127.0.0.1", 0), handler_class) as server:
        server.world, server.errors = world, []
        loop = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        loop.start()
        clients = [Client(server.server_address, program) for program in programs.values()]
        for client in clients:
            client.start()
        for client in clients:
            client.join(2 * LIMIT)
        found = {
            client.program.number: (client.got, client.error, client.is_alive())
            for client in clients
        }
        server.shutdown()
        loop.join(LIMIT)
        if loop.is_alive():
            raise SystemExit("soak: serve_forever() does not return")
    return found, sorted(server.errors)


class Helper(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


class Upper(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


def run(options: argparse.Namespace) -> int:
    seed = options.seed if options.seed is not None else int(time.time())
    print(f"soak: {options.count} random handlers, seed {seed}", flush=True)
    begin = time.monotonic()
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # and does not listen
    silent = socket.create_server(("127.0.0.1", 0), backlog=64)
    helper = Helper(("127.0.0.1", 0), Upper)
    threading.Thread(target=helper.serve_forever, args=(0.01,), daemon=True).start()
    wrong = 0
    accepting = threading.Thread(target=accept_all, args=(silent,), daemon=True)
    accepting.start()
    for first in range(options.first, options.first + options.count, BATCH):
        numbers = range(first, min(first + BATCH, options.first + options.count))
        programs = {number: Program(number, seed) for number in numbers}
        results = {}
        for name, (bases, handler) in implementations(options.broken).items():
            world = World(
                programs, helper.server_address, silent.getsockname(), closed.getsockname()
            )
            results[name] = run_batch(programs, bases, handler, world)
        wrong += compare(programs, results)
        if wrong:
            break
    print(f"soak: {options.count} programs, {time.monotonic() - begin:.0f} s, seed {seed}")
    print("soak: " + ("failed" if wrong else "passed"), flush=True)
    return 1 if wrong else 0


def accept_all(listener: socket.socket) -> None:
    """And say nothing."""
    while True:
        connection = listener.accept()[0]
        threading.Thread(target=lambda c=connection: (c.recv(1), c.close()), daemon=True).start()


def compare(programs: dict[int, Program], results: dict[str, Any]) -> int:
    names = list(results)
    wrong = 0
    for number, program in programs.items():
        found = {name: results[name][0][number] for name in names}
        if len(set(found.values())) > 1 or any(f[1] or f[2] for f in found.values()):
            wrong += 1
            print(f"differs: {program}")
            for name in names:
                got, error, stuck = found[name]
                shown = got if len(got) < 600 else got[:300] + b" ... " + got[-300:]
                print(f"  {name}: {len(got)} bytes {shown!r} {error} {'stuck' if stuck else ''}")
    errors = {name: results[name][1] for name in names}
    if not wrong and len({tuple(found) for found in errors.values()}) > 1:
        wrong += 1
        print(f"differs: handle_error of programs {list(programs)}: {errors}")
    return wrong
