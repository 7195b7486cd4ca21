"""A log-linear histogram of durations: a fixed number of buckets, each of less than 1 % width."""

from libc.string cimport memset


cdef unsigned long long _last_of(int bucket) noexcept nogil:
    """The largest number that counts in a bucket."""
    cdef int shift = (bucket >> PART_BITS) - 1
    cdef unsigned long long part = bucket
    if shift <= 0:
        return part
    part = (bucket & ((1 << PART_BITS) - 1)) + (1 << PART_BITS)
    return ((part + 1) << shift) - 1


cdef class Histogram:
    def add(self, nanoseconds):
        if nanoseconds < 0:
            raise ValueError("a duration is not negative")
        self.record(min(nanoseconds, (1 << 63) - 1), 1)

    def percentile(self, double part):
        cdef unsigned long long seen = 0
        cdef int bucket
        if not 0 <= part <= 1:
            raise ValueError("the part must be from 0 to 1")
        if self.count == 0:
            return 0.0
        for bucket in range(BUCKETS):
            seen += self.counts[bucket]
            if seen and <double> seen >= part * <double> self.count:
                break
        return <double> min(_last_of(bucket), self.largest)

    def max(self):
        return <double> self.largest

    def merge(self, Histogram other not None):
        cdef int bucket
        for bucket in range(BUCKETS):
            self.counts[bucket] += other.counts[bucket]
        self.count += other.count
        self.largest = max(self.largest, other.largest)

    def clear(self):
        self.empty()

    cdef void empty(self) noexcept nogil:
        memset(self.counts, 0, sizeof(self.counts))
        self.count = 0
        self.largest = 0
