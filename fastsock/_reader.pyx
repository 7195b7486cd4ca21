"""rfile of a Connection: a buffered file to read from it.

The buffer grows with the lines that pass through it. Threads: see ``_stream``.
"""

import errno
import io

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, PyObject
from libc.limits cimport UINT_MAX
from libc.stdlib cimport free
from libc.string cimport memchr, memcpy, memmove

from fastsock._stream cimport Stream, optional_size, unsupported
from fastsock._waiter cimport NOTHING, OVERDUE

cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    char *bytes_of "PyBytes_AS_STRING"(PyObject *bytes)
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1
    void PyErr_Fetch(PyObject **kind, PyObject **value, PyObject **trace)
    void PyErr_Restore(PyObject *kind, PyObject *value, PyObject *trace)

cdef Py_ssize_t DEFAULT_SIZE = io.DEFAULT_BUFFER_SIZE

cdef enum:
    # A read of many bytes begins with this many, and doubles: what a peer announces is not
    # yet sent.
    FIRST_PIECE = 1 << 20
    # An empty buffer that has grown beyond this is given back.
    KEPT = 1 << 18
    # A connection that is silent, or says little, does not need more of a buffer.
    FIRST_ROOM = 1 << 10
    WOULD_BLOCK = -1
    # Who asks for a smaller buffer than this does not want more to be read ahead.
    USUAL_SIZE = 1 << 13


# A task that waits for a line keeps a copy of the C stack: a try statement would take 100 bytes of
# it.
ctypedef PyObject *(*Unchecked)(Reader reader, Py_ssize_t limit) noexcept


class LineTooLongError(ValueError):
    """A line of a handler's rfile is longer than ``max_line_size``.

    There is no way to go on behind that line: whoever reads rfile all the same, by whatever method,
    gets this again. What is sent, and recv() of the request, are not concerned.
    """

    __module__ = __package__


cdef object _line(Reader reader, Py_ssize_t limit):
    return reader.line(limit)


