"""Threads that serve one request after another, each of which finds its thread as good as new.

A request has a thread for as long as it lasts. When it ends the thread rests, and the next request
takes the one that has rested for the shortest time; there is no queue. While a thread rests,
``threading`` does not know of it. While it works, ``threading.current_thread()`` is an object that
was made for the request: its name, its attributes and its end are the request's.

What a handler may leave behind in a thread is undone in between (``_reset``). Where that cannot be
done, which ``resets()`` finds out, the layer above starts a new thread for every request.

Threads: all state changes under the GIL. ``Worker.wake`` is released by whoever took the worker
off the list of those that rest, so once per acquisition.
"""

import _thread
import os
import sys
import threading
import weakref

from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport PyObject

from fastsock._turn cimport await_turn, starts_thread, turn_over

cdef extern from *:
    """
    #include <signal.h>
    #include <pthread.h>

    /* What threading.local keeps for the running thread: in the dictionary of the thread state up
     * to 3.12, since then in two fields of their own, whose loss is what ends a thread's share. */
    static int fastsock_has_locals(void) {
        PyThreadState *state = PyThreadState_Get();
    #if PY_VERSION_HEX >= 0x030D0000
        if (state->threading_local_key || state->threading_local_sentinel)
            return 1;
    #endif
        return state->dict != NULL && PyDict_GET_SIZE(state->dict) > 0;
    }

    static void fastsock_clear_locals(void) {
        PyThreadState *state = PyThreadState_Get();
    #if PY_VERSION_HEX >= 0x030D0000
        Py_CLEAR(state->threading_local_key);
        Py_CLEAR(state->threading_local_sentinel);
    #endif
        if (state->dict != NULL)
            PyDict_Clear(state->dict);
    }

    /* Whether PyThreadState_SetAsyncExc() has left something to be raised. */
    static int fastsock_has_raised(void) {
        return PyThreadState_Get()->async_exc != NULL;
    }

    /* Whether the thread has hooks that a new one would not have. */
    static int fastsock_has_hooks(void) {
        PyThreadState *state = PyThreadState_Get();
        return state->c_tracefunc != NULL || state->c_profilefunc != NULL
            || state->async_gen_firstiter != NULL || state->async_gen_finalizer != NULL
            || state->coroutine_origin_tracking_depth != 0;
    }
    """
    bint fastsock_has_locals()
    void fastsock_clear_locals()
    bint fastsock_has_raised()
    bint fastsock_has_hooks()
    object PyContext_New()
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

cdef extern from "Python.h":
    ctypedef object (*newfunc)(PyTypeObject *, PyObject *, PyObject *)
    ctypedef struct PyTypeObject:
        newfunc tp_new

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    enum:
        SIG_SETMASK
    int pthread_sigmask(int how, const sigset_t *new, sigset_t *old)

cdef double TIMEOUT_MAX = threading.TIMEOUT_MAX  # seconds

cdef enum:
    # With so many datagrams under way, the next waits a moment for one of their threads before
    # it gets a new one: handlers that are quick need no more, however many come at once.
    MANY = 64
    MOMENT = 1_000  # microseconds
    ROUNDS = 8  # clearing runs finalizers, which may fill what was just cleared

# Counts the forks that led to this process: a worker that finds itself in a child, where it is the
# only thread, ends as the thread of the standard library would.
cdef unsigned long _generation = 0

# _active is made anew by threading in a child process: looked up each time.
cdef dict _threading = vars(threading)
cdef tuple _NOTHING = ()
# Since 3.14 a Thread gives the operating system's thread its name.
cdef object _set_os_name = getattr(_thread, "set_name", None)

# The pools of this process; they hold nothing of the servers.
cdef object _pools = weakref.WeakSet()


