"""The server class of a program: hooks overridden, on top of the implementation under test."""

from __future__ import annotations

import builtins
import functools
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .handlers import client_of_address, client_of_request, describe_request, known
from .program import CLIENT_HOOKS, IDLE_HOOKS, Action, Override
from .trace import describe

if TYPE_CHECKING:
    from .runner import Run

_NAMES = {"tcp": "TCP", "udp": "UDP", "unix": "UnixStream", "unixgram": "UnixDatagram"}
_FLAVOURS = {"sync": "", "thread": "Threading", "fork": "Forking"}


def make_exception(name: str) -> BaseException:
    if name == "OSError":
        return PermissionError(1, "by the program")
    kind: type[BaseException] = getattr(builtins, name)
    return kind("by the program")


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
        run.stepping = True
        try:
            return base._handle_request_noblock(self)
        finally:
            run.stepping = False
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
