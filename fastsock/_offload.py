"""Threads in which the tasks of a hub have work done that blocks.

A few of them at a time, since each wants the GIL as the hub does. But no call waits for ever for
one that in turn waits for it: when none has begun for a while though some wait, there are more
threads. They are daemons, end when there is nothing to do for a while, and with the hub.

Threads: what a pool knows is guarded by its lock, which nobody holds while it waits.
"""

from __future__ import annotations

import _thread
import contextvars
import os
import threading
import time
from collections import deque
from collections.abc import Callable

from fastsock._sync import Event
from fastsock._types import Any

#: threads at first, as many as asyncio's
FEW = min(32, (os.cpu_count() or 1) + 4)
#: seconds without a call that begins, after which there are half as many more
STUCK = 0.1
#: seconds after which a thread with nothing to do ends
IDLE = 10.0


class _Call:
    """A function that is to be called in a thread, and what came of it."""

    __slots__ = ("begun", "context", "done", "error", "given_up", "result", "work")

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work: Callable[[], Any] | None = work
        self.context = contextvars.copy_context()
        self.done = Event()
        self.begun = False
        self.given_up = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> bool:
        """Make the call; false in a child that it has forked, whose only thread is this one.

        Raises:
            BaseException: what it raises there. Nobody waits for what comes of it.
        """
        work, self.work = self.work, None
        assert work is not None
        process = os.getpid()
        try:
            self.result = self.context.run(work)
        except BaseException as error:
            if os.getpid() != process:
                raise
            self.error = error
        if os.getpid() != process:
            return False
        if self.given_up:
            self.result = self.error = None
        self.done.set()
        return True


class _Thread(threading.Thread):
    """Runs one call after another."""

    def __init__(self, pool: Pool, number: int, watches: bool) -> None:
        super().__init__(name=f"fastsock to_thread {number}", daemon=True)
        self._pool = pool
        self._watches = watches
        self.call: _Call | None = None
        self.awake = _thread.allocate_lock()
        self.awake.acquire()

    def run(self) -> None:
        pool = self._pool
        if self._watches:
            pool.watch()
        while True:
            call = pool.next_call(self)
            if call is None:
                if not self.awake.acquire(timeout=IDLE) and pool.retire(self):
                    return
                call, self.call = self.call, None
                if call is None:  # the pool is closed
                    return
            if not call.run():
                return


class Pool:
    """The threads of one hub."""

    def __init__(self) -> None:
        self._lock = _thread.allocate_lock()
        self._calls: deque[_Call] = deque()  # that no thread has begun
        self._resting: list[_Thread] = []
        self._threads = 0
        self._made = 0
        self._watched = False
        self._closed = False
        self._begun_at = 0.0  # when a call has begun the last time

    def run(self, work: Callable[[], Any]) -> Any:
        """Have work() called by a thread; return what it does, or raise what it raises.

        Raises:
            RuntimeError: no thread could be started, and there is none.
        """
        call = _Call(work)
        try:
            self._submit(call)
            call.done.wait()
        except BaseException:
            self._give_up(call)
            raise
        error, call.error = call.error, None
        if error is None:
            return call.result
        try:
            raise error
        finally:
            error = None  # its traceback refers to this frame

    def _submit(self, call: _Call) -> None:
        watches = False
        with self._lock:
            if self._resting:
                thread = self._resting.pop()
                thread.call = call
                self._begin(call)
                thread.awake.release()
                return
            self._calls.append(call)
            if self._threads >= FEW:
                if self._watched:
                    return
                self._watched = watches = True
        self._start(1, watches)

    def _begin(self, call: _Call) -> None:
        call.begun = True
        self._begun_at = time.monotonic()

    def _start(self, count: int, watches: bool = False) -> None:
        for _ in range(count):
            with self._lock:
                self._threads += 1
                self._made += 1
                number = self._made
            try:
                _Thread(self, number, watches).start()
            except BaseException as error:
                with self._lock:
                    self._threads -= 1
                    alone = self._threads == 0
                    if watches:
                        self._watched = False
                if alone or not isinstance(error, RuntimeError):
                    raise
                return  # one of those that there are will do it

    def _give_up(self, call: _Call) -> None:
        with self._lock:
            call.given_up = True
            if not call.begun and call in self._calls:
                self._calls.remove(call)

    def watch(self) -> None:
        """Of a thread: have more of them as long as calls wait and none begins."""
        while True:
            time.sleep(STUCK)
            with self._lock:
                if not self._calls:
                    self._watched = False
                    return
                now = time.monotonic()
                if now < self._begun_at + STUCK:
                    continue
                self._begun_at = now
                count = min(len(self._calls), max(1, self._threads // 2))
            self._start(count)

    def next_call(self, thread: _Thread) -> _Call | None:
        """Of a thread: what it is to do, or None: it rests until it is woken."""
        with self._lock:
            if self._calls:
                call = self._calls.popleft()
                self._begin(call)
                return call
            if self._closed:
                thread.awake.release()
            else:
                self._resting.append(thread)
            return None

    def retire(self, thread: _Thread) -> bool:
        """Of a thread that was not woken in time: whether it may end."""
        with self._lock:
            if thread in self._resting:
                self._resting.remove(thread)
                self._threads -= 1
                return True
        thread.awake.acquire()  # it has just been woken
        return False

    def close(self) -> None:
        """End the threads that rest; the others end when they are done."""
        with self._lock:
            self._closed = True
            resting, self._resting = self._resting, []
        for thread in resting:
            thread.awake.release()
        for thread in resting:
            thread.join()
