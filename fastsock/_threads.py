"""The threads behind ThreadingMixIn: a Thread object for each request, on workers that are reused.

Builds on names of ``threading`` that are not documented, as far as an interpreter has them; where
one is missing, or a program or a tool has put its own in its place, every request gets a new
``threading.Thread``.
"""

from __future__ import annotations

import _thread
import contextlib
import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable

from fastsock import _plain, _worker
from fastsock._genuine import Genuine
from fastsock._types import Any


class RequestThread(threading.Thread):
    """The thread of one request, while the request lasts.

    What ``threading.current_thread()`` is in a handler, and what ``_threads`` of a server holds.
    It has ended when the request has; the thread underneath goes on to other requests.
    """

    _initialized = True
    _started = threading.Event()
    _started.set()
    _ident: int | None = None
    _native_id: int | None = None
    _target = None
    _args = ()
    _kwargs: dict[str, Any] = {}  # noqa: RUF012
    _daemonic = False
    # Our own. The core makes these objects without calling the constructor.
    _done = False
    _of: str | None = "process_request_thread"
    _waiters: deque[_thread.LockType] | None = None

    def __init__(self, target: Callable[..., object], daemon: bool) -> None:
        # Not Thread.__init__(), which makes an Event and a lock; what has to be there is above.
        # Only the name of the target: who keeps the thread does not keep the server.
        self._of = getattr(target, "__name__", None)
        self._daemonic = daemon

    @property
    def _is_stopped(self) -> bool:
        return self._done

    def __getattr__(self, name: str) -> Any:
        if name == "_name":  # few handlers ask
            made = threading._newname("Thread-%d")  # type: ignore[attr-defined]
            self._name = made if self._of is None else f"{made} ({self._of})"
            return self._name
        if name in ("_handle", "_os_thread_handle"):
            return _Handle(self)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def start(self) -> None:
        raise RuntimeError("threads can only be started once")

    def is_alive(self) -> bool:
        return not self._done

    def join(self, timeout: float | None = None) -> None:
        """Wait until the request has ended. (Documented: ``threading.Thread.join``.)"""
        if self is threading.current_thread():
            raise RuntimeError("cannot join current thread")
        if self._ident is None and not self._done:
            raise RuntimeError("cannot join thread before it is started")
        for pool in _worker.pools():  # the loop may have left the waking to its next poll
            pool.flush()
        ended = threading.Lock()
        ended.acquire()
        waiters: deque[_thread.LockType] = vars(self).setdefault("_waiters", deque())
        waiters.append(ended)
        try:
            if not self._done:
                if timeout is None:
                    ended.acquire()
                else:
                    ended.acquire(timeout=max(timeout, 0))
        finally:
            with contextlib.suppress(ValueError):  # who joins in a loop leaves nothing behind
                waiters.remove(ended)

    def _ended(self) -> None:
        self._done = True
        while self._waiters:
            self._waiters.popleft().release()

    # What threading does with every Thread after fork(2), by version.

    def _after_fork(self, new_ident: int | None = None) -> None:
        if new_ident is None:
            self._ended()
        else:
            self._ident = new_ident
            self._native_id = threading.get_native_id()
            handle = threading._make_thread_handle(new_ident)  # type: ignore[attr-defined]
            self._handle = self._os_thread_handle = handle

    def _reset_internal_locks(self, is_alive: bool) -> None:
        if is_alive:
            self._tstate_lock = threading.Lock()
            self._tstate_lock.acquire()
        else:
            self._ended()

    def _stop(self) -> None:
        self._ended()


class _Handle:
    """What ``Thread.__repr__()`` asks since 3.13."""

    def __init__(self, thread: RequestThread) -> None:
        self._thread = thread
        self.ident = thread.ident

    def is_done(self) -> bool:
        return self._thread._done

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)


class _TstateHandle:
    """A thread of 3.10 to 3.12 that the interpreter waits for at its exit, and that can be joined.

    The interpreter waits for the locks in ``threading._shutdown_locks``. One of its own is
    there from before the thread is started; the thread puts the one there that is released
    when its thread state is gone, as ``threading`` does.
    """

    def __init__(self, main: Callable[[], None], daemon: bool) -> None:
        self._main = main
        self._daemon = daemon
        self._beginning = threading.Lock()
        self._beginning.acquire()
        self._register(self._beginning)
        self._tstate_lock: Any = None
        try:
            self.ident = _thread.start_new_thread(self._run, ())
        except BaseException:
            self._begun()
            raise

    def _register(self, lock: Any) -> None:
        if not self._daemon:
            with threading._shutdown_locks_lock:  # type: ignore[attr-defined]
                threading._maintain_shutdown_locks()  # type: ignore[attr-defined]
                threading._shutdown_locks.add(lock)  # type: ignore[attr-defined]

    def _begun(self) -> None:
        with threading._shutdown_locks_lock:  # type: ignore[attr-defined]
            threading._shutdown_locks.discard(self._beginning)  # type: ignore[attr-defined]
        self._beginning.release()

    def _run(self) -> None:
        main, self._main = self._main, _nothing
        try:
            self._tstate_lock = _thread._set_sentinel()  # type: ignore[attr-defined]
            self._tstate_lock.acquire()
            self._register(self._tstate_lock)
        finally:
            self._begun()
        main()

    def join(self) -> None:
        with self._beginning:
            pass
        lock = self._tstate_lock
        if lock is not None:
            with lock:
                pass


