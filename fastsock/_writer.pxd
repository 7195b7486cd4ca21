from fastsock._stream cimport Stream


cdef class Writer(Stream):
    cdef int begin(self) except -1
    cdef int flush_buffer(self) except -1
    cdef Py_ssize_t accept(self, const char *data, size_t size) except -1
