cimport cython

from fastsock._clock cimport NEVER, nanoseconds
from fastsock._deadlines cimport Deadlines
from fastsock._ledger cimport Record, flag


cdef enum NotReceived:
    OVERDUE = -3  # the connection's timeout is over
    NOTHING = -4  # a non-blocking connection has nothing


cdef enum Way:
    FREE  # for bytes that somebody else sends
    BUSY  # with a send that is in the middle of it
    FULL  # of bytes that the kernel does not take


cdef enum:
    SHORTEST_INTERIM = 16  # bytes: HTTP/1.1 1xx and the ends of two lines

cdef bint is_interim(const char *data, size_t size) noexcept


cdef class Waiter


cdef class Endpoint(Record):
    cdef Waiter waiter  # None: its thread waits
    cdef object slot  # the waiter's
    cdef Deadlines deadlines  # None: there are none but the timeout of the socket
    cdef object failed  # what the sending of held bytes failed with: for the next call, or None
    cdef object heir  # a weak reference to the connection, once it was handed over; or None
    cdef unsigned char family
    cdef unsigned char kind
    cdef unsigned short proto
    cdef nanoseconds limit  # of one call: NEVER, or 0 for a non-blocking connection
    cdef object behind  # bytes that are to be sent when nobody writes, or None

    cdef int current(self, object connection, nanoseconds *limit) except -2
    cdef int owned(self) except -2
    cdef nanoseconds until(self, nanoseconds limit, bint writing,
                           nanoseconds begun) except? -2
    cdef nanoseconds put_off(self, nanoseconds own) noexcept
    cdef nanoseconds late(self, nanoseconds own) except? -2
    cdef int check(self, bint writing, nanoseconds begun) except -1
    cdef int check_whole(self) except -1
    cdef bint is_whole_over(self) noexcept
    cdef nanoseconds write_begun(self) noexcept
    cdef int overdue(self, bint writing, nanoseconds begun) except -1

    # Of every receive and send:
    @cython.final
    cdef inline void came(self, Py_ssize_t count) noexcept:
        self.received += <size_t> count
        if count > 0:
            self.answered = False
            if self.deadlines is not None:
                self.deadlines.first_by = NEVER
                self.deadlines.moved()

    @cython.final
    cdef inline void went(self, Py_ssize_t count, bint whole, const char *data,
                          size_t size) noexcept:
        """whole: all that there was to be sent. data: what that is, if it is known."""
        self.sent += <size_t> count
        if data == NULL or size < SHORTEST_INTERIM or data[0] != b'H' or not is_interim(data, size):
            self.answered = True
        if self.deadlines is not None:
            if count > 0:
                self.deadlines.moved()
            if whole:
                self.deadlines.stuck = False

    cdef bint is_between_messages(self, int descriptor) noexcept
    cdef int send_behind(self, object connection) except -1


cdef class Borrower:
    # What has bytes in the buffer that a Waiter shares out.
    cdef int give_back(self) except -1


cdef class Waiter:
    # How the connections of a multiplexing server wait: the hub. None of it is for a thread.
    cdef bint here(self) noexcept
    cdef Py_ssize_t receive(self, Endpoint channel, object connection, char *into, size_t size,
                            int flags) except -1
    cdef Py_ssize_t receive_or_borrow(self, Endpoint channel, object connection, char *into,
                                      size_t size, int flags, Borrower borrower) except -1
    cdef char *lent(self) noexcept
    cdef bint gathers(self, Endpoint channel, const char *data, size_t size) noexcept
    cdef Py_ssize_t send(self, Endpoint channel, object connection, const char *data, size_t size,
                         int flags, bint all_of_it) except -1
    cdef object running(self)
    cdef int queue_on(self, list waiting) except -1
    cdef int wake_all(self, list waiting) except -1
    cdef int await_ready(self, Endpoint channel, object connection, bint writing,
                         nanoseconds deadline) except -1
    cdef int begin_sending(self, Endpoint channel, object connection,
                           nanoseconds deadline) except -1
    cdef int end_sending(self, Endpoint channel) except -1
    cdef int settle(self, Endpoint channel, object connection) except -1
    cdef object take_held(self, Endpoint channel)
    cdef int forget(self, Endpoint channel) except -1
    cdef Way way(self, Endpoint channel) except *


cdef int fail(int error) except -1
