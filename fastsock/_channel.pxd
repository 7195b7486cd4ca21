from fastsock._clock cimport nanoseconds
from fastsock._waiter cimport Endpoint


cdef class Channel(Endpoint):
    cdef object writer  # a weak reference to a wfile that may hold bytes back, or None

    cdef int after_wait(self, object connection) noexcept nogil
    cdef int hand_over(self, object connection) except -1
    cdef Py_ssize_t receive(self, object connection, void *buffer, size_t size,
                            int flags) except -1
    cdef Py_ssize_t receive_all(self, object connection, char *buffer, size_t size,
                                int flags) except -1
    cdef size_t at_once(self, object connection, void *buffer, size_t size) except? 0
    cdef Py_ssize_t send(self, object connection, const char *data, size_t size, int flags,
                         bint all_of_it) except -1
    cdef Py_ssize_t transfer(self, object connection, short events, char *data, size_t size,
                             int flags, nanoseconds deadline, nanoseconds begun,
                             int *error) except -1
    cdef int close(self) except -1
    cdef int settle(self, object connection) except -1
    cdef bint has_packets(self) noexcept
    cdef int settle_for_another(self, object connection) except -1
    cdef object guest(self, object connection)


cdef int set_nonblocking(int descriptor, bint on) noexcept nogil
cdef object seconds_of(nanoseconds limit)
cdef object receive_bytes(Channel channel, object connection, Py_ssize_t size, int flags)
cdef Channel channel_of(object connection)
cdef Channel channel_if(object request)
cdef object make_connection(object cls, int descriptor, int family, int kind, int proto)
cdef int end_connection(object connection) except -1
