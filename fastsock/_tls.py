"""TLS sockets that wait through the hub.

``SSLContext.wrap_socket()`` detaches the connection and makes an ``ssl.SSLSocket`` of its
descriptor, of the class ``SSLContext.sslsocket_class``, whose ``_create()`` it calls. From when a
multiplexing server is served that makes instances of subclasses made here. Such a one is as any
other until something of it has to wait in a task, or in the loop of such a server. Then it is
entered: its descriptor does not block any more, and what is tried on it raises SSLWantReadError or
SSLWantWriteError; the caller waits for that and tries again. It waits as the place where it is
called does: a task by letting others run, a thread that has none in poll(2). Only ``gettimeout()``
goes on to say what it said.

What waits is the object behind an SSLSocket, its ``_sslobj``. The methods of SSLSocket, and those
of a program's own subclass, run as they are, and find one that waits.

``ssl`` is not imported before the program does it.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import functools
import os
import select
import socket
import sys
import time
import weakref
from collections.abc import Callable

from fastsock import _accept, _hubs, _visitors
from fastsock._sync import Event
from fastsock._types import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastsock._descriptors import Slot
    from fastsock._hub import Hub

#: bytes that a call of OpenSSL's brings at most
RECORD = 1 << 14
#: seconds; a timeout that is over as soon as it has begun
MOMENT = 1e-9
#: seconds between two attempts where the kernel has nothing to wait for
PAUSE = 0.005

# The key in an instance's dictionary under which its timeout is, once it is entered.
_LIMIT = "_fastsock_limit"
# The same for who is in the middle of a write; the turns of the tasks that are to write next; and
# for its slot in a hub.
_WRITER = "_fastsock_writer"
_QUEUE = "_fastsock_queue"
_SLOT = "_fastsock_slot"
# There once its descriptor is about to be closed or given away.
_GONE = "_fastsock_gone"
# And for what stands before its _sslobj where something may have to wait.
_WAITING = "_fastsock_waiting"

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
            return self._without_slot(read, left)
        return self._still_open(hub.wait_at(slot, read, not read, left))

    def behind_another(self) -> bool:
        """Wait until somebody else's write may be over; as until()."""
        if (left := self._left()) == 0:
            return False
        if _hubs.here() is None:
            return self._without_slot(False, left)
        attributes = vars(self._sock)
        queue: list[Event] = attributes.setdefault(_QUEUE, [])
        queue.append(turn := Event())  # which may be set before it is waited for: by a thread
        try:
            # Nobody sets it if the others were woken, or the write over, before it was there.
            over = attributes.get(_QUEUE) is not queue or _WRITER not in attributes
            return self._still_open(over or _GONE in attributes or turn.wait(left))
        finally:
            if turn in queue:
                queue.remove(turn)

    def pause(self) -> bool:
        """Wait for a moment; false if the time is over."""
        if self._left() == 0:
            return False
        Event().wait(PAUSE)
        return self._still_open(True)

    def _without_slot(self, read: bool, left: float | None) -> bool:
        wait = _hubs.waiting_for_descriptors()
        if wait is None:  # a thread's, which a close does not wake, as ever
            self._still_open(True)
            return self._still_open(_poll(self._descriptor, read, not read, left))

        def if_open(*arguments: Any) -> bool:
            """wait(), from when _given_up() would find that somebody does."""
            return self._still_open(True) and wait(*arguments)

        ready = _visitors.wait_by(if_open, self._sock, self._descriptor, not read, left)
        return self._still_open(ready)

    def _left(self) -> float | None:
        if self._deadline is None:
            return None
        return max(self._deadline - time.monotonic(), 0)

    def _still_open(self, ready: bool) -> bool:
        if _GONE in vars(self._sock) or _fileno(self._sock) != self._descriptor:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return ready


def _slot_of(sock: Any, hub: Hub) -> Slot | None:
    """Where tasks of a hub wait for a socket; None: as for anybody else's descriptor."""
    attributes: Any = vars(sock)
    slot: Slot | None = attributes.get(_SLOT)
    if slot is None or slot.hub.closed:
        slot = attributes[_SLOT] = hub.keep(_fileno(sock))
        if _GONE in attributes:  # and this one may have been too late to be released
            _release_slot(sock)
    return slot if slot is not None and slot.hub is hub else None


def _release_slot(sock: Any) -> None:
    slot = vars(sock).pop(_SLOT, None)
    if slot is not None:
        slot.release()


def _wake_writers(sock: Any) -> None:
    for turn in vars(sock).pop(_QUEUE, ()):
        turn.set()


def _given_up(sock: Any) -> None:
    """The descriptor is about to be closed or given away: who waits for it is woken.

    A thread that closes may be kept from it after this. So who is woken, or begins to wait, looks
    whether there is _GONE, not only at the descriptor, which is there still.
    """
    vars(sock)[_GONE] = True
    _release_slot(sock)
    _visitors.forget(sock)
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


