from fastsock._clock cimport nanoseconds
from fastsock._waiter cimport Endpoint


<<<<<<< HEAD
cdef class Borrower:
    # What has bytes in the buffer that a Waiter shares out.
    cdef int give_back(self) except -1


cdef enum NotReceived:
    OVERDUE = -3  # the connection's timeout is over
    NOTHING = -4  # a non-blocking connection has nothing


cdef enum Way:
    FREE  # for bytes that somebody else sends
    BUSY  # with a send that is in the middle of it
    FULL  # of bytes that the kernel does not take


cdef class Waiter:
    # How the connections of a multiplexing server wait: the hub. None of it is for a thread.
    cdef bint here(self) noexcept
    cdef Py_ssize_t receive(self, Channel channel, object connection, char *into, size_t size,
                            int flags) except -1
    cdef Py_ssize_t receive_or_borrow(self, Channel channel, object connection, char *into,
                                      size_t size, int flags, Borrower borrower) except -1
    cdef char *lent(self) noexcept
    cdef bint gathers(self, Channel channel, const char *data, size_t size) noexcept
    cdef Py_ssize_t send(self, Channel channel, object connection, const char *data, size_t size,
                         int flags, bint all_of_it) except -1
    cdef object running(self)
    cdef int queue_on(self, list waiting) except -1
    cdef int wake_all(self, list waiting) except -1
    cdef int await_ready(self, Channel channel, object connection, bint writing) except -1
    cdef int settle(self, Channel channel, object connection) except -1
    cdef object take_held(self, Channel channel)
    cdef int forget(self, Channel channel) except -1
    cdef Way way(self, Channel channel) noexcept


cdef class Channel(Record):
    cdef Waiter waiter  # None: its thread waits
    cdef object slot  # the waiter's
    cdef object failed  # what the sending of held bytes failed with: for the next call, or None
    cdef int descriptor  # owned; -1: given away or closed
    cdef int handed  # what the socket object was given, until it is closed or detached; or -1
    cdef unsigned int writers  # that may be in the middle of their bytes
    cdef object behind  # bytes that are to be sent when they are not, or None
    cdef flag handed_over  # the socket object has the descriptor and the timeout
    cdef flag in_message  # a part of one has been read: what it waits for is the rest
    cdef flag eager  # bytes were waiting at the last call: try once without releasing the GIL
    cdef int family
    cdef int kind
    cdef int proto
    cdef nanoseconds limit  # of one call: NEVER, or 0 for a non-blocking connection
=======
cdef class Channel(Endpoint):
>>>>>>> 88716b6c2dab1970ad36778491130fc64403c2f0
    cdef object writer  # a weak reference to a wfile that may hold bytes back, or None

    cdef int not_ready(self, nanoseconds deadline, bint writing, nanoseconds begun) except -1
    cdef int after_wait(self, object connection) noexcept nogil
    cdef int hand_over(self, object connection) except -1
    cdef Py_ssize_t receive(self, object connection, void *buffer, size_t size,
                            int flags) except -1
    cdef size_t at_once(self, object connection, void *buffer, size_t size) except? 0
    cdef Py_ssize_t send(self, object connection, const char *data, size_t size, int flags,
                         bint all_of_it) except -1
    cdef Py_ssize_t transfer(self, object connection, short events, char *data, size_t size,
                             int flags, nanoseconds deadline, nanoseconds begun,
                             int *error) except -1
    cdef int close(self) except -1
    cdef int send_behind(self, object connection) except -1
    cdef int settle(self, object connection) except -1
    cdef bint has_packets(self) noexcept
    cdef bint is_between_messages(self, int descriptor) noexcept
    cdef int settle_for_another(self, object connection) except -1
    cdef object guest(self, object connection)


cdef int set_nonblocking(int descriptor, bint on) noexcept nogil
cdef object seconds_of(nanoseconds limit)
cdef object receive_bytes(Channel channel, object connection, Py_ssize_t size, int flags)
cdef Channel channel_of(object connection)
<<<<<<< HEAD
cdef Channel known_channel(object request)
=======
cdef Channel channel_if(object request)
>>>>>>> 88716b6c2dab1970ad36778491130fc64403c2f0
cdef object make_connection(object cls, int descriptor, int family, int kind, int proto)
cdef int end_connection(object connection) except -1
