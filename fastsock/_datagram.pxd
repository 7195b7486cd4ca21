from fastsock._inbox cimport Inbox


cdef Inbox inbox_of(object sock)
cdef bint can_take(object sock, object max_packet_size) except -1
cdef int descriptor_of(object sock) except -2
cdef object take(object sock, Inbox inbox, size_t max_packet_size, unsigned int most,
                 size_t *length)
cdef bint can_receive(object receiver, object max_packet_size) except -1
cdef object receive_datagram(object receiver, size_t max_packet_size, size_t *length)
cdef int send_gathered(object sock, Inbox inbox) except -1