def _await_connection(sock: Any, wait: _Wait, error: int) -> int:
    """Wait after a connect(2) that has failed with this; return its errno, EAGAIN: time is over."""
    if error == errno.EAGAIN:  # the backlog of a Unix listener is full
        return 0 if wait.pause() else errno.EAGAIN
    while wait.until(read=False):
        if failed := int(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            if sock.gettimeout() is None:
                # Where connect(2) doesn't block, the one after it only hears that it has failed.
                _socket.socket.connect_ex(sock, sock.getsockname())
            return failed
        with contextlib.suppress(OSError):  # it was an event of before
            sock.getpeername()
            return 0
    return errno.EAGAIN


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
    """Of ssl.SSLSocket: one that waits as above."""

    class Made(base):  # type: ignore[misc]
        __doc__ = base.__doc__
        _fastsock_made = True

        @property
        def _sslobj(self) -> Any:
            attributes = vars(self)
            waits = _LIMIT in attributes or _hubs.thread_has_one()
            return attributes.get(_WAITING if waits else "_sslobj")

        @_sslobj.setter
        def _sslobj(self, made: Any) -> None:
            attributes: Any = vars(self)
            attributes["_sslobj"] = made
            attributes[_WAITING] = None if made is None else _Waiting(made, self)

        def _real_connect(self, address: Any, connect_ex: bool) -> Any:
            if self.gettimeout() == 0.0 or not _enter(self, 0):
                return super()._real_connect(address, connect_ex)
            wait = _Wait(self, self.gettimeout())
            while True:
                try:
                    error = super()._real_connect(address, connect_ex)
                except BlockingIOError as blocked:
                    error = blocked.errno
                if error not in (errno.EINPROGRESS, errno.EAGAIN):
                    return error
                if failed := _await_connection(self, wait, error):
                    if connect_ex:
                        return failed
                    if failed == errno.EAGAIN:
                        raise TimeoutError("timed out")
                    raise OSError(failed, os.strerror(failed))
                self._sslobj = None
                if error == errno.EINPROGRESS:
                    # The next connect(2) says that it is connected; no name is looked up again.
                    address = self.getpeername()

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
            descriptor = super().detach()
            # Not before: a task whose call is on its way would block its thread.
            if descriptor >= 0 and vars(self).get(_LIMIT, 0.0) is None:
                os.set_blocking(descriptor, True)
            return descriptor

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


_made: dict[Any, Any] = {}  # by base class; that itself if there can be none
_prepared: Any = None  # the ssl.SSLSocket whose _create() is ours, or which is left alone
_want_read: type[BaseException] = BlockingIOError  # until there is ssl, which has another
_want_write: type[BaseException] = BlockingIOError


def _waiting(ssl: Any, cls: Any) -> Any:
    """A subclass of ssl.SSLSocket, or that itself, that waits as above; cls if there is none."""
    global _want_read, _want_write
    if hasattr(cls, "_fastsock_made") or not _genuine(ssl, cls):
        return cls
    own = ssl.SSLSocket
    if own not in _made:
        _want_read, _want_write = ssl.SSLWantReadError, ssl.SSLWantWriteError
        _made[own] = _subclass(own)
    if cls not in _made:
        _made[cls] = _derive(cls, _made[own])
    return _made[cls]


def _derive(cls: Any, waiting: Any) -> Any:
    """A program's class, with one that waits behind it: its own methods come first."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    try:
        return type(cls)(cls.__name__, (cls, waiting), names)
    except Exception:  # its metaclass, or __init_subclass__, refuses
        return cls


def prepare() -> None:
    """Have TLS sockets wait through hubs from now on, if the program has imported ssl.

    To be called again and again: it may be imported late.
    """
    global _prepared
    ssl: Any = sys.modules.get("ssl")
    if ssl is None:
        _await_import()
        return
    own: Any = getattr(ssl, "SSLSocket", None)
    if own is not _prepared:
        _prepared = own
        create = getattr(own, "__dict__", {}).get("_create")
        if isinstance(create, classmethod) and _genuine(ssl, own):
            own._create = _creating(ssl, create)


def _creating(ssl: Any, genuine: Any) -> Any:
    """``SSLSocket._create()``: of a class that waits."""
    function = genuine.__func__

    @functools.wraps(function)
    def _create(cls: Any, *arguments: Any, **keywords: Any) -> Any:
        return function(_waiting(ssl, cls), *arguments, **keywords)

    return classmethod(_create)


def adopt(sock: Any) -> None:
    """Have a TLS socket that get_request() has made in a way of its own wait as well."""
    cls = type(sock)
    made = _waiting(sys.modules["ssl"], cls)
    if made is not cls:
        try:
            sock.__class__ = made
        except TypeError:  # another layout
            return
        sock._sslobj = vars(sock).get("_sslobj")


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
