"""ForkingMixIn, ThreadingMixIn, and the ready-made servers of :mod:`socketserver`."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterable
from typing import Any

from fastsock import _plain
from fastsock._control import Control
from fastsock._servers import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from fastsock._types import RequestType, RetAddress


def _start_failed(server: Any) -> None:
    control = getattr(server, "_fastsock", None)  # none if mixed into a foreign server
    if isinstance(control, Control):
        control.start_failed()


def _hold(server: Any, instead: _AnyChild) -> bool:
    control = getattr(server, "_fastsock", None)
    return isinstance(control, Control) and control.hold(instead)


def _collect(children: set[int], flags: int) -> None:
    for pid in children.copy():
        try:
            ended, _ = os.waitpid(pid, flags)
            children.discard(ended)  # 0 while it runs
        except ChildProcessError:
            children.discard(pid)  # someone else has collected it
        except OSError:
            pass


class ForkingMixIn:
    """Handle each request in a process of its own. (Documented: ``socketserver.ForkingMixIn``.)

    Attributes:
        timeout: seconds; ``handle_request()`` collects children that have ended when no request
            came for that long.
        active_children: the pids of children that run or have not been collected; None before
            the first.
        max_children: with as many children, the next request waits until one ends.
        block_on_close: ``server_close()`` waits until all children have ended.
    """

    timeout: float | None = 300
    active_children: set[int] | None = None
    max_children: int = 40
    block_on_close: bool = True

    def collect_children(self, *, blocking: bool = False) -> None:
        """Collect children that have ended, by their own pids: never somebody else's child.

        Waits until fewer than max_children are left; with blocking, until none is. Called by
        the loop, it leaves the waiting to that: nothing is accepted until a child has ended.
        """
        if self.active_children is None:
            return
        _collect(self.active_children, os.WNOHANG)
        while self.active_children and len(self.active_children) >= self.max_children:
            try:
                any_child = _AnyChild(self.active_children)
            except ProcessLookupError:
                pass  # collected by someone else already
            except (OSError, AttributeError):
                _plain.wait([], 10)  # pidfds are refused, or descriptors have run out
            else:
                if not blocking and _hold(self, any_child):
                    return
                with contextlib.closing(any_child):
                    _plain.wait([any_child.fileno()], -1)
            _collect(self.active_children, os.WNOHANG)
        if blocking:
            _collect(self.active_children, 0)

    def handle_timeout(self) -> None:
        """Collect children. May be extended; do not override."""
        self.collect_children()

    def service_actions(self) -> None:
        """Collect children, from the loop. May be extended; do not override."""
        self.collect_children()

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Fork; the child finishes the request, the parent closes its copy of it.

        Raises:
            OSError: fork(2) failed. The loop reports it, ends the request and goes on.
        """
        try:
            pid = os.fork()
        except OSError:
            _start_failed(self)
            raise
        if pid:
            if self.active_children is None:
                self.active_children = set()
            self.active_children.add(pid)
            self.close_request(request)  # type: ignore[attr-defined]
            return
        # The child leaves through _exit() only: nothing of the parent's may run here.
        status = 1
        try:
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
            status = 0
        except Exception:
            self.handle_error(request, client_address)  # type: ignore[attr-defined]
        finally:
            try:
                self.shutdown_request(request)  # type: ignore[attr-defined]
            finally:
                os._exit(status)

    def server_close(self) -> None:
        """Close, then collect children; wait for all if block_on_close."""
        super().server_close()  # type: ignore[misc]
        self.collect_children(blocking=self.block_on_close)


class _AnyChild:
    """A descriptor that becomes readable when one of these children has ended.

    An epoll(7) over their pidfds (pidfd_open(2)). Collects none of them.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pidfds: list[int] = []
        self._epoll = select.epoll()
        try:
            for pid in pids:
                self._pidfds.append(os.pidfd_open(pid))
                self._epoll.register(self._pidfds[-1], select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        self._epoll.close()
        while self._pidfds:
            os.close(self._pidfds.pop())


class _Threads(list[threading.Thread]):
    """The non-daemon threads of a server that ``server_close()`` joins."""

    #: reap when the list is this long; doubled by what is alive, so that a thread is looked at
    #: a constant number of times however many there are
    _reap_at = 8

    def append(self, thread: threading.Thread) -> None:
        if len(self) >= self._reap_at:
            self.reap()
            self._reap_at = max(8, 2 * len(self))
        if thread.daemon:
            return
        super().append(thread)

    def pop_all(self) -> list[threading.Thread]:
        self[:], result = [], self[:]
        return result

    def join(self) -> None:
        for thread in self.pop_all():
            thread.join()

    def reap(self) -> None:
        self[:] = (thread for thread in self if thread.is_alive())


class _NoThreads:
    """Stands in for _Threads where nothing is to be joined."""

    def append(self, thread: threading.Thread) -> None:
        pass

    def join(self) -> None:
        pass


class ThreadingMixIn:
    """Handle each request in a thread of its own. (Documented: ``socketserver.ThreadingMixIn``.)

    Attributes:
        daemon_threads: the threads do not delay the interpreter's exit, nor ``server_close()``.
        block_on_close: ``server_close()`` waits until all threads that are not daemons have
            ended.
    """

    daemon_threads: bool = False
    block_on_close: bool = True
    _threads: _Threads | _NoThreads = _NoThreads()

    def process_request_thread(self, request: RequestType, client_address: RetAddress) -> None:
        """Finish one request and shut it down, in its thread. May be overridden."""
        try:
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
        except Exception:
            self.handle_error(request, client_address)  # type: ignore[attr-defined]
        finally:
            self.shutdown_request(request)  # type: ignore[attr-defined]

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Start a thread for the request.

        Raises:
            RuntimeError: no thread could be started. The loop reports it, ends the request and
                goes on.
        """
        if self.block_on_close:
            vars(self).setdefault("_threads", _Threads())
        thread = threading.Thread(
            target=self.process_request_thread, args=(request, client_address)
        )
        thread.daemon = self.daemon_threads
        self._threads.append(thread)
        try:
            thread.start()
        except BaseException as error:
            # A thread that never ran cannot be joined: server_close() must not meet it.
            if isinstance(self._threads, list):
                with contextlib.suppress(ValueError):
                    self._threads.remove(thread)
            if isinstance(error, Exception):
                _start_failed(self)
            raise

    def server_close(self) -> None:
        """Close, then join the threads that are not daemons if block_on_close."""
        super().server_close()  # type: ignore[misc]
        self._threads.join()


class ForkingTCPServer(ForkingMixIn, TCPServer):
    """A TCPServer with a process for each request."""


class ForkingUDPServer(ForkingMixIn, UDPServer):
    """A UDPServer with a process for each request."""


class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):
    """A UnixStreamServer with a process for each request."""


class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):
    """A UnixDatagramServer with a process for each request."""


class ThreadingTCPServer(ThreadingMixIn, TCPServer):
    """A TCPServer with a thread for each request."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer):
    """A UDPServer with a thread for each request."""


class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer):
    """A UnixStreamServer with a thread for each request."""


class ThreadingUnixDatagramServer(ThreadingMixIn, UnixDatagramServer):
    """A UnixDatagramServer with a thread for each request."""
