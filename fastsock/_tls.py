"""TLS sockets that wait through the hub.

``SSLContext.wrap_socket()`` detaches the connection and makes an ``ssl.SSLSocket`` of its
descriptor, of the class ``SSLContext.sslsocket_class``. Where a multiplexing server is served that
is a subclass made here. An instance is as any other until something of it has to wait in a task, or
in the loop of such a server. Then it is entered: its descriptor does not block any more, and what
is tried on it raises SSLWantReadError or SSLWantWriteError; the caller waits for that and tries
again. It waits as the place where it is called does: a task by letting others run, a thread that
has none in poll(2). Only ``gettimeout()`` goes on to say what it said.

What waits is the object behind an SSLSocket, its ``_sslobj``. The methods of SSLSocket, and those
of a program's own subclass, run as they are, and find one that waits.

``ssl`` is not imported before the program does it.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import select
import socket
import sys
import time
import weakref
from collections.abc import Callable

from fastsock import _accept, _hubs
from fastsock._sync import Event
from fastsock._types import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsock._descriptors import Slot
    from fastsock._hub import Hub

#: bytes that a call of OpenSSL's brings at most
RECORD = 1 << 14
#: seconds; a timeout that is over as soon as it has begun
MOMENT = 1e-9

# The key in an instance's dictionary under which its timeout is, once it is entered.
_LIMIT = "_fastsock_limit"
# The same for who is in the middle of a write; the turns of the tasks that are to write next; and
# for its slot in a hub.
_WRITER = "_fastsock_writer"
_QUEUE = "_fastsock_queue"
_SLOT = "_fastsock_slot"

_gettimeout = _socket.socket.gettimeout
_settimeout = _socket.socket.settimeout
_fileno = _socket.socket.fileno


# --- waiting


def _poll(descriptor: int, read: bool, write: bool, seconds: float | None) -> bool:
    poller = select.poll()
    poller.register(descriptor, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    return bool(poller.poll(None if seconds is None else seconds * 1000))


class _Wait:
    """The waits of one call on a socket, which together may last as long as its timeout."""

    def __init__(self, sock: Any, limit: float | None) -> None:
        self._sock = sock
        self._descriptor: int = _fileno(sock)
        self._deadline = None if limit is None else time.monotonic() + limit

    def until(self, read: bool) -> bool:
        """Wait until it can be read from, or written to; false if the time is over.

        Only right after a call that could not, by the one who waits.

        Raises:
            OSError: it was closed meanwhile.
        """
        if (left := self._left()) == 0:
            return False
        hub = _hubs.here()
        slot = None if hub is None else _slot_of(self._sock, hub)
        if hub is None or slot is None:
            wait = _hubs.waiting_for_descriptors() or _poll
            ready = wait(self._descriptor, read, not read, left)
        else:
            ready = hub.wait_at(slot, read, not read, left)
        return self._still_open(ready)

    def behind_another(self) -> bool:
        """Wait until somebody else's write may be over; as until()."""
        if (left := self._left()) == 0:
            return False
        hub = _hubs.here()
        if hub is None:
            wait = _hubs.waiting_for_descriptors() or _poll
            return self._still_open(wait(self._descriptor, False, True, left))
        attributes = vars(self._sock)
        queue: list[Event] = attributes.setdefault(_QUEUE, [])
        queue.append(turn := Event())  # which may be set before it is waited for: by a thread
        try:
            # Nobody sets it if the others were woken, or the write over, before it was there.
            over = attributes.get(_QUEUE) is not queue or _WRITER not in attributes
            return self._still_open(over or turn.wait(left))
        finally:
            if turn in queue:
                queue.remove(turn)

    def _left(self) -> float | None:
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 0)

    def _still_open(self, ready: bool) -> bool:
        if _fileno(self._sock) != self._descriptor:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return ready


def _slot_of(sock: Any, hub: Hub) -> Slot | None:
    """Where tasks of a hub wait for a socket; None: as for anybody else's descriptor."""
    attributes: Any = vars(sock)
    slot: Slot | None = attributes.get(_SLOT)
    if slot is None or slot.hub.closed:
        slot = attributes[_SLOT] = hub.keep(_fileno(sock))
    return slot if slot is not None and slot.hub is hub else None


def _wake_writers(sock: Any) -> None:
    for turn in vars(sock).pop(_QUEUE, ()):
        turn.set()


def _given_up(sock: Any) -> None:
    """The descriptor is about to be closed or given away: who waits for it is woken."""
    slot = vars(sock).pop(_SLOT, None)
    if slot is not None:
        slot.release()
    _hubs.forget_descriptor(_fileno(sock))
    _wake_writers(sock)


