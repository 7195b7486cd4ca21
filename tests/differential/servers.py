"""The server and the handler class of a program, built on the implementation under test."""

from __future__ import annotations

import functools
import io
import os
import re
import select
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .program import CLIENT_HOOKS, IDLE_HOOKS, STREAM_KINDS, Action, Override
from .trace import brief, describe

if TYPE_CHECKING:
    from .runner import Run

_MARK = re.compile(rb"(\d+):")
_NAMES = {"tcp": "TCP", "udp": "UDP", "unix": "UnixStream", "unixgram": "UnixDatagram"}
_FLAVOURS = {"sync": "", "thread": "Threading", "fork": "Forking"}
GATE_LIMIT = 5.0
BLOCK = b"0123456789abcdef" * 130_000


def make_exception(name: str) -> BaseException:
    if name == "OSError":
        return PermissionError(1, "by the program")
    kind: type[BaseException] = getattr(__import__("builtins"), name)
    return kind("by the program")


# --- telling whose request it is


def client_of_address(run: Run, address: Any) -> int | None:
    if isinstance(address, tuple) and len(address) == 2:
        if address[0] == "opaque":
            return address[1]
        return run.ports.get(address[1])
    if isinstance(address, str) and address.startswith(run.folder):
        return int(address.rsplit("/c", 1)[1])
    return 0  # an unnamed Unix socket: the only client of the program


def client_of_request(run: Run, request: Any) -> int | None:
    if isinstance(request, tuple):
        found = _MARK.match(request[0])
        return int(found[1]) if found else 0
    number = run.requests.get(request)
    if number is None:
        try:
            number = client_of_address(run, request.getpeername())
        except OSError:
            return run.trace.client
    return number


def known(run: Run, request: Any, number: int | None) -> None:
    if number is not None and not isinstance(request, tuple):
        run.requests[request] = number


def describe_request(request: Any) -> str:
    if isinstance(request, tuple):
        return f"datagram of {len(request[0])} with a {describe_request(request[1])}"
    return "socket" if isinstance(request, socket.socket) else type(request).__name__


# --- hooks


