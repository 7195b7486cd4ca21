"""Programs for ``handlers``: what a handler does, and what its client sends meanwhile.

Drawn so that the answer does not depend on timing: a read has an exact size or goes to a newline or
the end, a timeout comes where the client sends nothing more until it was told of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

AT_ONCE = 200_000  # bytes that are much: more than a socket takes at once

Step = tuple[Any, ...]


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
        sizes = f"rbufsize {self.rbufsize}, wbufsize {self.wbufsize}"
        shown = [f"program {self.number}: {sizes}, timeout {self.timeout}"]
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
