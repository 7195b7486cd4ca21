from fastsock._accept cimport Accepted
from fastsock._control cimport Control
from fastsock._hooks cimport Defaults


cpdef int failed(object server, Control control, object request,
                 object client_address) except -1
cpdef int over(Control control, object request) except -1
cdef int shut_down(object server, Control control, Defaults defaults, object request) except -1
cpdef bint begin_in_thread(object server, Control control, Defaults defaults, object request,
                           object client_address) except -1
cdef bint begins_natively(object server, Control control) except -1
cdef bint accepts_natively(object server, Defaults defaults, unsigned int looked) except -1
cdef bint dispatch_one(object server, Control control, Defaults defaults, bint polled,
                       Accepted *accepted, bint defer, unsigned int most) except -1
