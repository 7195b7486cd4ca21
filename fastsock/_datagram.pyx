"""Receiving datagrams ahead, and sending replies; the methods of a ``DatagramSocket``.

The socket of a datagram server has an ``Inbox``. The loop fills it and takes from it; so do the
recv methods, for a handler that receives the next datagram by itself. Whatever else a method has
to do is done by that of ``socket.socket``, which is looked up when it is called: a program may
have put its own in that place.

Replies may be gathered (``gather_replies``) while a batch is served. They are sent with the last
of them, and before anything else is sent to or received from the socket.

Threads: all under the GIL, but where a call of ``socket.socket`` waits.
"""

import _socket
import socket

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.number cimport PyNumber_Index
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport PyObject
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from fastsock cimport _sys
from fastsock._accept cimport is_datagram, known_family, peer_address
from fastsock._accept import GENUINE
from fastsock._genuine cimport Genuine
from fastsock._inbox cimport BATCH, Ancillary, Inbox, Known, Sender
from fastsock._turn cimport await_turn, threads_share_a_core, turn_over
from fastsock._waiter cimport fail

cdef extern from "Python.h":
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef enum:
    # As large a datagram is sent without releasing the GIL first.
    SENT_WITH_GIL = 1 << 15
    STACK_BUFFER = 16384  # up to this size the C stack takes a datagram
    LARGEST = 1 << 26  # max_packet_size that is received natively

cdef object _SOCKET = GENUINE
cdef object _fileno = _socket.socket.fileno
cdef object _UNSET = object()

# A program that has put something else in one of these places means all sockets.
cdef Genuine _genuine = Genuine(
    _SOCKET,
    ("recv", "recv_into", "recvfrom", "recvfrom_into", "recvmsg", "recvmsg_into", "send",
     "sendall", "sendto", "sendmsg", "fileno", "close", "detach", "_real_close", "__init__",
     "__new__"),
) if _SOCKET else None


cdef Inbox inbox_of(object sock):
    return <Inbox?> sock._inbox


def initialised(sock):
    """Give a DatagramSocket its inbox."""
    sock._inbox = Inbox()


def waiting(sock):
    """How many datagrams a DatagramSocket holds that were received ahead."""
    return inbox_of(sock).waiting()


def genuine():
    """Whether what a DatagramSocket does in its own way is what the program means by a socket."""
    return _genuine is not None and socket.socket is _SOCKET and _genuine.unpatched()


cdef int descriptor_of(object sock) except -2:
    """The descriptor, past the fileno() that programs call."""
    return _fileno(sock)


cdef inline bint _takes(object max_packet_size) except -1:
    return (socket.socket is _SOCKET and _genuine.unpatched()
            and type(max_packet_size) is int and 0 < max_packet_size <= LARGEST)


cdef bint can_take(object sock, object max_packet_size) except -1:
    """Whether take() does just what recvfrom() of a DatagramSocket would."""
    cdef Inbox inbox = inbox_of(sock)
    if inbox.kind < 0:
        inbox.kind = is_datagram(sock)  # which a program may have made of a stream
    return inbox.kind and _takes(max_packet_size)


cdef object take(object sock, Inbox inbox, size_t max_packet_size, unsigned int most,
                 size_t *length):
    """((data, sock), peer address) of the next datagram; None if there is none after all.

    Receives up to ``most`` if none waits. length: gets the whole length of the datagram. Raises
    OSError as recvfrom(2) fails.
    """
    if not inbox.waiting() and not inbox.fill(descriptor_of(sock), max_packet_size, most):
        return None
    cdef Sender sender
    # It is taken before anything is made that may run the collector, and so other code.
    data = inbox.data(max_packet_size)
    length[0] = inbox.length()
    inbox.sender(&sender)
    inbox.drop()
    return (data, sock), inbox.name(&sender)


cdef bint can_receive(object receiver, object max_packet_size) except -1:
    """Whether receive_datagram() does just what receiver.recvfrom() would."""
    return (type(receiver) is _SOCKET and _takes(max_packet_size) and known_family(receiver)
            and is_datagram(receiver))


