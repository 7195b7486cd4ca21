"""How many connections a server takes: ``max_connections``, ``max_connections_per_peer``.

Read from the server for each connection, like its hooks. What is no positive int is no limit: a
program may have such an attribute for something else.
"""

from libc.string cimport memcmp, memset

from fastsock cimport _sys
from fastsock._hooks cimport UNLIMITED, UNLIMITED_PER_PEER
from fastsock._ledger cimport Ledger

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8(object text) except NULL

cdef extern from "arpa/inet.h" nogil:
    int inet_pton(int family, const char *text, void *address)

cdef bytes _MAPPED = b"\0" * 10 + b"\xff\xff"  # RFC 4291, 2.5.5.2


cdef bint unlimited(object server, unsigned int looked) except -1:
    """Whether there is no limit; looked: what ``Hooks.look()`` has said of the two."""
    if looked & UNLIMITED and looked & UNLIMITED_PER_PEER:
        return True
    return not _limit(server, "max_connections") and not _limit(server, "max_connections_per_peer")


cdef Py_ssize_t _limit(object server, str name) except -1:
    """0: none."""
    try:
        most = getattr(server, name, None)
    except Exception:
        return 0  # a property of the program's own
    if type(most) is not int or most <= 0:
        return 0
    return <Py_ssize_t> min(most, 1 << 40)


cdef bint _rejects(object server) except -1:
    overload = getattr(server, "overload", None)
    return type(overload) is str and overload == "reject"


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
    if not host.isascii():
        return peer[0]
    text = PyUnicode_AsUTF8(host)
    memset(address, 0, sizeof(address))
    if inet_pton(_sys.AF_INET6, text, address) != 1:
        return peer[0]
    if memcmp(address, <const char *> _MAPPED, 12) == 0:
        return f"{address[12]}.{address[13]}.{address[14]}.{address[15]}"
    return (<char *> address)[:8]


cdef object refusal(object server, Ledger ledger, object peer):
    """Why a connection that was accepted is to be closed at once; None: it is not."""
    ledger.after_fork()
    cdef Py_ssize_t most = _limit(server, "max_connections_per_peer")
    if most:
        if ledger.peers is None:
            ledger.count_peers(peer_key)
        if ledger.peers.get(peer_key(peer), 0) >= most:
            return "max_connections_per_peer"
    most = _limit(server, "max_connections")
    if not most or not _rejects(server):
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
    ledger.after_fork()
    if not most or ledger.active < most or _rejects(server):
        return None
    if ledger.process != _sys.getpid():  # after a fork the event is the parent's
        ledger.renew_event()
    ledger.enough = _enough(most)
    return Gate(ledger)


cdef class Gate:
    """An eventfd(2) that is readable when few enough connections are left."""

    def __init__(self, Ledger ledger):
        self.ledger = ledger

    def fileno(self):
        return self.ledger.event

    def is_over(self):
        """The loop asks when it is readable."""
        cdef _sys.eventfd_t count
        _sys.eventfd_read(self.ledger.event, &count)
        if self.ledger.active > self.ledger.enough:
            return False
        self.ledger.enough = -1
        return True

    cdef bint lasts(self, object server) except -1:
        """Whether there is still something to wait for: the limit may be another one by now."""
        cdef Py_ssize_t most = _limit(server, "max_connections")
        if most and not _rejects(server) and self.ledger.process == _sys.getpid():
            self.ledger.enough = _enough(most)
            if self.ledger.active > self.ledger.enough:
                return True
        self.ledger.enough = -1
        return False