def _enter(sock: Any, size: int) -> bool:
    """Whether calls on a socket don't block, so that the caller has to wait; see the module.

    Args:
        sock: the socket; its timeout is not 0.
        size: the bytes that the call is to bring at most; others run when a task has had its share.
    """
    hub = _hubs.here()
    if hub is not None:
        hub.take_turn(min(size, RECORD))
    attributes = vars(sock)
    if _LIMIT in attributes:
        return True
    if _hubs.waiting_for_descriptors() is None:
        return False
    attributes[_LIMIT] = _gettimeout(sock)
    try:
        _settimeout(sock, 0.0)
    except OSError:  # it is closed
        del attributes[_LIMIT]
        raise
    return True


def _leave(sock: Any) -> None:
    """Make an ordinary socket of it again."""
    attributes = vars(sock)
    if _LIMIT in attributes:
        _settimeout(sock, attributes[_LIMIT])
        del attributes[_LIMIT]


class _Waiting:
    """What the methods of an SSLSocket find for its ``_sslobj`` where they may have to wait."""

    __slots__ = ("_made", "_sock")
    _made: Any
    _sock: weakref.ref[Any]

    def __init__(self, made: Any, sock: Any) -> None:
        object.__setattr__(self, "_made", made)
        object.__setattr__(self, "_sock", weakref.ref(sock))

    def do_handshake(self) -> Any:
        return self._repeat(0, False, self._made.do_handshake)

    def read(self, size: int = 1024, *buffer: Any) -> Any:
        return self._repeat(size, False, self._made.read, size, *buffer)

    def write(self, data: Any) -> Any:
        return self._repeat(RECORD, True, self._made.write, data)

    def shutdown(self) -> Any:
        return self._repeat(0, False, self._made.shutdown)

    def __getattr__(self, name: str) -> Any:
        if name == "sendfile":  # of Python 3.15: SSLSocket does without where there is none
            raise AttributeError(name)
        return getattr(self._made, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._made, name, value)

    def _repeat(self, size: int, writes: bool, call: Callable[..., Any], *arguments: Any) -> Any:
        sock = self._sock()
        limit = 0.0 if sock is None else sock.gettimeout()
        if limit == 0.0 or not _enter(sock, size):
            return call(*arguments)
        attributes = vars(sock)
        wait = _Wait(sock, limit)
        held: list[memoryview] = []  # the buffers, as a call that blocks has them all the time
        try:
            while True:
                # OpenSSL can't begin a write before the one that it is in the middle of is done.
                mine = not writes or attributes.get(_WRITER, wait) is wait
                read = False
                if mine:
                    try:
                        return call(*arguments)
                    except _want_read:
                        read = True
                    except _want_write:
                        pass
                    if writes:
                        attributes[_WRITER] = wait
                if not held:
                    held = [memoryview(each) for each in arguments if not isinstance(each, int)]
                if not mine and not wait.behind_another():
                    raise TimeoutError("The write operation timed out")
                if mine and not wait.until(read):
                    return _at_last(sock, call, *arguments)
        finally:
            if writes and attributes.get(_WRITER) is wait:
                del attributes[_WRITER]
                _wake_writers(sock)
            for view in held:
                view.release()


