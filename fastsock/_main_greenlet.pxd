from fastsock cimport _sys
from fastsock._clock cimport nanoseconds
from fastsock._tasks cimport Scheduler


cdef class MainScheduler(Scheduler):
    cdef bint unwatched  # some of what is polled are not in the epoll

    cdef int wait(self, _sys.pollfd *polled, _sys.nfds_t count, nanoseconds until) except -2
    cdef void arm(self, _sys.pollfd *polled, _sys.nfds_t count, nanoseconds until) noexcept
    cdef int step(self) except -1
