"""Sockets that a multiplexing server didn't make, and that wait through its hub all the same.

``get_request()`` of a program's own may return any socket. It is adopted in place: its class is
replaced by a subclass made here, so that whoever holds it already, a file of ``makefile()`` say,
waits in the same way. Elsewhere than in a hub's thread it is what it was.
"""

from __future__ import annotations

import sys

from fastsock import _accept, _calls, _hubs, _tls, _visitors
from fastsock._connection import Connection, reduce_as_socket
from fastsock._types import Any

#: bytes after which a task gives way at the latest
SHARE = 1 << 14


def _method(name: str) -> Any:
    by = getattr(_calls, name)

    def method(self: Any, /, *arguments: Any, **keywords: Any) -> Any:
        wait = _visitors.waiting()
        if wait is None:
            return getattr(super(Guest, self), name)(*arguments, **keywords)
        hub = _hubs.here()
        if hub is not None:
            hub.take_turn(SHARE)
        return by(self, wait, *arguments, **keywords)

    original = getattr(_accept.GENUINE, name, None)
    method.__name__ = name
    method.__qualname__ = f"socket.{name}"
    method.__doc__ = getattr(original, "__doc__", None)
    return method


class Guest(_accept.GENUINE or object):  # type: ignore[misc]
    """A ``socket.socket`` that waits by the hub of the caller's thread, if there is one."""

    __slots__ = ()

    def _accept(self) -> Any:
        wait = _visitors.waiting()
        return super()._accept() if wait is None else _calls.accept(self, wait)

    def accept(self) -> Any:
        accepted, address = super().accept()
        if _visitors.waiting() is not None:
            adopt(accepted)
        return accepted, address

    def detach(self) -> Any:
        descriptor = super().detach()
        _visitors.forget(self)
        return descriptor

    def _real_close(self, *arguments: Any, **keywords: Any) -> None:
        try:
            super()._real_close(*arguments, **keywords)
        finally:
            _visitors.forget(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_as_socket(self, Guest) or super().__reduce_ex__(protocol)


for _name in (
    "recv",
    "recv_into",
    "recvfrom",
    "recvfrom_into",
    "recvmsg",
    "recvmsg_into",
    "send",
    "sendall",
    "sendto",
    "sendmsg",
    "sendfile",
    "connect",
    "connect_ex",
):
    setattr(Guest, _name, _method(_name))
Guest.__name__ = Guest.__qualname__ = "socket"
Guest.__module__ = "socket"


_made: dict[type, type | None] = {}  # by the program's class; None: it cannot be derived from


def adopt(request: object) -> None:
    """Have a socket that came out of get_request() wait through hubs; leave all else as it is."""
    cls = type(request)
    genuine = _accept.GENUINE
    if cls is Connection or genuine is None or not isinstance(request, genuine):
        return
    if cls is genuine:
        request.__class__ = Guest
        return
    if isinstance(request, (Guest, Connection)):
        return
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(request, ssl.SSLSocket):
        _tls.adopt(request)
        return
    if cls not in _made:
        _made[cls] = _derive(cls)
    made = _made[cls]
    if made is not None:
        try:
            request.__class__ = made
        except TypeError:  # another layout, or it may not be assigned
            _made[cls] = None


def _derive(cls: type) -> type | None:
    """The program's class, with Guest between it and socket.socket: its own methods come first."""
    if cls.__module__.partition(".")[0] == "fastsock":
        return None
    names = {"__slots__": (), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    try:
        return type(cls)(cls.__name__, (cls, Guest), {**names, "__doc__": cls.__doc__})
    except Exception:  # its metaclass, or __init_subclass__, refuses
        return None
