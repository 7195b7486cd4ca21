"""Who waits for a connection and is none of the tasks that its hub can suspend.

That is the loop that starts the tasks, or a task of another thread's hub. It waits by its own hub,
for a copy of the descriptor.
"""

from cpython.exc cimport PyErr_CheckSignals

from fastsock cimport _sys
from fastsock._clock cimport NEVER, deadline_of, monotonic, nanoseconds
from fastsock._waiter cimport Endpoint, fail


def _blocks():
    return None


cdef object _how_to_wait = _blocks


def ask(waiting):
    """waiting() is called for what ``waiting()`` below returns."""
    global _how_to_wait
    _how_to_wait = waiting


cpdef object waiting():
    """How the caller waits: a function (descriptor, read, write, seconds) -> ready.

    None: it is in a thread without tasks, and may simply block.
    """
    return _how_to_wait()


cdef Py_ssize_t transfer_by(object wait, Endpoint channel, object connection, bint writing,
                            char *data, size_t size, int flags, bint all_of_it) except -1:
    """A channel's receive(), or send(), that waits by a function."""
    cdef nanoseconds limit
    cdef int descriptor = channel.current(connection, &limit)
    cdef nanoseconds deadline = deadline_of(limit)
    cdef size_t done = 0
    cdef Py_ssize_t count
    cdef int error, copy
    flags |= _sys.MSG_DONTWAIT
    while True:
        if writing:
            count = _sys.send(descriptor, data + done, size - done, flags | _sys.MSG_NOSIGNAL)
        else:
            count = _sys.recv(descriptor, data, size, flags)
        error = _sys.errno
        if count >= 0:
            done += <size_t> count
            if not writing or done >= size or (limit != NEVER and not all_of_it):
                return done
            continue
        if error == _sys.EINTR:
            PyErr_CheckSignals()
        elif error != _sys.EAGAIN or limit == 0:
            if done and not all_of_it:
                return done
            fail(error)
        else:
            # A copy: the number is not to become somebody else's while it is waited for.
            copy = _sys.fcntl(descriptor, _sys.F_DUPFD_CLOEXEC, 0)
            if copy < 0:
                fail(_sys.errno)
            try:
                left = None
                if deadline != NEVER:
                    left = max(<double> deadline - monotonic(), 0) / 1e9
                if not wait(copy, not writing, writing, left):
                    raise TimeoutError("timed out")
            finally:
                _sys.close(copy)
        descriptor = channel.current(connection, &limit)
