"""The child processes of a ForkingMixIn server: which of them have ended, without asking each."""

from __future__ import annotations

import _thread
import contextlib
import errno
import os
import select
import weakref
from collections.abc import Set as AbstractSet

_in_use: weakref.WeakSet[Children] = weakref.WeakSet()


class Children:
    """The pidfds (pidfd_open(2)) of running children in one epoll(7).

    Readable as soon as a child has ended; collects none of them. A child process closes its
    copies (``os.register_at_fork``). May be used from any thread, and in signal handlers.
    """

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._pidfds: dict[int, int] = {}  # pid -> descriptor
        self._pids: dict[int, int] = {}  # and back
        # epoll gives the GIL up. Reentrant: a signal handler may collect children, too.
        self._lock = _thread.RLock()
        _in_use.add(self)

    def fileno(self) -> int:
        """The epoll's descriptor; -1 while there is none."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def is_over(self) -> bool:
        """Whether a child has ended; the loop asks when this is readable."""
        return True

    @property
    def pids(self) -> AbstractSet[int]:
        """The children that are watched."""
        return self._pidfds.keys()

    def add(self, pid: int) -> None:
        """Watch a child.

        Raises:
            OSError: pidfds are refused (ENOSYS, EPERM; ENOSYS too where this Python does not know
                them, or a green thread library has taken epoll away), or descriptors have run out.
            ProcessLookupError: the child was collected already.
        """
        with self._lock:
            self._add(pid)

    def _add(self, pid: int) -> None:
        if pid in self._pidfds:
            return
        if not hasattr(os, "pidfd_open") or not hasattr(select, "epoll"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if self._epoll is None:
            self._epoll = select.epoll()
        descriptor = os.pidfd_open(pid)
        if pid in self._pidfds:  # by a signal handler, just now
            os.close(descriptor)
            return
        self._pidfds[pid] = descriptor
        self._pids[descriptor] = pid
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except BaseException:
            self.discard(pid)
            raise

    def ended(self) -> list[int]:
        """The children that have ended since the last call; they are no longer watched."""
        found: list[int] = []
        with self._lock:
            if self._epoll is None:
                return found
            for descriptor, _ in self._epoll.poll(0, max(1, len(self._pids))):
                pid = self._pids.get(descriptor)  # None: of a signal handler that did the same
                if pid is not None:
                    found.append(pid)
                    self.discard(pid)
        return found

    def discard(self, pid: int) -> None:
        """Do not watch it any more."""
        with self._lock:
            descriptor = self._pidfds.pop(pid, None)
            if descriptor is None:
                return
            del self._pids[descriptor]
            if self._epoll is not None:
                # Not left to close(): while a child process that was forked in between has a
                # copy, the epoll would go on reporting it.
                with contextlib.suppress(OSError):
                    self._epoll.unregister(descriptor)
            os.close(descriptor)

    def close(self) -> None:
        """Watch nothing; give the descriptors back."""
        with self._lock:
            for pid in list(self._pidfds):
                self.discard(pid)
            if self._epoll is not None:
                self._epoll.close()
                self._epoll = None

    def __del__(self) -> None:
        self.close()

    def _close_copies(self) -> None:
        # Nothing is unregistered: the epoll itself is shared with the parent.
        self._lock = _thread.RLock()  # whose owner may not be in this process
        descriptors = list(self._pids)
        self._pidfds.clear()
        self._pids.clear()
        for descriptor in descriptors:
            os.close(descriptor)
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None


def _after_fork_in_child() -> None:
    for children in list(_in_use):
        children._close_copies()


os.register_at_fork(after_in_child=_after_fork_in_child)
