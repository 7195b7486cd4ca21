from fastsock._clock cimport nanoseconds


cdef class Timed:
    cdef nanoseconds deadline
    cdef Py_ssize_t place  # in the heap of timers; -1: none
    cdef nanoseconds due  # what the heap has it under: not later than its deadline


cdef class Timers:
    cdef list heap

    cdef int set(self, Timed task) except -1
    cdef void drop(self, Timed task) noexcept
