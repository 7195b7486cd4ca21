"""Make a drawn program one whose outcome is defined: take out what would be a race or a deadlock.

Every rule here is about the standard library's own behaviour, not about the implementation under
test: what is taken out either has no defined outcome (two threads that act at once), or never
ends (a handler that waits for data from a client that waits for its reply).
"""

from __future__ import annotations

from dataclasses import replace

from .program import (
    CLIENT_HOOKS,
    EARLY_HOOKS,
    EXCEPTIONS,
    FRONT_HOOKS,
    HANDLER_HOOKS,
    IDLE_HOOKS,
    OTHER_HOOKS,
    Action,
    Client,
    Handler,
    Op,
    Override,
    Program,
)

READS = ("readline", "read", "readinto", "read1", "lines", "recv")
MOST_CLIENTS = 5
#: what a handler waits for before it acts is all there, so that a partial read is defined
PARTIAL_READS = ("read1", "recv")
#: a stop in one of these is seen by the loop before the client sees its end of the connection
BEFORE_END = ("finish_request", "process_request_thread", "setup", "handle")
#: may run in a worker thread
WORKER_HOOKS = (
    "finish_request",
    "process_request_thread",
    "shutdown_request",
    "close_request",
    "handle_error",
    *HANDLER_HOOKS,
)


def settle(program: Program) -> Program:
    if program.construct not in ("ok", "late", "bytes path"):
        program = replace(program, ops=())
    program = replace(program, handler=_not_ahead(_handler(program)), ops=_ops(program))
    program = replace(program, actions=_actions(program))
    program = replace(
        program,
        ops=tuple(replace(op, clients=_clients(program, op)) for op in program.ops),
        bound=program.bound or not program.unix or sum(1 for _ in program.clients()) > 1,
    )
    program = replace(program, actions=tuple(a for a in program.actions if _defined(program, a)))
    return replace(program, overrides=_overrides(program))


def _not_ahead(handler: Handler) -> Handler:
    """No small rbufsize where it shows how far rfile has read ahead."""
    if handler.rbufsize > 0 and any(step[0] in PARTIAL_READS for step in handler.script):
        return replace(handler, rbufsize=-1)
    return handler


def is_exception(action: Action) -> bool:
    return action.what in EXCEPTIONS


def gated(program: Program, client: Client) -> bool:
    """Whether handle() waits until this client has done everything it does on its own."""
    script, raw = program.handler.script, program.handler.rbufsize == 0
    return (
        client.kind in ("empty", "reset", "vanish")
        or (program.short_timeout and client.kind != "silent")
        or any(step[0] in PARTIAL_READS for step in script)
        or (raw and any(step[0] in ("read", "readinto") for step in script))
    )


def lenient(program: Program, number: int, client: Client) -> bool:
    """Whether an end of file and a reset are the same to this client.

    Closing a socket with unread data resets the connection; without a shutdown() before it, or
    on a Unix socket, it is a matter of microseconds which the client sees first. So it is after
    a shutdown() if much was written that has not been sent yet.
    """
    return (
        program.unix
        or (_writes_much(program) and not _reads_first(program, client))
        or ("close request",) in program.handler.script
        or any(
            action.hook in ("shutdown_request", "close_request", "process_request_thread")
            or (action.hook == "get_request" and action.when == "after")
            or (action.hook in ("verify_request", "handle_error") and is_exception(action))
            or (action.hook == "process_request" and action.when == "after")
            for action in program.actions
            if action.client in (number, None)
        )
    )


def _writes_much(program: Program) -> bool:
    return any(
        step[0] in ("write", "sendall") and step[1] > 10_000 for step in program.handler.script
    )


def _reads_first(program: Program, client: Client) -> bool:
    """Whether everything that the client sends is read before anything else is done."""
    first = program.handler.script[0]
    data = b"".join(client.pieces)
    return (
        first in (("lines",), ("read",))
        or not data
        or (first == ("readline",) and data.find(b"\n") in (-1, len(data) - 1))
    )


def awaited(client: Client) -> bool:
    """Whether the driver sees the end of the request before it goes on."""
    return client.kind in ("request", "silent") and not client.linger


def counts_threads(program: Program) -> bool:
    """Whether server_close() may not wait for all threads."""
    return program.flavour == "thread" and (
        program.attribute("daemon_threads", False)
        or not program.attribute("block_on_close", True)
        or any(op.name in ("daemon_threads", "block_on_close") for op in program.ops)
    )


def counts_steps(program: Program) -> bool:
    """Whether the driver has to know that a fork is over.

    The child would get a copy of the next client's socket, which then does not end by closing it.
    """
    return program.flavour == "fork" and any(
        client.kind in ("empty", "reset", "vanish") for client in program.clients()
    )


def full_house(program: Program) -> bool:
    """Whether a forking server may have as many children as it wants."""
    return program.flavour == "fork" and program.attribute("max_children", 40) <= MOST_CLIENTS


def _handler(program: Program) -> Handler:
    handler = program.handler
    hooks = set(handler.hooks)
    if handler.nodelay and program.unix:
        hooks.add("setup")  # it fails: who has called it has to be known
    hooks |= {action.hook for action in program.actions if action.hook in ("setup", "finish")}
    handler = replace(handler, hooks=tuple(sorted(hooks)))
    if handler.base != "stream":
        return replace(handler, timeout=None, nodelay=False, rbufsize=-1, wbufsize=0)
    if program.short_timeout and _writes_much(program):
        handler = replace(handler, timeout=20.0)
    return handler


