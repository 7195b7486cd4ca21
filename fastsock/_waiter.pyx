"""Where connections wait that are served by tasks: what a channel and a hub know of each other.

``Endpoint`` is the part of a ``Channel`` that a hub needs; ``Waiter`` is what a channel asks of a
hub, ``Borrower`` what a hub asks of who has bytes in its buffer.

Threads: all state changes under the GIL.
"""

import _socket

cimport cython

from cpython.exc cimport PyErr_SetFromErrno
from libc.math cimport ceil
from libc.string cimport memcmp

from fastsock cimport _sys
from fastsock._clock cimport NEVER, deadline_of, monotonic, nanoseconds, sooner
from fastsock._deadlines cimport Deadlines
from fastsock._ledger cimport Record

from fastsock._deadlines import DeadlineError

# NEVER is a wait that is none.
cdef nanoseconds _FAR = <nanoseconds> 1 << 62

cdef object _fileno = _socket.socket.fileno
cdef object _gettimeout = _socket.socket.gettimeout


cdef int fail(int error) except -1:
    """Raise the OSError subclass of an errno value that was read right after the call."""
    _sys.errno = error
    PyErr_SetFromErrno(OSError)
    return -1


cdef bint is_interim(const char *data, size_t size) noexcept:
    """Whether it is an interim response of HTTP (RFC 9110, 15.2) alone: the answer comes later."""
    return (memcmp(data, b"HTTP/1.1 1", 10) == 0
            and memcmp(data + size - 4, b"\r\n\r\n", 4) == 0)


@cython.no_gc_clear  # as its record
cdef class Endpoint(Record):
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

    cdef int owned(self) except -2:
        """The descriptor, asked for by others than who uses the connection; -1: it has none."""
        if self.descriptor >= 0 or self.heir is None:
            return self.descriptor
        # Of the socket object, which may have been closed or detached by the base class's methods.
        connection = self.heir()
        return -1 if connection is None else _fileno(connection)

    cdef nanoseconds until(self, nanoseconds limit, bint writing, nanoseconds begun) except? -2:
        """When a call that began then, and has to wait, is to be given up; NEVER: it does not wait.

        limit: the socket's timeout, which is the call's. begun: when the write has begun of which
        the call is a part; 0: now.
        """
        cdef nanoseconds by
        if limit == 0:
            return NEVER
        by = deadline_of(limit)
        if self.deadlines is None:
            return by
        if writing:
            return sooner(by, self.deadlines.of_send(begun or monotonic()))
        return sooner(by, self.deadlines.of_receive(self.in_message))

    cdef nanoseconds put_off(self, nanoseconds own) noexcept:
        """When a receive is to be given up whose time was over; 0: now.

        It is another time if somebody else has sent or received something meanwhile. own: when
        the socket's timeout is over.
        """
        cdef nanoseconds by
        if self.deadlines is None:
            return 0
        by = sooner(own, self.deadlines.of_receive(self.in_message))
        if by == NEVER:
            return _FAR
        return by if by > monotonic() else 0

    cdef nanoseconds late(self, nanoseconds own) except? -2:
        """put_off(), or raise what says that the receive has been given up."""
        cdef nanoseconds by = self.put_off(own)
        if by == 0:
            self.overdue(False, 0)
        return by

    cdef int check(self, bint writing, nanoseconds begun) except -1:
        """Raise DeadlineError if a deadline is over; not the socket's timeout."""
        cdef Deadlines deadlines = self.deadlines
        which = deadlines.over(writing, self.in_message, begun)
        if which is not None:
            if not deadlines.told and self.ledger is not None:
                deadlines.told = True
                self.ledger.time_out(which)
            raise DeadlineError("timed out", which=which)
        return 0

    cdef int check_whole(self) except -1:
        """Raise DeadlineError if the time for the whole request is over; where there are some."""
        if self.is_whole_over():
            self.check(True, 0)
        return 0

    cdef bint is_whole_over(self) noexcept:
        return self.deadlines.whole_by != NEVER and monotonic() >= self.deadlines.whole_by

    cdef nanoseconds write_begun(self) noexcept:
        """When the write has begun that sends now."""
        return monotonic() if self.deadlines is None else self.deadlines.write_begun()

    cdef int overdue(self, bint writing, nanoseconds begun) except -1:
        """Raise what says that a wait has been given up."""
        if self.deadlines is not None:
            self.check(writing, begun)
        raise TimeoutError("timed out")

    cdef bint is_between_messages(self, int descriptor) noexcept:
        """Whether nothing of a next message has come, as far as can be known."""
        return False

    cdef int send_behind(self, object connection) except -1:
        """Send what was put behind the bytes of those who write, if they are done."""
        raise NotImplementedError


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

    cdef Way way(self, Endpoint channel) except *:
        """What bytes of somebody else's would meet. For any thread.

        What is held back is sent before that is said, as far as the kernel takes it.
        """
        return FREE
