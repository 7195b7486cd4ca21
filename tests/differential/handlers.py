"""The handler class of a program, and how any code tells whose request it works on."""

from __future__ import annotations

import functools
import io
import os
import re
import select
import socket
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .program import STREAM_KINDS, Action
from .trace import brief

if TYPE_CHECKING:
    from .runner import Run

_MARK = re.compile(rb"(\d+):")
GATE_LIMIT = 5.0
BLOCK = b"0123456789abcdef" * 130_000


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
