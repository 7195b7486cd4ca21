"""Which hooks of a server are the untouched defaults, so that the core may do what they would.

Looked up anew for every request, as Python would look them up: a subclass, a mix-in, an instance
attribute, a class patched under a running server all take effect at once.
"""

from cpython.method cimport PyMethod_Check, PyMethod_GET_FUNCTION, PyMethod_GET_SELF
from cpython.ref cimport PyObject

cdef extern from *:
    """
    /* What the attributes of these names are in a class, a bit for each that is this value; the
     * highest where Python code, or another kind of object, has a say in what its objects have. */
    static unsigned int fastsock_of_class(PyTypeObject *type, PyObject *names, PyObject *values,
                                          unsigned int bits) {
        unsigned int rest;
        if (type->tp_getattro != PyObject_GenericGetAttr)
            return 1u << 30;
        for (rest = bits; rest; rest &= rest - 1) {
            int index = __builtin_ctz(rest);
            if (_PyType_Lookup(type, PyTuple_GET_ITEM(names, index))
                != PyList_GET_ITEM(values, index))
                bits &= ~(1u << index);
        }
        return bits;
    }

    /* Of those bits the ones whose names the object has no attribute of its own to hide. */
    static unsigned int fastsock_not_hidden(PyObject *object, PyObject *names, unsigned int bits) {
        PyObject *own = PyObject_GenericGetDict(object, NULL);
        unsigned int rest;
        if (own == NULL) {
            PyErr_Clear();
            return 0;
        }
        for (rest = bits; rest; rest &= rest - 1) {
            int hidden = PyDict_Contains(own, PyTuple_GET_ITEM(names, __builtin_ctz(rest)));
            if (hidden) {
                bits &= ~(rest & -rest);
                if (hidden < 0)
                    PyErr_Clear();
            }
        }
        Py_DECREF(own);
        return bits;
    }

    /* Before CPython 3.11 sys._clear_type_cache() gives the same versions once more. */
    #if PY_VERSION_HEX >= 0x030B0000
        #define fastsock_version(object) (Py_TYPE(object)->tp_version_tag)
    #else
        #define fastsock_version(object) 0
    #endif
    """
    ctypedef struct PyTypeObject:
        pass
    PyTypeObject *Py_TYPE(object instance)
    unsigned int fastsock_of_class(PyTypeObject *type, tuple names, list values,
                                   unsigned int bits)
    unsigned int fastsock_not_hidden(object instance, tuple names, unsigned int bits)
    unsigned int fastsock_version(object instance)
    int first_bit "__builtin_ctz"(unsigned int bits) noexcept

# In the order of the bits of Hook.
cdef tuple _NAMES = (
    "get_request", "get_request", "verify_request", "process_request", "process_request",
    "process_request_thread", "finish_request", "shutdown_request", "close_request",
    "shutdown_request", "close_request", "_handle_request_noblock", "service_actions", "fileno",
    "handle_truncated", "lingering_close", "max_connections", "max_connections_per_peer",
)


cdef class Defaults:
    """The functions that the core may stand in for, to know a server that has overridden none.

    accept: the get_request of the stream servers; receive: that of the datagram servers; the
    others: the BaseServer's methods of these names, and the stream servers' for shutdown_request
    and close_request; shutdown_datagram, close_datagram, handle_truncated: those of the datagram
    servers.
    connection: the class of what is accepted; datagram_socket: of what a datagram server receives
    from. pair: a Python function that unpacks what an overridden get_request returned, with
    Python's own error messages.
    """

    def __init__(self, *, accept, receive, verify_request, process_request, finish_request,
                 handle_request_noblock, shutdown_request, close_request, service_actions,
                 fileno, connection, datagram_socket, shutdown_datagram, close_datagram,
                 handle_truncated, pair):
        self.values = [
            accept, receive, verify_request, process_request, self, self, finish_request,
            shutdown_request, close_request, shutdown_datagram, close_datagram,
            handle_request_noblock, service_actions, fileno, handle_truncated, False, None, None,
        ]
        self.connection = connection
        self.datagram_socket = datagram_socket
        self.pair = pair

    def set_threads(self, process_request, process_request_thread):
        """Those of ThreadingMixIn; until then there are none."""
        self.values[first_bit(THREAD_PROCESS)] = process_request
        self.values[first_bit(THREAD_TARGET)] = process_request_thread

    @property
    def thread_target(self):
        return self.values[first_bit(THREAD_TARGET)]


cdef class Hooks:
    """Which hooks of one server are the defaults. What its class has is looked up anew when that
    has changed, or is another class: a version of a type is given to one state of one type.
    """

    cdef unsigned int look(self, object server, Defaults defaults, unsigned int hooks) noexcept:
        """Which of these attributes are the defaults; or ASK, where Python code has a say.

        True of no instance attribute, no override and no patched class, whenever they were made;
        until other code runs.
        """
        cdef unsigned int version = fastsock_version(server)
        if version == 0:  # it has none yet, or there are no more
            hooks = fastsock_of_class(Py_TYPE(server), _NAMES, defaults.values, hooks)
        else:
            if version != self.version:
                self.of_class = fastsock_of_class(Py_TYPE(server), _NAMES, defaults.values, ALL)
                self.version = version
            hooks = self.of_class & (hooks | ASK)
        if hooks & ASK:
            return ASK
        return fastsock_not_hidden(server, _NAMES, hooks) if hooks else 0


cdef bint untouched(object server, Defaults defaults, unsigned int looked, Hook hook) except -1:
    """Whether a hook is its default; looked: what ``Hooks.look()`` has said.

    Raises what a lookup of the attribute raises.
    """
    if looked & ASK:
        return _is_bound(getattr(server, _NAMES[first_bit(hook)]), server,
                         defaults.values[first_bit(hook)])
    return looked & hook != 0


cdef bint _is_bound(object method, object server, object function) noexcept:
    """Whether a hook that was looked up on the server is the given function, bound to it.

    True of no instance attribute, no override and no patched class, whenever they were made.
    """
    return (PyMethod_Check(method)
            and PyMethod_GET_FUNCTION(method) == <PyObject *> function
            and PyMethod_GET_SELF(method) == <PyObject *> server)
