from fastsock._clock cimport nanoseconds


cdef class Deadlines:
    cdef nanoseconds first_by  # NEVER: there is none, or a byte has come
    cdef nanoseconds idle
    cdef nanoseconds whole_by
    cdef nanoseconds write
    cdef nanoseconds moved_at  # when a byte has come or gone last
    cdef bint told  # the server's book has it
    cdef tuple seconds

    cdef nanoseconds of_receive(self, bint in_message) noexcept
    cdef nanoseconds of_send(self, nanoseconds begun) noexcept
    cdef str over(self, bint writing, bint in_message, nanoseconds begun)
    cdef void moved(self) noexcept


cdef Deadlines deadlines_of(object handler)
