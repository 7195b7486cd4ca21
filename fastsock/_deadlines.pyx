"""The deadlines that a handler's class sets for its connection.

Each is a time, or a span from something that the peer cannot repeat at will: none begins anew with
a system call.

Threads: the handler's alone.
"""

from fastsock._clock cimport NEVER, monotonic, nanoseconds, sooner

cdef extern from *:
    """
    /* Whether four attributes are None in the class of an object. */
    /* The state of the class that was found to have none: a version is given to one state of one
     * class, and 0 to a class that has changed since. Only with the GIL. */
    static unsigned int fastsock_none_of = 0;

    static int fastsock_all_none(PyObject *object, PyObject *names) {
        PyTypeObject *type = Py_TYPE(object);
        Py_ssize_t index;
    #if PY_VERSION_HEX >= 0x030B0000 /* before, sys._clear_type_cache() gives the same ones again */
        if (type->tp_version_tag != 0 && type->tp_version_tag == fastsock_none_of)
            return 1;
    #endif
        for (index = 0; index < PyTuple_GET_SIZE(names); index++)
            if (_PyType_Lookup(type, PyTuple_GET_ITEM(names, index)) != Py_None)
                return 0;
        fastsock_none_of = type->tp_version_tag;  /* which the lookup has given it, or 0 */
        return 1;
    }
    """
    bint fastsock_all_none(object instance, tuple names)

NAMES = ("first_byte_timeout", "idle_timeout", "request_timeout", "write_timeout")

cdef enum:
    FIRST, IDLE, WHOLE, WRITE

cdef tuple _NAMES = NAMES


class DeadlineError(TimeoutError):
    """A deadline of a handler's connection is over; see ``BaseRequestHandler``.

    Attributes:
        which: "first_byte_timeout", "idle_timeout", "request_timeout" or "write_timeout".
    """

    __module__ = __package__
    which = ""

    def __init__(self, *arguments, which=""):
        super().__init__(*arguments)
        self.which = which


cdef nanoseconds _span(object seconds) except -2:
    """What is no positive number sets no deadline: a program may have such an attribute."""
    if type(seconds) is not int and type(seconds) is not float:
        return NEVER
    if not 0 < seconds < 1e9:
        return NEVER
    return <nanoseconds> (<double> seconds * 1e9)


cdef object _value(object handler, str name):
    try:
        return getattr(handler, name, None)
    except Exception:
        return None  # a property of the program's own


cdef Deadlines deadlines_of(object handler):
    """Those of a handler that begins now; None: there is none."""
    cdef Deadlines deadlines
    cdef nanoseconds first, idle, whole, write, now
    if fastsock_all_none(handler, _NAMES):
        return None
    first = _span(_value(handler, _NAMES[FIRST]))
    idle = _span(_value(handler, _NAMES[IDLE]))
    whole = _span(_value(handler, _NAMES[WHOLE]))
    write = _span(_value(handler, _NAMES[WRITE]))
    if first == NEVER and idle == NEVER and whole == NEVER and write == NEVER:
        return None
    now = monotonic()
    deadlines = Deadlines.__new__(Deadlines)
    deadlines.first = first
    deadlines.first_by = NEVER if first == NEVER else now + first
    deadlines.idle = idle
    deadlines.whole_by = NEVER if whole == NEVER else now + whole
    deadlines.write = write
    deadlines.moved_at = now
    return deadlines


cdef class Deadlines:
    """Of one connection."""

    cdef nanoseconds of_receive(self, bint in_message) noexcept:
        """When a receive that has to wait is to be given up."""
        cdef nanoseconds by = sooner(self.whole_by, self.first_by)
        if self.idle != NEVER and not in_message:
            by = sooner(by, self.moved_at + self.idle)
        return by

    cdef nanoseconds of_send(self, nanoseconds begun) noexcept:
        """When a send that began then is to be given up."""
        if self.write == NEVER:
            return self.whole_by
        if self.stuck:
            return begun  # who has had the time for one write is not waited for with the next
        return sooner(self.whole_by, begun + self.write)

    cdef str over(self, bint writing, bint in_message, nanoseconds begun):
        """Which deadline is over, or None; who goes on all the same has a span of it again.

        But for that of the whole request, and for a write: see ``stuck``.
        """
        cdef nanoseconds now = monotonic()
        if self.whole_by != NEVER and now >= self.whole_by:
            return _NAMES[WHOLE]
        if writing:
            if self.write != NEVER and (self.stuck or now >= begun + self.write):
                self.stuck = True
                return _NAMES[WRITE]
        elif self.first_by != NEVER and now >= self.first_by:
            self.first_by = now + self.first
            return _NAMES[FIRST]
        elif self.idle != NEVER and not in_message and now >= self.moved_at + self.idle:
            self.moved_at = now
            return _NAMES[IDLE]
        return None

    cdef void moved(self) noexcept:
        """A byte has come or gone."""
        self.moved_at = monotonic()

    cdef void taken(self) noexcept:
        """All of what was to be sent has gone."""
        self.stuck = False
        self.moved()

    cdef nanoseconds write_begun(self) noexcept:
        """When the write has begun of which the next send is a part."""
        return self.writing_since if self.writing_since else monotonic()
