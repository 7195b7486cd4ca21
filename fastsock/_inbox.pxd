from fastsock cimport _sys

cdef enum:
    BATCH = 32  # datagrams received by one call at most


cdef struct Known:
    _sys.sockaddr_storage raw
    _sys.socklen_t length
    void *address  # owned; NULL: an empty place


cdef struct Sender:
    _sys.sockaddr_storage raw
    _sys.socklen_t length


cdef class AddressBook:
    cdef Known *known
    cdef unsigned short *places  # in known, by the identity of the address

    cdef object name(self, _sys.sockaddr_storage *raw, _sys.socklen_t length)
    cdef Known *find(self, object address) noexcept


cdef class Ancillary:
    cdef _sys.msghdr message  # its control buffer is owned, and the descriptors in there
    cdef int cut  # MSG_CTRUNC, or 0

    cdef list items(self, size_t most, int flags)


cdef class Inbox:
    cdef object __weakref__
    cdef unsigned int begin, end  # of the headers, those that wait
    cdef unsigned int capacity  # headers
    cdef size_t room  # bytes for each
    cdef bint largest  # no datagram of this family is larger
    cdef char *memory
    cdef size_t mapped  # bytes of it
    cdef _sys.mmsghdr *headers
    cdef _sys.iovec *pieces
    cdef _sys.sockaddr_storage *names
    cdef char *controls
    cdef AddressBook book
    cdef int kind  # of the socket: SOCK_DGRAM; -1: not looked at yet
    cdef unsigned int users  # sockets, which dup() has made
    cdef unsigned long long sent  # datagrams
    cdef bint passes  # descriptors have come along: nothing more is received ahead
    cdef bint watched  # the program polls the descriptor by itself: nothing is received ahead
    cdef unsigned long generation  # of the process in which it was filled
    # replies that are held back: (data, address, request, server)
    cdef list gathered
    cdef unsigned long gatherer  # the thread whose replies are, or 0

    cdef unsigned int waiting(self) except? 0
    cdef void free_memory(self) noexcept
    cdef int make_room(self, int family, size_t size) except -1
    cdef int one_by_one(self, int descriptor, unsigned int most, int flags) except -1
    cdef int fill(self, int descriptor, size_t size, unsigned int most) except -1
    cdef size_t length(self) noexcept
    cdef object data(self, size_t most)
    cdef void sender(self, Sender *sender) noexcept
    cdef object name(self, Sender *sender)
    cdef size_t copy(self, void *buffer, size_t size) noexcept
    cdef Ancillary ancillary(self, int flags)
    cdef int drop(self) noexcept
    cdef int abandon(self) noexcept