cdef object receive_datagram(object receiver, size_t size, size_t *length):
    """As take(), from a plain socket.socket that the program has put in place."""
    cdef _sys.sockaddr_storage storage
    cdef _sys.socklen_t name_length = sizeof(storage)
    cdef int descriptor = descriptor_of(receiver)
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
        # poll(2) may announce a datagram that is then dropped for its checksum, or that another
        # process takes.
        received = _sys.recvfrom(descriptor, buffer, size, _sys.MSG_DONTWAIT | _sys.MSG_TRUNC,
                                 <_sys.sockaddr *> &storage, &name_length)
        if received < 0:
            error = _sys.errno
            if error == _sys.EAGAIN or error == _sys.EINTR:
                return None
            fail(error)
        length[0] = received
        data = PyBytes_FromStringAndSize(buffer, min(received, <Py_ssize_t> size))
        return (data, receiver), peer_address(&storage, name_length)
    finally:
        if buffer != stack:
            free(buffer)


# Gathered replies.


def reply(sock, data, request, client_address, server):
    """Send a handler's reply, or hold it back until the batch has been served."""
    cdef Inbox inbox = inbox_of(sock)
    if (inbox.gatherer != 0 and inbox.gatherer == PyThread_get_thread_ident()
            and type(data) is bytes and (inbox.waiting() or inbox.gathered)):
        PySys_Audit("socket.sendto", "OO", <PyObject *> sock, <PyObject *> client_address)
        inbox.gathered.append((data, client_address, request, server))
        if len(inbox.gathered) >= BATCH:
            send_gathered(sock, inbox)
    else:
        _send_gathered_first(sock, inbox)
        _send_known(sock, inbox, data, client_address)


cdef int send_gathered(object sock, Inbox inbox) except -1:
    """Send what was held back, in order; hand each failure to the handle_error() of its server.

    An exception that leaves handle_error() is raised once the others have been sent.
    """
    cdef list gathered = inbox.gathered
    cdef Py_ssize_t count = len(gathered)
    cdef Py_ssize_t index = 0, first
    cdef _sys.mmsghdr *headers
    cdef _sys.iovec *pieces
    cdef _sys.sockaddr_storage *names
    cdef bint genuine = _genuine.unpatched()
    cdef Known *known
    if count == 0:
        return 0
    inbox.gathered = []
    failed = None
    headers = <_sys.mmsghdr *> calloc(count, sizeof(_sys.mmsghdr))
    pieces = <_sys.iovec *> calloc(count, sizeof(_sys.iovec))
    names = <_sys.sockaddr_storage *> calloc(count, sizeof(_sys.sockaddr_storage))
    try:
        if headers == NULL or pieces == NULL or names == NULL:
            raise MemoryError
        while index < count:
            first = index
            while index < count:
                data, address, _, _ = gathered[index]
                known = inbox.book.find(address)
                if known == NULL or not genuine:
                    break
                pieces[index].iov_base = PyBytes_AS_STRING(data)
                pieces[index].iov_len = PyBytes_GET_SIZE(data)
                names[index] = known.raw
                headers[index].msg_hdr.msg_iov = &pieces[index]
                headers[index].msg_hdr.msg_iovlen = 1
                headers[index].msg_hdr.msg_name = &names[index]
                headers[index].msg_hdr.msg_namelen = known.length
                index += 1
            failed = _send_run(sock, headers, first, index, gathered) or failed
            if index < count:
                failed = _send_one(sock, gathered[index], 0) or failed
                index += 1
    finally:
        free(headers)
        free(pieces)
        free(names)
    if failed is not None:
        raise failed
    return 0


