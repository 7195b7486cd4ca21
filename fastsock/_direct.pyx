"""wfile of a Connection where it holds nothing back: each write is a ``sendall()``.

For everybody who asks it is a ``_SocketWriter`` of ``_handlers.py``. One is made when somebody
calls what makes no sense of such a file, and says so.
"""

import io

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from fastsock._channel cimport Channel

cdef object _original = None


def stand_for(cls):
    """Have DirectWriters be instances of cls, as far as can be seen."""
    global _original
    _original = cls
    cls.register(DirectWriter)


cdef class DirectWriter:
    """``DirectWriter(sock)``, which a program may derive from."""

    cdef dict __dict__
    cdef object __weakref__
    cdef Channel channel  # None: the connection is something that a program has put there
    cdef object connection
    cdef object made  # the instance of the original, or None
    cdef bint is_closed

    def __init__(self, sock):
        channel = getattr(sock, "_channel", None)  # of a Connection: a program may give anything
        self.channel = channel if isinstance(channel, Channel) else None
        self.connection = sock

    @property
    def __class__(self):
        return _original if type(self) is DirectWriter else type(self)

    @cython.binding(False)  # a method descriptor, which the interpreter calls fastest
    def write(self, b, /):
        """Send all of the bytes; return how many these are."""
        cdef Py_buffer view
        cdef Channel channel = self.channel
        cdef Py_ssize_t size
        if channel is None:
            return _original.write(self, b)
        if type(b) is bytes:
            size = PyBytes_GET_SIZE(b)
            if (channel.waiter is None
                    or not channel.waiter.gathers(channel, PyBytes_AS_STRING(b), size)):
                channel.send(self.connection, PyBytes_AS_STRING(b), size, 0, True)
            return size
        PyObject_GetBuffer(b, &view, PyBUF_SIMPLE)
        try:
            self.channel.send(self.connection, <char *> view.buf, view.len, 0, True)
            return view.len
        finally:
            PyBuffer_Release(&view)

    @property
    def _sock(self):
        return self.connection

    @_sock.setter
    def _sock(self, value):
        self.channel = None  # it may be anything
        self.connection = value
        self.made = None

    def fileno(self):
        """The connection's descriptor."""
        return self.connection.fileno()

    def writelines(self, lines, /):
        """Write each of the lines."""
        _check_open(self)
        for line in lines:
            self.write(line)

    def flush(self):
        """Nothing is held back, but for what a task of a hub has written since it last waited."""
        _check_open(self)
        if self.channel is not None:
            self.channel.settle(self.connection)

    def close(self):
        """Flush, and close the file, not the connection."""
        if not self.is_closed:
            try:
                self.flush()  # a program may have put one of its own there
            finally:
                self.is_closed = True

    @property
    def closed(self):
        return self.is_closed

    def readable(self):
        return False

    def writable(self):
        return True

    def seekable(self):
        return False

    def isatty(self):
        _check_open(self)
        return False

    def read(self, *size):
        return _file(self).read(*size)

    def read1(self, *size):
        return _file(self).read1(*size)

    def readinto(self, buffer, /):
        return _file(self).readinto(buffer)

    def readinto1(self, buffer, /):
        return _file(self).readinto1(buffer)

    def readline(self, size=-1, /):
        return _file(self).readline(size)

    def readlines(self, hint=-1, /):
        _check_open(self)
        return _file(self).readlines(hint)

    def seek(self, offset, whence=0, /):
        return _file(self).seek(offset, whence)

    def tell(self):
        return _file(self).tell()

    def truncate(self, size=None, /):
        return _file(self).truncate(size)

    def detach(self):
        return _file(self).detach()

    def _checkClosed(self, message="I/O operation on closed file."):
        if self.is_closed:
            raise ValueError(message)

    def _checkReadable(self):
        return _file(self)._checkReadable()

    def _checkWritable(self):
        return True

    def _checkSeekable(self):
        return _file(self)._checkSeekable()

    def __enter__(self):
        _check_open(self)
        return self

    def __exit__(self, *error):
        self.close()

    def __iter__(self):
        _check_open(self)
        return self

    def __next__(self):
        return next(_file(self))

    def __repr__(self):
        cls = self.__class__
        return f"<{cls.__module__}.{cls.__qualname__} object at {id(self):#x}>"

    def __reduce_ex__(self, protocol):
        raise TypeError(f"cannot pickle {self.__class__.__name__!r} object")


# No methods: a table of those would be 8 bytes more in each.


cdef object _file(DirectWriter writer):
    if writer.made is None:
        writer.made = _original(writer.connection)
    return writer.made


cdef int _check_open(DirectWriter writer) except -1:
    if writer.is_closed:
        raise ValueError("I/O operation on closed file.")
    return 0


io.BufferedIOBase.register(DirectWriter)
