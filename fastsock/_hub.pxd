from fastsock._channel cimport Borrower, Channel
from fastsock._clock cimport nanoseconds
from fastsock._descriptors cimport Descriptors, Slot
from fastsock._tasks cimport Task


cdef class Hub(Descriptors):
    cdef char *incoming
    cdef char *outgoing
    cdef Borrower borrower  # of incoming
    cdef Channel sender  # whose bytes are in outgoing
    cdef object sending  # its connection
    cdef size_t held  # so many

    cdef Slot enrol(self, Channel channel, int descriptor)
    cdef int wait_at_slot(self, Slot slot, bint writing, nanoseconds deadline) except -1
    cdef int wait_for(self, Slot slot, bint writing, nanoseconds deadline) except -1
    cdef int queue_for(self, Slot slot, nanoseconds deadline) except -1
    cdef int flush(self) except -1
    cdef int flush_rest(self, Channel channel, Py_ssize_t count, int error) except -1
    cdef int raise_failed(self, Channel channel) except -1
    cdef Py_ssize_t receive_some(self, Channel channel, object connection, char *into, size_t size,
                                 int flags) except -1
    cdef Py_ssize_t send_all(self, Channel channel, object connection, const char *data,
                             size_t size, int flags, bint all_of_it) except -1