class Hooks:
    """What the overrides of a program do: note the call, act, call the original."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.calls: dict[tuple[str, int | None], int] = {}

    def call(self, hook: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        run = self.run
        if hook == "fileno" or (hook in IDLE_HOOKS and run.wakes_often):
            return original(*args, **kwargs)
        client = self._client(hook, args)
        if hook in CLIENT_HOOKS:
            run.trace.client = client
            known(run, args[0], client)
        elif run.trace.role() == "serving":
            run.trace.client = client = None
        todo = self.due(hook, client)
        about: tuple[Any, ...] = (describe_request(args[0]),) if args else ()
        if hook == "handle_error":
            kind = sys.exc_info()[0]
            about += (kind.__name__ if kind else None,)
        run.trace.note(hook, *about, *sorted(kwargs.items()))
        self.perform(todo, "before")
        instead = [action.what for action in todo if action.what in _INSTEAD]
        result = _INSTEAD[instead[0]](run, original, args) if instead else original(*args, **kwargs)
        if hook == "get_request":
            run.trace.client = client_of_address(run, result[1])
            known(run, result[0], run.trace.client)
        self.perform(todo, "after")
        return result

    def due(self, hook: str, client: int | None) -> list[Action]:
        count = self.calls[hook, client] = self.calls.get((hook, client), 0) + 1
        return [
            action
            for action in self.run.program.actions
            if action.hook == hook and action.client == client and action.call == count
        ]

    def perform(self, todo: list[Action], when: str) -> None:
        for action in todo:
            if action.when != when or action.what in _INSTEAD:
                continue
            self.run.trace.note("action", action.hook, action.what)
            if action.what != "stop":
                raise make_exception(action.what)
            if not self.run.trace.in_child():
                self.run.stopped = True
            self.run.server._BaseServer__shutdown_request = True

    def _client(self, hook: str, args: Any) -> int | None:
        if hook not in CLIENT_HOOKS:
            return None
        if len(args) == 2:
            return client_of_address(self.run, args[1])
        return client_of_request(self.run, args[0])


def _refuse(run: Run, original: Any, args: Any) -> bool:
    return False


def _skip(run: Run, original: Any, args: Any) -> None:
    pass


def _direct(run: Run, original: Any, args: Any) -> None:
    run.server.finish_request(*args)
    run.server.shutdown_request(args[0])


def _keep(run: Run, original: Any, args: Any) -> None:
    run.trace.note("keep")
    run.keep.append(args[0])


def _opaque(run: Run, original: Any, args: Any) -> Any:
    request, address = original()
    number = client_of_address(run, address)
    return request, ("opaque", number)


_INSTEAD: dict[str, Callable[..., Any]] = {
    "refuse": _refuse,
    "skip": _skip,
    "direct": _direct,
    "keep": _keep,
    "opaque": _opaque,
}


def method(hooks: Hooks, hook: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """An override as a function of a class; original takes self too."""

    def override(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hooks.call(hook, functools.partial(original, self), args, kwargs)

    override.__name__ = hook
    return override


def super_of(holder: list[type], hook: str) -> Callable[..., Any]:
    def original(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(super(holder[0], self), hook)(*args, **kwargs)

    return original


def server_class(run: Run) -> type:
    program, module = run.program, run.module
    base: Any = getattr(module, _NAMES[program.kind] + "Server")
    if program.flavour != "sync":
        flavour = _FLAVOURS[program.flavour]
        mixin = getattr(module, flavour + "MixIn")
        composed = type("Composed", (mixin, base), {})
        # Forking Unix servers are new in Python 3.12.
        name = f"{flavour}{_NAMES[program.kind]}Server"
        base = getattr(module, name, composed) if program.ready_made else composed
    if run.counts_threads:
        base = type("Starting", (base,), {"process_request": starting(run, base)})
    if run.counts_steps:
        base = type("Stepping", (base,), {"_handle_request_noblock": stepping(run, base)})
    for style in ("base", "subclass", "mixin"):
        chosen = [o for o in program.overrides if o.style == style and not o.from_client]
        if style == "base":
            for override in chosen:
                patch_base(run, base, override)
            continue
        holder: list[type] = []
        space = {o.hook: method(run.hooks, o.hook, super_of(holder, o.hook)) for o in chosen}
        if style == "subclass":
            space.update(dict(program.attributes))
            holder.append(types.new_class("Server", (base,), {}, lambda ns, s=space: ns.update(s)))
        else:
            holder.append(type("Recorder", (), space))
            base = type("Mixed", (holder[0], base), {})
            continue
        base = holder[0]
    if run.counts_threads:
        base = type("Counted", (base,), {"process_request_thread": counted(run, base)})
    return base


def stepping(run: Run, base: Any) -> Callable[..., Any]:
    def _handle_request_noblock(self: Any) -> Any:
        try:
            return base._handle_request_noblock(self)
        finally:
            run.steps += 1
            run.trace.wake()

    return _handle_request_noblock


# Where server_close() may not wait for the workers, they are counted silently.


def starting(run: Run, base: Any) -> Callable[..., Any]:
    def process_request(self: Any, *args: Any) -> None:
        base.process_request(self, *args)
        run.started += 1

    return process_request


def counted(run: Run, base: Any) -> Callable[..., Any]:
    def process_request_thread(self: Any, *args: Any) -> None:
        try:
            base.process_request_thread(self, *args)
        except BaseException as error:  # not for threading.excepthook: the run might be over
            run.trace.note("uncaught", *describe(error, run.folder))
        finally:
            run.ended.release()

    return process_request_thread


def patch_base(run: Run, cls: type, override: Override) -> None:
    """Patch the class of the implementation that defines the hook; undone after the run."""
    hook = override.hook
    owner = next(c for c in cls.__mro__ if hook in vars(c))
    original = vars(owner)[hook]
    run.undo.append((owner, hook, original))
    setattr(owner, hook, method(run.hooks, hook, original))


def install(run: Run, override: Override) -> None:
    """Put an override on the server or its class, which may be serving."""
    server, hook = run.server, override.hook
    if override.style == "instance":
        original = getattr(server, hook)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            return run.hooks.call(hook, original, args, kwargs)

        setattr(server, hook, replacement)
    elif override.style == "class":
        cls = type(server)
        holder: list[type] = [cls]
        original = vars(cls).get(hook) or super_of(holder, hook)
        setattr(cls, hook, method(run.hooks, hook, original))
    else:
        patch_base(run, type(server), override)


# --- the handler


def handler_factory(run: Run) -> Any:
    spec = run.program.handler
    base: Any = getattr(run.module, _HANDLERS[spec.base])
    space: dict[str, Any] = {"handle": handle_with(run)}
    for hook in spec.hooks:
        space[hook] = handler_hook(run, hook, getattr(base, hook))
    if spec.base == "stream":
        for name, value in (
            ("rbufsize", spec.rbufsize),
            ("wbufsize", spec.wbufsize),
            ("timeout", spec.timeout),
            ("disable_nagle_algorithm", spec.nodelay),
        ):
            if value != getattr(base, name):
                space[name] = value
    cls = type("Handler", (base,), space)
    if spec.factory == "partial":
        return functools.partial(cls)
    if spec.factory == "lambda":
        return lambda request, address, server: cls(request, address, server)
    if spec.factory == "method":
        return types.MethodType(lambda self, *args: cls(*args), run)
    return cls


_HANDLERS = {
    "base": "BaseRequestHandler",
    "stream": "StreamRequestHandler",
    "datagram": "DatagramRequestHandler",
}


def handler_hook(run: Run, hook: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def override(self: Any) -> None:
        todo = enter(run, self, hook)
        run.hooks.perform(todo, "before")
        original(self)
        run.hooks.perform(todo, "after")

    return override


def enter(run: Run, handler: Any, hook: str) -> list[Action]:
    client = client_of_address(run, handler.client_address)
    run.trace.client = client
    known(run, handler.request, client)
    todo = run.hooks.due(hook, client)
    run.trace.note(hook)
    return todo


def handle_with(run: Run) -> Callable[[Any], None]:
    def handle(self: Any) -> None:
        todo = enter(run, self, "handle")
        client = run.trace.client
        if run.trace.in_child():
            run.forget_clients()
        run.wait_for_gate(client)
        thread = threading.current_thread()
        if run.trace.role() == "worker":
            run.trace.note("thread", re.sub(r"\d+", "N", thread.name), thread.daemon)
        run.hooks.perform(todo, "before")
        last = self.request[0] if isinstance(self.request, tuple) else b""
        for step in run.program.handler.script:
            last = take_step(run, self, step, last)
        run.hooks.perform(todo, "after")

    return handle


def wait_for_gate(gate: int) -> None:
    poller = select.poll()
    poller.register(gate, select.POLLIN)
    if not poller.poll(GATE_LIMIT * 1000):
        os.write(2, b"differential: a client never opened its gate\n")


def take_step(run: Run, handler: Any, step: tuple[Any, ...], last: bytes) -> bytes:
    """One step of handle(); what it returned is noted. Returns what was last read."""
    name, *rest = step
    if name in ("readline", "read", "read1"):
        result = last = getattr(handler.rfile, name)(*rest)
        run.trace.note(name, brief(result))
    elif name == "readinto":
        buffer = bytearray(rest[0])
        count = handler.rfile.readinto(buffer)
        last = bytes(buffer[:count])
        run.trace.note(name, count, brief(last))
    elif name == "lines":
        for last in handler.rfile:
            run.trace.note(name, brief(last), handler.wfile.write(last.upper()))
    elif name == "echo":
        run.trace.note(name, reply(handler, last.upper()))
    elif name == "write":
        run.trace.note(name, handler.wfile.write(memoryview(BLOCK)[: rest[0]]))
    elif name == "writelines":
        handler.wfile.writelines([b"line\n"] * rest[0])
    elif name == "flush":
        run.trace.note(name, handler.wfile.flush())
    elif name == "recv":
        last = handler.request.recv(*rest)
        run.trace.note(name, brief(last))
    elif name == "sendall":
        run.trace.note(name, handler.request.sendall(BLOCK[: rest[0]]))
    elif name == "sendto":
        data, sock = handler.request
        run.trace.note(name, sock.sendto(data[: rest[0]], handler.client_address))
    elif name == "close request":
        handler.request.close()
    elif name.startswith("close "):
        getattr(handler, name[6:]).close()
    else:
        run.trace.note(name, *facts(run, handler))
    return last


def reply(handler: Any, data: bytes) -> Any:
    if hasattr(handler, "wfile"):
        return handler.wfile.write(data)
    if isinstance(handler.request, tuple):
        return handler.request[1].sendto(data, handler.client_address)
    return handler.request.sendall(data)


def facts(run: Run, handler: Any) -> list[Any]:
    """What a handler can see of its attributes."""
    datagram = run.program.kind not in STREAM_KINDS
    sock = handler.request[1] if datagram else handler.request
    found: list[Any] = [
        handler.server is run.server,
        describe_request(handler.request),
        sorted(name for name in vars(handler) if not name.startswith("_")),
        sock.gettimeout() if not datagram else None,
        (sock.family.name, sock.type.name, sock.proto),
        sock.fileno() > 2,
        os.get_inheritable(sock.fileno()) if sock.fileno() >= 0 else None,
    ]
    for name in ("rfile", "wfile"):
        file = getattr(handler, name, None)
        if file is not None:
            found += [name, file.closed, isinstance(file, io.BufferedIOBase)]
            if not file.closed:
                found += [file.readable(), file.writable(), file.seekable()]
            if not datagram and not file.closed:
                found.append(file.fileno() == sock.fileno())
    return found
