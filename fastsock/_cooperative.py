"""What handlers may call that waits: sleep, wait, create_connection, to_thread and spawn.

In a task of a multiplexing server, and in a hook of its loop, others run meanwhile. Called anywhere
else they simply block the thread, so that the same handler runs under ThreadingMixIn.
"""

from __future__ import annotations

import contextvars
import errno
import functools
import os
import select
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable

from fastsock import _channel, _hubs, _sync
from fastsock._connection import Connection
from fastsock._hub import Hub
from fastsock._offload import Pool
from fastsock._sync import Event
from fastsock._tasks import Task
from fastsock._types import TYPE_CHECKING, Any

if TYPE_CHECKING or sys.version_info < (3, 12):
    from typing import ParamSpec, TypeVar
else:  # they are there without typing, which is as large as all that is imported here
    from _typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_sync.ask(_hubs.of_caller)

#: seconds; what would take longer has no timeout
LONGEST = 1_000_000

#: as of socket.create_connection(): what socket.setdefaulttimeout() says
_DEFAULT: Any = vars(socket)["_GLOBAL_DEFAULT_TIMEOUT"]


def sleep(seconds: float) -> None:
    """Do nothing for so many seconds; 0: let the others run that are ready, once.

    (As ``time.sleep``.)

    Raises:
        ValueError: seconds is negative.
    """
    hub = _hubs.of_caller()
    if hub is None:
        time.sleep(seconds)
    elif seconds < 0:
        raise ValueError("sleep length must be non-negative")
    elif seconds != 0:
        Event().wait(seconds)
    elif hub.runs_here():
        hub.pause()


# --- descriptors


def wait(what: Any, read: bool = False, write: bool = False, timeout: float | None = None) -> bool:
    """Wait until a descriptor can be read from or written to without blocking.

    As poll(2): it is ready as well at the end of a stream and when there is an error, and a regular
    file always is. What ``rfile`` has received already does not count.

    Args:
        what: a descriptor, or an object with a method ``fileno()``: a socket, a file.
        read: wait until it can be read from, or accepted from.
        write: wait until it can be written to. With both, until one of the two is possible.
        timeout: seconds; None: no limit.

    Returns:
        False if it was not ready in time.

    Raises:
        ValueError: neither read nor write is true.
        OSError: it is closed (EBADF).
        TypeError: what is neither an int nor has a method fileno().
    """
    if not read and not write:
        raise ValueError("nothing to wait for: neither read nor write is true")
    descriptor: int = what if isinstance(what, int) else _fileno(what)
    if timeout is not None:
        timeout = None if timeout > LONGEST else max(0.0, timeout)
    hub = _hubs.of_caller()
    if hub is None:
        return _poll(descriptor, read, write, timeout)
    if hub.runs_here():
        hub.take_turn(1)
    if _poll(descriptor, read, write, 0):
        return True
    if timeout == 0:
        return False
    # A copy: its number is nobody else's, and does not become somebody else's. As in poll(2), what
    # is closed meanwhile is waited for all the same.
    copy = os.dup(descriptor)
    try:
        return _wait_by(hub, copy, read, write, timeout)
    finally:
        os.close(copy)


def _fileno(what: Any) -> int:
    try:
        method = what.fileno
    except AttributeError:
        raise TypeError(f"a descriptor or an object with fileno(), not {what!r}") from None
    return method()  # type: ignore[no-any-return]


def _poll(descriptor: int, read: bool, write: bool, timeout: float | None) -> bool:
    if descriptor < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    poller = select.poll()
    poller.register(descriptor, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    ready = poller.poll(None if timeout is None else timeout * 1000)
    if ready and ready[0][1] & select.POLLNVAL:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return bool(ready)


def _wait_by(hub: Hub, descriptor: int, read: bool, write: bool, timeout: float | None) -> bool:
    if hub.runs_here():
        return hub.wait_for_descriptor(descriptor, read, write, timeout)
    return hub.wait_in_main(descriptor, read, write, timeout)


# --- connections


def create_connection(
    address: tuple[str | None, int | str],
    timeout: float | None = _DEFAULT,
    source_address: tuple[str, int] | None = None,
    *,
    all_errors: bool = False,
) -> Connection:
    """Connect to a TCP server. (As ``socket.create_connection``.)

    Args:
        address: host and port. A name is looked up in another thread, for which there is no
            timeout; each of its addresses is tried in turn.
        timeout: seconds for each attempt, and the timeout of the connection from then on; None: no
            limit; left out: ``socket.getdefaulttimeout()``.
        source_address: host and port to connect from; port 0: any.
        all_errors: raise an ExceptionGroup of the errors of all addresses, instead of the last one.

    Returns:
        A ``fastsock.Connection``, whose calls let others run while they wait, as those of the
        handler's own do.

    Raises:
        OSError: no address could be connected to; TimeoutError: not in time.
        ValueError: the timeout is negative; all_errors before Python 3.11.
    """
    if all_errors and sys.version_info < (3, 11):
        raise ValueError("there is no ExceptionGroup before Python 3.11")
    host, port = address
    hub = _hubs.of_caller()
    limit: float | None = socket.getdefaulttimeout() if timeout is _DEFAULT else timeout
    errors: list[OSError] = []
    try:
        for family, kind, proto, _, found in _look_up(hub, host, port):
            try:
                return _connect(hub, (family, kind, proto), found, limit, source_address)
            except OSError as error:
                if not all_errors:
                    errors.clear()
                errors.append(error)
        if not errors:
            raise OSError("getaddrinfo returns an empty list")
        if all_errors and sys.version_info >= (3, 11):
            raise ExceptionGroup("create_connection failed", errors)  # noqa: F821
        raise errors[0]
    finally:
        errors.clear()  # their tracebacks refer to this frame


def _look_up(hub: Hub | None, host: str | None, port: int | str) -> list[Any]:
    """The addresses of a host, as getaddrinfo(3) says."""
    if hub is not None:
        try:
            flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
            return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, flags)
        except socket.gaierror:
            pass  # a name
    return to_thread(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)


