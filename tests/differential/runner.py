"""Executes one program on one implementation and returns what happened.

The driver (the thread that calls `execute`) does one operation after another, and lets one client
act after another. It waits for conditions only: that a client saw its end, that the listener has
nothing left to take, that the serving thread ended. Every wait ends at the run's deadline.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from . import handlers, servers
from .clients import DatagramClient, Sender, StreamClient
from .program import POLL, Client, Op, Program
from .settle import awaited, counts_steps, counts_threads, gated, lenient
from .trace import Errors, Group, Note, Trace, describe
from .waiting import Call, Waits

BLOCKS = 0.02  # seconds after which a call that should not have returned has not
BARRIER, POKE = 50, 80  # numbers of the driver's own clients, plus the operation's
Result = dict[Group, list[Note]]


class Run(Waits):
    def __init__(self, program: Program, module: ModuleType, folder: str) -> None:
        super().__init__(folder)
        self.program = program
        self.module = module
        self.folder = folder
        self.hooks = servers.Hooks(self)
        self.ports: dict[int, int] = {}
        self.requests: Any = weakref.WeakKeyDictionary()
        self.keep: list[Any] = []
        self.undo: list[tuple[type, str, Any]] = []
        self.waiting: Sender | None = None
        self.lingering: list[Sender] = []
        self.next_client = 0
        self.serving = Call(threading.current_thread())
        self.wakes_often = False
        self.served = False
        self.stopped = False
        self.counts_threads = counts_threads(program)
        self.counts_steps = counts_steps(program)
        self.steps = 0  # of the loop that are over; stepping: in one
        self.stepping = False
        self.started = 0  # workers, and those that have ended
        self.ended = threading.Semaphore(0)
        self.address: Any = None

    def wait_for_gate(self, number: int | None) -> None:
        sender = self.clients.get(-1 if number is None else number)
        if sender is not None and gated(self.program, sender.spec):
            handlers.wait_for_gate(sender.gate)

    def forget_clients(self) -> None:
        for sender in list(self.clients.values()):
            sender.child_forgets()

    # --- clients

    def sender(self, number: int, spec: Client) -> Sender:
        program = self.program
        family = socket.AF_UNIX if program.unix else socket.AF_INET
        cls, kind = (
            (StreamClient, socket.SOCK_STREAM)
            if program.stream
            else (DatagramClient, socket.SOCK_DGRAM)
        )
        while True:
            sender = cls(number, spec, family, kind, self.address)
            sender.steps = self.steps
            self.clients[number] = sender
            if program.bound or number >= BARRIER or not program.unix:
                sender.bind(f"{self.folder}/c{number}")
            port = sender.port()
            if port not in self.ports:
                break
            sender.release()  # the kernel gives out again the port of a client that has ended
        if port is not None:
            self.ports[port] = number
        if isinstance(sender, DatagramClient) and (number or program.bound):
            sender.mark = b"%d:" % number
        return sender

    def new_client(self, spec: Client) -> Sender:
        number = self.next_client
        self.next_client += 1
        for override in self.program.overrides:
            if override.from_client == number > 0:
                servers.install(self, override)
        return self.sender(number, spec)

    def done(self, sender: Sender) -> bool:
        """Whether nothing more is to be expected of a request that was taken."""
        if sender.end is not None:
            return True
        taken = not self.pending() and not self.in_step(sender)
        if isinstance(sender, DatagramClient):
            if taken and sender.next():
                return False
            if sender.number >= BARRIER:
                return sender.number in self.trace.seen
            return taken
        if sender.number in self.trace.kept:
            return True
        return sender.closed and taken

    def follow(self, sender: Sender) -> None:
        """Until the client saw its end, or is known to wait for a loop that has ended."""
        silent = sender.spec.kind == "silent" and not self.program.short_timeout
        while True:
            self.pump()
            # Before the look at what is pending: who is done has been taken, and a child that was
            # may wait for the end of a silent client.
            over = self.done(sender)
            if silent and isinstance(sender, StreamClient) and not self.pending():
                sender.shut_down()
            if over:
                return
            if self.serving.ended and self.left_alone(sender):
                return
            self.check(f"client {sender.number}")
            self.wait_a_little(*([] if sender.closed else [sender.sock]))

    def left_alone(self, sender: Sender) -> bool:
        """After the loop has ended: whether nobody works on the request any more."""
        if self.pending() and not sender.taken:
            self.waiting = sender
            return True
        if isinstance(sender, DatagramClient):
            return not sender.next()
        if self.program.flavour == "sync":
            sender.pump()
            return True
        return sender.closed or self.done(sender)

    def in_step(self, sender: Sender) -> bool:
        """Whether the step of the loop that takes this client's request is not over."""
        return self.counts_steps and (self.stepping or self.steps == sender.steps)

    def wait_until_taken(self, sender: Sender) -> None:
        while not self.serving.ended and (self.pending() or self.in_step(sender)):
            self.check("taking a request")
            self.wait_a_little()

    # --- operations

    def construct(self) -> bool:
        how = self.program.construct
        usual = f"{self.folder}/s" if self.program.unix else ("127.0.0.1", 0)
        taken = None
        if how == "taken":
            kind = socket.SOCK_STREAM if self.program.stream else socket.SOCK_DGRAM
            taken = socket.socket(socket.AF_UNIX if self.program.unix else socket.AF_INET, kind)
            taken.bind(usual)
            if self.program.stream:
                taken.listen(1)
        address: Any = (
            {
                "ok": usual,
                "late": usual,
                "taken": taken and taken.getsockname(),
                "long path": "x" * 200,
                "no directory": f"{self.folder}/none/s",
                "bytes path": usual.encode() if isinstance(usual, str) else usual,
            }.get(how, how)
            if isinstance(how, str)
            else how
        )
        arguments = (False,) if how == "late" else ()
        try:
            cls = servers.server_class(self)
            self.server = cls(address, handlers.handler_factory(self), *arguments)
            for override in self.program.overrides:
                if override.style in ("instance", "class") and not override.from_client:
                    servers.install(self, override)
            self.inspect("constructed")
            if how == "late":
                self.server.server_bind()
                self.server.server_activate()
        except BaseException as error:
            self.trace.note("construct", "raised", *describe(error, self.folder))
            return False
        finally:
            if taken is not None:
                taken.close()
        self.address = self.server.socket.getsockname()
        return True

    def operate(self, index: int, op: Op) -> None:
        server = self.server
        if op.kind == "serve":
            self.serve(index, op)
        elif op.kind == "handle":
            self.handle(op)
        elif op.kind == "stop":
            server._BaseServer__shutdown_request = True
        elif op.kind == "shutdown":
            if not self.served:
                return  # the standard library would wait for ever
            self.finish(self.guarded("shutdown", "driver", server.shutdown), "shutdown()")
        elif op.kind == "close":
            self.close(op.name)
        elif op.kind == "inspect":
            self.inspect("inspect")
        elif op.name == "socket timeout":
            self.set_socket_timeout(op.value)
        else:
            setattr(server, op.name, op.value)

    def set_socket_timeout(self, value: float | None) -> None:
        with contextlib.suppress(OSError):  # it may be closed
            self.server.socket.settimeout(value)

    def serve(self, index: int, op: Op) -> None:
        server = self.server
        stop = server._BaseServer__shutdown_request
        if stop and server.socket.fileno() < 0:
            return  # see differences.py
        self.served = True
        self.wakes_often, self.stopped, self.failed = not op.exact, bool(stop), False
        poll = None if op.exact else POLL
        was_closed = server.socket.fileno() < 0
        if self.waiting is not None:
            self.waiting.steps = self.steps
        self.serving = self.guarded("serve_forever", "serving", lambda: server.serve_forever(poll))
        if was_closed:
            # It fails at once, unless it was asked to stop before it has begun: see differences.py.
            self.finish(self.serving, "serve_forever()")
        if self.waiting is not None:
            sender, self.waiting = self.waiting, None
            self.follow(sender)
        for number, spec in enumerate(op.clients):
            if self.waiting is not None:
                self.next_client += len(op.clients) - number
                break
            self.let_act(spec)
        closed = server.socket.fileno() < 0
        if (
            op.clients
            and self.waiting is None
            and not closed
            and not all(awaited(spec) for spec in op.clients)
        ):
            barrier = self.sender(
                BARRIER + index, Client("request" if self.program.stream else "datagrams")
            )
            barrier.act()
            self.follow(barrier)
        self.end_lingering("operation")
        if op.exact:
            server._BaseServer__shutdown_request = True
            if self.waiting is None and not closed:
                self.waiting = self.sender(
                    POKE + index, Client("request" if self.program.stream else "datagrams")
                )
                self.waiting.act()
        else:
            self.finish(self.guarded("shutdown", "driver", server.shutdown), "shutdown()")
        self.finish(self.serving, "serve_forever()")
        self.wakes_often = False
        if self.stopped or self.failed:
            # It ended by itself, perhaps before it was asked to: nothing is to be left of that.
            server._BaseServer__shutdown_request = False
        self.trace.note("after", server._BaseServer__shutdown_request)

    def let_act(self, spec: Client) -> None:
        sender = self.new_client(spec)
        sender.act()
        if spec.linger:
            self.lingering.append(sender)
            self.wait_until_taken(sender)
            sender.taken = not self.pending()
            if not sender.taken:
                self.waiting = sender
        else:
            self.follow(sender)

    def end_lingering(self, until: str) -> None:
        senders = [sender for sender in self.lingering if sender.spec.linger == until]
        self.lingering = [sender for sender in self.lingering if sender not in senders]
        for sender in senders:
            assert isinstance(sender, StreamClient)
            sender.shut_down()
            if sender is not self.waiting:
                self.follow(sender)

    def handle(self, op: Op) -> None:
        server = self.server
        if op.timeout is not None:
            server.timeout = op.timeout
        if op.name:
            self.set_socket_timeout(op.value)
        for spec in op.clients:
            if self.waiting is None:
                self.waiting = self.new_client(spec)
                self.waiting.act()
                while not self.pending() and self.waiting.end is None:
                    self.check("arriving")
                    self.wait_a_little()
            else:
                self.next_client += 1
        listening = server.socket.fileno() >= 0
        timeouts = [server.timeout, server.socket.gettimeout() if listening else None]
        if self.waiting is None and min((t for t in timeouts if t is not None), default=9) > 1:
            server.timeout = 0.004
        if self.waiting is not None:
            self.waiting.steps = self.steps
        self.serving = self.guarded("handle_request", "serving", server.handle_request)
        if self.waiting is not None:
            sender, self.waiting = self.waiting, None
            self.follow(sender)
        self.finish(self.serving, "handle_request()")

    def close(self, how: str) -> None:
        def leave() -> None:
            with self.server:
                pass

        if not self.program.stream:
            self.wait_for_threads()  # they answer through the server's socket
        call = leave if how == "with" else self.server.server_close
        closing = self.guarded("server_close", "driver", call)
        if self.lingering:
            self.close_under(closing)
        self.finish(closing, "server_close()")
        self.trace.note("fileno", self.server.fileno())
        if self.server.socket.fileno() < 0:
            self.waiting = None

    def close_under(self, closing: Call) -> None:
        """Note whether server_close() waits for handlers that wait for their clients.

        That it does is known when it has not returned for a while.
        """
        joins = self.server.block_on_close and not getattr(self.server, "daemon_threads", False)
        closing.thread.join(BLOCKS if joins else self.left())
        self.trace.note("server_close waits", not closing.ended)
        self.end_lingering("close")

    def inspect(self, what: str) -> None:
        server = self.server
        sock = server.socket
        found: list[Any] = [
            server.fileno() == sock.fileno(),
            sock.fileno() >= 0,
            server.timeout,
            server._BaseServer__shutdown_request,
            server._BaseServer__is_shut_down.is_set(),
            sock.gettimeout(),
            (sock.family.name, sock.type.name, sock.proto),
            type(getattr(server, "active_children", None)).__name__,
        ]
        if sock.fileno() >= 0:
            found += [
                os.get_inheritable(sock.fileno()),
                server.server_address == sock.getsockname(),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR),
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT),
            ]
        self.trace.note(what, *found)

    # --- the whole program

    def execute(self) -> Result:
        if self.construct():
            for index, op in enumerate(self.program.ops):
                self.trace.note("operation", index, op.kind, op.name)
                self.operate(index, op)
        if self.server is not None:
            if self.server.socket.fileno() >= 0:
                self.close("")
            if self.server.socket.fileno() >= 0:
                self.server.socket.close()
        self.wait_for_workers()
        for request in self.keep:
            if not isinstance(request, tuple):
                request.close()
        for sender in self.clients.values():
            sender.pump()
            while self.program.stream and not sender.closed and sender.end is None:
                self.check(f"the end of client {sender.number}")
                self.wait_a_little(sender.sock)
                sender.pump()
        result = self.trace.groups(self.ports)
        for number, sender in sorted(self.clients.items()):
            result["client", number] = [sender.outcome(lenient(self.program, number, sender.spec))]
        return result

    def wait_for_threads(self) -> None:
        if self.counts_threads:
            while self.started:
                if self.ended.acquire(timeout=0.002):
                    self.started -= 1
                self.pump()
                self.check("a worker thread")
        elif self.program.flavour == "thread":
            joining = threading.Thread(target=self.server._threads.join, daemon=True)
            joining.start()
            self.finish(Call(joining), "joining the workers")

    def wait_for_workers(self) -> None:
        if self.server is not None:
            self.wait_for_threads()
        self.trace.end_of_children()
        while self.trace.pump():
            self.check("a child process")
            self.trace.wait_for_child(self.left())

    def release(self) -> None:
        for owner, hook, original in reversed(self.undo):
            setattr(owner, hook, original)
        for sender in self.clients.values():
            sender.release()
        with contextlib.suppress(Exception):
            self.server.socket.close()
        self.trace.close()


@contextlib.contextmanager
def surroundings(trace: Trace) -> Iterator[None]:
    """sys.stderr and the interpreter's hooks for uncaught exceptions, for one run."""
    before = sys.stderr, threading.excepthook, sys.unraisablehook
    sys.stderr = Errors(trace)  # type: ignore[assignment]
    threading.excepthook = threading.__excepthook__
    sys.unraisablehook = sys.__unraisablehook__
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.stderr, threading.excepthook, sys.unraisablehook = before


def execute(program: Program, module: ModuleType) -> Result:
    """Run one program on one implementation. Raises Stuck when it takes too long."""
    folder = tempfile.mkdtemp(prefix="fsd")
    run = Run(program, module, folder)
    pid = os.getpid()
    try:
        with surroundings(run.trace):
            return run.execute()
    finally:
        if os.getpid() != pid:  # a child that came back: it must not go on as a test
            os._exit(99)
        run.release()
        shutil.rmtree(folder, ignore_errors=True)
