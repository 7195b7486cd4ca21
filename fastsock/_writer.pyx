"""wfile of a Connection where it holds bytes back: a buffered file to write to it.

Threads: see ``_stream``.
"""

import errno
import io
import weakref

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.string cimport memcpy, memmove

from fastsock._channel cimport Channel, channel_of
from fastsock._clock cimport monotonic
from fastsock._stream cimport Stream, unsupported


cdef class Writer(Stream):
    """A buffered binary file to write to a connection; see ``io.BufferedWriter``.

    ``Writer(connection, size)``: up to size bytes are held back. What does not fit is sent after
    them, without being copied. For isinstance() it is an ``io.BufferedWriter``.
    """

    cdef str mode(self):
        return "w"

    def __init__(self, connection, Py_ssize_t size):
        super().__init__(connection, size)
        self.make_room(size)

    @property
    def __class__(self):
        return io.BufferedWriter

    cdef int leave(self) except -1:
        if self.channel.deadlines is not None:
            self.channel.deadlines.writing_since = 0
        return Stream.leave(self)

    cdef int begin(self) except -1:
        """A write that may take several sends has one deadline."""
        if self.channel.deadlines is not None and not self.channel.deadlines.writing_since:
            self.channel.deadlines.writing_since = monotonic()
        return 0

    cdef int flush_buffer(self) except -1:
        cdef Py_ssize_t sent
        self.begin()
        while self.start < self.end:
            try:
                sent = self.channel.send(self.connection, self.buffer + self.start,
                                         self.end - self.start, 0, False)
            except BlockingIOError as error:
                if error.errno != errno.EAGAIN:
                    raise
                raise BlockingIOError(
                    errno.EAGAIN, "write could not complete without blocking", 0) from None
            self.start += <size_t> sent
            if self.start < self.end:
                self.part()
        self.start = self.end = 0
        if self.split:
            self.join()
        return 0

    cdef void part(self) noexcept:
        """Nothing is to come before the rest."""
        if not self.split:
            self.split = True
            self.channel.writers += 1

    cdef int join(self) except -1:
        """All of what was written has been sent, or never will be."""
        self.split = False
        self.channel.writers -= 1
        if self.channel.behind is not None and not self.is_closed:
            self.channel.send_behind(self.connection)
        return 0

    cdef Py_ssize_t accept(self, const char *data, size_t size) except -1:
        """Copy what fits; if not all does, send the buffer, then the data from where it is."""
        cdef size_t taken = 0, held, space
        cdef Py_ssize_t sent
        if size == 0:
            return 0
        if size <= self.room - self.end:
            memcpy(self.buffer + self.end, data, size)
            self.end += size
            return size
        self.begin()
        self.part()
        while taken < size:
            held = self.end - self.start
            if held == 0:
                self.start = self.end = 0
                if size - taken <= self.room:
                    break
            try:
                if held:
                    sent = self.channel.send(self.connection, self.buffer + self.start, held, 0,
                                             False)
                else:
                    sent = self.channel.send(self.connection, data + taken, size - taken, 0, False)
            except BlockingIOError as error:
                if error.errno != errno.EAGAIN:
                    raise
                memmove(self.buffer, self.buffer + self.start, held)
                self.start = 0
                self.end = held
                space = min(self.room - held, size - taken)
                memcpy(self.buffer + held, data + taken, space)
                self.end += space
                taken += space
                if taken == size:
                    return taken
                raise BlockingIOError(
                    errno.EAGAIN, "write could not complete without blocking", taken) from None
            if held:
                self.start += <size_t> sent
            else:
                taken += <size_t> sent
        if taken < size:
            memcpy(self.buffer, data + taken, size - taken)
            self.end = size - taken
        if self.end == self.start:
            self.join()
        return size

    def write(self, data, /):
        """Take all of the bytes; send them when the buffer is full."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.enter("write to closed file")
            try:
                return self.accept(<const char *> view.buf, view.len)
            finally:
                self.leave()
        finally:
            PyBuffer_Release(&view)

    def writelines(self, lines, /):
        """Write each of the lines."""
        self.check_open("I/O operation on closed file.")
        for line in lines:
            self.write(line)

    def flush(self):
        """Send what is held back."""
        self.enter("flush of closed file")
        try:
            self.flush_buffer()
            self.channel.settle(self.connection)
        finally:
            self.leave()

    def close(self):
        """Send what is held back, and close, also if that fails."""
        if self.closed:
            return
        try:
            self.flush()
        finally:
            self.release()
            if self.split:
                self.join()

    def detach(self):
        """Flush; the ``raw`` file, which then owns the reference to the connection."""
        raw = self.socket_file()
        self.flush()
        self.detached = True
        self.channel.writer = None
        return raw

    def readable(self):
        return False

    def truncate(self, size=None, /):
        self.check_open("truncate of closed file")
        self.flush()
        unsupported("truncate")

    def read(self, *size):
        unsupported("read")

    def read1(self, *size):
        unsupported("read1")

    def readinto(self, buffer, /):
        unsupported("read")

    def readinto1(self, buffer, /):
        unsupported("read1")

    def readline(self, size=-1, /):
        unsupported("read")

    def readlines(self, hint=-1, /):
        self.check_open("I/O operation on closed file.")
        unsupported("read")

    def __next__(self):
        unsupported("read")


def writer_of(connection, size):
    """A Writer that ``connection.sendfile()`` flushes first."""
    cdef Channel channel = channel_of(connection)
    writer = Writer(connection, size)
    channel.writer = weakref.ref(writer)
    return writer


io.BufferedIOBase.register(Writer)
