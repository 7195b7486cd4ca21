"""A program: a server, its overridden hooks, its handler, and what clients do to it.

Programs are plain data, so that hypothesis can shrink them and a failing one can be pasted into a
test. Clients are numbered 0, 1, ... in the order in which they appear; what happens in a hook is
tied to a client's number, never to a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

STREAM_KINDS = ("tcp", "unix")
KINDS = ("tcp", "udp", "unix", "unixgram")
#: hooks that are called with a request: an action in them names the client
CLIENT_HOOKS = (
    "verify_request",
    "process_request",
    "finish_request",
    "shutdown_request",
    "close_request",
    "handle_error",
    "process_request_thread",
)
#: hooks that know no client: an action in them counts all calls
OTHER_HOOKS = (
    "get_request",
    "service_actions",
    "handle_timeout",
    "_handle_request_noblock",
    "server_bind",
    "server_activate",
    "server_close",
    "collect_children",
    "fileno",
)
HANDLER_HOOKS = ("setup", "handle", "finish")
#: called by the constructor: an instance attribute would come too late
EARLY_HOOKS = ("server_bind", "server_activate")
#: called by the loop whenever it likes: only counted where the number of wake-ups is defined
IDLE_HOOKS = ("service_actions", "collect_children")
#: called before anything of the request can be seen from outside: may be replaced while serving
FRONT_HOOKS = (
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "_handle_request_noblock",
)
EXCEPTIONS = (
    "ValueError",
    "OSError",
    "TimeoutError",
    "ConnectionAbortedError",
    "StopIteration",
    "SystemExit",
    "KeyboardInterrupt",
    "GeneratorExit",
)
#: what an overridden hook does in place of calling the original
INSTEAD = {
    "verify_request": "refuse",
    "process_request": "direct",
    "finish_request": "skip",
    "shutdown_request": "keep",
    "close_request": "keep",
    "handle_error": "skip",
    "get_request": "opaque",
}
STYLES = ("subclass", "instance", "mixin", "class", "base")

#: the default poll_interval of a program is small, so that the standard library's shutdown() is
#: quick; an exact program waits for ever between requests
POLL = 0.003


@dataclass(frozen=True)
class Client:
    """One connection, or one sender of datagrams.

    request: sends the pieces, reads to the end. empty: connects and closes. reset: sends, then
    closes with SO_LINGER 0. silent: connects, sends the pieces, and shuts down for writing once
    it was accepted (or waits for the server's timeout). datagrams: sends each piece as one.
    vanish: sends the pieces as datagrams and closes. talk: waits for a reply after each piece.
    linger: a silent client that stays while others come and go, until the 'operation' ends or
    until after the server was asked to 'close'.
    """

    kind: str = "request"
    pieces: tuple[bytes, ...] = (b"a\n",)
    half_close: bool = True
    talk: bool = False
    linger: str = ""


@dataclass(frozen=True)
class Override:
    """A recording override of one hook; from_client > 0: put there while the loop runs."""

    hook: str
    style: str = "subclass"
    from_client: int = 0


@dataclass(frozen=True)
class Action:
    """What happens in the call-th call of a hook (for this client): an exception, 'stop', ..."""

    hook: str
    client: int | None
    what: str
    when: str = "before"
    call: int = 1


@dataclass(frozen=True)
class Handler:
    """The request handler class; script is what handle() does with its files."""

    base: str = "stream"
    script: tuple[tuple[Any, ...], ...] = (("readline",), ("echo",))
    rbufsize: int = -1
    wbufsize: int = 0
    timeout: float | None = None
    nodelay: bool = False
    hooks: tuple[str, ...] = ()
    factory: str = "class"


@dataclass(frozen=True)
class Op:
    """One operation of the program: serve, handle, stop, shutdown, close, inspect, set."""

    kind: str
    clients: tuple[Client, ...] = ()
    exact: bool = False
    timeout: float | None = None
    name: str = ""
    value: Any = None


@dataclass(frozen=True)
class Program:
    kind: str = "tcp"
    flavour: str = "sync"
    ready_made: bool = True
    construct: Any = "ok"
    handler: Handler = field(default_factory=Handler)
    overrides: tuple[Override, ...] = ()
    actions: tuple[Action, ...] = ()
    ops: tuple[Op, ...] = ()
    attributes: tuple[tuple[str, Any], ...] = ()
    bound: bool = True

    @property
    def stream(self) -> bool:
        return self.kind in STREAM_KINDS

    @property
    def unix(self) -> bool:
        return self.kind.startswith("unix")

    def clients(self) -> Iterator[Client]:
        for op in self.ops:
            yield from op.clients

    def attribute(self, name: str, default: Any) -> Any:
        return dict(self.attributes).get(name, default)

    def overridden(self) -> set[str]:
        return {override.hook for override in self.overrides}

    @property
    def short_timeout(self) -> bool:
        return self.handler.timeout is not None and self.handler.timeout < 1

    def __str__(self) -> str:
        """Code for the program, without what is default."""
        return _code(self)


def _code(value: Any) -> str:
    if isinstance(value, tuple):
        inner = ", ".join(_code(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if not hasattr(type(value), "__dataclass_fields__"):
        if isinstance(value, bytes) and len(value) > 100:
            repeated = value.rstrip(b"\n")
            return f"{repeated[:1]!r} * {len(repeated)} + {value[len(repeated) :]!r}"
        return repr(value)
    default = {"Program": Program(), "Client": Client(), "Handler": Handler()}.get(
        type(value).__name__
    )
    shown = []
    for name, description in type(value).__dataclass_fields__.items():
        now = getattr(value, name)
        usual = getattr(default, name) if default is not None else description.default
        if now != usual:
            shown.append(f"{name}={_code(now)}")
    return f"{type(value).__name__}({', '.join(shown)})"
