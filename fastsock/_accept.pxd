cdef int fail(int error) except -1
cdef object accept_connection(object listener)
cdef object receive_datagram(object receiver, object max_packet_size)
cdef bint can_accept(object listener)
cdef bint can_receive(object receiver, object max_packet_size)