def _ops(program: Program) -> tuple[Op, ...]:
    ops: list[Op] = []
    room, closed = MOST_CLIENTS, False
    for op in program.ops:
        if op.name == "max_packet_size" and program.stream:
            continue
        clients = () if closed else op.clients[:room]
        if op.kind == "handle":
            clients = clients[:1]
            if not clients and op.timeout is not None and op.timeout > 1:
                op = replace(op, timeout=None)  # the runner gives it a short one if need be
        room -= len(clients)
        closed = closed or op.kind == "close"
        ops.append(replace(op, clients=clients))
    return tuple(ops)


def _clients(program: Program, op: Op) -> tuple[Client, ...]:
    return tuple(_client(program, op, client) for client in op.clients)


def _client(program: Program, op: Op, client: Client) -> Client:
    script = program.handler.script
    if not program.stream:
        single = program.flavour != "sync" or op.kind == "handle"
        return replace(client, pieces=client.pieces[:1] if single else client.pieces)
    reads = [step for step in script if step[0] in READS]
    simple = reads in ([], [("readline",)])
    half_close = client.half_close or not simple or b"\n" not in b"".join(client.pieces)
    talk = (
        client.talk
        and program.handler.base == "stream"
        and script == (("lines",),)
        and program.handler.wbufsize == 0
        and op.kind == "serve"
        and not program.short_timeout
        and all(piece.endswith(b"\n") for piece in client.pieces)
    )
    direct = any(action.what == "direct" for action in program.actions)
    may_linger = (
        op.kind == "serve"
        and program.flavour != "sync"
        and not direct
        and not program.short_timeout
        and not full_house(program)
    )
    linger = client.linger if may_linger else ""
    late = any(other.name in ("block_on_close", "daemon_threads") for other in program.ops)
    if linger == "close" and (late or program.actions or not reads or script[0] != reads[0]):
        linger = "operation"  # the handler might not wait for the client
    pieces = () if linger == "close" else client.pieces
    return replace(client, half_close=half_close, talk=talk, linger=linger, pieces=pieces)


def applies(flavour: str, hook: str) -> bool:
    if hook == "process_request_thread":
        return flavour == "thread"
    return hook != "collect_children" or flavour == "fork"


def _applies(program: Program, hook: str) -> bool:
    if hook in IDLE_HOOKS and full_house(program):
        return False  # see differences.py
    return applies(program.flavour, hook)


def _actions(program: Program) -> tuple[Action, ...]:
    """The actions that can happen, in their first form."""
    count = sum(1 for _ in program.clients())
    actions: list[Action] = []
    for action in program.actions:
        if not _applies(program, action.hook) or action.hook == "fileno":
            continue
        if action.hook not in OTHER_HOOKS and (action.client is None or action.client >= count):
            continue
        if action.what == "stop" and action.hook in (*EARLY_HOOKS, "server_close"):
            action = replace(action, what="ValueError")
        if (
            program.flavour == "thread"
            and action.hook == "process_request"
            and is_exception(action)
        ):
            action = replace(action, when="before")  # the thread would use the request too
        actions.append(action)
    return tuple(actions)


def _defined(program: Program, action: Action) -> bool:
    if program.flavour == "thread" and action.what == "stop" and action.hook in WORKER_HOOKS:
        # The loop has to see it before the next client comes.
        return (
            program.stream
            and action.hook in BEFORE_END
            and (action.when == "before" or action.hook == "handle")
            and ("close request",) not in program.handler.script
            and all(awaited(client) for client in program.clients())
            and not any(other.what == "keep" for other in program.actions)
        )
    if program.flavour == "fork" and is_exception(action) and _in_both(program, action):
        return False
    if action.hook in ("shutdown_request", "close_request"):
        # After an exception in verify_request or handle_error, see differences.py.
        return not any(
            other.hook in ("verify_request", "handle_error") and is_exception(other)
            for other in program.actions
        )
    return True


def _in_both(program: Program, action: Action) -> bool:
    """Whether the parent would shut down a connection that its child works on."""
    kept = any(other.what == "keep" for other in program.actions)
    if action.hook == "close_request":
        return kept or action.when == "before"
    return kept and action.hook == "process_request" and action.when == "after"


def _overrides(program: Program) -> tuple[Override, ...]:
    overrides: dict[str, Override] = {}
    for override in program.overrides:
        if _applies(program, override.hook):
            overrides[override.hook] = _override(program, override)
    for action in program.actions:
        if action.hook in CLIENT_HOOKS + OTHER_HOOKS:
            overrides.setdefault(action.hook, Override(action.hook))
    if program.flavour == "fork" and overrides.keys() & {"close_request", "shutdown_request"}:
        # The parent closes its copy: by then a reset may have taken away whose it was.
        known = overrides.get("verify_request", Override("verify_request"))
        overrides["verify_request"] = replace(known, from_client=0)
    return tuple(overrides.values())


def _override(program: Program, override: Override) -> Override:
    if override.hook in EARLY_HOOKS and override.style in ("instance", "class"):
        override = replace(override, style="subclass")
    if (
        counts_threads(program)
        and override.hook in ("process_request", "process_request_thread")
        and override.style not in ("subclass", "mixin")
    ):
        override = replace(override, style="subclass")  # the count has to be around it
    clients = list(program.clients())
    late = (
        0 < override.from_client < len(clients)
        and program.stream
        and override.hook in FRONT_HOOKS
        and override.style in ("instance", "class", "base")
        and ("close request",) not in program.handler.script
        and all(awaited(client) for client in clients[: override.from_client])
        and not any(
            action.hook in ("shutdown_request", "close_request", override.hook)
            for action in program.actions
        )
    )
    return override if late else replace(override, from_client=0)