def _after_fork_in_child():
    global _generation
    cdef Pool pool
    _generation += 1
    for pool in list(_pools):
        pool.resting.clear()
        pool.resting_daemons.clear()
        pool.workers.clear()
        pool.running = 0
        pool.pending = None
        pool.newest = None
        pool.feeding = None
        pool.awaits_rest = False
        pool.rested = NULL  # whoever waited for it is not in this process
        if pool.feeder is not None:
            pool.feeder.abandon()
            pool.feeder = None


# In Python, so that what is to be raised is raised in there: only dropping it would leave the
# interpreter signalled, which 3.11 cannot stand while it traces.
cdef object _raise_here = eval("lambda: [None for _ in (1, 2, 3)]")


cdef int _drop_raised() except -1:
    """An exception that was meant for a request that has ended is nobody's any more."""
    cdef int round_ = 0
    while fastsock_has_raised() and round_ < ROUNDS:
        round_ += 1
        try:
            _raise_here()
        except BaseException:
            pass
    return 0


cdef int reset_hooks() except -1:
    """Have no hooks and nothing to raise that a new thread would not have."""
    if fastsock_has_hooks():
        sys.settrace(None)
        sys.setprofile(None)
        sys.set_asyncgen_hooks(None, None)
        sys.set_coroutine_origin_tracking_depth(0)
    if fastsock_has_raised():
        _drop_raised()
    return 0


cdef bint _reset() except -1:
    """Leave to the next request what a new thread would have; false if that cannot be done."""
    cdef int round_ = 0
    reset_hooks()
    asyncio = sys.modules.get("_asyncio")
    # Up to 3.13 it remembers the running loop beside the thread's dictionary.
    if asyncio is not None and asyncio._get_running_loop() is not None:
        asyncio._set_running_loop(None)
    while fastsock_has_locals() and round_ < ROUNDS:
        fastsock_clear_locals()
        round_ += 1
    if fastsock_has_raised():
        _drop_raised()
    return not fastsock_has_locals()


cdef int _name_os_thread(object thread) except -1:
    try:
        _set_os_name(thread._name)
    except OSError:
        pass
    return 0


cdef int _end(object thread) except -1:
    """RequestThread._ended(), with nothing in Python: no exception can be raised in it."""
    thread._done = True
    waiters = thread._waiters
    while waiters:
        waiters.popleft().release()
    return 0


def resets():
    """Whether resetting this thread empties a threading.local. Only for a thread of our own."""
    class Local(threading.local):
        def __init__(self):
            self.initial = []

    plain, derived = threading.local(), Local()
    plain.value = derived.value = 1
    derived.initial.append(1)
    _reset()
    return not vars(plain) and not hasattr(derived, "value") and derived.initial == []


cdef class Feeder:
    """Where a worker gets its next request from, other than by being woken."""

    cdef bint feed(self, Worker worker) except -1:
        """In the worker's thread: whether it has got a request."""
        return False

    cdef int gone(self, Worker worker) except -1:
        """In the worker's thread, which ends."""
        return 0

    cdef int dismiss(self) except -1:
        """In any thread: no worker gets a request from here until the loop says so."""
        return 0

    cdef int abandon(self) except -1:
        """In a child process, in which there is no worker."""
        return 0