def _at_last(sock: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """Have a call of an ``_sslobj`` say by itself that its time is over."""
    _settimeout(sock, MOMENT)
    try:
        return call(*arguments)
    finally:
        if _fileno(sock) >= 0:
            _settimeout(sock, 0.0)


def _repeat_plain(wait: _Wait, read: bool, call: Callable[..., Any], *arguments: Any) -> Any:
    """Make a call of the socket underneath, which waits in the same way."""
    while True:
        try:
            return call(*arguments)
        except BlockingIOError:
            pass
        if not wait.until(read):
            raise TimeoutError("timed out")


def _enter_plain(sock: Any) -> bool:
    """As _enter(), for a call of the socket underneath."""
    attributes = vars(sock)
    if attributes.get("_sslobj") is not None or not attributes.get("_connected"):
        return False
    return sock.gettimeout() != 0.0 and _enter(sock, RECORD)


def _plain(made: Any, name: str, read: bool) -> Callable[..., Any]:
    """A method that waits as well when there is no TLS any more."""

    def method(self: Any, /, *arguments: Any, **keywords: Any) -> Any:
        def call() -> Any:
            return getattr(super(made, self), name)(*arguments, **keywords)

        if not _enter_plain(self):
            return call()
        return _repeat_plain(_Wait(self, self.gettimeout()), read, call)

    method.__name__ = name
    method.__qualname__ = f"{made.__qualname__}.{name}"
    method.__doc__ = getattr(made, name).__doc__
    return method


# --- the class


def _subclass(base: Any) -> Any:
    """Of ssl.SSLSocket, or of what a program has put in its place: one that waits as above."""

    class Made(base):  # type: ignore[misc]
        __doc__ = base.__doc__
        _fastsock_made = True

        @property
        def _sslobj(self) -> Any:
            made, waiting = vars(self).get("_sslobj") or (None, None)
            return waiting if _LIMIT in vars(self) or _hubs.thread_has_one() else made

        @_sslobj.setter
        def _sslobj(self, made: Any) -> None:
            attributes: Any = vars(self)
            attributes["_sslobj"] = None if made is None else (made, _Waiting(made, self))

        def sendall(self, data: Any, flags: int = 0) -> Any:
            if not _enter_plain(self):
                return super().sendall(data, flags)
            wait = _Wait(self, self.gettimeout())
            with memoryview(data) as view, view.cast("B") as left:
                sent = 0
                while sent < len(left):
                    sent += _repeat_plain(wait, False, super().send, left[sent:], flags)
            return None

        def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> Any:
            if _enter_plain(self):
                with contextlib.suppress(AttributeError, OSError):  # it is no regular file
                    file.fileno()
                    file.seek(offset)  # as os.sendfile(), which goes by offset alone
                return self._sendfile_use_send(file, offset, count)
            return super().sendfile(file, offset, count)

        def gettimeout(self) -> Any:
            attributes = vars(self)
            return attributes[_LIMIT] if _LIMIT in attributes else super().gettimeout()

        def settimeout(self, value: float | None) -> None:
            attributes: Any = vars(self)
            if _LIMIT not in attributes:
                super().settimeout(value)
            elif value != attributes[_LIMIT]:
                super().settimeout(value)
                attributes[_LIMIT] = super().gettimeout()
                super().settimeout(0.0)

        def getblocking(self) -> bool:
            return bool(self.gettimeout() != 0.0)

        def setblocking(self, flag: bool) -> None:
            self.settimeout(None if flag else 0.0)

        @property
        def timeout(self) -> Any:
            return self.gettimeout()

        def detach(self) -> Any:
            _given_up(self)
            if _fileno(self) >= 0:
                _leave(self)
            return super().detach()

        def _real_close(self) -> None:
            _given_up(self)
            super()._real_close()

    Made.__name__ = base.__name__
    Made.__qualname__ = base.__qualname__
    Made.__module__ = base.__module__
    for name in ("recv", "recv_into", "recvfrom", "recvfrom_into"):
        setattr(Made, name, _plain(Made, name, True))
    for name in ("send", "sendto"):
        setattr(Made, name, _plain(Made, name, False))
    return Made


_made: dict[Any, Any] = {}  # by base class
_left_alone: Any = None  # the last class that is not one to derive from
_want_read: type[BaseException] = BlockingIOError  # until there is ssl, which has another
_want_write: type[BaseException] = BlockingIOError


def prepare() -> None:
    """Have TLS sockets wait through hubs from now on, if the program has imported ssl.

    To be called again and again: it may be imported late, and the class replaced.
    """
    global _left_alone, _want_read, _want_write
    ssl: Any = sys.modules.get("ssl")
    if ssl is None:
        _await_import()
        return
    current = getattr(getattr(ssl, "SSLContext", None), "sslsocket_class", None)
    if current is None or current is _left_alone or hasattr(current, "_fastsock_made"):
        return
    if current not in _made:
        if not _genuine(ssl, current):
            _left_alone = current
            return
        _want_read, _want_write = ssl.SSLWantReadError, ssl.SSLWantWriteError
        _made[current] = _subclass(current)
    ssl.SSLContext.sslsocket_class = _made[current]


def adopt(sock: Any) -> None:
    """Have a TLS socket of a program's own class, which get_request() has made, wait as well."""
    global _want_read, _want_write
    ssl: Any = sys.modules["ssl"]
    cls = type(sock)
    if hasattr(cls, "_fastsock_made") or not _genuine(ssl, cls):
        return
    _want_read, _want_write = ssl.SSLWantReadError, ssl.SSLWantWriteError
    if cls not in _made:
        _made[cls] = _subclass(cls)
    made = vars(sock).get("_sslobj")
    try:
        sock.__class__ = _made[cls]
    except TypeError:  # another layout
        return
    sock._sslobj = made


def _genuine(ssl: Any, cls: Any) -> bool:
    """Whether a class is, or derives from, that of the standard library."""
    own = ssl.SSLSocket
    return (
        _accept.GENUINE is not None
        and socket.socket is _accept.GENUINE
        and isinstance(own, type)
        and (own.__module__, own.__base__) == ("ssl", _accept.GENUINE)
        and isinstance(cls, type)
        and issubclass(cls, own)
    )


class _Finder:
    """Of ``sys.meta_path``: sees ssl imported by a handler, which may use it at once."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "ssl":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(name)
        if spec is not None and hasattr(spec.loader, "__dict__"):
            loader: Any = spec.loader
            attributes = vars(loader)

            def exec_module(module: Any) -> None:
                del attributes["exec_module"]
                loader.exec_module(module)
                prepare()

            if isinstance(attributes, dict):  # an instance's: it is ssl's alone
                attributes["exec_module"] = exec_module
        return spec


_finder = _Finder()


def _await_import() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
