"""The hypothesis strategy that draws a program.

hypothesis draws a tape of bytes, of which every part of a program has its own place: so each byte
that hypothesis turns to zero makes one thing simpler, and nothing else other than it was. Each
program has a focus, so that things that interact meet.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st

from .program import (
    CLIENT_HOOKS,
    EXCEPTIONS,
    FRONT_HOOKS,
    HANDLER_HOOKS,
    INSTEAD,
    KINDS,
    OTHER_HOOKS,
    STREAM_KINDS,
    STYLES,
    Action,
    Client,
    Handler,
    Op,
    Override,
    Program,
)
from .settle import applies, settle

Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Focus:
    """How often things are drawn: 1 in n, or a choice with repetitions."""

    overrides: int  # 1 in n hooks
    actions: int  # 1 in n of MOST_ACTIONS
    action_hooks: tuple[str, ...]
    ops: int  # 1 in n of MOST_OPS
    op_kinds: tuple[str, ...]
    clients: tuple[str, ...]
    own_handler: int
    flavours: tuple[str, ...] = ("sync", "sync", "thread", "fork")


_EVERY_HOOK = (*CLIENT_HOOKS, *HANDLER_HOOKS, *OTHER_HOOKS[:-1])
_FOCUSES = (
    Focus(  # hooks
        overrides=3,
        actions=2,
        action_hooks=_EVERY_HOOK,
        ops=4,
        op_kinds=("serve", "serve", "handle"),
        clients=("request", "request", "empty", "reset", "silent"),
        own_handler=5,
    ),
    Focus(  # the handler
        overrides=8,
        actions=6,
        action_hooks=HANDLER_HOOKS,
        ops=5,
        op_kinds=("serve", "serve", "handle"),
        clients=("request", "request", "reset", "silent", "empty"),
        own_handler=1,
        flavours=("sync", "sync", "sync", "thread"),
    ),
    Focus(  # a server's life
        overrides=3,
        actions=6,
        action_hooks=(*OTHER_HOOKS[:-1], "verify_request", "handle"),
        ops=1,
        op_kinds=(
            *("serve", "handle", "set", "close", "stop", "shutdown", "inspect"),
            *("serve", "handle"),
        ),
        clients=("request", "request", "empty", "silent"),
        own_handler=5,
    ),
    Focus(  # threads and processes
        overrides=3,
        actions=5,
        action_hooks=("process_request", "process_request_thread", *CLIENT_HOOKS, "handle"),
        ops=3,
        op_kinds=("serve", "serve", "serve", "close", "set"),
        clients=("silent", "request", "silent", "reset"),
        own_handler=4,
        flavours=("thread", "thread", "fork"),
    ),
)

_LINES = (
    b"a\n",
    b"hello world\n",
    b"",
    b"no newline",
    b"x" * 5000 + b"\n",
    b"\xff\x00\n",
    b"b\nc\n",
)
_DATAGRAMS = (b"a\n", b"hello world\n", b"", b"two\nlines\n", b"z" * 300, b"x" * 9000)
#: more than a socket takes at once
_MUCH = 2_000_000
_READS = (
    ("readline",),
    ("readline", 5),
    ("read", 3),
    ("read", 6000),
    ("read",),
    ("readinto", 8),
    ("read1", 7),
    ("lines",),
)
_WRITES = (
    ("echo",),
    ("write", 1),
    ("write", 100),
    ("write", 9000),
    ("write", _MUCH),
    ("write", _MUCH),
    ("flush",),
    ("writelines", 3),
    ("facts",),
    ("close wfile",),
    ("close rfile",),
    ("close request",),
)
_BASE_STEPS = (
    ("recv", 100),
    ("recv", 3),
    ("sendall", 10),
    ("sendall", _MUCH),
    ("echo",),
    ("facts",),
    ("close request",),
)
_DATAGRAM_STEPS = (
    ("readline",),
    ("read",),
    ("read", 3),
    ("echo",),
    ("write", 10),
    ("write", 0),
    ("write", 4000),
    ("write", 300_000),  # more than fits in a datagram
    ("facts",),
    ("sendto", 5),
)
#: what a constructor is given, for Unix servers or others; the runner makes addresses of the words
_ADDRESSES: dict[bool, tuple[Any, ...]] = {
    True: (
        *("late", "taken", "long path", "no directory", "bytes path"),
        *(5, None, ("a", 0)),
    ),
    False: (
        *("late", "taken", "127.0.0.1"),
        *(("127.0.0.1",), ("127.0.0.1", "0"), ("127.0.0.1", -1), ("127.0.0.1", 70_000)),
        *(None, 7, ("127.0.0.1", 0, 0), (5, 0)),
    ),
}
_SETTINGS = (
    ("socket timeout", 0.003),
    ("timeout", 0.003),
    ("timeout", 0),
    ("socket timeout", 0),
    ("socket timeout", 20.0),
    ("socket timeout", None),
    ("daemon_threads", True),
    ("block_on_close", False),
    ("max_packet_size", 20),
)


MOST_OPS, MOST_STEPS, MOST_PIECES, MOST_ACTIONS, MOST_OF_ONE_OP = 5, 4, 3, 3, 3


class Tape:
    """Choices read from bytes; zero is the simplest choice, and always the first."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def part(self, size: int) -> Tape:
        """The next bytes as a tape of their own, however many of them will be read."""
        start = self.position
        self.position += size
        return Tape(self.data[start : self.position])

    def next(self) -> int:
        self.position += 1
        return self.data[self.position - 1] if self.position <= len(self.data) else 0

    def below(self, count: int) -> int:
        return self.next() * count // 256

    def pick(self, choices: Sequence[Choice]) -> Choice:
        return choices[self.below(len(choices))]

    def rarely(self, one_in: int) -> bool:
        return self.below(one_in) == one_in - 1 if one_in > 1 else self.next() > 0

    def several(self, most: int, one_in: int, choices: Sequence[Choice]) -> tuple[Choice, ...]:
        parts = [self.part(2) for _ in range(most)]
        return tuple(part.pick(choices) for part in parts if part.rarely(one_in))