cdef class Worker:
    """A thread that serves one request after another."""

    def __cinit__(self, Pool pool, bint daemon):
        self.pool = pool
        self.daemon = daemon
        self.generation = _generation
        self.wake = PyThread_allocate_lock()
        if self.wake == NULL:
            raise MemoryError
        PyThread_acquire_lock(self.wake, 1)

    def __dealloc__(self):
        if self.wake != NULL:
            PyThread_free_lock(self.wake)

    def main(self):
        """The body of the thread."""
        cdef sigset_t mask
        cdef bint woken, fed
        cdef Feeder feeder
        cdef Pool pool = self.pool
        cdef long long microseconds
        cdef list rest = pool.resting_daemons if self.daemon else pool.resting
        pthread_sigmask(SIG_SETMASK, NULL, &mask)
        self.ident = PyThread_get_thread_ident()
        self.ident_object = _thread.get_ident()
        self.native_id = _thread.get_native_id()
        try:
            while self.thread is not None and self.work():
                pthread_sigmask(SIG_SETMASK, &mask, NULL)
                feeder = pool.feeder
                fed = feeder is not None and feeder.feed(self)
                feeder = None
                if fed:
                    continue
                if (pool.closed or self.generation != _generation
                        or self.stack_size != pool.stack_size):
                    return
                microseconds = <long long> (min(max(pool.idle_timeout, 0), TIMEOUT_MAX) * 1e6)
                rest.append(self)
                pool.in_vain = False
                if pool.awaits_rest:
                    pool.awaits_rest = False
                    PyThread_release_lock(pool.rested)
                with nogil:
                    woken = PyThread_acquire_lock_timed(self.wake, microseconds, 0) == 1
                    await_turn()
                turn_over()
                if not woken:
                    if self in rest:
                        rest.remove(self)
                        return
                    with nogil:  # work is being handed over at this very moment
                        PyThread_acquire_lock(self.wake, 1)
        finally:
            if self.generation == _generation:
                pool.workers.discard(self)
                feeder = pool.feeder
                if feeder is not None:
                    feeder.gone(self)
                feeder = None

    cdef bint fits(self, bint daemon) except -1:
        """Whether a request may begin in this thread now."""
        return (self.daemon == daemon and self.generation == _generation
                and self.stack_size == self.pool.stack_size
                and self.stack_size == PyThread_get_stacksize())

    cdef int forget(self) except -1:
        """Have no request after all: a Thread that threading made for this thread goes."""
        _reset()
        (<dict> _threading["_active"]).pop(self.ident_object, None)
        return 0

    cdef int work(self) except -1:
        """Serve the request; whether this thread may serve another."""
        cdef Pool pool = self.pool
        cdef bint sound = True
        thread, target, arguments = self.thread, self.target, self.arguments
        self.target = self.arguments = None
        self.has_begun = True
        if self.awaited != NULL:
            PyThread_release_lock(self.awaited)
            self.awaited = NULL
        thread._native_id = self.native_id
        active = <dict> _threading["_active"]
        if active.get(self.ident_object) is not thread:  # the first of this worker
            thread._ident = self.ident_object
            active[self.ident_object] = thread
            (<dict> _threading["_limbo"]).pop(thread, None)
        active = None
        # What reaches every thread has reached this one while it rested; the last of the request
        # before went after its own reset; a leader has run what the loop would have run.
        _reset()
        context = PyContext_New()
        PyContext_Enter(context)
        try:
            # Inside, since it runs Python code, in which an exception can be raised from outside.
            if _set_os_name is not None:
                _name_os_thread(thread)
            hook = _threading["_trace_hook"]
            if hook is not None:
                sys.settrace(hook)
            hook = _threading["_profile_hook"]
            if hook is not None:
                sys.setprofile(hook)
            target(*arguments)
        except BaseException:
            sound = False
            target = arguments = None
            pool.last_words(thread)
        target = arguments = hook = None
        PyContext_Exit(context)
        context = None
        # In the order of a thread that ends: unknown to threading, then without its locals.
        (<dict> _threading["_active"]).pop(self.ident_object, None)
        if not _reset():
            sound = False
        (<dict> _threading["_active"]).pop(self.ident_object, None)  # a finalizer's DummyThread
        self.thread = None
        if self.generation != _generation:
            _end(thread)  # threads of the child may wait for it
            return False
        pool.running -= 1
        _end(thread)
        return sound


