"""ForkingMixIn, ThreadingMixIn, and the ready-made servers of :mod:`socketserver`."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable

from fastsock import _plain, _threads, _worker
from fastsock._children import Children
from fastsock._control import Control
from fastsock._datagram_socket import sent_by
from fastsock._dispatch import (
    begin_in_child,
    begin_in_thread,
    end_request,
    failed,
    give_to_child,
    timed,
)
from fastsock._names import own_value
from fastsock._servers import _DEFAULTS, TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from fastsock._types import TYPE_CHECKING, Any, RequestType, RetAddress

if TYPE_CHECKING:
    from fastsock._ledger import Ledger


def _control_of(server: Any) -> Control | None:
    """None if a mix-in is mixed into a foreign server."""
    control = getattr(server, "__dict__", {}).get("_fastsock")
    return control if isinstance(control, Control) and control.owner == id(server) else None


def _failed(server: Any, request: Any, client_address: Any) -> None:
    """An exception has left a handler."""
    control = _control_of(server)
    if control is None:
        server.handle_error(request, client_address)
    else:
        failed(server, control, request, client_address)


def _begin(server: Any) -> int:
    """For _end_request(): when the handler has begun."""
    control = _control_of(server)
    return 0 if control is None else control.ledger.begin()


def _end_request(server: Any, request: Any, begun: int) -> None:
    """Call shutdown_request(): a request has been served, wherever its connection is then."""
    control = _control_of(server)
    if control is None:
        server.shutdown_request(request)
    else:
        end_request(server, control, request, begun)


def _close_timeout(server: Any) -> float | None:
    """Seconds; None where a program has something else by that name."""
    seconds: Any = own_value(server, "close_timeout")
    return seconds if type(seconds) in (int, float) and seconds >= 0 else None


def _start_failed(server: Any) -> None:
    control = _control_of(server)
    if control is not None:
        control.start_failed()


def _collect(server: Any, pids: Iterable[int], flags: int) -> None:
    children: set[int] = server.active_children
    control = _control_of(server)
    for pid in pids:
        try:
            ended, status = os.waitpid(pid, flags)
            children.discard(ended)  # 0 while it runs
        except ChildProcessError:
            children.discard(pid)  # someone else has collected it
            ended, status = pid, 0
        except OSError:
            continue
        if ended and control is not None:
            control.ledger.child_ended(ended, status)


def _collects_by_default(server: Any) -> bool:
    """Whether to collect a child between the hooks can be noticed by none."""
    return (
        type(server).collect_children is _DEFAULT_COLLECT
        and "collect_children" not in server.__dict__
    )


#: so many children are asked one by one; if there are more, each is watched
_FEW = 16


def _before_sleep(server: Any) -> None:
    """The loop's call before it waits: from now on a child's end is what wakes it."""
    if server.active_children and _collects_by_default(server):
        _collect_ended(server)
        _watch(server)


def _watch(server: Any) -> Children | None:
    """Have the loop learn of the end of each child; None where that cannot be."""
    watched = _watched_of(server)
    if watched is None:
        watched = vars(server)["_fastsock_children"] = Children()
    try:
        for pid in server.active_children - watched.pids:
            watched.add(pid)
    except OSError:  # pidfds are refused, or descriptors have run out: it is asked by its pid
        return None
    if (control := _control_of(server)) is not None:
        control.on_watched = _child_ended
        control.watched = watched
    return watched


def _child_ended(server: Any) -> bool:
    """The loop's call when a child has ended: no zombie waits for the next poll_interval."""
    if server.active_children is None or not _collects_by_default(server):
        return False
    _collect_ended(server)
    return True


def _watched_of(server: Any) -> Children | None:
    watched = getattr(server, "__dict__", {}).get("_fastsock_children")
    return watched if isinstance(watched, Children) else None


def _collect_ended(server: Any) -> None:
    """Collect the children that have ended; ask those one by one that are not watched."""
    children = server.active_children
    watched = _watched_of(server)
    if watched is not None:
        _collect_watched(server, watched)
    if children:
        asked = children.copy() if watched is None else children - watched.pids
        _collect(server, asked, os.WNOHANG)
        if len(asked) >= _FEW:
            _watch(server)


def _collect_watched(server: Any, watched: Children) -> None:
    ended = watched.ended()
    if not ended:
        return
    try:
        _collect(server, server.active_children.intersection(ended), os.WNOHANG)
    finally:
        # A loop that waits for these has nothing to wait for any more: they are told of once.
        if (control := _control_of(server)) is not None:
            control.let_go(watched)
            control.released()  # their pidfds


