from fastsock._waiter cimport Endpoint


cpdef object waiting()
cdef Py_ssize_t transfer_by(object wait, Endpoint channel, object connection, bint writing,
                            char *data, size_t size, int flags, bint all_of_it) except -1
