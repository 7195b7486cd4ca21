"""Tasks: greenlets of one thread, each of which waits as if it had a thread of its own.

A task that must wait records for what, runs the event step itself, and switches straight to the
next task that is ready; that may be itself. The thread's own greenlet (``main``, where the serve
loop runs) is a task like the others, which waits for the loop's descriptors and time. Greenlets are
started from there only: started from one another their C stacks would nest.

Everything that another task may touch while one is suspended lies on the heap: a greenlet's part
of the C stack is overwritten then.

Threads: a scheduler is its thread's. Others may call ``wake()``, ``kill()`` and what is said to be
for them, under the GIL, which is given up in epoll_wait(2) only.
"""

from collections import deque

cimport cython

from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_INCREF, PyObject
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, malloc

from fastsock cimport _sys
from fastsock._clock cimport (
    MILLISECOND,
    NEVER,
    monotonic,
    monotonic_coarse,
    nanoseconds,
    sooner,
)
from fastsock._timers cimport Timed, Timers
from fastsock._waiter cimport Waiter, fail

cdef extern from "Python.h":
    void *PyCapsule_Import(const char *name, int no_block) except NULL
    void PyErr_Fetch(PyObject **kind, PyObject **value, PyObject **trace)
    void PyErr_Restore(PyObject *kind, PyObject *value, PyObject *trace)

# greenlet's interface for C: a table of functions, whose places are fixed (greenlet.h).
ctypedef object (*Current)()
ctypedef object (*Switch)(object greenlet, void *args, void *keywords)

cdef enum:
    GREENLET_CURRENT = 4
    GREENLET_SWITCH = 6

cdef Current _current_greenlet = NULL
cdef Switch _switch = NULL

cdef enum:
    EVENTS = 512
    # A task that was told to end so often, and has caught GreenletExit each time, is left alone.
    REFUSALS = 100


# A task that waits keeps a copy of the C stack: a try statement would take 100 bytes more of it.
ctypedef int (*Unchecked)(Scheduler scheduler, Task task) noexcept


cdef int _pass_on(Scheduler scheduler, Task task) except -1:
    return scheduler.pass_on(task)


cdef nanoseconds deadline_after(double seconds) noexcept:
    """NEVER, if that is in more than thirty years."""
    if seconds > 1e9:
        return NEVER
    return monotonic() + <nanoseconds> (max(seconds, 0.0) * 1e9)


cdef class Task(Timed):
    """A greenlet of a scheduler."""

    def __cinit__(self):
        self.outcome = READY

    @property
    def doomed(self):
        """Whether it is to end."""
        return bool(self.doomed)

    def take_call(self):
        """What it is to do; nothing else is to hold on to that while it does."""
        call, self.call = self.call, None
        return call


