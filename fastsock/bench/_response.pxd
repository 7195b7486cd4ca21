cdef enum:
    LONGEST_HEADER = 1 << 14  # bytes, the empty line with them

cdef int read_header(const char *text, size_t size, long long *length) noexcept nogil
cdef size_t header_size(const char *text, size_t size) noexcept nogil
