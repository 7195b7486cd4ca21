from fastsock._stream cimport Stream


cdef class Reader(Stream):
    cdef Py_ssize_t receive(self, char *into, size_t size) except -2
    cdef int check_receives(self) except -1
    cdef int note_timeout(self) except -1
    cdef Py_ssize_t borrow(self, bint within) except -2
    cdef Py_ssize_t more(self, bint within) except -2
    cdef int too_long(self) except -1
    cdef int give_up(self) except -1
    cdef object take(self, size_t count)
    cdef object line_at_hand(self)
    cdef object line(self, Py_ssize_t limit)
    cdef object whole_line(self, Py_ssize_t limit)
    cdef int leave_by_error(self) except -1
    cdef object exactly(self, Py_ssize_t size)
    cdef object into(self, object target, bint once)
