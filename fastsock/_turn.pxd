cdef void await_turn() noexcept nogil
cdef void turn_over() noexcept nogil
