from fastsock cimport _sys
from fastsock._clock cimport nanoseconds
from fastsock.bench._histogram cimport Histogram

ctypedef int Error

cdef enum:  # an Error
    REFUSED
    NO_CONNECTION
    RESET
    EARLY_END
    CORRUPTED
    TOO_MANY_BYTES
    TIMED_OUT
    STATUS
    MALFORMED
    ENDED
    LOST
    DISORDERED
    WRONG_LENGTH
    FOREIGN
    DUPLICATE
    NO_ERROR = -1

cdef enum:
    ERRORS = DUPLICATE + 1
    TOO_MANY_ERRORS = 1000


cdef class Load:
    cdef readonly long long operations
    cdef readonly long long verified
    cdef readonly double seconds
    cdef readonly Py_ssize_t served
    cdef readonly Histogram latency
    cdef long long errors_of[ERRORS]
    cdef long long errors_in_all

    cdef _sys.sockaddr_storage address
    cdef _sys.socklen_t address_length
    cdef int poller  # owned, as is every descriptor of a subclass; -1: not open
    cdef bint in_use  # a method runs, perhaps without the GIL
    cdef long long wanted  # operations that end a run; 0: time alone does
    cdef nanoseconds patience  # with an answer
    cdef nanoseconds paused  # when the last open() or run() ended
    cdef nanoseconds swept  # when timeouts were looked for

    # What a subclass has; the first two raise, the rest runs without the GIL.
    cdef int prepare(self, nanoseconds until, double seconds) except -1
    cdef Py_ssize_t descriptors(self) except -1
    cdef void resume(self, nanoseconds pause) noexcept nogil
    cdef void work(self, nanoseconds until) noexcept nogil
    cdef Py_ssize_t count_served(self) noexcept nogil
    cdef void release(self) noexcept nogil

    cdef inline void wrong(self, Error kind) noexcept nogil:
        self.errors_of[kind] += 1
        self.errors_in_all += 1

    cdef inline bint enough(self) noexcept nogil:
        return (self.errors_in_all >= TOO_MANY_ERRORS
                or (self.wanted and self.operations >= self.wanted))

    cdef int set_address(self, object address) except -1
    cdef int enter(self) except -1
    cdef int leave(self) except -1
    cdef void forget(self) noexcept nogil


cdef nanoseconds checked_seconds(double seconds) except -1
cdef nanoseconds checked_timeout(object timeout, double default) except -1
cdef Py_ssize_t checked(object number, str what, Py_ssize_t least, Py_ssize_t most) except -1
cdef int milliseconds_until(nanoseconds until, nanoseconds now, nanoseconds most) noexcept nogil
cdef void nap(long long duration) noexcept nogil
