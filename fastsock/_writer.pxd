from fastsock._ledger cimport flag
from fastsock._stream cimport Stream


cdef class Writer(Stream):
    cdef flag split  # a part of what was written has been sent, and the rest is in the buffer

    cdef int begin(self) except -1
    cdef int flush_buffer(self) except -1
    cdef int join(self) except -1
    cdef void part(self) noexcept
    cdef Py_ssize_t accept(self, const char *data, size_t size) except -1
