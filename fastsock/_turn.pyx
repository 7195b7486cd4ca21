"""A limit on how many threads ask for the GIL at the same time.

A thread that waits for CPython's GIL wakes up every five milliseconds (sys.getswitchinterval()) to
ask for it. A thousand that wait, because bytes have come for all of them, wake up 200,000 times a
second and leave little of the processor to the one that works. So a thread that comes back from
a system call takes one of a few permits first, and waits for that without ever waking up; it
gives the permit back as soon as it has the GIL.
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

cdef enum:
    PERMITS = 64

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
