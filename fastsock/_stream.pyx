"""What rfile and wfile of a Connection share: buffered files straight on its channel.

They do what ``io.BufferedReader`` and ``io.BufferedWriter`` over a ``socket.SocketIO`` do, without
those two layers.

Threads: one at a time is inside a stream; another waits, as it would for the lock of the files of
``io``. The buffer of a stream is the thread's that is inside, also while it is without the GIL.
"""

import _thread
import io
import os
import socket
import sys

from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport PyObject
from libc.limits cimport UINT_MAX
from libc.stdlib cimport free, realloc

from fastsock._channel cimport channel_of
from fastsock._waiter cimport Borrower, Waiter

cdef extern from "Python.h":
    void PyErr_SetObject(object type, object value)
    bint PyIndex_Check(object number)
    Py_ssize_t PyNumber_AsSsize_t(object number, PyObject *overflow) except? -1
    PyObject *PyExc_OverflowError

cdef extern from *:
    """
    /* As the files of io do, by version. */
    static void fastsock_tell(PyObject *file) {
    #if PY_VERSION_HEX >= 0x030E0000
        PyErr_FormatUnraisable("Exception ignored while finalizing file %R", file);
    #else
        PyErr_WriteUnraisable(file);
    #endif
    }
    """
    void fastsock_tell(object file)

# Whether an error of a file that was dropped without close() is told, as io does it.
cdef bint _TELLS = sys.version_info >= (3, 13) or sys.flags.dev_mode

cdef int _LAST_WHENCE = max(os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE)


cdef int unsupported(str name) except -1:
    raise io.UnsupportedOperation(name)


cdef Py_ssize_t optional_size(object size) except? -1:
    """A size as the files of io take it, where None is -1."""
    if size is None:
        return -1
    if not PyIndex_Check(size):
        raise TypeError(
            f"argument should be integer or None, not {type(size).__name__!r}")
    return PyNumber_AsSsize_t(size, PyExc_OverflowError)


