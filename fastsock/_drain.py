"""``drain()``: a server stops accepting, its requests end, and what is left is cut off.

Also what ``close_timeout`` does, which is the last part of it.

Threads: a drain runs in its caller's thread, beside the loop, and looks every few milliseconds at
what is still under way: connections, threads, greenlets and child processes alike.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import struct
import sys
import threading
import time
from _socket import socket as _socket_type
from collections.abc import Callable
from dataclasses import dataclass

from fastsock import _ending
from fastsock._control import Control
from fastsock._types import Any

#: seconds between two looks, at first and later
FIRST_LOOK, LAST_LOOK = 0.001, 0.01
#: seconds that what was cut off gets to find that out, and again when greenlets were unwound
MOMENT = 0.03
#: seconds after which a loop that is not seen to be one of ours is none
FOREIGN_AFTER = 0.05
#: so many more than the kernel had completed are accepted: a busy server is to end some time
SOME_MORE = 64
#: bytes of the receive buffer that the smallest datagram takes, at the least
SMALLEST_DATAGRAM = 256
#: where struct tcp_info has the length of a listener's backlog (tcpi_unacked)
TCPI_UNACKED = struct.Struct("24xI")


@dataclass(frozen=True)
class DrainReport:
    """What became of the requests of a server that was drained; see ``BaseServer.drain()``.

    Attributes:
        finished: requests that have ended by themselves, those of the backlog among them.
        idle_closed: connections that waited for a next message when the drain began, and have
            ended.
        cut_off: requests that were still running at the deadline.
    """

    finished: int
    idle_closed: int
    cut_off: int


class Loops:
    """What is known of serve loops in the layer above."""

    def __init__(
        self, serve: Callable[[Any], object], runs: Callable[[Any], bool], at: Callable[[Any], Any]
    ) -> None:
        self.serve = serve  # a server, in the calling thread, until it is drained
        self.runs = runs  # whether one runs in this process
        self.at = at  # (pid, thread) of the one that runs, or None


def drain(
    servers: list[tuple[Any, Control]],
    timeout: float | None,
    loops: Loops,
    hurry: Callable[[], bool] = lambda: False,
) -> list[DrainReport]:
    """Drain several servers at a time; see ``BaseServer.drain()``.

    hurry: asked at every look whether the deadline is now.
    """
    deadline = None if timeout is None else time.monotonic() + max(timeout + 0.0, 0.0)
    if timeout is not None and math.isnan(timeout):
        raise ValueError("timeout is not a number")
    drains = [_Drain(server, control, loops) for server, control in servers]
    for one in drains:
        one.check_caller()
    begun: list[_Drain] = []
    try:
        for one in drains:
            one.begin(begun)
        try:
            late = not _wait(lambda: _each(_Drain.is_over, drains), deadline, hurry)
        except BaseException:  # a KeyboardInterrupt: who drains has no time left
            for one in drains:
                one.cut()
            raise
        if late:
            for one in drains:
                one.cut()
            _wait(lambda: _each(_Drain.is_gone, drains), time.monotonic() + MOMENT)
            if [unwind(one.server) for one in drains].count(True):
                _wait(lambda: _each(_Drain.is_gone, drains), time.monotonic() + MOMENT)
        return [one.report() for one in drains]
    finally:
        for one in begun:
            one.end()


def _each(is_so: Callable[[_Drain], bool], drains: list[_Drain]) -> bool:
    """Whether it is so of all; each is asked, and does what there is to be done."""
    return [is_so(one) for one in drains].count(False) == 0


class _Drain:
    """Of one server."""

    def __init__(self, server: Any, control: Control, loops: Loops) -> None:
        self.server = server
        self._control = control
        self._ledger = control.ledger
        self._loops = loops
        self._thread: threading.Thread | None = None
        self._cut = self._woken = 0
        self._ended_by_now: int | None = None

    def check_caller(self) -> None:
        """Raise RuntimeError if it would wait for the one that calls it."""
        serving = self._loops.at(self.server)
        if (
            (serving is not None and (serving[0] != os.getpid() or serving == _here()))
            or self._control.takes_here()
            or _is_handler_of(self.server, self._control)
        ):
            raise RuntimeError(
                "drain() waits for the loop and for the handlers, so none of them can call it; "
                "call it in another thread, or serve with fastsock.run(), which drains at a signal"
            )

    def begin(self, begun: list[_Drain]) -> None:
        control, ledger = self._control, self._ledger
        self._begun_at = time.monotonic()
        self._ended_before = self._ended()
        control.left = _backlog(self.server)
        begun.append(self)
        control.draining += 1
        ledger.draining += 1
        self._idle = _ending.wake_idle(ledger)
        control.wake()

    def is_over(self) -> bool:
        """Whether nothing is accepted any more, and nothing runs."""
        if self._thread is not None and self._thread.is_alive():
            return False
        if self._loops.runs(self.server):
            self._stop_foreign_loop()
            return False
        if self._control.left >= 0 and self._takes_backlog():
            return False
        return running(self.server, self._control) == 0

    def _stop_foreign_loop(self) -> None:
        # One of the program's own, which only knows shutdown()'s flag.
        if (
            not self._control.is_served
            and time.monotonic() - self._begun_at > FOREIGN_AFTER
            and not self.server._BaseServer__shutdown_request
        ):
            self.server._BaseServer__shutdown_request = True

    def _takes_backlog(self) -> bool:
        """Whether a loop runs for what waits, in a thread of its own."""
        if self._thread is None and _has_listener(self.server):
            thread = threading.Thread(target=self._serve, name="fastsock drain", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # there are too many
                self._control.left = -1
                return False
            self._thread = thread
            return True
        self._control.left = -1
        return False

    def _serve(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # it was closed in the meantime
            self._loops.serve(self.server)
        self._control.left = -1

    def cut(self) -> None:
        """At the deadline: accept nothing, and shut down what is left."""
        self._cut = max(running(self.server, self._control), int(self._ledger.is_at_datagram))
        self._ended_by_now = self._ended()
        self._woken = _ending.woken(self._ledger)
        self._stop_loop()
        terminate_children(self.server)
        _ending.cut_off(self._ledger)

    def _stop_loop(self) -> None:
        if self._loops.runs(self.server):
            self.server._BaseServer__shutdown_request = True
            self._control.stop = True
            self._control.wake()

    def is_gone(self) -> bool:
        """Whether what was cut off has ended; cuts off what was accepted meanwhile."""
        if self._loops.runs(self.server):
            self._stop_loop()
            _ending.cut_off(self._ledger)
            return False
        return running(self.server, self._control) == 0

    def report(self) -> DrainReport:
        if forks(self.server) and not self._loops.runs(self.server):
            type(self.server)._fastsock_forks(self.server)  # no loop collects children any more
        ended = self._ended() if self._ended_by_now is None else self._ended_by_now
        idle = self._idle - self._woken
        return DrainReport(
            finished=max(ended - self._ended_before - idle, 0),
            idle_closed=idle,
            cut_off=self._cut,
        )

    def _ended(self) -> int:
        """How many requests have ended."""
        if forks(self.server):  # the parent's part of each ends as soon as there is a child
            return self._control.forked - len(running_children(self.server))
        return self._ledger.finished

    def end(self) -> None:
        close_listener(self.server)
        self._control.draining -= 1
        self._ledger.draining -= 1


# --- what runs


def running(server: Any, control: Control | None) -> int:
    """How many requests are under way, by whatever is known of them."""
    attributes = getattr(server, "__dict__", {})
    known = 0
    if control is not None:
        ledger = control.ledger  # what children serve is asked of them
        known = ledger.active - sum(child.is_live for child in list(ledger.children.values()))
        known = max(known, ledger.threads)
    pool = attributes.get("_fastsock_threads")
    if pool is not None:
        known = max(known, pool.running)
    threads = attributes.get("_threads")
    if isinstance(threads, list) and hasattr(threads, "_reap_at"):  # ThreadingMixIn's
        known = max(known, sum(_is_running_thread(thread) for thread in list(threads)))
    known = max(known, sum(len(tasks.running) for tasks in _crews(server)))
    return known + len(running_children(server))


def _is_running_thread(thread: Any) -> bool:
    return isinstance(thread, threading.Thread) and thread.is_alive()


def _crews(server: Any) -> list[Any]:
    """The greenlets of a multiplexing server, by thread."""
    attributes = getattr(server, "__dict__", {})
    crews = [attributes.get("_fastsock_tasks"), *attributes.get("_fastsock_left", ())]
    return [tasks for tasks in crews if tasks is not None]


def forks(server: Any) -> bool:
    """Whether it is a ForkingMixIn's."""
    return hasattr(type(server), "_fastsock_forks")


