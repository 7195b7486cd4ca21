"""Accepting connections without ``socket.accept``.

What the standard library's ``socket.accept()`` returns, made straight from the system call. Only
for a socket whose type is exactly ``socket.socket``: a subclass (``ssl.SSLSocket``, a test's fake,
a green thread library's class) may mean something else by the method, so the caller uses theirs.
"""

import _socket
import socket

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_FromString, PyUnicode_FromStringAndSize
from libc.string cimport memset

from fastsock cimport _sys
from fastsock._channel cimport make_connection
from fastsock._genuine cimport Genuine
from fastsock._waiter cimport fail

cdef extern from "Python.h":
    ctypedef object (*descrgetfunc)(PyObject *, PyObject *, PyObject *)
    ctypedef struct PyTypeObject:
        descrgetfunc tp_descr_get
    PyTypeObject *Py_TYPE(object instance)
    object PyUnicode_DecodeFSDefault(const char *text)

cdef extern from *:
    """
    #include <stddef.h>
    #include <sys/un.h>
    #define FASTSOCK_SUN_PATH offsetof(struct sockaddr_un, sun_path)
    """
    const size_t FASTSOCK_SUN_PATH


# The genuine class, or None where a green thread library put its own in place before us.
cdef object _SOCKET = (
    socket.socket
    if (isinstance(socket.socket, type) and issubclass(socket.socket, _socket.socket)
        and socket.socket.__module__ == "socket")
    else None
)
GENUINE = _SOCKET  # for the Python layer

# The C members; the `family` and `type` properties of socket.socket build enum members.
cdef object _FAMILY = _socket.socket.family
cdef object _TYPE = _socket.socket.type
cdef object _PROTO = _socket.socket.proto

# What Connection does in its own way: a program that has put something else in one of these
# places of socket.socket means all sockets.
cdef tuple _REPLACED = (
    "accept", "recv", "recv_into", "send", "sendall", "fileno", "gettimeout", "settimeout",
    "getblocking", "setblocking", "shutdown", "close", "detach", "_real_close", "makefile",
    "__init__", "__new__",
)
cdef Genuine _genuine = Genuine(_SOCKET, _REPLACED) if _SOCKET else None

cdef object _dotted(const unsigned char *octets):
    """What inet_ntop(3) makes of an IPv4 address, which does it with sprintf()."""
    cdef char text[16]
    cdef int index, octet, length = 0
    for index in range(4):
        octet = octets[index]
        if octet >= 100:
            text[length] = c'0' + octet // 100
            length += 1
        if octet >= 10:
            text[length] = c'0' + octet // 10 % 10
            length += 1
        text[length] = c'0' + octet % 10
        text[length + 1] = c'.'
        length += 2
    return PyUnicode_FromStringAndSize(text, length - 1)


cdef object peer_address(_sys.sockaddr_storage *storage, _sys.socklen_t length):
    """The Python form of a peer address, as socket.accept() and recvfrom() give it."""
    cdef char text[_sys.INET6_ADDRSTRLEN]
    cdef _sys.sockaddr_in *inet
    cdef _sys.sockaddr_in6 *inet6
    cdef char *path
    if length == 0:  # a datagram from an unnamed Unix socket
        return None
    if storage.ss_family == _sys.AF_INET:
        inet = <_sys.sockaddr_in *> storage
        return _dotted(<unsigned char *> &inet.sin_addr), _sys.ntohs(inet.sin_port)
    if storage.ss_family == _sys.AF_INET6:
        inet6 = <_sys.sockaddr_in6 *> storage
        _sys.inet_ntop(_sys.AF_INET6, &inet6.sin6_addr, text, sizeof(text))
        return (PyUnicode_FromString(text), _sys.ntohs(inet6.sin6_port),
                _sys.ntohl(inet6.sin6_flowinfo), inet6.sin6_scope_id)
    path = (<_sys.sockaddr_un *> storage).sun_path
    if length > FASTSOCK_SUN_PATH and path[0] == 0:  # unix(7): an abstract name
        return PyBytes_FromStringAndSize(path, length - FASTSOCK_SUN_PATH)
    return PyUnicode_DecodeFSDefault(path)  # the storage was zeroed: always terminated


cdef inline int _number(object member, object sock) except -1:
    """A C member of a socket, past the Python properties of that name."""
    return Py_TYPE(member).tp_descr_get(
        <PyObject *> member, <PyObject *> sock, <PyObject *> Py_TYPE(sock))


cdef bint known_family(object sock) except -1:
    cdef int family = _number(_FAMILY, sock)
    return family == _sys.AF_INET or family == _sys.AF_INET6 or family == _sys.AF_UNIX


cdef bint is_datagram(object sock) except -1:
    return _number(_TYPE, sock) == _sys.SOCK_DGRAM


cdef bint can_accept(object listener) except -1:
    """Whether accept_connection() does just what listener.accept() would."""
    return (type(listener) is _SOCKET and socket.socket is _SOCKET and _genuine.unpatched()
            and known_family(listener))


def unpatched():
    """Whether what Connection does in its own way is what the program means by a socket."""
    return socket.socket is _SOCKET and _genuine.unpatched()


cdef void accept_from(int listener, Accepted *accepted) noexcept nogil:
    """accept4(2), for a listener that was polled.

    The listener may still block here, since another process that shares it can take the
    connection first: so not with the GIL. A signal ends the wait.
    """
    memset(&accepted.address, 0, sizeof(accepted.address))
    accepted.length = sizeof(accepted.address)
    accepted.error = 0
    accepted.descriptor = _sys.accept4(listener, <_sys.sockaddr *> &accepted.address,
                                       &accepted.length, _sys.SOCK_CLOEXEC)
    if accepted.descriptor < 0:
        accepted.error = _sys.errno


cdef object accept_connection(object listener, object connection_class, Accepted *accepted):
    """(connection, peer address), or None when there is nothing to accept after all.

    accepted: what accept_from() brought; its descriptor is the connection's from here on. Raises
    OSError as accept(2) fails. After a signal it is None too; its handler runs in the loop.
    """
    if accepted.descriptor < 0:
        if accepted.error == _sys.EAGAIN or accepted.error == _sys.EINTR:
            return None
        fail(accepted.error)
    try:
        address = peer_address(&accepted.address, accepted.length)
        connection = make_connection(connection_class, accepted.descriptor,
                                     _number(_FAMILY, listener), _number(_TYPE, listener),
                                     _number(_PROTO, listener))
    except BaseException:
        _sys.close(accepted.descriptor)
        raise
    return connection, address
