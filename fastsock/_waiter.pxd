from fastsock._clock cimport nanoseconds


# A bint that takes one byte, in objects of which every connection has one.
ctypedef unsigned char flag


cdef enum NotReceived:
    OVERDUE = -3  # the connection's timeout is over
    NOTHING = -4  # a non-blocking connection has nothing


cdef class Waiter


cdef class Endpoint:
    cdef object __weakref__
    cdef Waiter waiter  # None: its thread waits
    cdef object slot  # the waiter's
    cdef object failed  # what the sending of held bytes failed with: for the next call, or None
    cdef int descriptor  # owned; -1: given away or closed
    cdef flag handed_over  # the socket object has the descriptor and the timeout
    cdef flag eager  # bytes were waiting at the last call: try once without releasing the GIL
    cdef int family
    cdef int kind
    cdef int proto
    cdef nanoseconds limit  # of one call: NEVER, or 0 for a non-blocking connection

    cdef int current(self, object connection, nanoseconds *limit) except -2


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


cdef int fail(int error) except -1
