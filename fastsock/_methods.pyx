"""The methods of Connection that know its channel, and what those in Python ask of that.

A function here does what the method of ``socket.socket`` with its name does, while the socket
object underneath is not initialised; see ``_channel``.
"""

import _socket
import sys
import weakref

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.number cimport PyNumber_Index
from libc.limits cimport INT_MAX
from libc.math cimport ceil

from fastsock cimport _sys
from fastsock._channel cimport (
    Channel,
    channel_if,
    channel_of,
    receive_bytes,
    seconds_of,
    set_nonblocking,
)
from fastsock._clock cimport NEVER, monotonic, nanoseconds
from fastsock._deadlines cimport deadlines_of
from fastsock._visitors cimport forget
from fastsock._waiter cimport fail

cdef enum:
    LONGEST_TIMEOUT = 1_000_000  # seconds; what is longer is left to socket.settimeout()

cdef object _reference = weakref.ref
cdef object _fileno = _socket.socket.fileno
cdef object _gettimeout = _socket.socket.gettimeout
cdef object _settimeout = _socket.socket.settimeout
cdef object _recv = _socket.socket.recv
cdef object _recv_into = _socket.socket.recv_into
cdef object _setblocking = _socket.socket.setblocking
cdef object _shutdown = _socket.socket.shutdown
cdef object _socket_close = _socket.socket.close
cdef object _socket_detach = _socket.socket.detach


def handed_over(connection):
    """Have the socket object underneath own the descriptor; for every method that isn't here."""
    channel_of(connection).hand_over(connection)


def flush_writer(connection):
    """Send what the connection's wfile holds back, if it has one that does."""
    cdef Channel channel = channel_of(connection)
    writer = None if channel.writer is None else channel.writer()
    if writer is not None and not writer.closed:
        writer.flush()


def set_number(connection, tuple arguments):
    """socket.setsockopt() of a number; false where that is for the socket object.

    Other values may make close() wait (struct linger), or are wrong.
    """
    cdef Channel channel = channel_of(connection)
    cdef int level, name, value
    if channel.descriptor < 0 or len(arguments) != 3 or not all(map(_is_int, arguments)):
        return False
    level, name, value = arguments
    channel.settle(connection)  # TCP_CORK and the like are between one write and the next
    if _sys.setsockopt(channel.descriptor, level, name, &value, sizeof(value)) < 0:
        fail(_sys.errno)
    return True


def _is_int(value):
    return type(value) in (int, bool) and -INT_MAX <= value <= INT_MAX


def share_waiter(connection, other):
    """Have another connection, made of the same one by dup(), wait where this one does."""
    channel_of(other).waiter = channel_of(connection).waiter


def settle(connection):
    """Have what a task has written leave; nothing to do elsewhere."""
    channel_of(connection).settle(connection)


def suspends(connection):
    """Whether the caller is a task that waits for this connection through a hub."""
    cdef Channel channel = channel_of(connection)
    return channel.waiter is not None and channel.waiter.here()


cdef nanoseconds _after(object seconds) except? -2:
    cdef double left
    if seconds is None:
        return NEVER
    left = seconds
    return monotonic() + <nanoseconds> (left * 1e9)


def await_ready(connection, bint writing, seconds):
    """In such a task, wait until a call that isn't ours would probably not.

    Raises TimeoutError after so many seconds, unless they are None.
    """
    cdef Channel channel = channel_of(connection)
    if channel.waiter is not None and channel.waiter.here():
        channel.waiter.await_ready(channel, connection, writing, _after(seconds))


def begin_sending(connection, seconds):
    """In such a task, wait until no other one is in the middle of sending something."""
    cdef Channel channel = channel_of(connection)
    if channel.waiter is not None and channel.waiter.here():
        channel.waiter.begin_sending(channel, connection, _after(seconds))


def end_sending(connection):
    """The others may, from now on."""
    cdef Channel channel = channel_of(connection)
    if channel.waiter is not None and channel.waiter.here():
        channel.waiter.end_sending(channel)


def lazily(connection):
    """(family, type, proto) of a connection whose socket object knows none, or None."""
    cdef Channel channel = channel_of(connection)
    return None if channel.handed_over else (channel.family, channel.kind, channel.proto)


# The methods


def recv(self, bufsize, flags=0, /):
    """Receive up to bufsize bytes; see ``socket.socket.recv``."""
    cdef Channel channel = channel_of(self)
    cdef Py_ssize_t size = bufsize
    cdef int c_flags = PyNumber_Index(flags)
    if size <= 0:
        channel.hand_over(self)
        return _recv(self, size, c_flags)
    return receive_bytes(channel, self, size, c_flags)


def recv_into(self, buffer, nbytes=0, flags=0):
    """Receive into a writable buffer; see ``socket.socket.recv_into``."""
    cdef Channel channel = channel_of(self)
    cdef Py_ssize_t size = nbytes
    cdef int c_flags = PyNumber_Index(flags)
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    except (BufferError, TypeError):
        channel.hand_over(self)
        return _recv_into(self, buffer, size, c_flags)  # with its own error
    try:
        if size == 0:
            size = view.len
        if size <= 0 or size > view.len:
            channel.hand_over(self)
            return _recv_into(self, buffer, nbytes, c_flags)
        return channel.receive(self, view.buf, size, c_flags)
    finally:
        PyBuffer_Release(&view)


