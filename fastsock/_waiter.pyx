"""Where connections wait that are served by tasks: what a channel and a hub know of each other.

``Endpoint`` is the part of a ``Channel`` that a hub needs; ``Waiter`` is what a channel asks of a
hub, ``Borrower`` what a hub asks of who has bytes in its buffer.

Threads: all state changes under the GIL.
"""

import _socket

from cpython.exc cimport PyErr_SetFromErrno
from libc.math cimport ceil

from fastsock cimport _sys
from fastsock._clock cimport NEVER, nanoseconds

cdef object _fileno = _socket.socket.fileno
cdef object _gettimeout = _socket.socket.gettimeout


cdef int fail(int error) except -1:
    """Raise the OSError subclass of an errno value that was read right after the call."""
    _sys.errno = error
    PyErr_SetFromErrno(OSError)
    return -1


cdef class Endpoint:
    """The descriptor of a connection, whose it is, and how long calls may take."""

    def __cinit__(self):
        self.descriptor = -1
        self.handed_over = True
        self.limit = NEVER

    cdef int current(self, object connection, nanoseconds *limit) except -2:
        """The descriptor, and how long a call may take."""
        if not self.handed_over:
            limit[0] = self.limit
            return self.descriptor
        timeout = _gettimeout(connection)
        limit[0] = NEVER if timeout is None else <nanoseconds> ceil(<double> timeout * 1e9)
        return _fileno(connection)


cdef class Borrower:
    """What may have its bytes in the buffer that a waiter shares out, until it is told."""

    cdef int give_back(self) except -1:
        """Take what is still wanted out of the shared buffer: somebody else gets it."""
        return 0


cdef class Waiter:
    """Where the connections of a multiplexing server wait, in the place of their thread.

    An interface, of which no instance is made: ``_hub.Hub`` has all of the methods. They do what
    those of ``Channel`` with the same name do, and are called only where ``here()`` is true: by a
    thread, and a green thread of it, that the waiter can suspend. Any thread may call
    ``wake_all()``, ``take_held()`` and ``forget()``.
    """

    cdef bint here(self) noexcept:
        return False

    cdef Py_ssize_t receive(self, Endpoint channel, object connection, char *into, size_t size,
                            int flags) except -1:
        raise NotImplementedError

    cdef Py_ssize_t receive_or_borrow(self, Endpoint channel, object connection, char *into,
                                      size_t size, int flags, Borrower borrower) except -1:
        """receive(), which returns OVERDUE or NOTHING instead of raising an error that says so.

        into: NULL: up to size bytes, fewer if the shared buffer is smaller, come to where lent()
        says. They stay there until borrower.give_back() is called.
        """
        raise NotImplementedError

    cdef char *lent(self) noexcept:
        return NULL

    cdef bint gathers(self, Endpoint channel, const char *data, size_t size) noexcept:
        """Whether it has put bytes behind those that are held back already, as send() would."""
        return False

    cdef Py_ssize_t send(self, Endpoint channel, object connection, const char *data, size_t size,
                         int flags, bint all_of_it) except -1:
        raise NotImplementedError

    cdef object running(self):
        """The task that runs."""
        raise NotImplementedError

    cdef int queue_on(self, list waiting) except -1:
        """Put the task that runs on a list, and suspend it until wake_all() of that."""
        raise NotImplementedError

    cdef int wake_all(self, list waiting) except -1:
        """Wake those on the list, and empty it. For any thread."""
        raise NotImplementedError

    cdef int await_ready(self, Endpoint channel, object connection, bint writing,
                         nanoseconds deadline) except -1:
        """Wait until a receive, or a send, would probably not have to: for calls not of ours."""
        raise NotImplementedError

    cdef int begin_sending(self, Endpoint channel, object connection,
                           nanoseconds deadline) except -1:
        """For calls not of ours that send: until end_sending() no other task does."""
        raise NotImplementedError

    cdef int end_sending(self, Endpoint channel) except -1:
        raise NotImplementedError

    cdef int settle(self, Endpoint channel, object connection) except -1:
        """Send what was taken from send() and is held back."""
        raise NotImplementedError

    cdef object take_held(self, Endpoint channel):
        """Bytes, or None: what settle() would send, for a thread that cannot call it to send."""
        raise NotImplementedError

    cdef int forget(self, Endpoint channel) except -1:
        """The descriptor is about to be closed or given away: who waits for it is woken."""
        raise NotImplementedError
