"""What a server knows of the loop that serves it, and what it shares with it."""

from __future__ import annotations

import os
import threading
from collections import deque

from fastsock._control import Control
from fastsock._types import Any


class _LoopEnded(threading.Event):
    """The ``_BaseServer__is_shut_down`` of a server: set while no loop runs.

    Knows who cleared it, which is what a loop does when it begins, ours or a program's own. So
    ``shutdown()`` can tell a loop that runs elsewhere (wait for it) from none at all and from
    the one that is calling (waiting would never end).
    """

    def __init__(self) -> None:
        super().__init__()
        self._serving: tuple[int, int] | None = None
        self._waiters: deque[threading.Lock] = deque()

    def clear(self) -> None:
        self._serving = _this_thread()
        super().clear()

    def set(self) -> None:
        self._serving = None
        super().set()
        while self._waiters:
            self._waiters.popleft().release()

    def runs_elsewhere(self) -> bool:
        """Whether a loop runs in another thread of this process."""
        serving, here = self._serving, _this_thread()
        # After fork() only the thread that called it lives on: no other loop is in this process.
        return serving is not None and serving[0] == here[0] and serving[1] != here[1]

    def serving(self) -> tuple[int, int] | None:
        """(pid, thread) of the loop that runs; None: none does."""
        return self._serving

    def join(self) -> None:
        """Wait until the loop has ended.

        Unlike ``wait()`` this may be interrupted by a signal handler that does the same: no lock
        is held that another call would need.
        """
        ended = threading.Lock()
        ended.acquire()
        self._waiters.append(ended)
        if not self.is_set():
            ended.acquire()


def _this_thread() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def _loop_runs(server: Any) -> bool:
    """Whether a loop serves the server, ours or one of the program's own."""
    if isinstance(server._BaseServer__is_shut_down, _LoopEnded):
        serving = _serving(server)
        return serving is not None and serving[0] == os.getpid()
    return _control_of(server).is_served  # an event that the program put in place


def _serving(server: Any) -> tuple[int, int] | None:
    ended = server._BaseServer__is_shut_down
    return ended.serving() if isinstance(ended, _LoopEnded) else None


def _control_of(server: Any) -> Control:
    """What the server and its loops share.

    Made for a server whose constructor skipped ours. Past the server's own attribute hooks, which
    know nothing of it; what has no attributes gets one for this call.
    """
    attributes: dict[str, Any] = getattr(server, "__dict__", {})
    control = attributes.get("_fastsock")
    if type(control) is not Control or control.owner != id(server):
        control = attributes["_fastsock"] = Control()
        control.owner = id(server)
    return control
