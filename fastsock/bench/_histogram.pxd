cdef enum:
    PART_BITS = 7  # a power of two is divided into 128 buckets: 1/128 is less than 1 %
    MOST_BITS = 36  # 2**36 ns is 68.7 s: what is longer counts in the last bucket
    BUCKETS = ((MOST_BITS - PART_BITS) << PART_BITS) + (1 << PART_BITS)


cdef extern from *:
    int highest_bit "63 - __builtin_clzll"(unsigned long long) noexcept nogil


cdef inline int bucket_of(unsigned long long nanoseconds) noexcept nogil:
    """Below 2**8 each number has its own; from there on an octave has 2**7 of equal width."""
    cdef int shift
    if nanoseconds >> MOST_BITS:
        return BUCKETS - 1
    shift = highest_bit(nanoseconds | 1) - PART_BITS
    if shift <= 0:
        return <int> nanoseconds
    return (shift << PART_BITS) + <int> (nanoseconds >> shift)


cdef class Histogram:
    cdef unsigned long long counts[BUCKETS]
    cdef readonly unsigned long long count
    cdef unsigned long long largest  # exact

    cdef inline void record(self, long long nanoseconds, unsigned long long times) noexcept nogil:
        if nanoseconds < 0:
            nanoseconds = 0
        self.counts[bucket_of(<unsigned long long> nanoseconds)] += times
        self.count += times
        if <unsigned long long> nanoseconds > self.largest:
            self.largest = <unsigned long long> nanoseconds

    cdef void empty(self) noexcept nogil