cdef object _send_run(object sock, _sys.mmsghdr *headers, Py_ssize_t first, Py_ssize_t end,
                      list gathered):
    """sendmmsg(2) of some of what was gathered; what left handle_error(), or None."""
    cdef int sent, error
    failed = None
    while first < end:
        sent = _sys.sendmmsg(descriptor_of(sock), headers + first, end - first,
                             _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
        if sent > 0:
            first += sent
            continue
        error = _sys.errno
        if error in (_sys.EAGAIN, _sys.EINTR, _sys.ENOSYS, _sys.EPERM):
            # The receiver is full: wait for it, as sendto() does. Or sendmmsg(2) is refused.
            error = 0
        failed = _send_one(sock, gathered[first], error) or failed
        first += 1
    return failed


cdef object _send_one(object sock, tuple gathered, int error):
    """Send one by itself, or have its failure handled; what left handle_error(), or None."""
    data, address, request, server = gathered
    try:
        if error:
            fail(error)
        _SOCKET.sendto(sock, data, address)
    except Exception:
        try:
            server.handle_error(request, address)
        except BaseException as failed:
            return failed
    except BaseException as failed:
        return failed
    return None


# The methods of DatagramSocket; each does what the method of socket.socket with its name does.


cdef inline bint _is_ahead(object sock, Inbox inbox, int flags) except -1:
    """Whether the next datagram is in the inbox. Before it is received, replies are sent."""
    cdef unsigned int waiting = inbox.waiting()
    if inbox.gathered:
        send_gathered(sock, inbox)
        waiting = inbox.waiting()
    if waiting == 0 or flags & _sys.MSG_ERRQUEUE:
        return False
    return not flags & _sys.MSG_OOB or inbox.largest  # which IP ignores and Unix sockets refuse


cdef inline int _received(Inbox inbox, int flags) except -1:
    if not flags & _sys.MSG_PEEK:
        inbox.drop()
    return 0


cdef object _data(Inbox inbox, size_t size, int flags):
    """The first; whole with MSG_TRUNC, which programs use to learn its length."""
    return inbox.data(max(size, inbox.length()) if flags & _sys.MSG_TRUNC else size)


# In all of these nothing that may run Python code comes between the look at the first datagram
# and its removal: making a tuple may run the collector, and a finalizer receive as well.


def recv(self, bufsize, flags=0, /):
    """Receive a datagram of up to bufsize bytes; see ``socket.socket.recv``."""
    cdef Inbox inbox = inbox_of(self)
    cdef Py_ssize_t size = bufsize
    cdef int c_flags = PyNumber_Index(flags)
    if size <= 0 or not _is_ahead(self, inbox, c_flags):  # socket.recv(0) receives nothing
        return _SOCKET.recv(self, size, c_flags)
    data = _data(inbox, size, c_flags)
    _received(inbox, c_flags)
    return data


def recvfrom(self, bufsize, flags=0, /):
    """Receive a datagram; return it and its sender; see ``socket.socket.recvfrom``."""
    cdef Inbox inbox = inbox_of(self)
    cdef Py_ssize_t size = bufsize
    cdef int c_flags = PyNumber_Index(flags)
    cdef Sender sender
    if size < 0 or not _is_ahead(self, inbox, c_flags):
        return _SOCKET.recvfrom(self, size, c_flags)
    data = _data(inbox, size, c_flags)
    inbox.sender(&sender)
    _received(inbox, c_flags)
    return data, inbox.name(&sender)


cdef object _into(object sock, object buffer, Py_ssize_t size, int flags, bint named):
    """recv_into() and recvfrom_into() of what is in the inbox; None if it is not to be used."""
    cdef Inbox inbox = inbox_of(sock)
    cdef Py_buffer view
    cdef Sender sender
    cdef size_t copied
    if not _is_ahead(sock, inbox, flags):
        return None
    try:
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    except (BufferError, TypeError):
        return None
    try:
        if size == 0:
            size = view.len
        if (size < 0 or size > view.len or (size == 0 and not named)
                or not _is_ahead(sock, inbox, flags)):  # a __buffer__() may have received it
            return None
        copied = inbox.copy(view.buf, size)
        if flags & _sys.MSG_TRUNC:
            copied = inbox.length()
        inbox.sender(&sender)
        _received(inbox, flags)
        return (copied, inbox.name(&sender)) if named else copied
    finally:
        PyBuffer_Release(&view)


def recv_into(self, buffer, nbytes=0, flags=0):
    """Receive a datagram into a buffer; see ``socket.socket.recv_into``."""
    received = _into(self, buffer, nbytes, PyNumber_Index(flags), False)
    return _SOCKET.recv_into(self, buffer, nbytes, flags) if received is None else received


def recvfrom_into(self, buffer, nbytes=0, flags=0):
    """Receive a datagram into a buffer; see ``socket.socket.recvfrom_into``."""
    received = _into(self, buffer, nbytes, PyNumber_Index(flags), True)
    return _SOCKET.recvfrom_into(self, buffer, nbytes, flags) if received is None else received


cdef tuple _taken(Inbox inbox, size_t size, int flags, object data):
    """(data, ancillary data, flags of the message, its sender, its length); it is received."""
    cdef Sender sender
    cdef Ancillary ancillary = inbox.ancillary(flags)
    cdef int message_flags = ancillary.cut
    cdef size_t length = inbox.length()
    if length > size:
        message_flags |= _sys.MSG_TRUNC
    if flags & _sys.MSG_CMSG_CLOEXEC:
        message_flags |= _sys.MSG_CMSG_CLOEXEC
    inbox.sender(&sender)
    _received(inbox, flags)
    return data, ancillary, message_flags, inbox.name(&sender), length


def recvmsg(self, bufsize, ancbufsize=0, flags=0, /):
    """Receive a datagram and ancillary data; see ``socket.socket.recvmsg``."""
    cdef Inbox inbox = inbox_of(self)
    cdef Py_ssize_t size = bufsize
    cdef Py_ssize_t ancillary_size = ancbufsize
    cdef int c_flags = PyNumber_Index(flags)
    cdef Ancillary ancillary
    cdef int message_flags
    if size < 0 or ancillary_size < 0 or not _is_ahead(self, inbox, c_flags):
        return _SOCKET.recvmsg(self, size, ancillary_size, c_flags)
    data, ancillary, message_flags, sender, _ = _taken(inbox, size, c_flags,
                                                       _data(inbox, size, c_flags))
    items = ancillary.items(ancillary_size, c_flags)
    return data, items, message_flags | ancillary.cut, sender


def recvmsg_into(self, buffers, ancbufsize=0, flags=0, /):
    """Receive a datagram into buffers, and ancillary data; see ``socket.socket.recvmsg_into``."""
    cdef Inbox inbox = inbox_of(self)
    cdef Py_ssize_t ancillary_size = ancbufsize
    cdef int c_flags = PyNumber_Index(flags)
    cdef Ancillary ancillary
    cdef int message_flags
    cdef Py_ssize_t copied = 0, size = 0, part
    if ancillary_size < 0 or not _is_ahead(self, inbox, c_flags):
        return _SOCKET.recvmsg_into(self, buffers, ancillary_size, c_flags)
    views = [memoryview(buffer).cast("B") for buffer in buffers]  # with its errors
    size = sum([len(view) for view in views])
    # The iteration may have received it.
    if any([view.readonly for view in views]) or not _is_ahead(self, inbox, c_flags):
        return _SOCKET.recvmsg_into(self, views, ancillary_size, c_flags)
    data, ancillary, message_flags, sender, length = _taken(inbox, size, c_flags,
                                                            inbox.data(inbox.length()))
    for view in views:
        part = min(<Py_ssize_t> len(view), len(data) - copied)
        view[:part] = data[copied:copied + part]
        copied += part
    items = ancillary.items(ancillary_size, c_flags)
    return (length if c_flags & _sys.MSG_TRUNC else copied, items,
            message_flags | ancillary.cut, sender)


cdef inline int _send_gathered_first(object sock, Inbox inbox) except -1:
    if inbox.gathered:
        inbox.waiting()  # after a fork they are the parent's
        if inbox.gathered:
            send_gathered(sock, inbox)
    return 0


cdef object _send_known(object sock, Inbox inbox, object data, object address):
    """sendto() of two arguments; natively to who has been received from lately."""
    cdef bint genuine = _genuine.unpatched()
    cdef Known *known = NULL if inbox.book is None else inbox.book.find(address)
    cdef Known receiver
    cdef Py_buffer view
    cdef Py_ssize_t sent
    cdef int error, descriptor
    cdef int flags = _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL
    if known == NULL or not genuine:
        return _SOCKET.sendto(sock, data, address)
    receiver = known[0]  # what follows may change the table
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        PySys_Audit("socket.sendto", "OO", <PyObject *> sock, <PyObject *> address)
        descriptor = descriptor_of(sock)
        if view.len > SENT_WITH_GIL or threads_share_a_core():
            with nogil:
                sent = _sys.sendto(descriptor, view.buf, view.len, flags,
                                   <const _sys.sockaddr *> &receiver.raw, receiver.length)
                error = _sys.errno
                await_turn()
            turn_over()
        else:
            sent = _sys.sendto(descriptor, view.buf, view.len, flags,
                               <const _sys.sockaddr *> &receiver.raw, receiver.length)
            error = _sys.errno
    finally:
        PyBuffer_Release(&view)
    if sent >= 0:
        return sent
    if error != _sys.EAGAIN and error != _sys.EINTR:
        fail(error)
    return _SOCKET.sendto(sock, data, address)  # which waits as the timeout says


def sendto(self, data, address_or_flags, address=_UNSET, /):
    """Send a datagram; see ``socket.socket.sendto``."""
    cdef Inbox inbox = inbox_of(self)
    _send_gathered_first(self, inbox)
    if address is not _UNSET:
        return _SOCKET.sendto(self, data, address_or_flags, address)
    return _send_known(self, inbox, data, address_or_flags)


def sendmsg(self, *args):
    """Send a datagram in pieces; see ``socket.socket.sendmsg``."""
    _send_gathered_first(self, inbox_of(self))
    return _SOCKET.sendmsg(self, *args)


def send(self, *args):
    """Send a datagram to the connected peer; see ``socket.socket.send``."""
    _send_gathered_first(self, inbox_of(self))
    return _SOCKET.send(self, *args)


def sendall(self, *args):
    """Send a datagram to the connected peer; see ``socket.socket.sendall``."""
    _send_gathered_first(self, inbox_of(self))
    return _SOCKET.sendall(self, *args)


def fileno(self):
    """The descriptor; -1 once it is closed. See ``socket.socket.fileno``.

    Who asks while datagrams wait here may be about to poll it, and would not learn of them: from
    now on nothing is received ahead.
    """
    cdef Inbox inbox = inbox_of(self)
    if inbox.waiting():
        inbox.watched = True
    return _SOCKET.fileno(self)


def detach(self):
    """Give the descriptor away without closing it; see ``socket.socket.detach``.

    Datagrams that wait here are lost: nothing can be put back into the kernel.
    """
    cdef Inbox inbox = inbox_of(self)
    _send_gathered_first(self, inbox)
    _leave(self, inbox)
    return _SOCKET.detach(self)


def dup(self):
    """Duplicate; see ``socket.socket.dup``. Both receive what waits here, each datagram once."""
    cdef Inbox inbox = inbox_of(self)
    duplicate = _SOCKET.dup(self)
    duplicate._inbox = inbox
    inbox.users += 1
    return duplicate


cdef int _leave(object sock, Inbox inbox) except -1:
    """A socket has no descriptor any more; the last one drops what waits."""
    sock._inbox = Inbox()
    inbox.users -= 1
    if inbox.users == 0:
        inbox.abandon()
    return 0


def _real_close(self):
    cdef Inbox inbox = inbox_of(self)
    try:
        _send_gathered_first(self, inbox)
    finally:
        _leave(self, inbox)
        _SOCKET._real_close(self)
