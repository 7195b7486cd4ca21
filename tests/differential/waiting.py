"""How a run waits: for conditions, never for a time to be over, and never beyond its deadline."""

from __future__ import annotations

import _socket
import contextlib
import os
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

from .clients import Sender
from .trace import Trace, describe

LIMIT = float(os.environ.get("FASTSOCK_DIFFERENTIAL_LIMIT", "20"))


class Stuck(Exception):
    """A program that took longer than its limit; the message is the trace so far."""


class Call:
    """A call that runs in a thread of its own."""

    ended = False

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread


class Waits:
    """The part of a run that waits."""

    def __init__(self, folder: str) -> None:
        self.trace = Trace(folder)
        self.deadline = time.monotonic() + LIMIT
        self.server: Any = None
        self.clients: dict[int, Sender] = {}
        self.failed = False  # the last operation of the serving thread raised

    def check(self, what: str) -> None:
        if time.monotonic() > self.deadline:
            raise self.stuck(what)

    def stuck(self, what: str) -> Stuck:
        """The exception that says what every thread is doing, and what happened so far."""
        global LIMIT
        lines = [f"{what} took too long. Notes so far:", *map(repr, self.trace.notes)]
        for identity, frame in sys._current_frames().items():
            if identity != threading.get_ident():
                lines.append(f"{self.trace.roles.get(identity, 'another')} thread:")
                lines += [line.rstrip() for line in traceback.format_stack(frame)]
        LIMIT = min(LIMIT, 2.0)  # while hypothesis makes the program smaller
        return Stuck("\n".join(lines))

    def left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def pending(self) -> bool:
        """Whether a connection or a datagram waits to be taken."""
        try:
            # Past the method of a DatagramSocket, which takes it for a program that polls.
            descriptor = _socket.socket.fileno(self.server.socket)
        except AttributeError:
            return False
        if descriptor < 0:
            return False
        if hasattr(self.server.socket, "_inbox"):
            from fastsock import _datagram

            if _datagram.waiting(self.server.socket):
                return True
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(0))

    def guarded(self, what: str, role: str, call: Callable[[], Any]) -> Call:
        """Run a call that may block in a thread of its own, and note how it ends."""

        def target() -> None:
            identity = threading.get_ident()
            self.trace.roles[identity] = role
            try:
                result = call()
                self.trace.client = None
                self.trace.note(what, "returned", result)
            except BaseException as error:
                self.failed = self.failed or role == "serving"
                self.trace.client = None
                self.trace.note(what, "raised", *describe(error, self.trace.folder))
            finally:
                del self.trace.roles[identity]
                started.ended = True
                self.trace.wake()

        started = Call(threading.Thread(target=target, daemon=True))
        started.thread.start()
        return started

    def finish(self, started: Call, what: str) -> None:
        while started.thread.is_alive():
            started.thread.join(0.002)
            self.pump()
            if not self.left():
                raise self.stuck(what)

    def pump(self) -> None:
        self.trace.pump()
        for client in list(self.clients.values()):
            client.pump()

    def wait_a_little(self, *files: Any) -> None:
        """Until something changes, or for as long as it takes to look again."""
        poller = select.poll()
        for file in (self.trace.changed, *files):
            poller.register(file, select.POLLIN)
        poller.poll(1)
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.trace.changed)
