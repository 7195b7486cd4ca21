"""The deliberate differences between fastsock and the standard library; how traces are compared.

Each difference says how the test deals with it: `normalised` ones are taken out of both traces, as
narrowly as can be; of the others no program is generated, or the detail is not part of a trace.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import ModuleType

from .program import Program
from .runner import Result, execute
from .trace import Note
from .waiting import Stuck


@dataclass(frozen=True)
class Difference:
    name: str
    reason: str
    treatment: str


DIFFERENCES = (
    Difference(
        "a request whose verify_request or handle_error raises is ended",
        "the standard library leaves the connection to the garbage collector; fastsock calls "
        "shutdown_request() before the exception goes on",
        "normalised: without_extra_end() drops these calls from the serving thread's notes, and "
        "settle.lenient() takes a reset for an end of file",
    ),
    Difference(
        "rfile may have read further ahead than rbufsize",
        "the native buffer grows with the lines that pass through it",
        "not generated: settle._not_ahead() takes a small rbufsize away from handlers that call "
        "read1() or recv()",
    ),
    Difference(
        "OSError.filename is the address when bind() fails",
        "the standard library does not say which address",
        "not noted: type, errno and args are",
    ),
    Difference(
        "EBADF, EINVAL, ENOTSOCK of the listener end serve_forever()",
        "the standard library tries again at once, for ever",
        "not generated: no program takes the listener away while it is served",
    ),
    Difference(
        "EMFILE, ENFILE, ENOBUFS, ENOMEM are paused after",
        "the standard library tries again at once, for ever",
        "not generated: no get_request() raises them",
    ),
    Difference(
        "_threads is reaped lazily",
        "looking at every thread at every request costs more than the request",
        "not noted",
    ),
    Difference(
        "shutdown() where it would wait for ever returns",
        "before the first serve_forever(), and in the thread that serves",
        "not generated: the standard library deadlocks",
    ),
    Difference(
        "a stop that was asked for before ends serve_forever() before it touches the socket",
        "the standard library raises ValueError when the server is closed by then",
        "not generated: the runner leaves out a serve_forever() of a closed server in this state",
    ),
    Difference(
        "with max_children children the loop goes on",
        "the standard library blocks in service_actions() until a child ends; fastsock leaves the "
        "listener alone, and runs service_actions() again when one has ended",
        "not noted: service_actions and collect_children are not overridden when max_children is "
        "small enough to be reached",
    ),
    Difference(
        "class names and modules are fastsock's",
        "they are other classes",
        "not noted: no repr() of a server is",
    ),
    Difference(
        "allow_reuse_port as in the newest Python",
        "3.10 does not know it; before 3.14 it made the constructor of a Unix server fail",
        "not generated: only set on INET servers, since 3.11",
    ),
    Difference(
        "request_queue_size is SOMAXCONN, and Forking Unix servers exist, on every Python",
        "one surface on every version",
        "not noted; an old Python's Forking Unix servers are composed of its own classes",
    ),
    Difference(
        "several datagrams are received at once",
        "select() does not see what lies received in the socket",
        "waiting.pending() counts that as waiting",
    ),
    Difference(
        "TCP_NODELAY is set on accepted connections",
        "small writes of a reply are not held back for 40 ms",
        "not noted",
    ),
)

_ENDING = ("shutdown_request", "close_request")


def without_extra_end(notes: list[Note]) -> list[Note]:
    """The serving thread's notes without the end of a request that was given up."""
    kept: list[Note] = []
    given_up: str | None = None
    for note in notes:
        client, name = (note[0], note[1]) if note[0].startswith("client ") else (None, note[0])
        if given_up is not None and client == given_up and name in _ENDING:
            continue
        given_up = None
        kept.append(note)
        if (
            name == "action"
            and note[-2] in ("verify_request", "handle_error")
            and note[-1] not in ("stop", "refuse", "skip")
        ):
            given_up = client
    return kept


def comparable(result: Result) -> Result:
    return {
        group: without_extra_end(notes) if group[0] == "serving" else notes
        for group, notes in result.items()
    }


def lines(result: Result) -> list[str]:
    shown = []
    for (role, client), notes in sorted(result.items(), key=lambda item: str(item[0])):
        shown.append(f"--- {role}" + ("" if client is None else f" {client}"))
        shown += [" ".join(map(repr, note)) for note in notes]
    return shown


def attempt(program: Program, module: ModuleType) -> list[str]:
    try:
        return lines(comparable(execute(program, module)))
    except Stuck as stuck:
        return [f"STUCK: {stuck}"]


def compare(program: Program, left: ModuleType, right: ModuleType) -> str:
    """Run a program on both; '' when nothing differs, else what does, as text."""
    first, second = attempt(program, left), attempt(program, right)
    stuck = any(line.startswith("STUCK") for line in first + second)
    if first == second and not stuck:
        return ""
    names = [getattr(module, "__file__", None) or module.__name__ for module in (left, right)]
    diff = difflib.unified_diff(first, second, *names, lineterm="", n=12)
    text = "\n".join(["", *first] if first == second else diff)
    # An unstable program would be a mistake of this test: say so.
    again = "" if stuck else _stability(program, left, right, first, second)
    return f"{program}\n{text}\n{again}"


def _stability(
    program: Program, left: ModuleType, right: ModuleType, first: list[str], second: list[str]
) -> str:
    same = [
        sum(attempt(program, left) == first for _ in range(3)),
        sum(attempt(program, right) == second for _ in range(3)),
    ]
    return f"run again three times: the left trace came {same[0]} times, the right {same[1]} times"
