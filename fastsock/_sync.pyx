"""Lock, Event and Queue for tasks of any hub and for threads, mixed as they come.

What is waited for is handed over: who waits stands in a line, and whoever releases, sets or puts
gives it to the first one there, who need not look again. One that was given something and can't
take it any more (it was killed, or its thread was interrupted, before it went on) hands it on.

Threads: everything is done under the GIL, in C code that runs no Python code between looking and
doing. There is no lock inside that a signal handler or a finaliser could find taken. Whatever may
run other code (making an object may run the collector) comes before the last look.
"""

import _thread
import os
from collections import deque
from queue import Empty, Full
from types import GenericAlias

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport ceil

from fastsock._clock cimport MILLISECOND, NEVER, monotonic, nanoseconds, sooner
from fastsock._main_greenlet cimport MainScheduler
from fastsock._tasks cimport READY, TIMED_OUT, WAITING, Task

cdef enum:
    LONGEST = 1_000_000_000  # seconds; what would take longer has no timeout
    # So often a hook that waits runs signal handlers, whose signal may have come before its wait.
    SIGNALS = 500 * MILLISECOND

cdef double _TIMEOUT_MAX = _thread.TIMEOUT_MAX
cdef object _hub_of_caller = None
cdef unsigned int _forks = 0


def ask(hub_of_caller):
    """Have hub_of_caller() say by which hub its caller waits; None: it blocks its thread."""
    global _hub_of_caller
    _hub_of_caller = hub_of_caller


def _after_fork_in_child():
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


cdef nanoseconds limit_of(object timeout) except -2:
    """A timeout in seconds, or None."""
    cdef double seconds
    if timeout is None:
        return NEVER
    seconds = timeout
    if seconds != seconds:
        raise ValueError("Invalid value NaN (not a number)")
    if seconds > LONGEST:
        return NEVER
    return <nanoseconds> ceil(seconds * 1e9) if seconds > 0 else 0


cdef class Wait:
    """One who waits: a task, the greenlet of a serve loop, or a thread."""

    cdef MainScheduler hub  # None: a thread
    cdef Task task
    cdef object lock  # a thread's: what it sleeps on
    cdef bint given  # what it waits for is its own
    cdef object item  # of a queue: what it was given, or has to put
    cdef unsigned int forks
    cdef Line line  # that it stands in
    cdef Wait before
    cdef Wait behind

    cdef bint wait(self, nanoseconds limit) except -1:
        """Until it is given what it waits for; false if that did not come in time."""
        cdef nanoseconds deadline = NEVER if limit == NEVER else monotonic() + limit
        if self.hub is None:
            self.lock.acquire(True, -1 if limit == NEVER else limit / 1e9)
        elif self.task is self.hub.main:
            self.wait_in_main(deadline)
        else:
            self.hub.settle_all()  # which may suspend it, so it looks only now
            while not self.given:
                self.hub.suspend(self.task, deadline)
                if self.task.outcome == TIMED_OUT:
                    break
        return self.given

    cdef int wait_in_main(self, nanoseconds deadline) except -1:
        """In a hook, the tasks go on: one of them may be what it waits for."""
        cdef MainScheduler hub = self.hub
        cdef Task task = self.task
        cdef int outcome
        cdef nanoseconds until
        hub.account(task)
        while not self.given:
            task.outcome = WAITING
            task.deadline = until = sooner(deadline, monotonic() + SIGNALS)
            hub.fired = hub.interrupted = False
            try:
                hub.timers.set(task)
                while task.outcome == WAITING and not hub.interrupted:
                    hub.step()
            finally:
                outcome = task.outcome
                task.outcome = READY
                task.deadline = NEVER
            if outcome == TIMED_OUT and until == deadline:
                break
            PyErr_CheckSignals()  # whose handlers may wait here themselves
        return 0

    cdef int give(self) except -1:
        """For any thread; once."""
        self.given = True
        if self.hub is None:
            self.lock.release()
        elif self.task.slot is None:  # else it is sending something first
            self.hub.wake_with(self.task, READY)
        return 0


cdef Wait new_wait():
    """Of the caller. May run other code."""
    cdef Wait wait = Wait.__new__(Wait)
    wait.hub = _hub_of_caller()
    if wait.hub is None:
        wait.lock = _thread.allocate_lock()
        wait.lock.acquire()
    else:
        wait.task = wait.hub.current
    wait.forks = _forks
    return wait


