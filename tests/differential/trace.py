"""What is noted while a program runs, by whichever thread or process, and what is compared.

Notes are put in groups whose order is defined: those of the serving thread, those of the driver
(the program itself), those of each client's worker thread, and those of each client's process.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import select
import threading
from typing import Any

Note = tuple[Any, ...]
Group = tuple[str, int | None]

_NUMBER = re.compile(r"Thread-\d+")
_PORT = re.compile(r"\('127\.0\.0\.1', (\d+)\)")


def brief(data: bytes) -> Any:
    """Data as it is compared: short, and still different if the data is."""
    data = bytes(data)
    if len(data) <= 24:
        return data
    return (data[:8], len(data), hashlib.sha1(data).hexdigest()[:8])


def describe(error: BaseException, folder: str) -> Note:
    """An exception as it is compared: type, errno and args, but not OSError.filename."""
    args = tuple(
        argument.replace(folder, "FOLDER") if isinstance(argument, str) else repr(argument)
        for argument in error.args
    )
    return (type(error).__name__, getattr(error, "errno", None), args)


class Trace:
    """Collects notes from threads, and from forked processes through a pipe."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.pid = os.getpid()
        self.notes: list[tuple[str, int | None, Note]] = []
        self.roles: dict[int, str] = {threading.get_ident(): "driver"}
        self.local = threading.local()
        self.seen: set[int | None] = set()
        self.kept: set[int] = set()
        self.changed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        self._rest = b""
        self.closed = False

    def close(self) -> None:
        self.closed = True
        for descriptor in (self.changed, self.reader, self.writer):
            if descriptor >= 0:
                os.close(descriptor)
        self.changed = self.reader = self.writer = -1

    # --- noting

    def in_child(self) -> bool:
        return os.getpid() != self.pid

    def role(self) -> str:
        if self.in_child():
            return "child"
        return self.roles.get(threading.get_ident(), "worker")

    @property
    def client(self) -> int | None:
        """The client whose request this thread is working on."""
        return getattr(self.local, "client", None)

    @client.setter
    def client(self, number: int | None) -> None:
        self.local.client = number

    def note(self, *what: Any) -> None:
        if self.in_child():
            os.write(self.writer, repr((self.client, what)).encode() + b"\n")
        else:
            self._add(self.role(), self.client, what)

    def _add(self, role: str, client: int | None, what: Note) -> None:
        self.notes.append((role, client, what))
        if role != "driver":
            self.seen.add(client)
            if what[0] == "keep" and client is not None:
                self.kept.add(client)
        self.wake()

    def wake(self) -> None:
        if self.closed:
            return  # a thread that outlived its run
        os.eventfd_write(self.changed, 1)

    def pump(self) -> bool:
        """Take over what children have written; false when there will be no more."""
        while True:
            try:
                data = os.read(self.reader, 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                client, what = ast.literal_eval(line.decode())
                self._add("child", client, what)

    def end_of_children(self) -> None:
        """Close our end of the pipe, so that it ends with the last child."""
        os.close(self.writer)
        self.writer = -1

    def wait_for_child(self, seconds: float) -> None:
        select.select([self.reader], [], [], seconds)

    # --- comparing

    def groups(self, ports: dict[int, int]) -> dict[Group, list[Note]]:
        found: dict[Group, list[Note]] = {}
        for role, client, what in self.notes:
            number = client if role in ("worker", "child") else None
            shown = (f"client {client}", *what) if client is not None else what
            notes = found.setdefault((role, number), [])
            if what[0] == "stderr" and notes and notes[-1][-2:-1] == ("stderr",):
                notes[-1] = (*notes[-1][:-1], notes[-1][-1] + what[1])
            else:
                notes.append(shown)
        return {
            group: [self._readable(note, ports) for note in notes] for group, notes in found.items()
        }

    def _readable(self, note: Note, ports: dict[int, int]) -> Note:
        if note[-2:-1] == ("stderr",):
            return (*note[:-1], self._errors(note[-1], ports))
        return note

    def _errors(self, text: str, ports: dict[int, int]) -> str:
        """The lines of tracebacks that do not depend on where the code stands."""
        text = _PORT.sub(lambda match: f"(client {ports.get(int(match[1]), match[1])})", text)
        text = _NUMBER.sub("Thread-N", text).replace(self.folder, "FOLDER")
        return "\n".join(line for line in text.splitlines() if line and not line.startswith(" "))


class Errors:
    """Stands in for sys.stderr."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def write(self, text: str) -> int:
        self.trace.note("stderr", text)
        return len(text)

    def flush(self) -> None:
        pass
