"""How many connections a server takes: ``max_connections``, ``max_connections_per_peer``.

Read from the server for each connection, like its hooks. What is no positive int is no limit: a
program may have such an attribute for something else.
"""

from libc.string cimport memcmp, memset

from fastsock cimport _sys
from fastsock._ledger cimport Ledger

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8(object text) except NULL

cdef extern from "arpa/inet.h" nogil:
    int inet_pton(int family, const char *text, void *address)

cdef extern from *:
    """
    /* Whether two attributes are None in the class, and nothing in the object hides that. */
    static int fastsock_both_none(PyObject *object, PyObject *one, PyObject *other) {
        PyTypeObject *type = Py_TYPE(object);
        PyObject *own;
        int hidden;
        if (type->tp_getattro != PyObject_GenericGetAttr
            || _PyType_Lookup(type, one) != Py_None || _PyType_Lookup(type, other) != Py_None)
            return 0;
        own = PyObject_GenericGetDict(object, NULL);
        if (own == NULL) {
            PyErr_Clear();
            return 0;
        }
        hidden = PyDict_Contains(own, one);
        if (hidden == 0)
            hidden = PyDict_Contains(own, other);
        Py_DECREF(own);
        if (hidden < 0)
            PyErr_Clear();
        return hidden == 0;
    }
    """
    bint fastsock_both_none(object instance, str one, str other)

cdef bytes _MAPPED = b"\0" * 10 + b"\xff\xff"  # RFC 4291, 2.5.5.2


cdef bint unlimited(object server) except -1:
    """Whether there is no limit; a lookup that costs less than two of Python's."""
    return fastsock_both_none(server, "max_connections", "max_connections_per_peer")


cdef Py_ssize_t _limit(object server, str name) except -1:
    """0: none."""
    most = getattr(server, name, None)
    if type(most) is not int or most <= 0:
        return 0
    return <Py_ssize_t> min(most, 1 << 40)


def peer_key(peer):
    """Whom a peer's connections count for: an IPv4 address, an IPv6 network of /64; None: nobody.

    Of an IPv4 address that is mapped to IPv6 it is the IPv4 address.
    """
    cdef unsigned char address[16]
    cdef const char *text
    if type(peer) is not tuple or len(peer) < 2 or type(peer[0]) is not str:
        return None
    if len(peer) != 4:
        return peer[0]
    host = (<str> peer[0]).partition("%")[0]
    text = PyUnicode_AsUTF8(host)
    memset(address, 0, sizeof(address))
    if inet_pton(_sys.AF_INET6, text, address) != 1:
        return peer[0]
    if memcmp(address, <const char *> _MAPPED, 12) == 0:
        return f"{address[12]}.{address[13]}.{address[14]}.{address[15]}"
    return (<char *> address)[:8]


cdef object refusal(object server, Ledger ledger, object peer):
    """Why a connection that was accepted is to be closed at once; None: it is not."""
    cdef Py_ssize_t most = _limit(server, "max_connections_per_peer")
    if most:
        if ledger.peers is None:
            ledger.count_peers(peer_key)
        if ledger.peers.get(peer_key(peer), 0) >= most:
            return "max_connections_per_peer"
    most = _limit(server, "max_connections")
    if not most or getattr(server, "overload", "wait") != "reject":
        ledger.refusing = False
        return None
    if ledger.active >= most:
        ledger.refusing = True
    elif ledger.active <= _enough(most):
        ledger.refusing = False
    return "max_connections" if ledger.refusing else None


cdef Py_ssize_t _enough(Py_ssize_t most) noexcept:
    """How few there are to be before more are taken: not one for each that ends."""
    return most - max(<Py_ssize_t> 1, most // 8)


cdef object gate_of(object server, Ledger ledger):
    """What to wait for before another connection is taken; None: nothing.

    Raises OSError of eventfd(2).
    """
    cdef Py_ssize_t most = _limit(server, "max_connections")
    if not most or ledger.active < most or getattr(server, "overload", "wait") == "reject":
        ledger.enough = -1
        return None
    if ledger.process != _sys.getpid():  # after a fork the event is the parent's
        ledger.renew_event()
    ledger.enough = _enough(most)
    return Gate(ledger)


cdef class Gate:
    """An eventfd(2) that is readable when few enough connections are left."""

    cdef Ledger ledger

    def __init__(self, Ledger ledger):
        self.ledger = ledger

    def fileno(self):
        return self.ledger.event

    def is_over(self):
        """The loop asks when it is readable."""
        cdef _sys.eventfd_t count
        _sys.eventfd_read(self.ledger.event, &count)
        return self.ledger.active <= self.ledger.enough
