cdef void await_turn() noexcept nogil
cdef void turn_over() noexcept nogil
cdef void starts_thread() noexcept
cdef bint threads_share_a_core() noexcept nogil
