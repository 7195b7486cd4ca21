cdef class Defaults:
    cdef object accept
    cdef object receive
    cdef object verify_request
    cdef object process_request
    cdef object finish_request
    cdef object handle_request_noblock
    cdef object shutdown_request
    cdef object close_request
    cdef object service_actions
    cdef object fileno
    cdef object connection
    cdef object datagram_socket
    cdef object shutdown_datagram
    cdef object close_datagram
    cdef object handle_truncated
    cdef public object thread_request  # ThreadingMixIn.process_request
    cdef public object thread_target  # ThreadingMixIn.process_request_thread
    cdef object pair


cdef bint untouched(object server, str name, object function) except -1
cdef bint is_of_class(object server, str name, object value) noexcept