cdef class Stream(Borrower):
    """What a reader and a writer share: the connection, its reference, the buffer, the lock."""

    cdef str mode(self):
        """Of the SocketIO."""
        raise NotImplementedError

    def __init__(self, connection, Py_ssize_t size):
        if size <= 0:
            raise ValueError("buffer size must be strictly positive")
        self.channel = channel_of(connection)
        self.connection = connection
        self.size = <unsigned int> min(<size_t> size, <size_t> UINT_MAX)
        self.longest = UINT_MAX
        connection._io_refs += 1

    def __dealloc__(self):
        if not self.borrowed:
            free(self.buffer)

    cdef int enter(self, str what) except -1:
        """Wait until no other thread or task is inside, and check that the stream is open."""
        if self.busy:
            self.await_turn()
        if (self.is_closed or self.detached or self.spoiled or self.connection is None
                or self.socket_io is not None):
            self.check_usable(what)
        if self.borrowed and not self.channel.waiter.here():
            self.give_back()  # the buffer is its tasks' alone
        self.busy = True
        self.owner = PyThread_get_thread_ident()
        if self.channel.waiter is not None:
            self.task = self.channel.waiter.running()  # which is the caller, if in its thread
        return 0

    cdef object task_here(self):
        """The task of a hub that is running, or None."""
        cdef Waiter waiter = self.channel.waiter
        return waiter.running() if waiter is not None and waiter.here() else None

    cdef int await_turn(self) except -1:
        cdef unsigned long here = PyThread_get_thread_ident()
        task = self.task_here()
        while self.busy:
            if task is not None and not (self.owner == here and self.task is task):
                if self.tasks is None:
                    self.tasks = []
                self.channel.waiter.queue_on(self.tasks)
                continue
            if self.owner == here:  # from a signal handler
                raise RuntimeError(f"reentrant call inside {self!r}")
            gate = self.gate
            if gate is None:
                gate = self.gate = _thread.allocate_lock()
                gate.acquire()
            gate.acquire()
            gate.release()
        return 0

    cdef int leave(self) except -1:
        self.busy = False
        if self.gate is not None:
            gate, self.gate = self.gate, None
            gate.release()
        if self.task is not None:
            self.task = None
        if self.tasks is not None and self.tasks:
            self.channel.waiter.wake_all(self.tasks)
        return 0

    cdef int check_attached(self) except -1:
        if self.detached:
            raise ValueError("raw stream has been detached")
        if self.connection is None and not self.is_closed:
            raise ValueError("I/O operation on uninitialized object")
        return 0

    cdef int check_open(self, str what) except -1:
        self.check_attached()
        if self.is_closed or self.raw_closed():
            raise ValueError(what)
        return 0

    cdef int check_usable(self, str what) except -1:
        return self.check_open(what)

    cdef bint raw_closed(self) except -1:
        """Whether a program has closed what `raw` gave it."""
        return self.socket_io is not None and self.socket_io.closed

    cdef object socket_file(self):
        """The SocketIO that there would be below a file of io."""
        self.check_attached()
        if self.socket_io is None:
            made = socket.SocketIO(self.connection, self.mode())
            made._timeout_occurred = bool(self.timed_out)
            if self.is_closed:
                io.RawIOBase.close(made)
            self.socket_io = made
        return self.socket_io

    cdef int make_room(self, size_t room) except -1:
        cdef void *larger = realloc(self.buffer, room)
        if larger == NULL:
            raise MemoryError
        self.buffer = <char *> larger
        self.room = room
        return 0

    cdef int release(self) except -1:
        """Close: give the reference to the connection back."""
        if self.is_closed:
            return 0
        self.is_closed = True
        connection = self.connection
        if self.socket_io is not None:
            self.socket_io.close()
        else:
            refs = connection._io_refs
            if refs > 0:
                connection._io_refs = refs - 1
            if connection._closed:
                connection.close()
        return 0

    @property
    def raw(self):
        """A ``socket.SocketIO`` on the connection; None once it is detached."""
        return None if self.detached else self.socket_file()

    @property
    def closed(self):
        self.check_attached()
        return bool(self.is_closed or self.raw_closed())

    @property
    def name(self):
        return self.socket_file().name

    @property
    def mode(self):
        return self.socket_file().mode

    @property
    def _sock(self):
        return self.connection

    def fileno(self):
        """The connection's descriptor."""
        self.check_attached()
        if self.socket_io is not None or self.is_closed:
            return self.socket_file().fileno()
        return self.connection.fileno()

    def isatty(self):
        return self.socket_file().isatty()

    def seekable(self):
        return self.socket_file().seekable()

    def readable(self):
        return self.socket_file().readable()

    def writable(self):
        return self.socket_file().writable()

    def _checkClosed(self, message="I/O operation on closed file."):
        if self.closed:
            raise ValueError(message)

    def _checkReadable(self):
        if self.readable() is not True:
            raise io.UnsupportedOperation("File or stream is not readable.")
        return True

    def _checkWritable(self):
        if self.writable() is not True:
            raise io.UnsupportedOperation("File or stream is not writable.")
        return True

    def _checkSeekable(self):
        if self.seekable() is not True:
            raise io.UnsupportedOperation("File or stream is not seekable.")
        return True

    def seek(self, target, int whence=0, /):
        self.check_attached()
        if not 0 <= whence <= _LAST_WHENCE:
            raise ValueError(f"whence value {whence} unsupported")
        self.check_open("seek of closed file")
        raise io.UnsupportedOperation("File or stream is not seekable.")

    def tell(self):
        return self.socket_file().tell()

    def __enter__(self):
        self.check_open("I/O operation on closed file.")
        return self

    def __exit__(self, *error):
        self.close()

    def __iter__(self):
        self.check_open("I/O operation on closed file.")
        return self

    def __repr__(self):
        try:
            name = f" name={self.name!r}"
        except ValueError:
            name = ""
        shown = self.__class__
        return f"<{shown.__module__}.{shown.__qualname__}{name}>"

    def __reduce_ex__(self, protocol):
        raise TypeError(f"cannot pickle {type(self).__name__!r} object")

    def __del__(self):
        if self.connection is not None and not self.is_closed and not self.detached:
            try:
                self.close()
            except Exception as error:
                if _TELLS:
                    PyErr_SetObject(type(error), error)
                    fastsock_tell(self)
