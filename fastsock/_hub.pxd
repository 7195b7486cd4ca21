from fastsock._clock cimport nanoseconds
from fastsock._descriptors cimport Descriptors, Slot
from fastsock._tasks cimport Task
from fastsock._waiter cimport Borrower, Endpoint


cdef class Hub(Descriptors):
    cdef char *incoming
    cdef char *outgoing
    cdef Borrower borrower  # of incoming
    cdef Endpoint sender  # whose bytes are in outgoing
    cdef object sending  # its connection
    cdef size_t held  # so many

    cdef Slot enrol(self, Endpoint channel, int descriptor)
    cdef int wait_at_slot(self, Slot slot, bint writing, nanoseconds deadline) except -1
    cdef int wait_for(self, Slot slot, bint writing, nanoseconds deadline) except -1
    cdef int sent(self, Slot slot) except -1
    cdef int queue_for(self, Slot slot, nanoseconds deadline) except -1
    cdef int flush(self) except -1
    cdef int flush_rest(self, Endpoint channel, Py_ssize_t count, int error) except -1
    cdef int raise_failed(self, Endpoint channel) except -1
    cdef Py_ssize_t receive_some(self, Endpoint channel, object connection, char *into, size_t size,
                                 int flags) except -1
    cdef Py_ssize_t send_all(self, Endpoint channel, object connection, const char *data,
                             size_t size, int flags, bint all_of_it) except -1