cdef class Line:
    """Those who wait for the same, first come first served."""

    cdef Wait head
    cdef Wait tail

    cdef int append(self, Wait wait) except -1:
        wait.line = self
        wait.before = self.tail
        if self.tail is None:
            self.head = wait
        else:
            self.tail.behind = wait
        self.tail = wait
        return 0

    cdef int remove(self, Wait wait) except -1:
        """Unless it was given what it waits for."""
        if wait.line is None:
            return 0
        if wait.before is None:
            self.head = wait.behind
        else:
            wait.before.behind = wait.behind
        if wait.behind is None:
            self.tail = wait.before
        else:
            wait.behind.before = wait.before
        wait.line = None
        wait.before = wait.behind = None
        return 0

    cdef Wait take(self):
        """The first, who leaves it; None: nobody waits."""
        cdef Wait wait
        while self.head is not None:
            wait = self.head
            self.remove(wait)
            if wait.forks == _forks:  # or it waits in the parent process
                return wait
        return None

    cdef Py_ssize_t count(self):
        cdef Py_ssize_t number = 0
        cdef Wait wait = self.head
        while wait is not None:
            number += 1
            wait = wait.behind
        return number

    cdef int give_all(self) except -1:
        cdef Wait wait = self.take()
        while wait is not None:
            wait.give()
            wait = self.take()
        return 0


cdef class Lock:
    """A lock for tasks and threads, which get it in the order in which they asked.

    (As ``threading.Lock``.)
    """

    cdef object __weakref__
    cdef bint held
    cdef Line line

    def __cinit__(self, *args, **keywords):
        self.line = Line.__new__(Line)

    def __init__(self):
        pass

    def acquire(self, blocking=True, double timeout=-1):
        """Take the lock, wait for it if it is held; return whether it was taken.

        Args:
            blocking: if false, return False instead of waiting.
            timeout: seconds; -1: no limit.

        Raises:
            ValueError: timeout is another negative number, or given though blocking is false.
            OverflowError: timeout is greater than ``threading.TIMEOUT_MAX``.
        """
        cdef nanoseconds limit = NEVER
        cdef Wait wait
        if timeout != -1:
            if not blocking:
                raise ValueError("can't specify a timeout for a non-blocking call")
            if timeout < 0:
                raise ValueError("timeout value must be a non-negative number")
            if timeout > _TIMEOUT_MAX:
                raise OverflowError("timeout value is too large")
            limit = limit_of(timeout)
        if self.take():
            return True
        if not blocking or limit == 0:
            return False
        wait = new_wait()
        if self.take():
            return True
        self.line.append(wait)
        try:
            return wait.wait(limit)
        except BaseException:
            if wait.given:
                self.pass_on()
            raise
        finally:
            self.line.remove(wait)

    cdef bint take(self) noexcept:
        if self.held:
            return False
        self.held = True
        return True

    cdef int pass_on(self) except -1:
        cdef Wait wait = self.line.take()
        if wait is None:
            self.held = False
        else:
            wait.give()
        return 0

    def release(self):
        """Give the lock to the first who waits for it. For anybody, as of a ``threading.Lock``.

        Raises:
            RuntimeError: it is not held.
        """
        if not self.held:
            raise RuntimeError("release unlocked lock")
        self.pass_on()

    def locked(self):
        """Whether it is held."""
        return self.held

    @property
    def _waiting(self):
        """How many wait for it; for tests."""
        return self.line.count()

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *exception):
        self.release()

    def __repr__(self):
        state = "locked" if self.held else "unlocked"
        return f"<{state} fastsock.multiplexing.Lock at {id(self):#x}>"


cdef class Event:
    """A flag that tasks and threads wait for. (As ``threading.Event``.)"""

    cdef object __weakref__
    cdef bint flag
    cdef Line line

    def __cinit__(self, *args, **keywords):
        self.line = Line.__new__(Line)

    def __init__(self):
        pass

    def is_set(self):
        """Whether the flag is set."""
        return self.flag

    def set(self):
        """Set the flag, and wake all who wait for it."""
        self.flag = True
        self.line.give_all()

    def clear(self):
        """Unset the flag."""
        self.flag = False

    def wait(self, timeout=None):
        """Wait until the flag is set; return False if it was not within timeout seconds."""
        cdef nanoseconds limit = limit_of(timeout)
        cdef Wait wait
        if self.flag or limit == 0:
            return self.flag
        wait = new_wait()
        if self.flag:
            return True
        self.line.append(wait)
        try:
            return wait.wait(limit)
        finally:
            self.line.remove(wait)

    @property
    def _waiting(self):
        """How many wait for it; for tests."""
        return self.line.count()

    def __repr__(self):
        state = "set" if self.flag else "unset"
        return f"<fastsock.multiplexing.Event at {id(self):#x}: {state}>"


