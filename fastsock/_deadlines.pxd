from fastsock._clock cimport nanoseconds


cdef class Deadlines:
    cdef nanoseconds first_by  # NEVER: there is none, or a byte has come
    cdef nanoseconds idle
    cdef nanoseconds whole_by
    cdef nanoseconds write
    cdef nanoseconds first
    cdef nanoseconds moved_at  # when a byte has come or gone last
    cdef nanoseconds writing_since  # of a write that takes several sends; 0: none is under way
    cdef bint stuck  # a write has taken too long, and none has been taken since
    cdef bint told  # the server's book has it

    cdef nanoseconds of_receive(self, bint in_message) noexcept
    cdef nanoseconds of_send(self, nanoseconds begun) noexcept
    cdef str over(self, bint writing, bint in_message, nanoseconds begun)
    cdef void moved(self) noexcept
    cdef void taken(self) noexcept
    cdef nanoseconds write_begun(self) noexcept


cdef Deadlines deadlines_of(object handler)