def running_children(server: Any) -> list[int]:
    """The pids of those children of a forking server that have not ended; none is collected."""
    if not forks(server):
        return []
    return [pid for pid in tuple(server.active_children or ()) if _is_running_child(pid)]


def _is_running_child(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    except OSError:
        return False  # it was collected


def terminate_children(server: Any) -> None:
    for pid in running_children(server):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def unwind(server: Any) -> bool:
    """Have GreenletExit raised where greenlets wait that their connection's end has not woken.

    False: there is none.
    """
    crews = [tasks for tasks in _crews(server) if tasks.running]
    for tasks in crews:
        tasks.kill()
    return bool(crews)


def _here() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _is_handler_of(server: Any, control: Control) -> bool:
    """Whether the caller runs in a handler of the server."""
    if control.pool is not None and control.pool.works_here():
        return True
    if any(tasks.hub.runs_here() for tasks in _crews(server)):
        return True
    # Not current_thread(), which makes an object for a thread that has none, and keeps it.
    thread = getattr(threading, "_active", {}).get(threading.get_ident())
    target = getattr(thread, "_target", None)
    target = getattr(target, "__wrapped__", target)  # counted for max_threads
    # Not any method of the server: a thread is made of drain() itself.
    return target is not None and target == getattr(server, "process_request_thread", None)


# --- waiting


def _wait(
    over: Callable[[], bool], deadline: float | None, hurry: Callable[[], bool] = lambda: False
) -> bool:
    """Look until it is over; false: not before the deadline."""
    pause = FIRST_LOOK
    while not over():
        left = None if deadline is None else deadline - time.monotonic()
        if hurry() or (left is not None and left <= 0):
            return over()
        _sleep(pause if left is None else min(pause, left))
        pause = min(pause * 1.5, LAST_LOOK)
    return True


def _sleep(seconds: float) -> None:
    # Where the caller's thread has greenlets, they run: it may be they that are waited for.
    cooperative = sys.modules.get("fastsock._cooperative")
    sleep: Callable[[float], object] = time.sleep if cooperative is None else cooperative.sleep
    sleep(seconds)


def end_in_time(
    server: Any, control: Control | None, seconds: float, runs: Callable[[], bool]
) -> None:
    """What close_timeout is for: wait until nothing runs any more, or cut the rest off.

    runs: whether there is still something to wait for.
    """

    def over() -> bool:
        return not runs()

    if control is not None and control.pool is not None:
        control.pool.flush()
    if _wait(over, time.monotonic() + seconds):
        return
    if control is not None:
        _ending.cut_off(control.ledger)
    terminate_children(server)
    if not _wait(over, time.monotonic() + MOMENT) and unwind(server):
        _wait(over, time.monotonic() + MOMENT)


# --- listeners


def _listener_of(server: Any) -> Any:
    sock = getattr(server, "socket", None)
    return sock if isinstance(sock, _socket_type) and sock.fileno() >= 0 else None


def _has_listener(server: Any) -> bool:
    """Whether there is something to take requests from."""
    sock = getattr(server, "socket", None)
    if not isinstance(sock, _socket_type):
        return sock is None and hasattr(server, "fileno")  # a source of the program's own
    if sock.fileno() < 0:
        return False
    if sock.type == socket.SOCK_DGRAM:
        return True
    with contextlib.suppress(OSError):
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    return True


def _backlog(server: Any) -> int:
    """How many requests are taken at most that nobody has taken yet."""
    sock = _listener_of(server)
    if sock is None:
        return SOME_MORE
    try:
        if sock.type == socket.SOCK_DGRAM:
            size: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            return size // SMALLEST_DATAGRAM + SOME_MORE
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            size = TCPI_UNACKED.size
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
            return int(TCPI_UNACKED.unpack(info)[0]) + SOME_MORE
    except (OSError, struct.error):
        pass
    queue = getattr(server, "request_queue_size", None)
    return (queue if type(queue) is int and queue > 0 else socket.SOMAXCONN) + SOME_MORE


def loop_ended(server: Any, control: Control) -> None:
    """A loop's last call, while its server is drained."""
    control.left = -1
    sock = _listener_of(server)
    if sock is not None and sock.type != socket.SOCK_DGRAM:  # handlers may answer by that one
        close_listener(server)


def close_listener(server: Any) -> None:
    """Whoever comes now is refused, and does not hang."""
    sock = _listener_of(server)
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.close()