cdef class Pool:
    """The workers of one server.

    start_thread(main, daemon): starts a thread that runs main(); returns an object with join() and
    ident. last_words(thread): reports the exception that ends a request's thread. thread_class:
    of what stands for the thread of a request; list_class: in which a server keeps those.
    genuine: threading.Thread; starter: the name in threading of the function that starts threads.
    """

    def __init__(self, *, start_thread, last_words, double idle_timeout, thread_class, list_class,
                 genuine, starter):
        self.start_thread = start_thread
        self.last_words = last_words
        self.idle_timeout = idle_timeout
        self.thread_class = thread_class
        self.list_class = list_class
        self.genuine = genuine
        self.starter = starter
        self.original_starter = _threading.get(starter)
        self.resting = []
        self.resting_daemons = []
        self.workers = set()
        self.stack_size = PyThread_get_stacksize()
        _pools.add(self)

    def __dealloc__(self):
        if self.rested != NULL:
            PyThread_free_lock(self.rested)

    def run(self, thread, target, tuple arguments, bint daemon):
        """Run target(*arguments) at once in a thread that ``thread`` stands for.

        Raises RuntimeError if no thread can be started.
        """
        self.begin(thread, target, arguments, daemon)

    cdef int start_new(self, object thread, object target, tuple arguments,
                       bint daemon) except -1:
        cdef Worker worker
        worker = Worker(self, daemon)
        worker.thread = thread
        worker.target = target
        worker.arguments = arguments
        worker.stack_size = self.stack_size
        self.workers.add(worker)
        self.running += 1
        self.peak = max(self.peak, self.running)
        starts_thread()
        limbo = <dict> _threading["_limbo"]
        limbo[thread] = thread  # until it has begun, as in Thread.start()
        try:
            worker.handle = self.start_thread(worker.main, daemon)
        except BaseException:
            self.running -= 1
            self.workers.discard(worker)
            worker.thread = worker.target = worker.arguments = None
            limbo.pop(thread, None)
            raise
        self.newest = worker
        if thread._ident is None:
            thread._ident = worker.handle.ident
        return 0

    cdef bint ready(self) except -1:
        """Whether nothing in threading was replaced or set that a new Thread would heed."""
        return (not self.closed
                and _threading.get("Thread") is self.genuine.original
                and _threading.get(self.starter) is self.original_starter
                and self.genuine.unpatched()
                and _threading.get("_trace_hook") is None
                and _threading.get("_profile_hook") is None)

    cdef object new_thread(self, object name, bint daemon):
        """What stands for the thread of a request; name: of its target."""
        cdef PyTypeObject *type_ = <PyTypeObject *> self.thread_class
        thread = type_.tp_new(type_, <PyObject *> _NOTHING, NULL)
        if name is not None:
            thread._of = name
        if daemon:
            thread._daemonic = True
        return thread

    cdef int keep(self, object threads, object thread) except -1:
        """threads.append(thread) of _mixins._Threads, with nothing in Python.

        In a leader's thread an exception could be raised in that which is meant for the request
        before. A thread that the program has put there is asked in Python.
        """
        cdef list kept = <list> threads
        if len(kept) >= <Py_ssize_t> threads._reap_at:
            kept[:] = [other for other in kept
                       if (not other._done if type(other) is self.thread_class
                           else other.is_alive())]
            threads._reap_at = max(8, len(kept) + len(kept) // 8)
        kept.append(thread)
        return 0

    cdef int begin(self, object thread, object target, tuple arguments, bint daemon) except -1:
        """Run target(*arguments) in the thread that has rested least, or in a new one."""
        cdef Worker worker
        cdef list rest = self.resting_daemons if daemon else self.resting
        cdef size_t stack_size = PyThread_get_stacksize()
        if stack_size != self.stack_size:
            self.stack_size = stack_size
            self.release()  # those have stacks of another size
        if (self.feeding is not None and self.feeding.ident == PyThread_get_thread_ident()
                and self.feeding.fits(daemon)):
            worker = self.feeding
            self.feeding = None
        elif rest or (self.patient and self.running >= MANY and self.await_rest(rest)):
            worker = <Worker> rest.pop()
        else:
            return self.start_new(thread, target, arguments, daemon)
        worker.thread = thread
        worker.target = target
        worker.arguments = arguments
        worker.has_begun = False
        thread._ident = worker.ident_object
        thread._native_id = worker.native_id
        (<dict> _threading["_active"])[worker.ident_object] = thread
        self.running += 1
        self.peak = max(self.peak, self.running)
        self.newest = worker
        if worker.ident == PyThread_get_thread_ident():
            pass
        elif self.deferring and self.pending is None:
            self.pending = worker
        else:
            PyThread_release_lock(worker.wake)
        return 0

    cdef bint await_rest(self, list rest) except -1:
        """Wait a moment until a worker rests; whether one does.

        Not again after a moment in vain before one has rested: handlers that wait for something
        would let the rest of a burst wait too, and be lost.
        """
        cdef bint released
        if self.in_vain or self.awaits_rest:  # one waits at a time: there is one lock to release
            return bool(rest)
        if self.rested == NULL:
            self.rested = PyThread_allocate_lock()
            if self.rested == NULL:
                return False
            PyThread_acquire_lock(self.rested, 1)
        self.flush()
        self.awaits_rest = True
        with nogil:
            released = PyThread_acquire_lock_timed(self.rested, MOMENT, 0) == 1
            await_turn()
        turn_over()
        if not released and not self.awaits_rest:
            PyThread_acquire_lock(self.rested, 0)  # it was released after the moment had passed
        self.awaits_rest = False
        self.in_vain = not rest
        return bool(rest)

    cdef int await_begun(self) except -1:
        """Wait until the latest request has begun, as ``Thread.start()`` does.

        It then has the GIL, and a short request has ended when the caller gets that back: where
        there is no loop, what a program finds in ``_threads`` depends on it.
        """
        cdef Worker worker = self.newest
        cdef PyThread_type_lock begun
        self.newest = None
        if (worker is None or worker.has_begun or worker.awaited != NULL
                or worker.ident == PyThread_get_thread_ident()):
            return 0
        begun = PyThread_allocate_lock()
        if begun == NULL:
            raise MemoryError
        PyThread_acquire_lock(begun, 1)
        worker.awaited = begun
        with nogil:
            PyThread_acquire_lock(begun, 1)
            await_turn()
        turn_over()
        PyThread_free_lock(begun)
        return 0

    cdef PyThread_type_lock take_pending(self) noexcept:
        """What to release, without the GIL, for the worker to begin; NULL if none waits."""
        cdef PyThread_type_lock wake
        if self.pending is None:
            return NULL
        wake = self.pending.wake
        self.pending = None
        return wake

    cpdef int flush(self) except -1:
        """Wake who was left to the loop to wake."""
        cdef PyThread_type_lock wake = self.take_pending()
        if wake != NULL:
            PyThread_release_lock(wake)
        return 0

    @property
    def idle(self):
        """How many threads rest."""
        return len(self.resting) + len(self.resting_daemons)

    def works_here(self):
        """Whether the caller is one of its threads, at a request."""
        cdef Worker worker
        for worker in list(self.workers):
            if worker.ident == PyThread_get_thread_ident() and worker.thread is not None:
                return True
        return False

    def release(self):
        """Have every thread that rests end."""
        cdef Worker worker
        self.flush()
        for rest in (self.resting, self.resting_daemons):
            while rest:
                worker = rest.pop()
                PyThread_release_lock(worker.wake)

    def close(self):
        """No thread rests any more: those that do end now, others after their request.

        Returns the handles of those that are about to end, to be joined.
        """
        cdef Worker worker
        self.closed = True
        self.newest = None  # no cycle of a pool that is over
        self.release()
        return [worker.handle for worker in list(self.workers)
                if worker.thread is None and worker.handle is not None]


def pools():
    """The pools of this process."""
    return list(_pools)


os.register_at_fork(after_in_child=_after_fork_in_child)