class ForkingMixIn:
    """Handle each request in a process of its own. (Documented: ``socketserver.ForkingMixIn``.)

    Attributes:
        timeout: seconds; ``handle_request()`` collects children that have ended when no request
            came for that long.
        active_children: the pids of children that run or have not been collected; None before
            the first.
        max_children: with as many children, the next request waits until one ends.
        block_on_close: ``server_close()`` waits until all children have ended.
        close_timeout: seconds for which it does; those that are left get SIGTERM. None: without
            end. (Not in the standard library.)
    """

    timeout: float | None = 300
    active_children: set[int] | None = None
    max_children: int = 40
    block_on_close: bool = True
    close_timeout: float | None = None
    _fastsock_forks = staticmethod(_child_ended)

    def collect_children(self, *, blocking: bool = False) -> None:
        """Collect children that have ended, by their own pids: never somebody else's child.

        Waits until fewer than max_children are left; with blocking, until none is. Called by
        the loop, it leaves the waiting to that: nothing is accepted until a child has ended.
        """
        if self.active_children is None:
            return
        _collect_ended(self)
        while self.active_children and len(self.active_children) >= self.max_children:
            watched = _watch(self)
            if watched is None:
                _plain.wait([], 10)
            else:
                control = None if blocking else _control_of(self)
                if control is not None and control.hold(watched):
                    if len(self.active_children) < self.max_children:
                        control.let_go(watched)  # another thread has just collected one
                    return
                _plain.wait([watched.fileno()], 50)  # or another thread may collect the last one
            _collect_ended(self)
        if blocking:
            _collect(self, self.active_children.copy(), 0)
            watched = _watched_of(self)
            if watched is not None:
                watched.close()

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
        control = _control_of(self)
        if (
            self.active_children
            and (control is None or not control.serves_here())
            and _collects_by_default(self)
        ):
            # A program's own loop has no other occasion to. Not after the fork: the new child
            # is to be found in active_children for as long as nothing else is handled.
            _collect_ended(self)
        if control is not None:
            control.ledger.share()
        try:
            pid = os.fork()
        except OSError:
            _start_failed(self)
            raise
        if pid:
            if self.active_children is None:
                self.active_children = set()
            self.active_children.add(pid)
            if control is not None:
                control.forked += 1
                control.before_sleep = _before_sleep
                give_to_child(control, request, pid)
                control.ledger.keep_children(self.active_children)
            self.close_request(request)  # type: ignore[attr-defined]
            return
        # The child leaves through _exit() only: nothing of the parent's may run here.
        status, sent = 1, 0
        try:
            if control is not None:
                begin_in_child(control, request)
                sent = sent_by(self)
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
            status = 0
        except Exception:
            _failed(self, request, client_address)
        finally:
            try:
                if control is not None:
                    control.ledger.ending(request)
                self.shutdown_request(request)  # type: ignore[attr-defined]
                if control is not None:
                    control.ledger.tell_parent(max(sent_by(self) - sent, 0))
            finally:
                os._exit(status)

    def server_close(self) -> None:
        """Close, then collect children; wait for all if block_on_close."""
        super().server_close()  # type: ignore[misc]
        blocking = self.block_on_close
        seconds = _close_timeout(self)
        if blocking and seconds is not None:
            from fastsock import _drain

            control = _control_of(self)
            _drain.end_in_time(self, control, seconds, lambda: bool(_drain.running_children(self)))
            if _drain.running_children(self):  # they do not heed SIGTERM
                _collect_ended(self)
                return
        self.collect_children(blocking=blocking)
        watched = _watched_of(self)
        if watched is not None:
            watched.close()


_DEFAULT_COLLECT = ForkingMixIn.collect_children  # which a program may replace


