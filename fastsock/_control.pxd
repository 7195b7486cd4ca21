from fastsock._clock cimport nanoseconds
from fastsock._hooks cimport Defaults, Hooks
from fastsock._ledger cimport Ledger


cdef class Wakeup:
    cdef int descriptor
    cdef unsigned long thread  # that runs the loop

    cdef int retire(self) except -1
    cdef bint open(self) noexcept
    cdef void wake(self) noexcept
    cdef void clear(self) noexcept
    cdef void close(self) noexcept


cdef class Control:
    cdef readonly Ledger ledger
    cdef Hooks hooks
    cdef object _stop
    cdef unsigned long stopped_by  # the thread that asked for it last
    cdef list wakeups  # of the loops that serve this server
    cdef nanoseconds paused_until  # 0: not paused
    cdef nanoseconds pause
    cdef bint for_descriptor  # the pause may end as soon as one is free again
    cdef nanoseconds logged
    cdef int aborted_in_a_row
    cdef object broken  # the OSError of a listener that is no longer one
    cdef object held  # what is polled in the listener's place, or None
    cdef public object owner  # the id() of the server: a copy of that has none yet
    cdef public object pool  # of the threads of its requests, or None
    cdef public object watched  # polled too, or None
    cdef public object on_watched
    cdef public object before_sleep  # to be called by the loop, or None
    cdef public object adopt  # to be called with each request before the hooks, or None
    cdef unsigned long taking  # the leader's thread while it takes a request, or 0
    cdef unsigned long handling  # the thread that is in handle_request(); 0: none
    cdef public int draining  # how often it is drained just now
    cdef public long left  # requests that a loop which drains may still take; -1: it has ended
    cdef public unsigned long long forked  # children that were given a request
    cdef int singly  # calls of handle_request() under way
    cdef object own_socket  # a weak reference to what this process has bound, or None
    cdef unsigned long forks  # as many as there had been by then
    cdef object source  # the DatagramSocket from which a loop has received ahead, or None
    cdef readonly dict accept_errors
    cdef readonly unsigned long long truncated  # datagrams
    cdef readonly unsigned long long start_failures

    cpdef int wake(self) except -1
    cdef bint is_own(self, object sock) except -1
    cpdef int released(self) except -1
    cdef nanoseconds back_off(self, bint for_descriptor) noexcept
    cdef int cannot_take(self, object server, object error) except -1
    cdef int refused(self, object server, object error, bint native) except -1
    cdef int count(self, object number) except -1
    cdef void took_one(self) noexcept
    cdef void resume(self) noexcept
    cdef bint has_datagrams(self, object server) except -1
    cdef bint find_datagrams(self, object server, Defaults defaults) except -1
    cdef bint has_fileno(self, object server, Defaults defaults) except -1
    cdef unsigned int waiting(self) except? 0
    cdef int end_batch(self) except -1
    cdef bint limit(self, object server) except -1


cdef int serves(object server, bint begins) except -1
cdef unsigned int batch_size(object server, Control control, Defaults defaults) except 0
