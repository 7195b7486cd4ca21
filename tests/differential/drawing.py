"""The hypothesis strategy that draws a program. Each has a focus, so that what interacts meets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

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
from .settle import settle


@dataclass(frozen=True)
class Focus:
    """How often things are drawn: 1 in n, or a choice with repetitions."""

    overrides: int  # 1 in n hooks
    actions: tuple[int, ...]
    action_hooks: tuple[str, ...]
    ops: tuple[int, int]
    op_kinds: tuple[str, ...]
    clients: tuple[str, ...]
    own_handler: int
    flavours: tuple[str, ...] = ("sync", "sync", "thread", "fork")


_EVERY_HOOK = (*CLIENT_HOOKS, *HANDLER_HOOKS, *OTHER_HOOKS[:-1])
_FOCUSES = (
    Focus(  # hooks
        overrides=2,
        actions=(1, 1, 2, 3, 0),
        action_hooks=_EVERY_HOOK,
        ops=(1, 2),
        op_kinds=("serve", "serve", "handle"),
        clients=("request", "request", "empty", "reset", "silent"),
        own_handler=5,
    ),
    Focus(  # the handler
        overrides=8,
        actions=(0, 0, 1),
        action_hooks=HANDLER_HOOKS,
        ops=(1, 2),
        op_kinds=("serve", "serve", "handle"),
        clients=("request", "request", "reset", "reset", "silent", "empty"),
        own_handler=1,
        flavours=("sync", "sync", "sync", "thread"),
    ),
    Focus(  # a server's life
        overrides=4,
        actions=(0, 0, 1),
        action_hooks=(*OTHER_HOOKS[:-1], "verify_request", "handle"),
        ops=(2, 6),
        op_kinds=("serve", "handle", "set", "close", "stop", "shutdown", "inspect", "handle"),
        clients=("request", "request", "empty", "silent"),
        own_handler=5,
    ),
    Focus(  # threads and processes
        overrides=3,
        actions=(0, 0, 1, 2),
        action_hooks=("process_request", "process_request_thread", *CLIENT_HOOKS, "handle"),
        ops=(1, 3),
        op_kinds=("serve", "serve", "close", "set"),
        clients=("request", "request", "silent", "silent", "reset"),
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


def rarely(draw: Any, one_in: int = 4) -> bool:
    return one_in == 1 or draw(st.integers(0, one_in - 1)) == one_in - 1


def pick(draw: Any, choices: Any) -> Any:
    return draw(st.sampled_from(choices))


def several(draw: Any, least: int, most: int, choices: Any) -> tuple[Any, ...]:
    return tuple(pick(draw, choices) for _ in range(draw(st.integers(least, most))))


def draw_client(draw: Any, focus: Focus, stream: bool) -> Client:
    if not stream:
        kind = pick(draw, ("datagrams", "datagrams", "datagrams", "vanish"))
        return Client(kind, several(draw, 1, 3, _DATAGRAMS))
    kind = pick(draw, focus.clients)
    if kind == "empty":
        return Client(kind, ())
    pieces = several(draw, 1, 3 if rarely(draw) else 1, _LINES)
    if kind == "silent":
        linger = pick(draw, ("", "operation", "close"))
        return Client(kind, pieces if rarely(draw) else (), linger=linger)
    return Client(kind, pieces, half_close=draw(st.booleans()), talk=rarely(draw))


def draw_handler(draw: Any, focus: Focus, stream: bool) -> Handler:
    hooks = tuple(hook for hook in ("setup", "finish") if rarely(draw, 3))
    factory = pick(draw, ("partial", "lambda", "method")) if rarely(draw, 5) else "class"
    usual = Handler() if stream else Handler("datagram", (("readline",), ("echo",)))
    base, script = usual.base, usual.script
    own = rarely(draw, focus.own_handler)
    if rarely(draw, 6):
        base = "base"
        steps = _BASE_STEPS if stream else (("facts",), ("sendto", 5), ("echo",))
        script = several(draw, 0, 3, steps)
    elif not stream:
        script = several(draw, 0, 3, _DATAGRAM_STEPS) if own else script
    elif rarely(draw, 6):
        script = (("lines",),)
    elif own:
        script = tuple(
            pick(draw, _READS if rarely(draw, 2) else _WRITES)
            for _ in range(draw(st.integers(0, 4)))
        )
    if base != "stream" or not own:
        return Handler(base, script, hooks=hooks, factory=factory)
    return Handler(
        base,
        script,
        rbufsize=pick(draw, (-1, -1, 0, 1, 16)),
        wbufsize=pick(draw, (0, 0, -1, 64)),
        timeout=pick(draw, (None, None, None, 20.0, 0.01)),
        nodelay=rarely(draw, 6),
        hooks=hooks,
        factory=factory,
    )


def draw_action(draw: Any, focus: Focus, clients: int) -> Action:
    hook = pick(draw, focus.action_hooks)
    client = None if hook in OTHER_HOOKS else draw(st.integers(0, max(0, clients - 1)))
    choices: tuple[str, ...] = EXCEPTIONS
    if rarely(draw, 5):
        choices = ("stop",)
    elif hook in INSTEAD and rarely(draw, 3):
        choices = (INSTEAD[hook],)
    when = "after" if rarely(draw, 3) else "before"
    return Action(hook, client, pick(draw, choices), when, 2 if rarely(draw, 6) else 1)


def draw_op(draw: Any, focus: Focus, stream: bool) -> Op:
    kind = pick(draw, focus.op_kinds)
    if kind == "serve":
        count = pick(draw, (1, 2, 3, 1, 2, 0))
        clients = tuple(draw_client(draw, focus, stream) for _ in range(count))
        return Op(kind, clients, exact=draw(st.booleans()))
    if kind == "handle":
        clients = tuple(draw_client(draw, focus, stream) for _ in range(pick(draw, (1, 0))))
        return Op(kind, clients, timeout=pick(draw, (None, None, 0.0, 0.004, 20.0)))
    if kind == "set":
        name, value = pick(draw, _SETTINGS)
        return Op(kind, name=name, value=value)
    return Op(kind, name=pick(draw, ("", "with")) if kind == "close" else "")


def draw_override(draw: Any, hook: str, clients: int) -> Override:
    late = hook in FRONT_HOOKS and clients > 1 and rarely(draw, 3)
    if not late:
        return Override(hook, pick(draw, STYLES))
    return Override(hook, pick(draw, ("instance", "class", "base")), draw(st.integers(1, 2)))


def draw_attributes(draw: Any, kind: str, flavour: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    if flavour == "thread":
        attributes["daemon_threads"] = rarely(draw)
    if flavour == "fork":
        attributes["max_children"] = pick(draw, (40, 40, 2))
    if flavour != "sync":
        attributes["block_on_close"] = not rarely(draw)
    if kind not in STREAM_KINDS and rarely(draw):
        attributes["max_packet_size"] = pick(draw, (16, 8192, 20_000))
    if rarely(draw, 8):
        attributes["allow_reuse_address"] = True
    if rarely(draw, 8) and kind in ("tcp", "udp") and sys.version_info >= (3, 11):
        attributes["allow_reuse_port"] = True  # see differences.py
    return attributes


@st.composite
def programs(draw: Any) -> Program:
    """A program whose outcome is defined."""
    focus: Focus = pick(draw, _FOCUSES)
    kind = pick(draw, KINDS)
    flavour = pick(draw, focus.flavours)
    if flavour == "fork" and rarely(draw, 3):
        flavour = "thread"  # forking costs most
    stream = kind in STREAM_KINDS
    ops = tuple(draw_op(draw, focus, stream) for _ in range(draw(st.integers(*focus.ops))))
    clients = sum(len(op.clients) for op in ops)
    overrides = tuple(
        draw_override(draw, hook, clients)
        for hook in CLIENT_HOOKS + OTHER_HOOKS
        if rarely(draw, focus.overrides)
    )
    actions = tuple(draw_action(draw, focus, clients) for _ in range(pick(draw, focus.actions)))
    unix = kind.startswith("unix")
    program = Program(
        kind=kind,
        flavour=flavour,
        ready_made=draw(st.booleans()),
        construct=pick(draw, _ADDRESSES[unix]) if rarely(draw, 12) else "ok",
        handler=draw_handler(draw, focus, stream),
        overrides=overrides,
        actions=actions,
        ops=ops,
        attributes=tuple(draw_attributes(draw, kind, flavour).items()),
        bound=not rarely(draw, 6),
    )
    return settle(program)
