"""Connection: what a stream request is, a ``socket.socket`` made straight from accept(2).

The methods that a request needs are those of ``fastsock._methods``; every other method of
``socket.socket`` first lets the socket object underneath take over the descriptor. Which of the
two owns it cannot be seen from outside.
"""

from __future__ import annotations

import _socket
import errno
import functools
import os
import socket
import sys
from collections.abc import Callable

from fastsock import _accept, _calls, _channel, _methods, _post, _visitors
from fastsock._types import TYPE_CHECKING, Any

#: the interpreter's own class; None where something else took its place before we were there
GENUINE: type[socket.socket] | None = _accept.GENUINE

# Without it no Connection is ever made; there only has to be a class.
if TYPE_CHECKING:
    _Base = socket.socket
else:
    _Base = GENUINE or _socket.socket


class Connection(_Base):
    """A connected stream socket, as ``get_request()`` of fastsock's stream servers returns it.

    Has the methods, attributes and errors of ``socket.socket``, of which it is a subclass.
    """

    __slots__ = ("_channel",)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """As ``socket.socket()``; how ``dup()`` and programs make one."""
        super().__init__(*args, **keywords)
        _channel.initialised(self)

    if not TYPE_CHECKING:
        recv = _methods.recv
        recv_into = _methods.recv_into
        send = _methods.send
        sendall = _methods.sendall
        fileno = _methods.fileno
        gettimeout = _methods.gettimeout
        settimeout = _methods.settimeout
        getblocking = _methods.getblocking
        setblocking = _methods.setblocking
        shutdown = _methods.shutdown
        close = _methods.close
        detach = _methods.detach
        _real_close = _methods._real_close

        def setsockopt(self, *arguments):
            if _Base.setsockopt is _setsockopt and _methods.set_number(self, arguments):
                return None
            return _setsockopt_of_socket_object(self, *arguments)

        @property
        def family(self):
            fresh = _methods.lazily(self)
            if fresh is None:
                return _Base.family.fget(self)
            return _member(socket.AddressFamily, fresh[0])

        @property
        def type(self):
            fresh = _methods.lazily(self)
            if fresh is None:
                return _Base.type.fget(self)
            return _member(socket.SocketKind, fresh[1])

        @property
        def proto(self):
            fresh = _methods.lazily(self)
            return _proto(self) if fresh is None else fresh[2]

        @property
        def timeout(self):
            return self.gettimeout()

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send a file with ``os.sendfile()``, after what wfile holds back; return the bytes sent.

        Args:
            file: a regular file opened in binary mode (another is read and sent piece by piece).
            offset: where to begin, in bytes.
            count: bytes to send; None: all to the end.

        Raises:
            OSError: as sendfile(2) and send(2).
            ValueError: file is in text mode, count is not positive, or the connection does not
                block.

        (Documented: ``socket.socket.sendfile``.)
        """
        _methods.flush_writer(self)
        wait = _visitors.waiting()
        before = _post.bytes_sent(self)
        _post.begin_write(self)
        try:
            if wait is not None:
                _methods.settle(self)
                sent = _calls.sendfile(self, wait, file, offset, count)
            else:
                sent = super().sendfile(file, offset, count)
            if _post.bytes_sent(self) == before:  # not by send()
                _post.count(self, 0, _length(sent))
        finally:
            _post.end_write(self)
        return sent

    def dup(self) -> Any:
        """As ``socket.socket.dup``; the copy waits where this one does."""
        copy = super().dup()
        if type(copy) is Connection:  # a program may have patched socket.socket
            _methods.share_waiter(self, copy)
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_as_socket(self, Connection) or super().__reduce_ex__(protocol)


def reduce_as_socket(sock: socket.socket, cls: Any) -> Any:
    """What ``multiprocessing`` is told of a socket of a class of ours; None to anybody else.

    It pickles sockets of the exact class ``socket.socket``, by a table that it has for its own
    pickler. Anybody else's pickling is refused, as that of any socket.
    """
    reduction: Any = sys.modules.get("multiprocessing.reduction")
    if reduction is not None and cls not in reduction.ForkingPickler._extra_reducers:
        reduction.ForkingPickler.register(cls, reduction._reduce_socket)
        caller = sys._getframe(2).f_globals.get("__name__", "")
        if caller.partition(".")[0] == "multiprocessing":
            return reduction._reduce_socket(sock)
    return None


_proto = _socket.socket.proto.__get__
_setsockopt = _socket.socket.setsockopt


def _member(enumeration: Any, value: int) -> Any:
    try:
        return enumeration(value)
    except ValueError:
        return value


def _closed_underneath(connection: Connection, family: int, kind: int, proto: int) -> None:
    # What was closed before it was handed over: methods look at the socket object's family
    # before they look at the descriptor, and only a socket object that was open once has one.
    try:
        _socket.socket.__init__(connection, family, kind, proto)
    except OSError:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
    _socket.socket.close(connection)


#: methods of the socket object that wait; accept() does by _accept()
_WAIT: dict[str, Callable[..., Any]] = {
    "_accept": _calls.accept,
    "connect": _calls.connect,
    "connect_ex": _calls.connect_ex,
    "recvfrom": _calls.recvfrom,
    "recvfrom_into": _calls.recvfrom_into,
    "recvmsg": _calls.recvmsg,
    "recvmsg_into": _calls.recvmsg_into,
    "sendmsg": _calls.sendmsg,
    "sendto": _calls.sendto,
}


#: methods of the socket object that receive -> where the flags are in their arguments
_RECEIVE = {"recvfrom": 1, "recvfrom_into": 2, "recvmsg": 2, "recvmsg_into": 2}


def _length(returned: Any) -> int:
    """How many bytes; 0 of what a patched method may return."""
    first = returned[0] if type(returned) is tuple and returned else returned
    if type(first) is bytes:
        return len(first)
    return first if type(first) is int and first > 0 else 0


def _receiving(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that counts what it receives, but for what it leaves there."""
    place = _RECEIVE[name]

    def receiving(self: Any, /, *args: Any, **keywords: Any) -> Any:
        returned = call(self, *args, **keywords)
        flags = args[place] if len(args) > place else keywords.get("flags", 0)
        if not (isinstance(flags, int) and flags & socket.MSG_PEEK):
            _post.count(self, _length(returned), 0)
        return returned

    return receiving