cdef class Scheduler(Waiter):
    """One thread's.

    greenlet_class: greenlet's. main: the greenlet that runs the serve loop. exit_class:
    GreenletExit. report: called with a task's ``about`` (None: main's) and seconds, when it has
    held the thread for longer than ``set_threshold()`` says, as soon as it gives it up. refuses:
    called with a task that does not end though it was told to.
    """

    def __cinit__(self, *arguments):
        self.poller = self.bell = -1
        self.until = NEVER
        self.threshold = NEVER

    def __init__(self, greenlet_class, main, exit_class, report, refuses):
        cdef void **interface
        global _current_greenlet, _switch
        if _switch == NULL:
            interface = <void **> PyCapsule_Import("greenlet._C_API", 0)
            _current_greenlet = <Current> interface[GREENLET_CURRENT]
            _switch = <Switch> interface[GREENLET_SWITCH]
        self.thread = PyThread_get_thread_ident()
        self.exit_class = exit_class
        self.report = report
        self.refuses = refuses
        self.greenlet_class = greenlet_class
        self.events = <_sys.epoll_event *> malloc(EVENTS * sizeof(_sys.epoll_event))
        if self.events == NULL:
            raise MemoryError
        self.timers = Timers()
        self.starting = deque()
        self.main = self.current = self.new_task(None)
        self.main.greenlet = main
        self.resumed_at = monotonic_coarse()
        self.open()

    cdef int open(self) except -1:
        cdef _sys.epoll_event event
        self.poller = _sys.epoll_create1(_sys.EPOLL_CLOEXEC)
        if self.poller < 0:
            fail(_sys.errno)
        self.bell = _sys.eventfd(0, _sys.EFD_CLOEXEC | _sys.EFD_NONBLOCK)
        if self.bell < 0:
            fail(_sys.errno)
        event.events = _sys.EPOLLIN
        event.data.u64 = BELL
        if _sys.epoll_ctl(self.poller, _sys.EPOLL_CTL_ADD, self.bell, &event) < 0:
            fail(_sys.errno)
        return 0

    def __dealloc__(self):
        if self.poller >= 0:
            _sys.close(self.poller)
        if self.bell >= 0:
            _sys.close(self.bell)
        free(self.events)

    # What a hub adds:

    cdef int settle_all(self) except -1:
        """Before the current task is suspended: send what it has written. May suspend it."""
        return 0

    cdef Task happened(self, unsigned int place, unsigned int generation, unsigned int events):
        """What an event of a slot is good for: a task to be resumed right now, or None."""
        return None

    # For the Python layer

    def new_task(self, about):
        """A task that calls tasks.run_one() once it is started."""
        cdef Task task = Task.__new__(Task)
        task.hub = self
        task.about = about
        return task

    def set_threshold(self, double seconds):
        """How long a task may hold the thread without a report."""
        self.threshold = <nanoseconds> (seconds * 1e9)

    def park(self, seconds=None):
        """Suspend the current task until wake(); false if that did not come within seconds."""
        cdef Task task = self.current
        cdef nanoseconds deadline = NEVER
        if seconds is not None:
            deadline = deadline_after(seconds)
        self.settle_all()
        self.suspend(task, deadline)
        return task.outcome != TIMED_OUT

    def wake(self, Task task not None):
        """End a task's park(), if it is in one. For any thread."""
        if task.slot is None:
            self.wake_with(task, READY)

    def pause(self):
        """Let the other tasks that are ready run."""
        self.give_way()

    def kill(self, Task task not None):
        """Have GreenletExit raised where the task waits, now and henceforth. For any thread."""
        task.doomed = True
        if task.outcome == WAITING:
            self.unlink(task)
            self.wake_with(task, READY)

    def abandon(self, list tasks):
        """After a fork, in the child, whose only thread is the one that has forked.

        If that was main, it goes on, with tasks of its own. A task's thread waits by itself from
        now on. tasks: the parent's, which are never to run here, not even to be unwound when
        nothing refers to them any more.
        """
        cdef bint was_open = self.poller >= 0
        for task in tasks:
            Py_INCREF(task)
        self.close()
        if not was_open:
            pass  # its thread has, or will have, another
        elif PyThread_get_thread_ident() == self.thread and self.current is self.main:
            self.timers = Timers()
            self.starting.clear()
            self.head = self.tail = self.main.next = None
            self.main.queued = False
            self.ready = self.quota = 0
            self.event_next = self.event_count = 0
            self.polled_at = 0
            self.alive = 0
            self.open()
        else:
            self.thread = 0

    @property
    def closed(self):
        return self.poller < 0

    def close(self):
        """Give its descriptors back: it has no task, and no loop."""
        if self.poller >= 0:
            _sys.close(self.poller)
        if self.bell >= 0:
            _sys.close(self.bell)
        self.poller = self.bell = -1

    def runs_here(self):
        """Whether the caller is a task, and can be suspended."""
        return self.here()

    def is_mine(self):
        """Whether the caller is in the scheduler's thread."""
        return PyThread_get_thread_ident() == self.thread

    cpdef int ring(self) except -1:
        if self.asleep and PyThread_get_thread_ident() != self.thread:
            _sys.eventfd_write(self.bell, 1)
        return 0

    cdef object running(self):
        return self.current

    cdef int queue_on(self, list waiting) except -1:
        cdef Task task = self.current
        self.settle_all()
        waiting.append(task)
        try:
            self.suspend(task, NEVER)
        finally:
            if task in waiting:
                waiting.remove(task)
        return 0

    cdef int wake_all(self, list waiting) except -1:
        cdef Task task
        cdef list woken = waiting[:]
        del waiting[:]
        for task in woken:
            task.hub.wake_with(task, READY)
        return 0

    cdef bint here(self) noexcept:
        return self.current is not self.main and PyThread_get_thread_ident() == self.thread

    # Switching

    @cython.final
    cdef inline int resume(self, Task task) except -1:
        self.current = task
        self.switches += 1
        self.taken = self.given = 0
        self.receives = 0
        _switch(task.greenlet, NULL, NULL)
        return 0

    @cython.final
    cdef inline int account(self, Task task) except -1:
        """The task gives the thread up: for how long has it had it?"""
        cdef nanoseconds now = monotonic_coarse()
        cdef nanoseconds held = now - self.resumed_at
        self.resumed_at = now
        if held > self.threshold and self.threshold != NEVER:
            # It may already be on somebody's list: nothing in here is to suspend it.
            running, self.current = self.current, self.main
            try:
                self.report(task.about, held / 1e9)
            finally:
                self.current = running
        return 0

    @cython.final
    cdef inline int pass_on(self, Task task) except -1:
        cdef Task other
        self.account(task)
        other = self.next_task()
        self.switches += 1
        self.taken = self.given = 0
        self.receives = 0
        if other is not task:
            self.current = other
            _switch(other.greenlet, NULL, NULL)
        return 0

    cdef int suspend(self, Task task, nanoseconds deadline) except -1:
        """Suspend the current task, which has recorded what it waits for."""
        if task.doomed:
            self.unlink(task)
            self.end(task)
        task.greenlet = _current_greenlet()  # it may have greenlets of its own
        task.outcome = WAITING
        task.deadline = deadline
        if deadline != NEVER:
            self.timers.set(task)
        if (<Unchecked> _pass_on)(self, task) < 0:
            self.interrupted_wait(task)
        task.slot = None
        task.deadline = NEVER
        if task.doomed:
            self.end(task)
        return 0

    cdef int interrupted_wait(self, Task task) except -1:
        """An exception has come instead of what the task waited for: nobody is to wake it."""
        cdef PyObject *kind
        cdef PyObject *value
        cdef PyObject *trace
        PyErr_Fetch(&kind, &value, &trace)
        self.unlink(task)
        task.outcome = READY
        task.slot = None
        task.deadline = NEVER
        PyErr_Restore(kind, value, trace)
        return -1

    cdef int end(self, Task task) except -1:
        """Raise GreenletExit in the current task."""
        task.refusals += 1
        if task.refusals > REFUSALS:
            task.refusals = 0
            self.alive -= 1
            self.timers.drop(task)
            self.refuses(task)
            Py_INCREF(task)  # its end would raise GreenletExit once more
            self.enqueue(self.main)  # which may wait for its end
            while True:
                self.pass_on(task)
        raise self.exit_class

    cdef int give_way(self) except -1:
        cdef Task task = self.current
        self.settle_all()
        if task.doomed:
            self.end(task)
        task.greenlet = _current_greenlet()
        task.outcome = READY
        self.account(task)  # of which a signal handler's error may come: it is not to be queued yet
        self.enqueue(task)
        self.pass_on(task)
        if task.doomed:
            self.end(task)
        return 0

    @cython.final
    cdef Task next_task(self):
        cdef Task task
        while True:
            if self.event_next < self.event_count:
                self.event_next += 1
                task = self.event(&self.events[self.event_next - 1])
                if task is not None:
                    return task
            elif self.polled_at != 0:
                self.expire_polled()
            elif self.quota > 0 and self.head is not None:
                self.quota -= 1
                return self.dequeue()
            else:
                self.poll()

    @cython.final
    cdef Task event(self, _sys.epoll_event *event):
        cdef unsigned int place = <unsigned int> event.data.u64
        cdef unsigned int generation = <unsigned int> (event.data.u64 >> 32)
        cdef _sys.eventfd_t rung
        if place == LOOP:
            if self.polling:
                self.fired = True
                self.enqueue(self.main)
            return None
        if place == BELL:
            _sys.eventfd_read(self.bell, &rung)
            return None
        return self.happened(place, generation, event.events)

    @cython.final
    cdef int poll(self) except -1:
        """Ask what has happened; wait for it if nobody is ready."""
        cdef int count, timeout = 0, error = 0
        cdef nanoseconds until, left, now
        self.event_next = self.event_count = 0
        if self.head is None:
            until = self.until
            if self.timers.heap:
                until = sooner(until, (<Task> self.timers.heap[0]).due)
            timeout = -1
            if until != NEVER:
                left = until - monotonic()
                timeout = 0
                if left > 0:
                    left = (left + MILLISECOND - 1) // MILLISECOND
                    timeout = INT_MAX if left > INT_MAX else <int> left
        if timeout == 0:
            count = _sys.epoll_wait(self.poller, self.events, EVENTS, 0)
            error = _sys.errno
        else:
            self.asleep = True
            with nogil:
                count = _sys.epoll_wait(self.poller, self.events, EVENTS, timeout)
                error = _sys.errno
            self.asleep = False
            self.resumed_at = monotonic_coarse()
        if count < 0:
            if error != _sys.EINTR:
                fail(error)
            count = 0
            self.interrupted = True  # main runs the signal handlers
            self.enqueue(self.main)
        self.event_count = count
        if self.until != NEVER or self.timers.heap:
            now = monotonic()
            if self.until != NEVER and now >= self.until:
                self.enqueue(self.main)
            self.polled_at = now
        self.quota = self.ready
        return 0

    cdef int expire_polled(self) except -1:
        """After the events of a poll: what has come by then is in time, however late it is seen."""
        cdef nanoseconds now = self.polled_at
        cdef size_t before = self.ready
        self.polled_at = 0
        self.expire(now)
        self.quota += self.ready - before
        return 0

    # The queue of those that are ready

    cdef void enqueue(self, Task task) noexcept:
        if task.queued:
            return
        task.queued = True
        self.ready += 1
        if self.head is None:
            self.head = self.tail = task
        else:
            self.tail.next = task
            self.tail = task

    @cython.final
    cdef Task dequeue(self):
        cdef Task task = self.head
        self.head = task.next
        task.next = None
        if self.head is None:
            self.tail = None
        task.queued = False
        self.ready -= 1
        return task

    cpdef int wake_with(self, Task task, int outcome) except -1:
        if task.outcome == WAITING:
            task.outcome = outcome
            self.enqueue(task)
            self.ring()
        return 0

    cdef int unlink(self, Task task) except -1:
        """It waits for no descriptor any more."""
        task.slot = None
        return 0

    def ended(self, Task task not None):
        """A task's last call: nothing refers to it any more."""
        self.alive -= 1
        self.timers.drop(task)
        try:
            self.settle_all()
        except OSError:
            pass  # of another connection than its own, whose peer has gone

    cdef int expire(self, nanoseconds now) except -1:
        cdef Task task
        while self.timers.heap:
            task = <Task> self.timers.heap[0]
            if task.due > now:
                return 0
            self.timers.drop(task)
            if task.deadline == NEVER or task.outcome != WAITING:
                continue
            if task.deadline > now:
                self.timers.set(task)
                continue
            self.unlink(task)
            self.wake_with(task, TIMED_OUT)
        return 0
