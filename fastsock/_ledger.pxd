from fastsock._clock cimport nanoseconds


# A bint that takes one byte, in objects of which every connection has one.
ctypedef unsigned char flag


cdef enum Doing:
    WORKING  # nothing that waits for the peer
    IDLE  # it waits for the first byte of a message, and has none in a buffer
    READING  # it waits for the rest of one
    WRITING  # it waits until the peer takes some


cdef enum:
    BUCKETS = 28


cdef class Record:
    # Of those of one server, under the GIL; neither owns the other.
    cdef void *newer
    cdef void *older
    cdef Ledger ledger  # None: it was never entered, or has ended
    cdef View view  # what programs have been given of it; None: nothing
    cdef object peer  # the client_address
    cdef nanoseconds since
    cdef unsigned long long received  # bytes
    cdef unsigned long long sent
    cdef flag doing
    cdef flag answered  # nothing has been received since something was sent
    cdef flag woken  # a drain has ended its wait for a next message
    cdef flag forks  # how often this process, or one it was forked from, had forked (modulo 256)
    # Those of Endpoint, here for their place in memory:
    cdef flag handed_over  # the socket object has the descriptor and the timeout
    cdef flag in_message  # a part of one has been read: what it waits for is the rest
    cdef flag of_tls  # the heir is an ssl.SSLSocket: only its own methods can read and write
    cdef flag eager  # bytes were waiting at the last call: try once without releasing the GIL
    cdef unsigned short writers  # that may be in the middle of their bytes
    cdef int descriptor  # owned; -1: given away or closed
    cdef flag gone  # the socket object has closed or detached what it had been handed

    cdef void end(self) noexcept
    cdef void leave(self) noexcept
    cdef bint has_answered(self) noexcept
    cdef int cut(self, int direction) except -1
    cdef int look(self) except -1


cdef class View:
    cdef void *record  # NULL: it has ended, before which it says so
    cdef object peer
    cdef nanoseconds since
    cdef unsigned long long received
    cdef unsigned long long sent

    cdef void end(self) noexcept


cdef class OtherRecord(Record):
    cdef object request  # a weak reference
    cdef bint ending  # it is counted: what the kernel counts from now on is the end

    cdef int look_at(self, object request) except -1


cdef class ChildRecord(Record):
    cdef readonly int pid


# In memory that a forking server shares with its children.
cdef struct Shared:
    unsigned long long received
    unsigned long long sent
    unsigned long long datagrams_sent


cdef class Ledger:
    cdef void *newest
    cdef readonly Py_ssize_t active
    cdef readonly Py_ssize_t peak
    cdef readonly unsigned long long accepted
    cdef readonly unsigned long long finished
    cdef readonly unsigned long long failed
    cdef public int draining  # how often it is drained just now: nobody waits for a next message
    cdef unsigned long long received  # by those that have ended
    cdef unsigned long long sent
    cdef readonly unsigned long long datagrams
    cdef nanoseconds began_at  # the handler of a datagram that the loop's thread runs; 0: none
    cdef nanoseconds ended_at  # the latest datagram's handler
    cdef unsigned long long buckets[BUCKETS]
    cdef nanoseconds lasted  # all that are in the buckets
    # Of _limits:
    cdef dict peers  # by whom they count for: how many connections; None: nobody asks
    cdef object peer_key
    cdef bint refusing
    cdef int process  # whose the event is
    cdef int event  # eventfd(2), which is written when so few are left; -1: none
    cdef Py_ssize_t enough  # -1: nobody waits
    cdef flag forks  # as a record's, when there was no other process's
    cdef readonly dict others  # by id() of a request that is no Connection: its record
    cdef readonly dict children  # by pid: the record of what was given to it
    cdef readonly dict refused  # by reason: how often
    cdef readonly dict timed_out  # by deadline: how often
    cdef dict timing  # by id() of a datagram whose thread sees to its end: since when
    cdef public Py_ssize_t threads  # that serve a request, where there is no pool of them
    cdef public Py_ssize_t threads_peak  # also of a pool that is closed
    cdef Shared *shared  # NULL: it has never forked
    cdef Shared told  # what was this process's own when it was forked

    cdef void link(self, Record record) noexcept
    cdef void enter(self, Record record, object peer) noexcept
    cdef void took(self, nanoseconds lasted) noexcept
    cpdef int refuse(self, str reason) except -1
    cpdef int time_out(self, str which) except -1
    cdef int count_peer(self, object peer, int step) except -1
    cdef int count_peers(self, object peer_key) except -1
    cdef int renew_event(self) except -1
    cdef void served(self, nanoseconds begun) noexcept
    cdef void stop(self) noexcept
    cpdef int after_fork(self) except -1
    cdef int sum_up(self, unsigned long long *received, unsigned long long *sent) except -1
