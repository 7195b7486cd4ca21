"""Hooks that are put in place by other hooks, and classes that change between two requests."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from support import Kind, Trace, ask, new, serving, upper

Make = Callable[..., Any]
KINDS = [Kind("", "TCP"), Kind("", "UDP"), Kind("Threading", "TCP"), Kind("Threading", "UDP")]
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)
NEXT = ("process_request", "finish_request", "shutdown_request", "close_request")


def put(trace: Trace, server: Any, name: str, way: str) -> None:
    """Override a hook, once."""
    target = server if way == "instance" else type(server)
    original = getattr(server, name)

    def hook(*args: Any) -> Any:
        trace.log(name)
        return original(*(args if way == "instance" else args[1:]))

    setattr(target, name, hook)


@pytest.mark.parametrize("way", ["instance", "class"])
@pytest.mark.parametrize("name", NEXT)
@kinds
def test_put_by_verify_request(
    ss: ModuleType, kind: Kind, name: str, way: str, make: Make, trace: Trace
) -> None:
    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        if name not in trace.names():
            trace.log("verify_request")
            if trace.names().count("verify_request") == 2:
                put(trace, self, name, way)
        return True

    server = make(
        new("Server", kind.server(ss), verify_request=verify_request), upper(kind.handler(ss))
    )
    with serving(server):
        assert ask(server) == b"HELLO\n"
        assert name not in trace.names()
        assert ask(server) == b"HELLO\n"
        trace.wait(name)


@pytest.mark.parametrize("way", ["instance", "class"])
@pytest.mark.parametrize("name", ["shutdown_request", "close_request"])
@kinds
def test_put_by_a_handler(
    ss: ModuleType, kind: Kind, name: str, way: str, make: Make, trace: Trace
) -> None:
    def finish(self: Any) -> None:
        base.finish(self)
        if name not in seen:
            seen.append(name)
            put(trace, self.server, name, way)

    seen: list[str] = []
    base = upper(kind.handler(ss))
    server = make(new("Server", kind.server(ss)), new("Handler", base, finish=finish))
    with serving(server):
        assert ask(server) == b"HELLO\n"
        trace.wait(name)


@pytest.mark.parametrize("name", ["verify_request", *NEXT])
@kinds
def test_a_class_that_begins_to_answer_for_its_attributes(
    ss: ModuleType, kind: Kind, name: str, make: Make, trace: Trace
) -> None:
    """And ceases to."""

    def getattribute(self: Any, asked: str) -> Any:
        found = base.__getattribute__(self, asked)
        if asked != name:
            return found

        def hook(*args: Any) -> Any:
            trace.log(name)
            return found(*args)

        return hook

    base = kind.server(ss)
    server_class = new("Server", base)
    server = make(server_class, upper(kind.handler(ss)))
    with serving(server):
        assert ask(server) == b"HELLO\n"
        assert trace.names() == []
        server_class.__getattribute__ = getattribute
        assert ask(server) == b"HELLO\n"
        trace.wait(name)
    if kind.flavour:
        return  # a thread may be ending its request still
    del server_class.__getattribute__
    trace.clear()
    with serving(server):
        assert ask(server) == b"HELLO\n"
    assert trace.names() == []


@pytest.mark.parametrize("name", ["verify_request", *NEXT])
@kinds
def test_other_bases(ss: ModuleType, kind: Kind, name: str, make: Make, trace: Trace) -> None:
    def hook(self: Any, *args: Any) -> Any:
        trace.log(name)
        return getattr(super(mix_in, self), name)(*args)

    mix_in = new("MixIn", object, **{name: hook})
    between = new("Between", kind.server(ss))
    server = make(new("Server", between), upper(kind.handler(ss)))
    with serving(server):
        assert ask(server) == b"HELLO\n"
        type(server).__bases__ = (mix_in, between)
        assert ask(server) == b"HELLO\n"
        trace.wait(name)