def draw_client(tape: Tape, focus: Focus, stream: bool) -> Client:
    kind = tape.pick(focus.clients)
    flags = [tape.rarely(n) for n in (2, 4, 4)]
    first = tape.next()
    choices = _LINES if stream else _DATAGRAMS
    pieces = (choices[first * len(choices) // 256], *tape.several(MOST_PIECES - 1, 4, choices))
    if not stream:
        return Client("vanish" if flags[1] else "datagrams", pieces)
    if kind == "empty":
        return Client(kind, ())
    if kind == "silent":
        linger = tape.pick(("", "operation", "close", "operation", "close"))
        return Client(kind, pieces if flags[1] else (), linger=linger)
    return Client(kind, pieces, half_close=not flags[0], talk=flags[2])


def draw_handler(tape: Tape, focus: Focus, stream: bool) -> Handler:
    hooks = tuple(hook for hook in ("setup", "finish") if tape.rarely(3))
    factory = tape.pick(("class",) * 9 + ("partial", "lambda", "method"))
    own, plain, other = tape.rarely(focus.own_handler), tape.rarely(6), tape.below(6)
    steps = tape.part(4 * MOST_STEPS)
    usual = Handler() if stream else Handler("datagram", (("readline",), ("echo",)))
    base, script = usual.base, usual.script
    if plain:
        base = "base"
        choices = _BASE_STEPS if stream else (("facts",), ("sendto", 5), ("echo",))
        script = steps.several(MOST_STEPS, 2, choices)
    elif not stream:
        script = steps.several(MOST_STEPS, 2, _DATAGRAM_STEPS) if own else script
    elif other == 5:
        script = (("lines",),)
    elif own and other > 1:
        script = steps.several(MOST_STEPS, 2, _READS + _WRITES)
    if base != "stream" or not own:
        return Handler(base, script, hooks=hooks, factory=factory)
    return Handler(
        base,
        script,
        rbufsize=tape.pick((-1, -1, 0, 1, 16)),
        wbufsize=tape.pick((0, 0, -1, 64)),
        timeout=tape.pick((None, None, 20.0, 0.01)),
        nodelay=tape.rarely(6),
        hooks=hooks,
        factory=factory,
    )


def draw_action(tape: Tape, focus: Focus, flavour: str, clients: int) -> Action:
    hook = tape.pick([hook for hook in focus.action_hooks if applies(flavour, hook)])
    client = tape.below(max(1, clients))
    what = tape.pick(EXCEPTIONS)
    special = tape.below(10)
    if special >= 8:
        what = "stop"
    elif special >= 5 and hook in INSTEAD:
        what = INSTEAD[hook]
    when = "after" if tape.rarely(3) else "before"
    call = 2 if tape.rarely(6) else 1
    return Action(hook, None if hook in OTHER_HOOKS else client, what, when, call)


def draw_op(tape: Tape, focus: Focus, stream: bool) -> Op:
    kind = tape.pick(focus.op_kinds)
    exact, closing = tape.rarely(2), tape.pick(("", "with"))
    timeout = tape.pick((None, None, 0.0, 0.004, 20.0))
    name, value = tape.pick(_SETTINGS)
    presence = [not tape.rarely(8), tape.rarely(2), tape.rarely(2)]
    through_socket = tape.rarely(6)
    drawn = [draw_client(tape.part(16), focus, stream) for _ in presence]
    clients = tuple(client for client, present in zip(drawn, presence, strict=True) if present)
    if kind == "serve":
        return Op(kind, clients, exact=exact)
    if kind == "handle":
        clients = clients[:1] if presence[1] else ()
        if through_socket:
            return Op(kind, clients, name="socket timeout", value=0.004)
        return Op(kind, clients, timeout=timeout)
    if kind == "set":
        return Op(kind, name=name, value=value)
    return Op(kind, name=closing if kind == "close" else "")


def draw_override(tape: Tape, hook: str, clients: int) -> Override:
    style, late = tape.pick(STYLES), tape.pick(("instance", "class", "base"))
    if hook in FRONT_HOOKS and clients > 1 and tape.rarely(3):
        return Override(hook, late, 1 + tape.below(clients - 1))
    return Override(hook, style)


def draw_attributes(tape: Tape, kind: str, flavour: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    rare = [tape.rarely(n) for n in (4, 4, 4, 8, 8)]
    children, size = tape.pick((40, 40, 2)), tape.pick((16, 8192, 20_000))
    if flavour == "thread":
        attributes["daemon_threads"] = rare[0]
    if flavour == "fork":
        attributes["max_children"] = children
    if flavour != "sync":
        attributes["block_on_close"] = not rare[1]
    if kind not in STREAM_KINDS and rare[2]:
        attributes["max_packet_size"] = size
    if rare[3]:
        attributes["allow_reuse_address"] = True
    if rare[4] and kind in ("tcp", "udp") and sys.version_info >= (3, 11):
        attributes["allow_reuse_port"] = True  # see differences.py
    return attributes


def draw_program(tape: Tape) -> Program:
    focus = tape.pick(_FOCUSES)
    kind, flavour = tape.pick(KINDS + STREAM_KINDS), tape.pick(focus.flavours)
    if tape.rarely(3) and flavour == "fork":
        flavour = "thread"  # forking costs most
    stream = kind in STREAM_KINDS
    ready_made, bound = tape.rarely(2), not tape.rarely(6)
    bad_address, address = tape.rarely(16), tape.pick(_ADDRESSES[kind.startswith("unix")])
    attributes = draw_attributes(tape.part(7), kind, flavour)
    handler = draw_handler(tape.part(26), focus, stream)
    op_parts = [tape.part(9 + 16 * MOST_OF_ONE_OP) for _ in range(MOST_OPS)]
    ops = tuple(
        draw_op(part, focus, stream)
        for index, part in enumerate(op_parts)
        if part.rarely(focus.ops) or index == 0
    )
    clients = sum(len(op.clients) for op in ops)
    hooks = [(hook, tape.part(5)) for hook in CLIENT_HOOKS + OTHER_HOOKS]
    overrides = tuple(
        draw_override(part, hook, clients)
        for hook, part in hooks
        if part.rarely(focus.overrides) and applies(flavour, hook)
    )
    action_parts = [tape.part(7) for _ in range(MOST_ACTIONS)]
    actions = tuple(
        draw_action(part, focus, flavour, clients)
        for part in action_parts
        if part.rarely(focus.actions)
    )
    return Program(
        kind=kind,
        flavour=flavour,
        ready_made=ready_made,
        construct=address if bad_address else "ok",
        handler=handler,
        overrides=overrides,
        actions=actions,
        ops=ops,
        attributes=tuple(attributes.items()),
        bound=bound,
    )


LENGTH = (
    8
    + 7
    + 26
    + MOST_OPS * (9 + 16 * MOST_OF_ONE_OP)
    + 5 * len(CLIENT_HOOKS + OTHER_HOOKS)
    + 7 * MOST_ACTIONS
)


def programs() -> st.SearchStrategy[Program]:
    """Programs whose outcome is defined."""
    tapes = st.binary(min_size=LENGTH, max_size=LENGTH)
    return tapes.map(lambda data: settle(draw_program(Tape(data))))
