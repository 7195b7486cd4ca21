# The monotonic C clock, in nanoseconds, and times on it.

from fastsock cimport _sys

ctypedef long long nanoseconds

cdef enum:
    NEVER = -1
    MILLISECOND = 1_000_000
    SECOND = 1_000_000_000


cdef inline nanoseconds monotonic() noexcept nogil:
    cdef _sys.timespec time
    _sys.clock_gettime(_sys.CLOCK_MONOTONIC, &time)
    return <nanoseconds> time.tv_sec * SECOND + time.tv_nsec


cdef inline nanoseconds sooner(nanoseconds one, nanoseconds other) noexcept nogil:
    """The earlier of two times, of which one or both may be NEVER."""
    if one == NEVER:
        return other
    if other == NEVER or one < other:
        return one
    return other


cdef inline nanoseconds monotonic_coarse() noexcept nogil:
    """The same clock as of the last tick of the kernel's: some ms old, and a quarter the price."""
    cdef _sys.timespec time
    _sys.clock_gettime(_sys.CLOCK_MONOTONIC_COARSE, &time)
    return <nanoseconds> time.tv_sec * SECOND + time.tv_nsec


cdef inline nanoseconds deadline_of(nanoseconds limit) noexcept nogil:
    """Of a call that begins now and may take so long; NEVER, if it is not to wait at all."""
    return NEVER if limit == NEVER or limit == 0 else monotonic() + limit
