"""Has a program put something of its own into a class of the standard library?

Then what we do natively in that class's place would no longer be what the program means.
"""

from cpython.ref cimport PyObject

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        unsigned int tp_version_tag


cdef class Genuine:
    """A class, and the attributes that it had when we were imported."""

    def __init__(self, original, names):
        self.original = original
        self.attributes = {name: vars(original).get(name) for name in names}

    cdef bint unpatched(self) except -1:
        # The version tag of a type changes with every change to it or to one of its bases.
        cdef unsigned int tag = (<PyTypeObject *> <PyObject *> self.original).tp_version_tag
        if tag != 0 and tag == self.seen:
            return True
        now = vars(self.original)
        for name, value in self.attributes.items():
            if now.get(name) is not value:
                return False
        getattr(self.original, "__init__")  # a lookup gives a changed type its new tag
        self.seen = (<PyTypeObject *> <PyObject *> self.original).tp_version_tag
        return True

    def __bool__(self):
        """Whether the class is unchanged."""
        return self.unpatched()
