from fastsock._clock cimport nanoseconds
from fastsock._sys cimport iovec, mmsghdr
from fastsock.bench._calls cimport epoll_event
from fastsock.bench._load_base cimport Error, Load

cdef enum:
    EVENTS = 256  # that one epoll_wait(2) brings
    BATCH = 64  # datagrams of one system call
    LARGEST = 8192
    STRIDE = LARGEST + 64  # + 64: not all in the same lines of the cache


cdef struct Sent:
    unsigned long long number
    nanoseconds since


cdef struct Peer:
    int fd  # owned
    bint waiting  # in the queue of those that could not send
    bint resting  # the server was not there: not before the next sweep
    bint severed  # the kernel has forgotten whom it was connected to
    Sent *sent  # owned: without an answer, oldest first, from sent[first]; room: 2 windows
    size_t first, under_way
    unsigned long long next  # to be sent
    unsigned long long latest  # the highest that was answered
    unsigned long long *lost  # owned: given up, so that an answer may still come; room: a window
    size_t owed  # of them
    long served


cdef struct Buffers:
    char outgoing[BATCH * LARGEST + 8]
    char incoming[BATCH][STRIDE]
    char expected[STRIDE]
    iovec pieces[2][BATCH]
    mmsghdr to_send[BATCH]
    mmsghdr received[BATCH]


cdef class DatagramLoad(Load):
    cdef Peer *peers  # owned
    cdef Peer **queue  # owned: a ring; who could not send is served in turn
    cdef Buffers *buffers  # owned
    cdef epoll_event events[EVENTS]
    cdef size_t count, size, window
    cdef size_t queue_first, queued
    cdef Peer *watched  # the head of the queue, while the kernel is asked about it
    cdef bint cut_by_kernel

    cdef int make_socket(self, Peer *p) except -1
    cdef bint connects(self, Peer *p) noexcept nogil
    cdef void watch(self, Peer *p, unsigned int events, int operation) noexcept nogil
    cdef void fill(self, char *payload, unsigned long long number) noexcept nogil
    cdef bint as_filled(self, const char *payload, unsigned long long number) noexcept nogil
    cdef int transmit(self, Peer *p, size_t wanted) noexcept nogil
    cdef bint sends(self, Peer *p) noexcept nogil
    cdef void refill(self, Peer *p) noexcept nogil
    cdef void advance(self) noexcept nogil
    cdef void unreachable(self, Peer *p, int error) noexcept nogil
    cdef void answered(self, Peer *p, const char *payload, nanoseconds at) noexcept nogil
    cdef void spoilt(self, Peer *p, const char *payload, size_t size, Error kind) noexcept nogil
    cdef bint was_owed(self, Peer *p, unsigned long long number) noexcept nogil
    cdef void reads(self, Peer *p) noexcept nogil
    cdef void sweep(self, nanoseconds before) noexcept nogil
    cdef nanoseconds turn(self, nanoseconds until) noexcept nogil