class _Threads(list[threading.Thread]):
    """The non-daemon threads of a server that ``server_close()`` joins."""

    #: reap when the list is this long; what is alive then is given some room, so that a request
    #: costs a constant number of looks however many threads there are
    _reap_at = 8

    def append(self, thread: threading.Thread) -> None:
        if len(self) >= self._reap_at:
            self.reap()
            self._reap_at = max(8, len(self) + len(self) // 8)
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

    A thread that has ended its request is used for another one, which cannot tell.

    Attributes:
        daemon_threads: the threads do not delay the interpreter's exit, nor ``server_close()``.
        block_on_close: ``server_close()`` waits until all threads that are not daemons have
            ended.
        close_timeout: seconds for which it does; then the connections that are left are shut
            down. None: without end. (This and the following are not in the standard library.)
        reuse_threads: if false, every request gets a new ``threading.Thread``.
        thread_idle_timeout: seconds after which a thread that waits for a request ends.
        max_threads: with as many requests under way, the server accepts nothing until one has
            ended; None, or no positive number: no limit.
    """

    daemon_threads: bool = False
    block_on_close: bool = True
    close_timeout: float | None = None
    reuse_threads: bool = True
    thread_idle_timeout: float = 10.0
    max_threads: int | None = None
    _threads: _Threads | _NoThreads = _NoThreads()

    def process_request_thread(self, request: RequestType, client_address: RetAddress) -> None:
        """Finish one request and shut it down, in its thread. May be overridden."""
        begun = _begin(self)
        counts = _counts_thread(self)
        try:
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
        except Exception:
            _failed(self, request, client_address)
        finally:
            if counts is not None:
                counts.threads -= 1
            _end_request(self, request, begun)

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Start a thread for the request.

        Raises:
            RuntimeError: no thread could be started. The loop reports it, ends the request and
                goes on.
        """
        if self.block_on_close and "_threads" not in vars(self):
            self._threads = _Threads()
        target: Callable[..., object] = self.process_request_thread
        # Not attributes of socketserver's: a class that borrows this method has none of them.
        most = getattr(self, "max_threads", None)
        reuse = getattr(self, "reuse_threads", True)
        slots = None
        if type(most) is int and most > 0:
            slots = _slots_of(self)
            slots.wait(most)  # where there is no loop to do so
            target = slots.counted(target)
        control = _control_of(self)
        if type(request) is tuple and control is not None and _ends_in_its_own_way(self):
            target = functools.wraps(target)(functools.partial(timed, control.ledger, target))
        pool = None
        if reuse and _threads.can_reuse():
            pool = _pool_of(self)
            if (
                slots is None
                and control is not None
                and begin_in_thread(self, control, _DEFAULTS, request, client_address)
            ):
                return
        thread: threading.Thread
        if pool is not None:
            thread = _threads.RequestThread(target, bool(self.daemon_threads))
        else:
            thread = threading.Thread(target=target, args=(request, client_address))
            thread.daemon = self.daemon_threads
        self._threads.append(thread)
        try:
            if pool is not None:
                pool.run(thread, target, (request, client_address), thread.daemon)
            else:
                thread.start()
        except BaseException as error:
            # A thread that never ran cannot be joined: server_close() must not meet it.
            if isinstance(self._threads, list):
                with contextlib.suppress(ValueError):
                    self._threads.remove(thread)
            if slots is not None:
                slots.give_back()
            if isinstance(error, Exception):
                _start_failed(self)
            raise
        if slots is not None and most is not None and slots.running >= most:
            slots.clear()
            slots.most = most
            if control is not None and control.hold(slots) and slots.running < most:
                slots.wake()  # one has ended meanwhile
        elif slots is not None and control is not None:
            control.let_go(slots)  # a hook has waited in the loop's place

    def server_close(self) -> None:
        """Close, then wait until the threads have ended that are not daemons, if block_on_close.

        Threads that rest are ended and joined in any case.
        """
        super().server_close()  # type: ignore[misc]
        threads = self._threads
        seconds = _close_timeout(self)
        if seconds is None or not isinstance(threads, _Threads):
            threads.join()
        else:
            _join_in_time(self, threads, seconds)
        slots = vars(self).pop("_fastsock_slots", None)
        if slots is not None and (control := _control_of(self)) is not None:
            control.let_go(slots)
        pool = vars(self).pop("_fastsock_threads", None)
        if pool is not None:
            if (control := _control_of(self)) is not None:
                control.pool = None
                control.ledger.threads_peak = max(control.ledger.threads_peak, pool.peak)
            for ended in pool.close():
                ended.join()


def _ends_in_its_own_way(server: Any) -> bool:
    """Whether process_request_thread() may be none that counts a datagram."""
    if "process_request_thread" in vars(server):
        return True
    return getattr(type(server), "process_request_thread", None) is not _DEFAULTS.thread_target


def _counts_thread(server: Any) -> Ledger | None:
    """Count the calling thread as one that serves, if there is no pool to count it."""
    control = _control_of(server)
    if control is None or control.pool is not None:
        return None
    ledger = control.ledger
    ledger.threads += 1
    ledger.threads_peak = max(ledger.threads_peak, ledger.threads)
    return ledger


def _join_in_time(server: Any, threads: _Threads, seconds: float) -> None:
    from fastsock import _drain

    if threading.current_thread() in threads:
        raise RuntimeError("cannot join current thread")

    def alive() -> bool:
        return any(thread.is_alive() for thread in list(threads))

    _drain.end_in_time(server, _control_of(server), seconds, alive)
    threads.reap()


def _slots_of(server: Any) -> _threads.Slots:
    attributes = vars(server)
    slots: _threads.Slots | None = attributes.get("_fastsock_slots")
    if slots is None or slots.process != os.getpid():  # after a fork those are the parent's
        slots = attributes["_fastsock_slots"] = _threads.Slots()
    return slots


def _pool_of(server: Any) -> _worker.Pool:
    attributes = vars(server)
    pool: _worker.Pool | None = attributes.get("_fastsock_threads")
    if pool is None or pool.closed:  # by the server_close() of a copy
        seconds = getattr(server, "thread_idle_timeout", None)
        if not isinstance(seconds, int | float):
            seconds = ThreadingMixIn.thread_idle_timeout
        pool = attributes["_fastsock_threads"] = _threads.make_pool(seconds, _Threads)
        if (control := _control_of(server)) is not None:
            control.pool = pool  # so that its loop wakes the threads when it waits itself
    return pool


_DEFAULTS.set_threads(ThreadingMixIn.process_request, ThreadingMixIn.process_request_thread)


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