def _connect(
    hub: Hub | None, kind: tuple[int, int, int], address: Any, limit: float | None, source: Any
) -> Connection:
    sock = socket.socket(*kind)
    try:
        sock.settimeout(limit)
        if source:
            _bind(hub, sock, source)
        if hub is None or limit == 0:
            sock.connect(address)
        else:
            sock.settimeout(0)
            error = sock.connect_ex(address)
            if error == errno.EINPROGRESS:
                seconds = None if limit is not None and limit > LONGEST else limit
                if not _wait_by(hub, sock.fileno(), False, True, seconds):
                    raise TimeoutError("timed out")
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                raise OSError(error, os.strerror(error))
            sock.settimeout(limit)
        connection = _channel.adopt(Connection, sock)
    except BaseException:
        sock.close()
        raise
    if hub is not None:
        hub.adopt(connection)
    return connection


def _bind(hub: Hub | None, sock: socket.socket, address: Any) -> None:
    if hub is not None:
        try:
            socket.getaddrinfo(address[0] or None, 0, sock.family, 0, 0, socket.AI_NUMERICHOST)
        except socket.gaierror:  # a name, which bind() looks up
            to_thread(sock.bind, address)
            return
    sock.bind(address)


# --- threads


_pools: weakref.WeakKeyDictionary[Hub, Pool] = weakref.WeakKeyDictionary()


def to_thread(function: Callable[_P, _T], /, *args: _P.args, **keywords: _P.kwargs) -> _T:
    """Have another thread call a function that blocks or computes; return what it returns.

    Context variables have the values there that they have here. (As ``asyncio.to_thread``.) If the
    handler is unwound meanwhile the call goes on, and what comes of it is dropped. Where there are
    no others to run meanwhile, the caller's own thread makes the call.

    At a time as many calls run as there are processors, and four more, but at most 32; further ones
    wait, unless none has begun for 0.1 seconds.

    Args:
        function: what to call. What it uses of this module blocks there.
        args, keywords: its arguments.

    Raises:
        RuntimeError: no thread could be started.
        BaseException: what the function raises.
    """
    hub = _hubs.of_caller()
    if hub is None:
        return contextvars.copy_context().run(function, *args, **keywords)
    pool = _pools.get(hub)
    if pool is None:
        pool = _pools[hub] = Pool()
        _hubs.at_close(hub, pool.close)
    result: _T = pool.run(functools.partial(function, *args, **keywords))
    return result


class Spawned:
    """What ``spawn()`` has started."""

    def __init__(self, function: Callable[[], object], name: str) -> None:
        self._function: Callable[[], object] | None = function
        self._name = name
        self._ended = Event()
        self._task: Task | None = None
        self._thread: threading.Thread | None = None

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended.is_set() if self._thread is None else self._thread.is_alive()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; return False if it has not within timeout seconds.

        (As ``threading.Thread.join``, which returns None.)

        Args:
            timeout: seconds; None: no limit.

        Raises:
            RuntimeError: it would wait for itself.
        """
        hub = _hubs.here()
        if self._task is not None and hub is not None and hub.current is self._task:
            raise RuntimeError("cannot join current task")
        if self._thread is not None and self._thread is threading.current_thread():
            raise RuntimeError("cannot join current thread")
        begin = time.monotonic()
        if not self._ended.wait(timeout):
            return False
        if self._thread is not None:  # which has returned from the function, and is about to end
            left = None if timeout is None else max(0.0, begin + timeout - time.monotonic())
            self._thread.join(left)
        return not self.is_alive()

    def left_behind(self) -> None:
        """It will never end: its thread has."""
        self._ended.set()

    def __str__(self) -> str:
        return f"{self._name}, spawned"

    def _start_thread(self) -> None:
        assert self._function is not None
        self._thread = _Thread(self._function, self._name, self._ended)
        self._function = None
        self._thread.start()

    def _start_task(self, hub: Hub, starter: Task) -> None:
        self._task = starter.tasks.start(self._run, self)
        if starter.doomed:
            hub.kill(self._task)

    def _run(self) -> None:
        """In its task."""
        function, self._function = self._function, None
        task = self._task
        assert task is not None and function is not None
        try:
            if not task.doomed:
                function()
        finally:
            self._ended.set()


class _Thread(threading.Thread):
    def __init__(self, function: Callable[[], object], name: str, ended: Event) -> None:
        super().__init__(target=function)
        self.name = f"{self.name.partition(' ')[0]} ({name})"
        self._is_over = ended

    def run(self) -> None:
        try:
            super().run()
        finally:
            self._is_over.set()


def spawn(function: Callable[_P, object], /, *args: _P.args, **keywords: _P.kwargs) -> Spawned:
    """Have a function called beside the caller: in a task of the same server, or in a thread.

    Where handlers are tasks it is one more of the server's, which waits for it at its end, or
    unwinds it, as it does with handlers. Elsewhere it is a ``threading.Thread``, a daemon if the
    caller's is one. An exception that leaves the function goes to ``threading.excepthook``.

    Args:
        function: what to call. What it returns is dropped.
        args, keywords: its arguments.

    Returns:
        What can be asked whether it has ended, and waited for.

    Raises:
        RuntimeError: no thread could be started.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    spawned = Spawned(functools.partial(function, *args, **keywords), name)
    hub = _hubs.here()
    if hub is not None and hub.current.tasks is not None:
        spawned._start_task(hub, hub.current)
    else:
        spawned._start_thread()
    return spawned