cdef Py_ssize_t _send(object connection, object data, object flags, bint all_of_it) except -1:
    cdef Channel channel = channel_of(connection)
    cdef int c_flags = PyNumber_Index(flags)
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return channel.send(connection, <char *> view.buf, view.len, c_flags, all_of_it)
    finally:
        PyBuffer_Release(&view)


def send(self, data, flags=0, /):
    """Send bytes, return how many were taken; see ``socket.socket.send``."""
    return _send(self, data, flags, False)


def sendall(self, data, flags=0, /):
    """Send all bytes; see ``socket.socket.sendall``."""
    _send(self, data, flags, True)


def fileno(self):
    """The descriptor; -1 once it is closed. See ``socket.socket.fileno``."""
    cdef Channel channel = channel_of(self)
    channel.settle(self)  # who asks may write to it by other ways
    return _fileno(self) if channel.handed_over else channel.descriptor


def gettimeout(self):
    """Seconds, None without a timeout, 0.0 when non-blocking; see ``socket.socket.gettimeout``."""
    cdef Channel channel = channel_of(self)
    return _gettimeout(self) if channel.handed_over else seconds_of(channel.limit)


def settimeout(self, timeout, /):
    """Set the seconds that each operation may take; see ``socket.socket.settimeout``."""
    cdef Channel channel = channel_of(self)
    cdef nanoseconds limit = NEVER
    cdef double seconds
    if timeout is not None:
        if type(timeout) is not float and type(timeout) is not int:
            channel.hand_over(self)
        elif not 0 <= timeout <= LONGEST_TIMEOUT:
            channel.hand_over(self)
    channel.settle(self)  # with the timeout that it was written with
    if channel.handed_over or channel.descriptor < 0:
        _settimeout(self, timeout)
        return
    if timeout is not None:
        seconds = timeout
        limit = <nanoseconds> ceil(seconds * 1e9)
    if set_nonblocking(channel.descriptor, limit != NEVER) < 0:
        fail(_sys.errno)
    channel.limit = limit


def setblocking(self, flag, /):
    """``settimeout(None)`` or ``settimeout(0)``; see ``socket.socket.setblocking``."""
    if type(flag) is not bool and type(flag) is not int:
        channel_of(self).hand_over(self)
        _setblocking(self, flag)  # which objects it takes depends on the Python
        return
    settimeout(self, None if flag else 0.0)


def getblocking(self):
    """Whether a timeout is not zero; see ``socket.socket.getblocking``."""
    return gettimeout(self) != 0.0


def shutdown(self, how, /):
    """End one direction or both; see ``socket.socket.shutdown``."""
    cdef Channel channel = channel_of(self)
    cdef int direction
    channel.settle(self)
    if channel.handed_over or channel.descriptor < 0:
        _shutdown(self, how)
        return
    direction = PyNumber_Index(how)
    if _sys.shutdown(channel.descriptor, direction) < 0:
        fail(_sys.errno)


def close(self):
    """Close, at once or with the last file of makefile(); see ``socket.socket.close``."""
    self._closed = True
    if self._io_refs <= 0:
        self._real_close()


@cython.binding(False)  # a call of it costs less, and each request has one
def begin(connection, handler):
    """A handler of this request begins: set the deadlines that its class has, if any."""
    cdef Channel channel
    deadlines = deadlines_of(handler)
    if deadlines is not None:  # else it keeps those of a handler around this one
        channel = channel_if(connection)
        if channel is not None:
            channel.deadlines = deadlines


def _real_close(self):
    cdef Channel channel = channel_of(self)
    try:
        channel.settle(self)
    except OSError:
        pass  # as ever, what the peer does not take any more is not told by close(2)
    finally:
        if not channel.handed_over:
            channel.close()
        else:
            if channel.waiter is not None:
                channel.waiter.forget(channel)
            channel.heir = None
            channel.gone = True
            channel.end()
            try:
                _socket_close(self)
            finally:
                forget(channel)


cdef object _tls_heir(Channel channel):
    """A weak reference to the SSLSocket that is being made of a connection; None: it is not.

    ``SSLSocket._create()`` makes that of the descriptor, and then detaches the connection.
    """
    ssl = sys.modules.get("ssl")
    if ssl is None or channel.ledger is None:
        return None
    frame = sys._getframe()
    if frame.f_globals is not getattr(ssl, "__dict__", None):
        return None
    made = frame.f_locals.get("self")
    if not isinstance(made, _socket.socket) or _fileno(made) != channel.owned():
        return None
    return _reference(made)


def detach(self):
    """Give the descriptor away without closing it; see ``socket.socket.detach``."""
    cdef Channel channel = channel_of(self)
    cdef int descriptor
    if channel.waiter is not None:
        channel.settle(self)
        channel.waiter.forget(channel)
    self._closed = True
    channel.heir = _tls_heir(channel)
    channel.of_tls = channel.heir is not None
    if channel.handed_over:
        channel.gone = True
        descriptor = _socket_detach(self)
    else:
        descriptor = channel.descriptor
        channel.descriptor = -1
    forget(channel)
    return descriptor
