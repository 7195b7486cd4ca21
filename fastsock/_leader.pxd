from fastsock cimport _sys
from fastsock._accept cimport Accepted
from fastsock._clock cimport nanoseconds
from fastsock._control cimport Control, Wakeup
from fastsock._hooks cimport Defaults
from fastsock._inbox cimport Inbox
from fastsock._worker cimport Feeder, Pool, PyThread_type_lock, Worker


cdef enum _Look:
    WELL
    WAITED_FOR  # a connection waits
    STUCK  # and the leader is at the same request as at the last look
    ELSEWHERE  # it has been for a while, and nobody waits


cdef bint readable(int descriptor) noexcept nogil


cdef class Leadership(Feeder):
    cdef object server
    cdef Control control
    cdef Defaults defaults
    cdef Wakeup loop
    cdef Pool pool  # whose feeder this is
    cdef Wakeup recall
    cdef Worker holder  # the worker that takes the next request; None: the loop does
    cdef object error  # what the loop has to raise
    cdef PyThread_type_lock away  # held by the worker while it takes a request
    cdef Inbox inbox  # of a datagram server, or None
    cdef bint ahead  # datagrams wait in there; read without the GIL
    cdef int listener  # that the worker polls, for the loop to look at
    cdef bint polling  # the worker waits for a request
    cdef int absent  # looks in a row that found it not to want the GIL
    cdef unsigned long served  # requests since this leader was appointed
    cdef unsigned long streak  # requests since one got stuck
    cdef unsigned long seen  # of those, at the last look
    cdef unsigned int waited_for  # looks that found a connection waiting for it
    cdef int unchanged  # looks in a row that found it at the same request
    cdef nanoseconds looked_at
    cdef Accepted accepted  # for the loop to dispatch
    cdef bint has_accepted
    cdef nanoseconds not_before  # when there may be a leader again
    cdef nanoseconds pause

    cdef bint appoint(self) except -1
    cdef bint permits(self, Worker worker) except -1
    cdef bint take(self, Worker worker, Accepted *accepted) except -1
    cdef bint takes_natively(self, object server, unsigned int looked) except -1
    cdef bint take_datagram(self, Worker worker) except -1
    cdef int resign(self) except -1
    cdef int check(self) except -1
    cdef _Look look(self) noexcept nogil
    cdef bint has_ahead(self) noexcept nogil
    cdef int wait(self, _sys.pollfd *polled, _sys.nfds_t count, nanoseconds until,
                  PyThread_type_lock wake, int *error) except -2
    cdef int retire(self) except -1
