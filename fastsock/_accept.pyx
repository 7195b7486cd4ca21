"""Accepting connections and receiving datagrams without ``socket.accept``.

What the standard library's ``socket.accept()`` and ``socket.recvfrom()`` return, made straight
from the system calls. Only for a socket whose type is exactly ``socket.socket``: a subclass
(``ssl.SSLSocket``, a test's fake, a green thread library's class) may mean something else by
these methods, so the caller uses theirs.
"""

import _socket
import socket

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_SetFromErrno
from cpython.unicode cimport PyUnicode_FromString
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from fastsock cimport _sys

cdef extern from "Python.h":
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
cdef object _ACCEPT = getattr(_SOCKET, "accept", None)
cdef object _RECVFROM = getattr(_SOCKET, "recvfrom", None)

# The C members; the `family` and `type` properties of socket.socket build enum members.
cdef object _family_of = _socket.socket.family.__get__
cdef object _type_of = _socket.socket.type.__get__

# Datagrams up to this size are received on the C stack.
cdef enum:
    STACK_BUFFER = 16384
    LARGEST_BUFFER = 1 << 26


cdef int fail(int error) except -1:
    """Raise the OSError subclass of an errno value that was read right after the call."""
    _sys.errno = error
    PyErr_SetFromErrno(OSError)
    return -1


cdef object _address(_sys.sockaddr_storage *storage, _sys.socklen_t length):
    """The Python form of a peer address, as socket.accept() and recvfrom() give it."""
    cdef char text[_sys.INET6_ADDRSTRLEN]
    cdef _sys.sockaddr_in *inet
    cdef _sys.sockaddr_in6 *inet6
    cdef char *path
    if length == 0:  # a datagram from an unnamed Unix socket
        return None
    if storage.ss_family == _sys.AF_INET:
        inet = <_sys.sockaddr_in *> storage
        _sys.inet_ntop(_sys.AF_INET, &inet.sin_addr, text, sizeof(text))
        return PyUnicode_FromString(text), _sys.ntohs(inet.sin_port)
    if storage.ss_family == _sys.AF_INET6:
        inet6 = <_sys.sockaddr_in6 *> storage
        _sys.inet_ntop(_sys.AF_INET6, &inet6.sin6_addr, text, sizeof(text))
        return (PyUnicode_FromString(text), _sys.ntohs(inet6.sin6_port),
                _sys.ntohl(inet6.sin6_flowinfo), inet6.sin6_scope_id)
    path = (<_sys.sockaddr_un *> storage).sun_path
    if length > FASTSOCK_SUN_PATH and path[0] == 0:  # unix(7): an abstract name
        return PyBytes_FromStringAndSize(path, length - FASTSOCK_SUN_PATH)
    return PyUnicode_DecodeFSDefault(path)  # the storage was zeroed: always terminated


cdef inline bint _known_family(object sock):
    cdef int family = _family_of(sock)
    return family == _sys.AF_INET or family == _sys.AF_INET6 or family == _sys.AF_UNIX


cdef bint can_accept(object listener):
    """Whether accept_connection() does just what listener.accept() would."""
    return (type(listener) is _SOCKET and _SOCKET.accept is _ACCEPT
            and socket.socket is _SOCKET and _known_family(listener))


cdef bint can_receive(object receiver, object max_packet_size):
    """Whether receive_datagram() does just what receiver.recvfrom() would."""
    return (type(receiver) is _SOCKET and _SOCKET.recvfrom is _RECVFROM
            and type(max_packet_size) is int and 0 < max_packet_size <= LARGEST_BUFFER
            and _known_family(receiver))


cdef object accept_connection(object listener):
    """(connection, peer address), or None when there is nothing to accept after all.

    The caller has polled. The listener may still block here, since another process that shares
    it can take the connection first: so the GIL is released. A signal then returns None too, and
    its handler runs in the caller's loop. Raises OSError as accept(2) fails.
    """
    cdef _sys.sockaddr_storage storage
    cdef _sys.socklen_t length = sizeof(storage)
    cdef int descriptor = listener.fileno()
    cdef int accepted, error = 0
    memset(&storage, 0, sizeof(storage))
    with nogil:
        accepted = _sys.accept4(descriptor, <_sys.sockaddr *> &storage, &length,
                                _sys.SOCK_CLOEXEC)
        if accepted < 0:
            error = _sys.errno
    if accepted < 0:
        if error == _sys.EAGAIN or error == _sys.EINTR:
            return None
        fail(error)
    try:
        address = _address(&storage, length)
        connection = _SOCKET(_family_of(listener), _type_of(listener), listener.proto, accepted)
    except BaseException:
        _sys.close(accepted)
        raise
    return connection, address


cdef object receive_datagram(object receiver, object max_packet_size):
    """((data, receiver), peer address), or None when there is no datagram after all.

    recvfrom(2) with MSG_DONTWAIT: poll(2) may announce a datagram that is then dropped for its
    checksum, or that another process takes. Raises OSError as recvfrom(2) fails.
    """
    cdef _sys.sockaddr_storage storage
    cdef _sys.socklen_t length = sizeof(storage)
    cdef int descriptor = receiver.fileno()
    cdef size_t size = max_packet_size
    cdef char stack[STACK_BUFFER]
    cdef char *buffer = stack
    cdef Py_ssize_t received
    cdef int error
    memset(&storage, 0, sizeof(storage))
    if size > STACK_BUFFER:
        buffer = <char *> malloc(size)
        if buffer == NULL:
            raise MemoryError
    try:
        received = _sys.recvfrom(descriptor, buffer, size, _sys.MSG_DONTWAIT,
                                 <_sys.sockaddr *> &storage, &length)
        if received < 0:
            error = _sys.errno
            if error == _sys.EAGAIN or error == _sys.EINTR:
                return None
            fail(error)
        data = PyBytes_FromStringAndSize(buffer, received)
        return (data, receiver), _address(&storage, length)
    finally:
        if buffer != stack:
            free(buffer)
