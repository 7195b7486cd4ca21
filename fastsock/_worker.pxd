from fastsock._genuine cimport Genuine

cdef extern from "pythread.h" nogil:
    ctypedef void *PyThread_type_lock
    ctypedef int PyLockStatus
    PyThread_type_lock PyThread_allocate_lock()
    void PyThread_free_lock(PyThread_type_lock lock)
    int PyThread_acquire_lock(PyThread_type_lock lock, int wait)
    PyLockStatus PyThread_acquire_lock_timed(PyThread_type_lock lock, long long microseconds,
                                             int interruptible)
    void PyThread_release_lock(PyThread_type_lock lock)
    size_t PyThread_get_stacksize()


cdef class Feeder:
    cdef bint feed(self, Worker worker) except -1
    cdef int gone(self, Worker worker) except -1
    cdef int dismiss(self) except -1
    cdef int abandon(self) except -1


cdef class Pool:
    cdef object __weakref__
    cdef list resting  # of those that keep the interpreter alive while they run; last in, first out
    cdef list resting_daemons
    cdef set workers  # all of them
    cdef readonly Py_ssize_t running  # requests
    cdef readonly Py_ssize_t peak  # the most that have been running at a time
    cdef readonly bint closed
    cdef object start_thread
    cdef object thread_class
    cdef readonly object list_class
    cdef Genuine genuine  # threading.Thread
    cdef str starter  # the name in threading of the function that starts threads
    cdef object original_starter
    cdef size_t stack_size  # of new threads, as of the last request
    cdef object last_words
    cdef public double idle_timeout  # seconds
    cdef bint deferring  # the loop wakes who gets the next request
    cdef Worker pending
    cdef Worker newest  # that was given a request
    cdef Feeder feeder  # asked by a worker before it rests, or None
    cdef bint patient  # the request to begin may wait for a moment
    cdef bint in_vain  # it has waited for one, and none has rested since
    cdef bint awaits_rest  # the loop waits for a worker to rest
    cdef PyThread_type_lock rested  # held by the loop, released by who rests; or NULL
    cdef Worker feeding  # in whose own thread its next request is begun

    cdef bint ready(self) except -1
    cdef int start_new(self, object thread, object target, tuple arguments, bint daemon) except -1
    cdef object new_thread(self, object name, bint daemon)
    cdef int keep(self, object threads, object thread) except -1
    cdef int begin(self, object thread, object target, tuple arguments, bint daemon) except -1
    cdef bint await_rest(self, list rest) except -1
    cdef int await_begun(self) except -1
    cdef PyThread_type_lock take_pending(self) noexcept
    cpdef int flush(self) except -1


cdef class Worker:
    cdef Pool pool
    cdef PyThread_type_lock wake  # held by the worker, released by who has work for it
    cdef bint daemon
    cdef PyThread_type_lock awaited  # released when the request has begun, or NULL
    cdef bint has_begun
    cdef object thread  # the request's Thread, or None
    cdef object target
    cdef tuple arguments
    cdef readonly object handle  # what start_thread() returned; has join()
    cdef unsigned long ident
    cdef object ident_object
    cdef object native_id
    cdef unsigned long generation
    cdef size_t stack_size

    cdef int work(self) except -1
    cdef bint fits(self, bint daemon) except -1
    cdef int forget(self) except -1


cdef int reset_hooks() except -1