def _nothing() -> None:
    pass


def _start_joinable(main: Callable[[], None], daemon: bool) -> Any:
    return threading._start_joinable_thread(main, daemon=daemon)  # type: ignore[attr-defined]


_NEEDED = ("_active", "_limbo", "_newname", "_make_invoke_excepthook", "_register_atexit",
           "_trace_hook", "_profile_hook")  # fmt: skip
_NEEDED_OLD = ("_shutdown_locks", "_shutdown_locks_lock", "_maintain_shutdown_locks",
               "_start_new_thread")  # fmt: skip
_NEEDED_NEW = ("_start_joinable_thread", "_make_thread_handle")


def _has(names: tuple[str, ...]) -> bool:
    return all(hasattr(threading, name) for name in names)


_OLD = sys.version_info < (3, 13)
_STARTER = "_start_new_thread" if _OLD else "_start_joinable_thread"
_start_thread: Callable[[Callable[[], None], bool], Any] = (
    _TstateHandle if _OLD else _start_joinable
)
# As this module finds them: a debugger or a green thread library may have its own by then.
_starter = getattr(threading, _STARTER, None)
_thread_class = Genuine(
    threading.Thread,
    ("__init__", "start", "run", "join", "is_alive", "_bootstrap", "_bootstrap_inner"),
)
_builtin: Any = type(len)

#: None: not known yet
_possible: bool | None = None


def can_reuse() -> bool:
    """Whether a thread may serve several requests without anybody noticing, here and now."""
    possible = _possible
    if possible is None:
        possible = _find_out()
    return (
        possible
        and getattr(threading, _STARTER) is _starter
        and threading.Thread is _thread_class.original
        and bool(_thread_class)
    )


def _find_out() -> bool:
    global _possible
    _possible = False
    if (
        _has(_NEEDED)
        and _has(_NEEDED_OLD if _OLD else _NEEDED_NEW)
        and type(_starter) is _builtin
        and type(_thread.start_new_thread) is _builtin
        and type(threading.get_ident) is _builtin
        and not getattr(sys.flags, "thread_inherit_context", 0)
    ):
        found: list[bool] = []
        try:
            _start_thread(lambda: found.append(_worker.resets()), False).join()
        except BaseException:  # no thread can be started just now: that says nothing
            _possible = None
            raise
        if found == [True]:
            try:
                threading._register_atexit(_at_exit)
            except RuntimeError:  # the interpreter is on its way out
                return False
            _possible = True
    return _possible


def _at_exit() -> None:
    """Before the interpreter waits for its threads: those that rest end, and none rests again."""
    global _possible
    _possible = False
    for pool in _worker.pools():
        pool.close()


class Slots:
    """The limit on the requests of a server that are under way in threads.

    An eventfd(2) is readable when one may have ended, for the loop to wait for.
    """

    def __init__(self) -> None:
        self.running = 0
        self.most = 0  # as of the last time that the loop began to wait
        self.process = os.getpid()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        return self._event

    def is_over(self) -> bool:
        """Whether one has ended; the loop asks when this is readable.

        It may be late to be so: who has ended counts that, and only then writes.
        """
        self.clear()
        return self.running < self.most

    def counted(self, target: Callable[..., object]) -> Callable[..., object]:
        """The target, counted from now on until it has run."""
        self.running += 1

        @functools.wraps(target)
        def run(*args: Any) -> None:
            try:
                target(*args)
            finally:
                self.give_back()

        return run

    def give_back(self) -> None:
        self.running -= 1
        self.wake()

    def wake(self) -> None:
        os.eventfd_write(self._event, 1)

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._event)

    def wait(self, most: int) -> None:
        """Block until fewer than ``most`` are running."""
        while True:
            self.clear()
            if self.running < most:
                return
            _plain.wait([self._event], -1)

    def __del__(self) -> None:
        os.close(self._event)  # not before: what still runs writes to it


def make_pool(idle_timeout: float, list_class: type) -> _worker.Pool:
    """The pool of a server whose threads are kept in a list_class."""
    return _worker.Pool(
        start_thread=_start_thread,
        last_words=threading._make_invoke_excepthook(),  # type: ignore[attr-defined]
        idle_timeout=idle_timeout,
        thread_class=RequestThread,
        list_class=list_class,
        genuine=_thread_class,
        starter=_STARTER,
    )
