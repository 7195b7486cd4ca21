from fastsock._waiter cimport Endpoint


cdef class Copy:
    cdef int descriptor
    cdef bint given_up  # what it is a copy of is no more


cpdef object waiting()
cpdef int forget(object whom) except -1
cdef Py_ssize_t transfer_by(object wait, Endpoint channel, object connection, bint writing,
                            char *data, size_t size, int flags, bint all_of_it) except -1