def _sending(call: Callable[..., Any]) -> Callable[..., Any]:
    """A method that counts what it sends; nobody else's bytes come in between."""

    def sending(self: Any, /, *args: Any, **keywords: Any) -> Any:
        _post.begin_write(self)
        try:
            sent = call(self, *args, **keywords)
            _post.count(self, 0, _length(sent))
        finally:
            _post.end_write(self)
        return sent

    return sending


def _of_socket_object(name: str) -> Callable[..., Any]:
    waits = _WAIT.get(name)

    @functools.wraps(getattr(_Base, name))
    def handing_over(self: Any, /, *args: Any, **keywords: Any) -> Any:
        _methods.handed_over(self)
        fresh = _methods.lazily(self)
        if fresh is not None:
            _closed_underneath(self, *fresh)
        if waits is not None:
            wait = _visitors.waiting()
            if wait is not None:
                return waits(self, wait, *args, **keywords)
        # looked up anew: a program may have patched socket.socket since
        return getattr(_Base, name)(self, *args, **keywords)

    made = handing_over
    if name in _RECEIVE:
        made = functools.wraps(handing_over)(_receiving(name, handing_over))
    elif name in ("sendmsg", "sendto"):
        made = functools.wraps(handing_over)(_sending(handing_over))
    made.__qualname__ = f"Connection.{name}"
    vars(made).pop("__wrapped__", None)  # it has no globals to look annotations up in
    return made


def _complete() -> None:
    """Put a method that hands over first in the place of every C method that isn't ours."""
    for name, method in vars(_socket.socket).items():
        if callable(method) and not name.startswith("__") and name not in vars(Connection):
            setattr(Connection, name, _of_socket_object(name))


_complete()
_channel.learn(Connection)
_setsockopt_of_socket_object = _of_socket_object("setsockopt")
functools.update_wrapper(Connection.setsockopt, _setsockopt_of_socket_object)
vars(Connection.setsockopt).pop("__wrapped__", None)
Connection.__module__ = __package__