cdef class Reader(Stream):
    """A buffered binary file to read from a connection; see ``io.BufferedReader``.

    ``Reader(connection, size)``: the buffer has size bytes, more when lines are longer, and fewer
    as long as few come; that of ``reader_of()`` may have a bound for lines. For isinstance() it is
    an ``io.BufferedReader``.
    """

    cdef str mode(self):
        return "r"

    @property
    def __class__(self):
        return io.BufferedReader

    cdef int check_usable(self, str what) except -1:
        if self.spoiled:
            self.too_long()
        # What is in the buffer may still be read when `raw` was closed.
        if self.start < self.end and not self.is_closed:
            return self.check_attached()
        return self.check_open(what)

    cdef int give_back(self) except -1:
        """Keep what was not read yet, and no buffer if all was."""
        cdef char *lent = self.buffer
        cdef size_t left = self.end - self.start
        if not self.borrowed:
            return 0
        self.borrowed = False
        self.buffer = NULL
        self.room = 0
        if left:
            self.make_room(left)
            memcpy(self.buffer, lent + self.start, left)
        self.start = 0
        self.end = left
        return 0

    cdef Py_ssize_t receive(self, char *into, size_t size) except -2:
        """SocketIO.readinto(): 0 at the end, WOULD_BLOCK on a non-blocking connection."""
        cdef Py_ssize_t count
        try:
            if self.timed_out or self.socket_io is not None:
                self.check_receives()
            count = self.channel.receive(self.connection, into, size, 0)
            self.channel.in_message = False  # it is not known of who receives by himself next
            return count
        except TimeoutError:
            self.start = self.end = 0
            self.channel.in_message = False
            self.note_timeout()
            raise
        except BlockingIOError as error:
            self.channel.in_message = False
            if error.errno != errno.EAGAIN:
                self.start = self.end = 0
                raise
            return WOULD_BLOCK
        except BaseException:
            self.start = self.end = 0  # as in io: what was read so far of a line is lost
            self.channel.in_message = False
            raise

    cdef int check_receives(self) except -1:
        """As SocketIO.readinto() does."""
        if self.raw_closed():
            raise ValueError("I/O operation on closed file.")
        if self.timed_out or (self.socket_io is not None and self.socket_io._timeout_occurred):
            raise OSError("cannot read from timed out object")
        return 0

    cdef int note_timeout(self) except -1:
        self.timed_out = True
        if self.socket_io is not None:
            self.socket_io._timeout_occurred = True
        return 0

    cdef int give_up(self) except -1:
        self.note_timeout()
        try:
            self.channel.overdue(False, 0)
        finally:
            self.channel.in_message = False
        return 0

    cdef Py_ssize_t more(self, bint within) except -2:
        """Receive once behind what is in the buffer, which grows if it is full.

        within: a part of what is read has been taken out of it.
        """
        cdef Py_ssize_t count
        cdef size_t more
        if self.channel.waiter is not None and self.channel.waiter.here():
            if self.start == self.end:
                return self.borrow(within)
            self.give_back()
        self.channel.in_message = within or self.start != self.end
        if self.start == self.end:
            self.start = self.end = 0
            if self.room > KEPT:
                free(self.buffer)
                self.buffer = NULL
                self.room = 0
        if self.room == 0:
            self.make_room(min(self.size, <size_t> FIRST_ROOM))
        elif self.end == self.room:
            if self.start > 0 and self.start >= self.room // 2:
                memmove(self.buffer, self.buffer + self.start, self.end - self.start)
                self.end -= self.start
                self.start = 0
            else:
                self.make_room(2 * self.room)
        if self.channel.has_packets() and self.room - self.end < self.size:
            self.make_room(self.end + self.size)  # what does not fit of a packet is lost
        count = self.receive(self.buffer + self.end, self.room - self.end)
        if count > 0:
            self.end += <size_t> count
            if self.end == self.room and self.room < self.size:
                # In all as much as one receive into a buffer of the size asked for.
                self.make_room(self.size)
                more = self.channel.at_once(self.connection, self.buffer + self.end,
                                            self.room - self.end)
                self.end += more
                count += <Py_ssize_t> more
        return count

    cdef Py_ssize_t borrow(self, bint within) except -2:
        """Receive once into the waiter's buffer: a connection that is silent has none."""
        cdef Py_ssize_t count
        if not self.borrowed:
            free(self.buffer)
        self.buffer = NULL
        self.borrowed = False
        self.channel.in_message = within
        self.start = self.end = self.room = 0
        if self.timed_out or self.socket_io is not None:
            self.check_receives()
        count = self.channel.waiter.receive_or_borrow(
            self.channel, self.connection, NULL,
            self.size if self.size < USUAL_SIZE else <size_t> -1, 0, self)
        if count == OVERDUE:
            self.give_up()
        self.channel.in_message = False
        if count > 0:
            self.borrowed = True
            self.buffer = self.channel.waiter.lent()
            self.end = self.room = <size_t> count
        elif count == NOTHING:
            return WOULD_BLOCK
        return count

    cdef object take(self, size_t count):
        taken = PyBytes_FromStringAndSize(self.buffer + self.start, count)
        self.start += count
        return taken

    cdef object line_at_hand(self):
        """The next line, if it is in the buffer; otherwise None.

        Nothing in here gives up the GIL or runs Python code: nobody can be inside meanwhile.
        """
        cdef char *begin = self.buffer + self.start
        cdef char *found
        if self.start == self.end or self.busy or self.is_closed or self.detached:
            return None
        found = <char *> memchr(begin, b'\n', self.end - self.start)
        if found == NULL or found - begin >= <Py_ssize_t> self.longest:
            return None
        return self.take(<size_t> (found - begin) + 1)

    cdef object line(self, Py_ssize_t limit):
        """The next line, or as much of it as limit allows, as there is, or as has come."""
        cdef size_t have = self.end - self.start
        cdef size_t searched = 0, within, most = <size_t> -1
        cdef char *found
        cdef Py_ssize_t count
        if self.longest != UINT_MAX:
            most = self.longest
        if limit >= 0 and <size_t> limit < most:
            most = limit
        while True:
            within = have if have < most else most
            if within > searched:
                found = <char *> memchr(self.buffer + self.start + searched, b'\n',
                                        within - searched)
                if found != NULL:
                    return self.take(<size_t> (found - (self.buffer + self.start)) + 1)
                searched = within
            if limit >= 0 and have >= <size_t> limit and most == <size_t> limit:
                return self.take(within)
            if have > most:
                self.too_long()
            if (self.start == self.end and self.channel.waiter is not None
                    and self.channel.waiter.here()):
                count = self.borrow(False)
            else:
                count = self.more(False)
            if count <= 0:
                return self.take(have)
            have += <size_t> count

    cdef int too_long(self) except -1:
        self.spoiled = True
        self.start = self.end  # what follows would be the rest of it
        raise LineTooLongError(f"a line is longer than {self.longest} bytes (max_line_size)")

    cdef object whole_line(self, Py_ssize_t limit):
        cdef PyObject *line
        self.enter("readline of closed file")
        line = (<Unchecked> _line)(self, limit)
        if line == NULL:
            self.leave_by_error()
        result = <object> line
        Py_DECREF(result)
        self.leave()
        return result

    cdef int leave_by_error(self) except -1:
        cdef PyObject *kind
        cdef PyObject *value
        cdef PyObject *trace
        PyErr_Fetch(&kind, &value, &trace)
        self.leave()
        PyErr_Restore(kind, value, trace)
        return -1

    cdef object exactly(self, Py_ssize_t size):
        """Read size bytes (-1: all), fewer at the end or if no more are there without waiting."""
        cdef size_t have = self.end - self.start
        cdef size_t room, filled, wanted
        cdef Py_ssize_t count = 1
        cdef PyObject *data
        if size >= 0 and have >= <size_t> size:
            return self.take(<size_t> size)
        room = max(<size_t> FIRST_PIECE, 2 * have)
        if size < 0:
            room = max(2 * <size_t> self.size, 2 * have)
        elif room > <size_t> size:
            room = <size_t> size
        data = new_bytes(NULL, room)
        try:
            if have:  # there may be no buffer yet
                memcpy(bytes_of(data), self.buffer + self.start, have)
            self.start = self.end = 0
            filled = have
            while size < 0 or filled < <size_t> size:
                if filled == room or (size < 0 and room - filled < self.size
                                      and self.channel.has_packets()):
                    room *= 2
                    if size >= 0 and room > <size_t> size:
                        room = <size_t> size
                    _PyBytes_Resize(&data, room)
                wanted = room - filled
                if size < 0 or wanted >= self.size:
                    self.channel.in_message = filled > 0
                    count = self.receive(bytes_of(data) + filled, wanted)
                else:  # read ahead
                    count = self.more(filled > 0)
                    if count > 0:
                        if <size_t> count > wanted:
                            count = wanted
                        memcpy(bytes_of(data) + filled, self.buffer + self.start, count)
                        self.start += <size_t> count
                if count <= 0:
                    break
                filled += <size_t> count
            if count == WOULD_BLOCK and filled == 0:
                Py_DECREF(<object> data)
                return None
        except BaseException:
            self.start = self.end = 0
            if data != NULL:
                Py_DECREF(<object> data)
            raise
        if filled != room:
            _PyBytes_Resize(&data, filled)
        result = <object> data
        Py_DECREF(result)
        return result

    cdef object into(self, object target, bint once):
        """readinto() and readinto1()."""
        cdef Py_buffer view
        cdef size_t written, wanted
        cdef Py_ssize_t count = 0
        cdef char *data
        try:
            PyObject_GetBuffer(target, &view, PyBUF_WRITABLE)
        except (BufferError, TypeError):
            nothing = io.BytesIO()  # says in the words of io what is wrong
            (nothing.readinto1 if once else nothing.readinto)(target)
            raise
        try:
            self.enter("readinto of closed file")
            try:
                data = <char *> view.buf
                wanted = <size_t> view.len
                written = min(self.end - self.start, wanted)
                if written:
                    memcpy(data, self.buffer + self.start, written)
                    self.start += written
                while written < wanted:
                    if once and written:
                        break  # io would wait for more here if more than its buffer takes is wanted
                    if wanted - written > self.size:
                        self.channel.in_message = written > 0
                        count = self.receive(data + written, wanted - written)
                    else:
                        count = self.more(written > 0)
                        if count > 0:
                            if <size_t> count > wanted - written:
                                count = wanted - written
                            memcpy(data + written, self.buffer + self.start, count)
                            self.start += <size_t> count
                    if count <= 0:
                        break
                    written += <size_t> count
                    if once:
                        break
                if count == WOULD_BLOCK and written == 0:
                    return None
                return written
            finally:
                self.leave()
        finally:
            PyBuffer_Release(&view)

    def readline(self, size=-1, /):
        """The next line, its end included; at most size bytes of it. b'' at the end."""
        cdef Py_ssize_t limit = optional_size(size)
        if limit < 0:
            line = self.line_at_hand()
            if line is not None:
                return line
        return self.whole_line(limit)

    def __next__(self):
        line = self.line_at_hand()
        if line is not None:
            return line
        line = self.whole_line(-1)
        if not line:
            raise StopIteration
        return line

    def readlines(self, hint=-1, /):
        """The lines up to the end, or until more than hint bytes were read."""
        cdef Py_ssize_t most = optional_size(hint)
        cdef Py_ssize_t length = 0
        cdef list lines = []
        self.check_open("I/O operation on closed file.")
        for line in self:
            lines.append(line)
            if most > 0:
                if len(line) > most - length:
                    break
                length += len(line)
        return lines

    def read(self, size=-1, /):
        """Read size bytes, fewer only at the end; all up to the end without a size."""
        cdef Py_ssize_t count = optional_size(size)
        if count < -1:
            raise ValueError("read length must be non-negative or -1")
        self.enter("read of closed file")
        try:
            return self.exactly(count)
        finally:
            self.leave()

    def read1(self, Py_ssize_t size=-1, /):
        """Read up to size bytes with one call at most."""
        cdef Py_ssize_t count = size
        cdef Py_ssize_t got
        cdef PyObject *data
        if count < 0:
            count = self.size
        self.enter("read of closed file")
        try:
            if count == 0:
                return b""
            if self.end > self.start:
                return self.take(min(<size_t> count, self.end - self.start))
            data = new_bytes(NULL, count)
            try:
                got = self.receive(bytes_of(data), count)
            except BaseException:
                Py_DECREF(<object> data)
                raise
            if got != count:
                _PyBytes_Resize(&data, max(got, 0))
            result = <object> data
            Py_DECREF(result)
            return result
        finally:
            self.leave()

    def readinto(self, buffer, /):
        """Read into a writable buffer until it is full or the stream has ended."""
        return self.into(buffer, False)

    def readinto1(self, buffer, /):
        """Read into a writable buffer with one call at most."""
        return self.into(buffer, True)

    def peek(self, Py_ssize_t size=0, /):
        """What is in the buffer, without taking it; receives once if that is nothing."""
        self.enter("peek of closed file")
        try:
            if self.start == self.end:
                self.more(False)
            return PyBytes_FromStringAndSize(self.buffer + self.start, self.end - self.start)
        finally:
            self.leave()

    def flush(self):
        self.socket_file().flush()

    def close(self):
        """Close; the connection too if it was closed before and this is its last file."""
        if self.closed:
            return
        self.spoiled = False  # whatever its lines are like
        try:
            self.enter("closed")
        except ValueError:
            if self.closed:  # by another thread
                return
            raise
        try:
            self.start = self.end = 0
            self.release()
        finally:
            self.leave()

    def detach(self):
        """The ``raw`` file, which then owns the reference to the connection."""
        raw = self.socket_file()
        raw.flush()
        self.detached = True
        return raw

    def writable(self):
        return False

    def truncate(self, size=None, /):
        self.check_open("truncate of closed file")
        unsupported("truncate")

    def write(self, *data):
        unsupported("write")

    def writelines(self, lines, /):
        self.check_open("I/O operation on closed file.")
        for line in lines:
            self.write(line)


def bound_of(handler):
    """The handler's ``max_line_size``; 0 if it has none: what is no positive int is for itself."""
    try:
        most = getattr(handler, "max_line_size", None)
    except Exception:
        return 0  # a property of the program's own
    return min(most, UINT_MAX - 1) if type(most) is int and most > 0 else 0


def reader_of(handler, connection, size):
    """A Reader for a handler; size: its rbufsize."""
    cdef Reader reader = Reader.__new__(Reader)
    Stream.__init__(reader, connection, DEFAULT_SIZE if size is None or size < 0 else size)
    reader.longest = bound_of(handler) or UINT_MAX
    return reader


io.BufferedIOBase.register(Reader)
