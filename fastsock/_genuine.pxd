cdef class Genuine:
    cdef readonly object original
    cdef dict attributes  # name -> what the class has itself, or None
    cdef unsigned int seen  # the version of the class that was found unchanged

    cdef bint unpatched(self) except -1
