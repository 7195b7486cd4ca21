"""Which hooks of a server are the untouched defaults, so that the core may do what they would.

Looked up anew for every request, as Python would look them up: a subclass, a mix-in, an instance
attribute, a class patched under a running server all take effect at once.
"""

from cpython.method cimport PyMethod_Check, PyMethod_GET_FUNCTION, PyMethod_GET_SELF
from cpython.ref cimport PyObject

cdef extern from *:
    """
    /* Whether an attribute of an object is a function of its class and nothing in the object hides
     * that: a lookup that makes no bound method, which is most of what the usual one costs. -1
     * where Python code, or another kind of object, has a say in that. */
    static int fastsock_is_of_class(PyObject *object, PyObject *name, PyObject *function) {
        PyTypeObject *type = Py_TYPE(object);
        PyObject *own;
        int hidden;
        if (type->tp_getattro != PyObject_GenericGetAttr)
            return -1;
        if (_PyType_Lookup(type, name) != function)
            return 0;
        own = PyObject_GenericGetDict(object, NULL);
        if (own == NULL) {
            PyErr_Clear();
            return -1;
        }
        hidden = PyDict_Contains(own, name);
        Py_DECREF(own);
        if (hidden < 0)
            PyErr_Clear();
        return hidden == 0;
    }
    """
    int fastsock_is_of_class(object instance, object name, object function)


cdef class Defaults:
    """The functions that the core may stand in for, to know a server that has overridden none.

    accept: the get_request of the stream servers; receive: that of the datagram servers; the
    others: the BaseServer's methods of these names, and the stream servers' for shutdown_request
    and close_request; shutdown_datagram, close_datagram, handle_truncated: those of the datagram
    servers.
    connection: the class of what is accepted; datagram_socket: of what a datagram server receives
    from. thread_request is ThreadingMixIn.process_request, which is set later. pair: a Python
    function that unpacks what an overridden get_request returned, with Python's own error
    messages.
    """

    def __init__(self, *, accept, receive, verify_request, process_request, finish_request,
                 handle_request_noblock, shutdown_request, close_request, service_actions,
                 fileno, connection, datagram_socket, shutdown_datagram, close_datagram,
                 handle_truncated, pair):
        self.accept = accept
        self.receive = receive
        self.verify_request = verify_request
        self.process_request = process_request
        self.finish_request = finish_request
        self.handle_request_noblock = handle_request_noblock
        self.shutdown_request = shutdown_request
        self.close_request = close_request
        self.service_actions = service_actions
        self.fileno = fileno
        self.connection = connection
        self.datagram_socket = datagram_socket
        self.shutdown_datagram = shutdown_datagram
        self.close_datagram = close_datagram
        self.handle_truncated = handle_truncated
        self.pair = pair


cdef bint untouched(object server, str name, object function) except -1:
    """Whether a method of the server is the given function, bound to it.

    True of no instance attribute, no override and no patched class, whenever they were made.
    Raises what a lookup of the attribute raises.
    """
    cdef int known = fastsock_is_of_class(server, name, function)
    if known >= 0:
        return known == 1
    return _is_bound(getattr(server, name), server, function)


cdef bint is_of_class(object server, str name, object value) noexcept:
    """Whether an attribute is this object, found in the class; false also where it may be so."""
    return fastsock_is_of_class(server, name, value) == 1


cdef bint _is_bound(object method, object server, object function) noexcept:
    """Whether a hook that was looked up on the server is the given function, bound to it.

    True of no instance attribute, no override and no patched class, whenever they were made.
    """
    return (PyMethod_Check(method)
            and PyMethod_GET_FUNCTION(method) == <PyObject *> function
            and PyMethod_GET_SELF(method) == <PyObject *> server)
