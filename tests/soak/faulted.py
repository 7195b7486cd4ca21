"""What faults, starts and resets share: the server's process, and the library that is preloaded."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .staying import start

PATIENCE = 30.0


@contextlib.contextmanager
def library() -> Iterator[str]:
    """faults.c, compiled; the command ends where there is no compiler."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        raise SystemExit("soak: this needs a C compiler (gcc or cc), for faults.c")
    with tempfile.TemporaryDirectory(prefix="fs") as folder:
        made = f"{folder}/faults.so"
        source = Path(__file__).with_name("faults.c")
        command = [*shlex.split(compiler), "-shared", "-fPIC", "-O2", "-o", made, str(source)]
        subprocess.run([*command, "-ldl", "-pthread"], check=True)
        yield made


class Faulty:
    """A server in a process of its own, by one of the implementations; it obeys."""

    def __init__(
        self,
        implementation: str,
        kind: str,
        handler: str,
        library: str | None = None,
        **attributes: Any,
    ) -> None:
        self.implementation, self.kind = implementation, kind
        environment = dict(os.environ)
        if library is not None:
            environment["LD_PRELOAD"] = library
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        arguments = [implementation, kind, handler, "--server", json.dumps(attributes)]
        self.process = start("faulty", *arguments, stderr=self.errors, env=environment)
        assert self.process.stdout is not None
        address = self.process.stdout.readline()
        if not address:
            self.errors.seek(0)
            raise SystemExit(f"soak: the server did not start\n{self.errors.read()}")
        found = json.loads(address)
        self.address = found if isinstance(found, str) else tuple(found)
        self.folder = Path("/proc", str(self.process.pid))

    def __str__(self) -> str:
        return f"{self.implementation}, {self.kind}"

    def ask(self, *command: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        ready = select.select([self.process.stdout], [], [], 4 * PATIENCE)[0]
        answer = self.process.stdout.readline() if ready else None
        if answer is None:
            raise SystemExit(f"soak: {self} does not answer {command}")
        if not answer:
            self.errors.seek(0)
            raise SystemExit(f"soak: the server has ended\n{self.errors.read()[-3000:]}")
        return json.loads(answer)

    def look(self) -> Any:
        return self.ask("look")

    def descriptors(self) -> int:
        """But for two events: a loop's, and what threads make when they first take turns."""
        found = []
        for name in os.listdir(self.folder / "fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(self.folder / "fd" / name))
        events = found.count("anon_inode:[eventfd]")
        return len(found) - min(events, 2)

    def threads(self) -> int:
        return len(os.listdir(self.folder / "task"))

    def children(self) -> int:
        """All of them, of whatever thread, zombies too."""
        found = 0
        for task in (self.folder / "task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                found += len((task / "children").read_text().split())
        return found

    def holds(self) -> tuple[int, int, int]:
        return self.descriptors(), self.threads(), self.children()

    def back_to(self, before: tuple[int, int, int], seconds: float = 10.0) -> tuple[int, int, int]:
        """What it holds more than before, when that is nothing or the time is over."""
        end = time.monotonic() + seconds
        while True:
            now = self.holds()
            more = tuple(max(0, one - other) for one, other in zip(now, before, strict=True))
            if more == (0, 0, 0) or time.monotonic() > end:
                return more  # type: ignore[return-value]
            time.sleep(0.02)

    def connect(self) -> socket.socket:
        family = socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        client = socket.socket(family)
        client.settimeout(PATIENCE)
        client.connect(self.address)
        return client

    def close(self) -> Any:
        """What it says after shutdown() and server_close()."""
        try:
            return self.ask("close")
        finally:
            self.kill()

    def kill(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.kill()
        self.process.wait(30)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()
        self.errors.close()
