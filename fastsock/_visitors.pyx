"""Who waits for a connection and is none of the tasks that its hub can suspend.

That is the loop that starts the tasks, or a task of another thread's hub. It waits by its own hub,
for a copy of the descriptor: the number is not to become somebody else's meanwhile. Nor is that of
the copy, so who is to wake all who wait (``forget()``) keeps the copies open until that is done.

Threads: any, under the GIL.
"""

from cpython.exc cimport PyErr_CheckSignals

from fastsock cimport _sys
from fastsock._clock cimport NEVER, deadline_of, monotonic, nanoseconds
from fastsock._waiter cimport Endpoint, fail


def _nothing(*arguments):
    return None


cdef object _how_to_wait = _nothing
cdef object _wake = _nothing
cdef object _take_turn = _nothing
# By id() of a channel, or of a socket that has none: the copies that are waited for.
cdef dict _copies = {}


cdef class Copy:
    """A copy of a descriptor, for somebody who waits."""

    def __cinit__(self):
        self.descriptor = -1

    def __dealloc__(self):
        if self.descriptor >= 0:
            _sys.close(self.descriptor)


def ask(waiting, wake, take_turn):
    """waiting() is called for what ``waiting()`` below returns.

    wake(descriptor): have those who wait for it, in any thread, woken with EBADF.
    take_turn(count): see ``take_turn()`` below.
    """
    global _how_to_wait, _wake, _take_turn
    _how_to_wait = waiting
    _wake = wake
    _take_turn = take_turn


cpdef object waiting():
    """How the caller waits: a function (descriptor, read, write, seconds, copy) -> ready.

    It raises EBADF if it finds the copy to be given up. None: the caller is in a thread without
    tasks, and may simply block.
    """
    return _how_to_wait()


def take_turn(size_t count):
    """Of a task, before it receives or sends so many bytes: after its share others run."""
    _take_turn(count)


def wait_by(wait, whom, int descriptor, bint writing, seconds):
    """Wait by a function for a descriptor of a channel, or of a socket; whether it is ready.

    Raises OSError (EBADF): it was given up by ``forget()``.
    """
    cdef list copies
    cdef Copy copy = Copy.__new__(Copy)
    copy.descriptor = _sys.fcntl(descriptor, _sys.F_DUPFD_CLOEXEC, 0)
    if copy.descriptor < 0:
        fail(_sys.errno)
    copies = _copies.setdefault(id(whom), [])
    copies.append(copy)
    try:
        return wait(copy.descriptor, not writing, writing, seconds, copy)
    finally:
        if not copy.given_up:
            copies.remove(copy)
            if not copies:
                del _copies[id(whom)]


cpdef int forget(object whom) except -1:
    """The descriptor has been given up, so that nobody begins to wait: who does is woken."""
    cdef Copy copy
    cdef list copies
    if not _copies:
        return 0
    copies = _copies.pop(id(whom), None)
    if copies is None:
        return 0
    for copy in copies:
        copy.given_up = True  # who has not begun to wait finds that
    for copy in copies:
        _wake(copy.descriptor)
    return 0


cdef Py_ssize_t transfer_by(object wait, Endpoint channel, object connection, bint writing,
                            char *data, size_t size, int flags, bint all_of_it) except -1:
    """A channel's receive(), or send(), that waits by a function."""
    cdef nanoseconds limit
    cdef int descriptor = channel.current(connection, &limit)
    cdef nanoseconds begun = channel.write_begun() if writing else monotonic()
    cdef nanoseconds deadline
    cdef size_t done = 0
    cdef Py_ssize_t count
    cdef int error
    cdef bint never_waits = limit == 0 or (limit == NEVER and flags & _sys.MSG_DONTWAIT)
    # MSG_DONTWAIT undoes it, and a timeout does.
    cdef bint waits_for_all = (not writing and flags & _sys.MSG_WAITALL and limit == NEVER
                               and not never_waits and not flags & _sys.MSG_PEEK
                               and channel.kind == _sys.SOCK_STREAM)
    if channel.deadlines is not None:
        channel.check_whole()
    deadline = channel.until(limit, writing, begun)
    cdef nanoseconds own = deadline_of(limit)
    flags = (flags | _sys.MSG_DONTWAIT) & ~_sys.MSG_WAITALL
    while True:
        if writing:
            count = _sys.send(descriptor, data + done, size - done, flags | _sys.MSG_NOSIGNAL)
        else:
            count = _sys.recv(descriptor, data + done, size - done, flags)
        error = _sys.errno
        if count >= 0:
            done += <size_t> count
            if writing:
                channel.went(count, done >= size, NULL, 0)
                if done >= size or (limit != NEVER and not all_of_it):
                    return done
                continue
            if not flags & _sys.MSG_PEEK:
                channel.came(count)
            if not waits_for_all or done >= size or count == 0:
                return done
            continue
        if error == _sys.EINTR:
            PyErr_CheckSignals()
        elif error != _sys.EAGAIN or never_waits:
            if done and not all_of_it:
                return done
            fail(error)
        else:
            left = None
            if deadline != NEVER:
                left = max(<double> deadline - monotonic(), 0) / 1e9
            if not wait_by(wait, channel, descriptor, writing, left):
                if waits_for_all and done:
                    return done  # the next call meets it, if it lasts
                if writing:
                    channel.overdue(True, begun)
                deadline = channel.late(own)
        descriptor = channel.current(connection, &limit)
