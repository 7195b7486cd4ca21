"""A limit on how many threads ask for the GIL at the same time.

A thread that waits for CPython's GIL wakes up every five milliseconds (sys.getswitchinterval()) to
ask for it. A thousand that wait, because bytes have come for all of them, wake up 200,000 times a
second and leave little of the processor to the one that works. So a thread that comes back from
a system call takes one of a few permits first, and waits for that without ever waking up; it
gives the permit back as soon as it has the GIL.

Where all threads share one core, a thread that is woken takes it from the one that runs, at its
next system call most likely. If that one holds the GIL then, the other can do nothing but go back
to sleep: so there the GIL is given up around every call.
"""

import os

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t *semaphore, int shared, unsigned int value)
    int sem_wait(sem_t *semaphore)
    int sem_post(sem_t *semaphore)

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030D0000
    #define Py_IsFinalizing _Py_IsFinalizing
    #endif
    """
    bint Py_IsFinalizing() nogil

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sched.h>

    /* sched_getaffinity(2), 0 where there are more processors than fit into a cpu_set_t. */
    static int fastsock_on_one_core(void) {
        cpu_set_t cores;
        return sched_getaffinity(0, sizeof(cores), &cores) == 0 && CPU_COUNT(&cores) == 1;
    }
    """
    bint fastsock_on_one_core() nogil

cdef enum:
    PERMITS = 64

# Whether the latest worker thread, and so most likely all, have to share one core.
cdef bint _one_core = False

cdef sem_t _permits
sem_init(&_permits, 0, PERMITS)


def _after_fork_in_child():
    # The threads that held or awaited one are not in this process.
    sem_init(&_permits, 0, PERMITS)


os.register_at_fork(after_in_child=_after_fork_in_child)


cdef void await_turn() noexcept nogil:
    """Just before the GIL is taken again."""
    if Py_IsFinalizing():
        return  # daemon threads end while they wait for the GIL, and take their permits along
    while sem_wait(&_permits) < 0:  # a signal: its Python handler runs where the GIL is
        pass


cdef void turn_over() noexcept nogil:
    """Just after."""
    sem_post(&_permits)


cdef void starts_thread() noexcept:
    """A thread is about to be started; it inherits the cores of the calling one."""
    global _one_core
    _one_core = fastsock_on_one_core()


cdef bint threads_share_a_core() noexcept nogil:
    """Whether to give the GIL up even around calls that cannot block."""
    return _one_core
