from fastsock cimport _sys


cdef struct Accepted:
    int descriptor  # -1: there was nothing to accept after all, or an error
    int error
    _sys.sockaddr_storage address
    _sys.socklen_t length

cdef void accept_from(int listener, Accepted *accepted) noexcept nogil
cdef object accept_connection(object listener, object connection_class, Accepted *accepted)
cdef bint can_accept(object listener) except -1
cdef bint known_family(object sock) except -1
cdef bint is_datagram(object sock) except -1
cdef object peer_address(_sys.sockaddr_storage *storage, _sys.socklen_t length)