cdef class Queue:
    """Items that tasks and threads hand to each other, first in first out. (As ``queue.Queue``.)

    Attributes:
        maxsize: so many items are held, then ``put()`` waits; 0 or less: no limit.
    """

    cdef object __weakref__
    cdef public Py_ssize_t maxsize
    cdef object items
    cdef Line getters  # there are some only while there is no item
    cdef Line putters
    cdef Line joiners
    cdef readonly Py_ssize_t unfinished_tasks

    def __cinit__(self, *args, **keywords):
        self.items = deque()
        self.getters = Line.__new__(Line)
        self.putters = Line.__new__(Line)
        self.joiners = Line.__new__(Line)

    def __init__(self, maxsize=0):
        self.maxsize = maxsize

    @classmethod
    def __class_getitem__(cls, item):
        return GenericAlias(cls, item)

    cdef bint has_room(self) except -1:
        return self.maxsize <= 0 or <Py_ssize_t> len(self.items) < self.maxsize

    cdef int insert(self, object item) except -1:
        cdef Wait getter
        self.unfinished_tasks += 1
        getter = self.getters.take()
        if getter is None:
            self.items.append(item)
        else:
            getter.item = item
            getter.give()
        return 0

    cdef int put_back(self, object item) except -1:
        """What was given to somebody who can't take it."""
        cdef Wait getter = self.getters.take()
        if getter is None:
            self.items.appendleft(item)
        else:
            getter.item = item
            getter.give()
        return 0

    cdef object take(self):
        cdef Wait putter
        item = self.items.popleft()
        while self.putters.head is not None and self.has_room():
            putter = self.putters.take()
            if putter is not None:
                self.insert(putter.item)
                putter.give()
        return item

    def put(self, item, block=True, timeout=None):
        """Add an item; wait while the queue is full.

        Args:
            item: anything.
            block: if false, don't wait.
            timeout: seconds to wait at most; None: no limit.

        Raises:
            queue.Full: there was no room in time.
            ValueError: timeout is negative.
        """
        cdef nanoseconds limit = limit_to_block(block, timeout)
        cdef Wait wait
        if self.has_room():
            self.insert(item)
            return
        if limit == 0:
            raise Full
        wait = new_wait()
        wait.item = item
        if self.has_room():
            self.insert(item)
            return
        self.putters.append(wait)
        try:
            if not wait.wait(limit):
                raise Full
        finally:
            self.putters.remove(wait)

    def get(self, block=True, timeout=None):
        """Remove and return the oldest item; wait while there is none.

        Args:
            block: if false, don't wait.
            timeout: seconds to wait at most; None: no limit.

        Raises:
            queue.Empty: there was no item in time.
            ValueError: timeout is negative.
        """
        cdef nanoseconds limit = limit_to_block(block, timeout)
        cdef Wait wait
        if self.items:
            return self.take()
        if limit == 0:
            raise Empty
        wait = new_wait()
        if self.items:
            return self.take()
        self.getters.append(wait)
        try:
            if not wait.wait(limit):
                raise Empty
            return wait.item
        except BaseException:
            if wait.given:
                self.put_back(wait.item)
            raise
        finally:
            self.getters.remove(wait)
            wait.item = None

    def put_nowait(self, item):
        """``put(item, block=False)``."""
        self.put(item, False)

    def get_nowait(self):
        """``get(block=False)``."""
        return self.get(False)

    def qsize(self):
        """How many items there are."""
        return len(self.items)

    def empty(self):
        """Whether there is no item."""
        return not self.items

    def full(self):
        """Whether a ``put()`` would wait."""
        return not self.has_room()

    @property
    def _waiting(self):
        """How many wait for it; for tests."""
        return self.getters.count() + self.putters.count() + self.joiners.count()

    def task_done(self):
        """Tell that an item which ``get()`` has returned is done with.

        Raises:
            ValueError: it was called more often than items were put.
        """
        if self.unfinished_tasks <= 0:
            raise ValueError("task_done() called too many times")
        self.unfinished_tasks -= 1
        if self.unfinished_tasks == 0:
            self.joiners.give_all()

    def join(self):
        """Wait until ``task_done()`` was called for every item."""
        cdef Wait wait
        if self.unfinished_tasks == 0:
            return
        wait = new_wait()
        if self.unfinished_tasks == 0:
            return
        self.joiners.append(wait)
        try:
            wait.wait(NEVER)
        finally:
            self.joiners.remove(wait)


cdef nanoseconds limit_to_block(object block, object timeout) except -2:
    if not block:
        return 0
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return limit_of(timeout)
