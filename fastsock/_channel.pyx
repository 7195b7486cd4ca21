"""A connection's descriptor, and the one place that waits for it.

A ``Connection`` (the ``socket.socket`` subclass of ``_connection.py``) has a ``Channel``. At first
the channel owns the descriptor, and the socket object underneath is not initialised:
``socket.socket(fileno=...)`` always calls getsockname(2). The methods here do without. The first
method that isn't one of them hands the descriptor over to the socket object, which owns it from
then on; the channel asks it for the descriptor and the timeout at every call.

Every read and write does: system call; on EAGAIN wait for the descriptor; again. A connection
without a timeout is a blocking descriptor and one blocking call. The descriptor's mode is what the
standard library would give it, since programs hand descriptors on to child processes.

Threads: all state changes under the GIL; it is given up around calls that may block. A call that
is known not to block keeps it: where threads contend for the GIL, getting it back costs more than
the call.
"""

import _socket
import warnings

cimport cython

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.number cimport PyNumber_Index
from cpython.ref cimport Py_DECREF, PyObject
from libc.limits cimport INT_MAX
from libc.math cimport ceil
from libc.string cimport memcpy

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, NEVER, SECOND, monotonic, nanoseconds
from fastsock._ledger cimport IDLE, READING, WORKING, WRITING, Record
from fastsock._turn cimport await_turn, threads_share_a_core, turn_over

cdef extern from "Python.h":
    ctypedef object (*newfunc)(PyTypeObject *, PyObject *, PyObject *)
    ctypedef struct PyTypeObject:
        newfunc tp_new
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL
    char *bytes_of "PyBytes_AS_STRING"(PyObject *bytes)
    int _PyBytes_Resize(PyObject **bytes, Py_ssize_t size) except -1
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef extern from *:
    """
    #include <structmember.h>

    /* Where an instance of Connection has its channel: the slot that `__slots__` has made. */
    static PyTypeObject *fastsock_connection = NULL;
    static Py_ssize_t fastsock_channel_at;

    static int fastsock_learn(PyObject *cls, PyObject *slot) {
        if (!PyType_Check(cls) || !Py_IS_TYPE(slot, &PyMemberDescr_Type)) {
            PyErr_SetString(PyExc_TypeError, "a class and a slot of it");
            return -1;
        }
        fastsock_channel_at = ((PyMemberDescrObject *)slot)->d_member->offset;
        Py_INCREF(cls);
        fastsock_connection = (PyTypeObject *)cls;
        return 0;
    }

    static inline PyObject *fastsock_channel(PyObject *connection) {
        return Py_IS_TYPE(connection, fastsock_connection)
            ? *(PyObject **)((char *)connection + fastsock_channel_at) : NULL;
    }
    """
    int fastsock_learn(object cls, object slot) except -1
    PyObject *fastsock_channel(object connection) noexcept

cdef enum:
    # Up to this many bytes are sent without releasing the GIL first: the kernel takes them in
    # less time than it takes to get a contended GIL back (ARCHITECTURE.md has what was measured).
    SENT_WITH_GIL = 1 << 15
    SCRATCH = 4096
    LONGEST_TIMEOUT = 1_000_000  # seconds; what is longer is left to socket.settimeout()

cdef object _init = _socket.socket.__init__
cdef object _fileno = _socket.socket.fileno
cdef object _gettimeout = _socket.socket.gettimeout
cdef object _settimeout = _socket.socket.settimeout
cdef object _recv = _socket.socket.recv
cdef object _recv_into = _socket.socket.recv_into
cdef object _setblocking = _socket.socket.setblocking
cdef object _shutdown = _socket.socket.shutdown
cdef object _socket_close = _socket.socket.close
cdef object _socket_detach = _socket.socket.detach
cdef object _getdefaulttimeout = _socket.getdefaulttimeout
cdef tuple _NOTHING = ()


def _blocks():
    return None


cdef object _how_to_wait = _blocks


cdef int fail(int error) except -1:
    """Raise the OSError subclass of an errno value that was read right after the call."""
    _sys.errno = error
    PyErr_SetFromErrno(OSError)
    return -1


cdef int _set_nonblocking(int descriptor, bint on) noexcept nogil:
    """One system call, where fcntl(2) would take two."""
    cdef int flag = on
    return _sys.ioctl(descriptor, _sys.FIONBIO, &flag)


cdef int _wait(int descriptor, short events, nanoseconds deadline) noexcept nogil:
    """poll(2) one descriptor: 1 when it is ready, 0 after the deadline, -1 with errno."""
    cdef _sys.pollfd slot
    cdef nanoseconds left
    if descriptor < 0:
        return 1  # closed: poll(2) would wait all the same; the call that follows says EBADF
    slot.fd = descriptor
    slot.events = events
    slot.revents = 0
    left = deadline - monotonic()
    if left < 0:
        left = 0
    left = min((left + MILLISECOND - 1) // MILLISECOND, <nanoseconds> INT_MAX)
    return _sys.poll(&slot, 1, <int> left)


cdef size_t _waiting(int descriptor) noexcept:
    """How many bytes can be received."""
    cdef int count = 0
    return 0 if _sys.ioctl(descriptor, _sys.FIONREAD, &count) < 0 or count < 0 else count


cdef size_t _at_once(int descriptor, void *buffer, size_t size) noexcept:
    """Receive what is there already, up to size bytes.

    Not by a recv(2) that may find none: it would take an error of the connection with it.
    """
    cdef size_t waiting = _waiting(descriptor)
    cdef Py_ssize_t count
    if waiting == 0:
        return 0
    count = _sys.recv(descriptor, buffer, min(size, waiting), _sys.MSG_DONTWAIT)
    return 0 if count < 0 else <size_t> count  # another thread was there first


cdef nanoseconds _deadline(nanoseconds limit):
    return NEVER if limit == NEVER or limit == 0 else monotonic() + limit


cdef class Borrower:
    """What may have its bytes in the buffer that a waiter shares out, until it is told."""

    cdef int give_back(self) except -1:
        """Take what is still wanted out of the shared buffer: somebody else gets it."""
        return 0


cdef class Waiter:
    """Where the connections of a multiplexing server wait, in the place of their thread.

    An interface, of which no instance is made: ``_hub.Hub`` has all of the methods. They do what
    those of ``Channel`` with the same name do, and are called only where ``here()`` is true: by a
    thread, and a green thread of it, that the waiter can suspend. Any thread may call
    ``wake_all()``, ``take_held()`` and ``forget()``.
    """

    cdef bint here(self) noexcept:
        return False

    cdef Py_ssize_t receive(self, Channel channel, object connection, char *into, size_t size,
                            int flags) except -1:
        raise NotImplementedError

    cdef Py_ssize_t receive_or_borrow(self, Channel channel, object connection, char *into,
                                      size_t size, int flags, Borrower borrower) except -1:
        """receive(), which returns OVERDUE or NOTHING instead of raising an error that says so.

        into: NULL: up to size bytes, fewer if the shared buffer is smaller, come to where lent()
        says. They stay there until borrower.give_back() is called.
        """
        raise NotImplementedError

    cdef char *lent(self) noexcept:
        return NULL

    cdef bint gathers(self, Channel channel, const char *data, size_t size) noexcept:
        """Whether it has put bytes behind those that are held back already, as send() would."""
        return False

    cdef Py_ssize_t send(self, Channel channel, object connection, const char *data, size_t size,
                         int flags, bint all_of_it) except -1:
        raise NotImplementedError

    cdef object running(self):
        """The task that runs."""
        raise NotImplementedError

    cdef int queue_on(self, list waiting) except -1:
        """Put the task that runs on a list, and suspend it until wake_all() of that."""
        raise NotImplementedError

    cdef int wake_all(self, list waiting) except -1:
        """Wake those on the list, and empty it. For any thread."""
        raise NotImplementedError

    cdef int await_ready(self, Channel channel, object connection, bint writing) except -1:
        """Wait until a receive, or a send, would probably not have to: for calls not of ours."""
        raise NotImplementedError

    cdef int settle(self, Channel channel, object connection) except -1:
        """Send what was taken from send() and is held back."""
        raise NotImplementedError

    cdef object take_held(self, Channel channel):
        """Bytes, or None: what settle() would send, for a thread that cannot call it to send."""
        raise NotImplementedError

    cdef int forget(self, Channel channel) except -1:
        """The descriptor is about to be closed or given away: who waits for it is woken."""
        raise NotImplementedError

    cdef Way way(self, Channel channel) noexcept:
        """What bytes of somebody else's would meet. For any thread.

        What is held back is sent before that is said, as far as the kernel takes it.
        """
        return FREE


@cython.no_gc_clear  # as its record
cdef class Channel(Record):
    """The descriptor of a connection; one per connection."""

    def __cinit__(self):
        self.descriptor = self.handed = -1
        self.handed_over = True
        self.limit = NEVER

    def __del__(self):
        # The connection was dropped without close(): as socket.socket does.
        if self.descriptor >= 0:
            warnings.warn(f"unclosed <fastsock.Connection fd={self.descriptor}, "
                          f"family={self.family}, type={self.kind}, proto={self.proto}>",
                          ResourceWarning, stacklevel=1)

    def __dealloc__(self):
        if self.ledger is not None:
            self.end()  # before anything of it is given up: what is on the list can be used
        if self.descriptor >= 0:
            _sys.close(self.descriptor)

    cdef int cut(self, int direction) except -1:
        cdef int descriptor = self.descriptor if self.descriptor >= 0 else self.handed
        # Under the GIL, as whatever closes it: it is the connection's.
        if descriptor >= 0:
            _sys.shutdown(descriptor, direction)
        return 0

    cdef bint has_packets(self) noexcept:
        """Whether a receive into too small a buffer may lose bytes."""
        return self.kind != _sys.SOCK_STREAM

    cdef int current(self, object connection, nanoseconds *limit) except -2:
        """The descriptor, and how long a call may take."""
        if not self.handed_over:
            limit[0] = self.limit
            return self.descriptor
        timeout = _gettimeout(connection)
        limit[0] = NEVER if timeout is None else <nanoseconds> ceil(<double> timeout * 1e9)
        return _fileno(connection)

    cdef int not_ready(self, nanoseconds deadline) except -1:
        """poll(2) said that it is ready and the call that it isn't: perhaps for good."""
        PyErr_CheckSignals()
        if monotonic() > deadline:
            raise TimeoutError("timed out")
        return 0

    cdef int after_wait(self, object connection) noexcept nogil:
        """The descriptor: another thread may have closed it, and its number be somebody else's."""
        cdef int descriptor = self.descriptor  # before the flag, which hand_over() sets first
        if not self.handed_over:
            return descriptor
        with gil:
            return _fileno(connection)

    cdef int hand_over(self, object connection) except -1:
        """Give descriptor and timeout to the socket object, for methods that aren't ours."""
        self.settle(connection)
        if self.handed_over or self.descriptor < 0:
            return 0
        _init(connection, self.family, self.kind, self.proto, self.descriptor)
        self.handed_over = True
        self.handed = self.descriptor
        self.descriptor = -1
        if self.limit != NEVER or _getdefaulttimeout() is not None:
            _settimeout(connection, _seconds(self.limit))
        return 0

    cdef Py_ssize_t receive(self, object connection, void *buffer, size_t size,
                            int flags) except -1:
        """recv(2), waiting as the connection's timeout says; 0 at the end of the stream."""
        if self.waiter is not None:
            if self.waiter.here():
                return self.waiter.receive(self, connection, <char *> buffer, size, flags)
            wait = self.guest(connection)
            if wait is not None:
                return self.transfer_by(wait, connection, False, <char *> buffer, size, flags,
                                        False)
        cdef nanoseconds limit
        cdef int descriptor = self.current(connection, &limit)
        cdef Py_ssize_t count
        cdef int error
        if self.eager and flags == 0:
            count = _sys.recv(descriptor, buffer, size, _sys.MSG_DONTWAIT)
            if count >= 0:
                self.received += <size_t> count
                return count
            error = _sys.errno
            self.eager = False
            if error != _sys.EINTR and (error != _sys.EAGAIN or limit == 0):
                fail(error)
        self.doing = READING if self.in_message else IDLE
        try:
            count = self.transfer(connection, _sys.POLLIN, <char *> buffer, size, flags,
                                  _deadline(limit), &error)
        finally:
            self.doing = WORKING
        if error:
            fail(error)
        if not flags & _sys.MSG_PEEK:
            self.received += <size_t> count
        # The sender is ahead of us: the next bytes will probably be there.
        self.eager = <size_t> count == size
        return count

    cdef size_t at_once(self, object connection, void *buffer, size_t size) except? 0:
        """Receive what is there already; 0 if that is nothing, or an error."""
        cdef nanoseconds limit
        cdef int descriptor = self.current(connection, &limit)
        cdef size_t count = _at_once(descriptor, buffer, size)
        self.received += count
        return count

    cdef Py_ssize_t send(self, object connection, const char *data, size_t size, int flags,
                         bint all_of_it) except -1:
        """send(2), waiting as the timeout says; without one, until all bytes are taken.

        With all_of_it, until then anyway; the timeout is that of the whole.
        """
        cdef Py_ssize_t count
        if self.waiter is not None:
            if self.waiter.here():
                return self.waiter.send(self, connection, data, size, flags, all_of_it)
            wait = self.guest(connection)
            if wait is not None:
                self.writers += 1
                try:
                    count = self.transfer_by(wait, connection, True, <char *> data, size, flags,
                                             all_of_it)
                finally:
                    self.writers -= 1
                if self.behind is not None and count == <Py_ssize_t> size:
                    self.send_behind(connection)
                return count
        cdef nanoseconds limit, deadline
        cdef int descriptor = self.current(connection, &limit)
        cdef size_t sent = 0
        cdef int error
        if size <= SENT_WITH_GIL and flags == 0 and not threads_share_a_core():
            count = _sys.send(descriptor, data, size, _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
            if count >= 0:
                sent = <size_t> count
                self.sent += sent
                if sent == size or (limit != NEVER and not all_of_it):
                    if self.behind is not None and sent == size:
                        self.send_behind(connection)
                    return sent
            else:
                error = _sys.errno
                if error != _sys.EINTR and (error != _sys.EAGAIN or limit == 0):
                    fail(error)
        deadline = _deadline(limit)
        self.writers += 1
        try:
            while True:
                self.doing = WRITING
                count = self.transfer(connection, _sys.POLLOUT, <char *> data + sent, size - sent,
                                      flags | _sys.MSG_NOSIGNAL, deadline, &error)
                self.doing = WORKING
                sent += <size_t> count
                self.sent += <size_t> count
                if error:
                    if sent and not all_of_it:
                        return sent  # as send(2) itself: the next call meets the error
                    fail(error)
                if all_of_it:
                    PyErr_CheckSignals()  # as socket.sendall() between its calls
                if sent >= size or not all_of_it:
                    break
        finally:
            self.doing = WORKING
            self.writers -= 1
        if self.behind is not None and sent == size:
            self.send_behind(connection)
        return sent

    cdef int send_behind(self, object connection) except -1:
        """Send what was put behind the bytes of those who write, if they are done."""
        if self.writers:
            return 0
        self.writers = 1
        try:
            while self.behind is not None:
                behind, self.behind = self.behind, None
                self.send(connection, bytes_of(<PyObject *> behind), len(behind), 0, True)
        finally:
            self.writers -= 1
        return 0

    cdef Py_ssize_t transfer(self, object connection, short events, char *data, size_t size,
                             int flags, nanoseconds deadline, int *error) except -1:
        """One recv(2) (POLLIN) or send(2) (POLLOUT): the place where a connection waits.

        What the call itself fails with is in error, and not raised.
        """
        cdef nanoseconds limit
        cdef int descriptor = self.current(connection, &limit)
        cdef Py_ssize_t count = -1
        cdef int ready
        while True:
            ready = 1
            error[0] = 0
            with nogil:
                if deadline != NEVER:
                    ready = _wait(descriptor, events, deadline)
                    if ready > 0:
                        descriptor = self.after_wait(connection)
                if ready > 0:
                    if events == _sys.POLLIN:
                        count = _sys.recv(descriptor, data, size, flags)
                    else:
                        count = _sys.send(descriptor, data, size, flags)
                if ready < 0 or (ready > 0 and count < 0):
                    error[0] = _sys.errno
                await_turn()
            turn_over()
            if error[0] == 0:
                if ready == 0:
                    raise TimeoutError("timed out")
                return count
            if error[0] == _sys.EINTR:
                PyErr_CheckSignals()  # whose handlers may close the connection
                descriptor = self.current(connection, &limit)
            elif error[0] != _sys.EAGAIN or deadline == NEVER:
                return 0
            else:
                self.not_ready(deadline)

    cdef int settle(self, object connection) except -1:
        """Have what a task has written to the connection leave before something else happens."""
        if self.waiter is None:
            return 0
        if self.waiter.here():
            return self.waiter.settle(self, connection)
        return self.settle_for_another(connection)

    cdef int settle_for_another(self, object connection) except -1:
        """settle() where the caller is none of the tasks that the connection's waiter suspends."""
        held = self.waiter.take_held(self)
        if held is not None:
            self.send(connection, bytes_of(<PyObject *> held), len(held), 0, True)
        return 0

    cdef object guest(self, object connection):
        """How the caller waits, who is none of the tasks that the connection's waiter can suspend.

        None: by blocking, in a thread without tasks. Otherwise, in the loop that starts the tasks
        or in a task of another thread's, a function (descriptor, read, write, seconds) -> ready.
        """
        self.settle_for_another(connection)
        return _how_to_wait()

    cdef Py_ssize_t transfer_by(self, object wait, object connection, bint writing, char *data,
                                size_t size, int flags, bint all_of_it) except -1:
        """receive(), or send(), that waits by a function."""
        cdef nanoseconds limit
        cdef int descriptor = self.current(connection, &limit)
        cdef nanoseconds deadline = _deadline(limit)
        cdef size_t done = 0
        cdef Py_ssize_t count
        cdef int error, copy
        flags |= _sys.MSG_DONTWAIT
        while True:
            if writing:
                count = _sys.send(descriptor, data + done, size - done, flags | _sys.MSG_NOSIGNAL)
            else:
                count = _sys.recv(descriptor, data, size, flags)
            error = _sys.errno
            if count >= 0:
                done += <size_t> count
                if writing:
                    self.sent += <size_t> count
                else:
                    self.received += <size_t> count
                if not writing or done >= size or (limit != NEVER and not all_of_it):
                    return done
                continue
            if error == _sys.EINTR:
                PyErr_CheckSignals()
            elif error != _sys.EAGAIN or limit == 0:
                if done and not all_of_it:
                    return done
                fail(error)
            else:
                # A copy: the number is not to become somebody else's while it is waited for.
                copy = _sys.fcntl(descriptor, _sys.F_DUPFD_CLOEXEC, 0)
                if copy < 0:
                    fail(_sys.errno)
                try:
                    left = None
                    if deadline != NEVER:
                        left = max(<double> deadline - monotonic(), 0) / 1e9
                    if not wait(copy, not writing, writing, left):
                        raise TimeoutError("timed out")
                finally:
                    _sys.close(copy)
            descriptor = self.current(connection, &limit)

    cdef int close(self) except -1:
        """Close a descriptor that is still ours. Never twice: it may be somebody else's then."""
        if self.waiter is not None:
            self.waiter.forget(self)
        cdef int descriptor = self.descriptor
        self.descriptor = -1
        self.end()
        # Without SO_LINGER, which setsockopt() alone sets, close(2) does not wait.
        if descriptor >= 0 and _sys.close(descriptor) < 0 and _sys.errno != _sys.ECONNRESET:
            fail(_sys.errno)
        return 0


cdef object _seconds(nanoseconds limit):
    """A timeout as socket.gettimeout() gives it."""
    if limit == NEVER:
        return None
    if limit % SECOND == 0:
        return <double> (limit // SECOND)
    return <double> limit / 1e9


cdef Channel channel_of(object connection):
    cdef PyObject *channel = fastsock_channel(connection)
    return <Channel> channel if channel != NULL else <Channel?> connection._channel


cdef Channel known_channel(object request):
    """Of a Connection; None: it is something else."""
    cdef PyObject *channel = fastsock_channel(request)
    return <Channel> channel if channel != NULL else None


def learn(cls):
    """Connection, once it is made."""
    fastsock_learn(cls, cls.__dict__["_channel"])


cdef object make_connection(object cls, int descriptor, int family, int kind, int proto):
    """A Connection that owns an accepted descriptor; the caller's again if this raises."""
    cdef Channel channel = Channel.__new__(Channel)
    cdef PyTypeObject *type_ = <PyTypeObject *> cls
    connection = type_.tp_new(type_, <PyObject *> _NOTHING, NULL)
    connection._io_refs = 0
    connection._closed = False
    connection._channel = channel
    PySys_Audit("socket.__new__", "Oiii", <PyObject *> connection, family, kind, proto)
    channel.family = family
    channel.kind = kind
    channel.proto = proto
    timeout = _getdefaulttimeout()
    if timeout is not None:
        channel.limit = <nanoseconds> ceil(<double> timeout * 1e9)
        if _set_nonblocking(descriptor, True) < 0:
            fail(_sys.errno)
    channel.handed_over = False
    channel.eager = True
    channel.descriptor = descriptor
    return connection


cdef int end_connection(object connection) except -1:
    """TCPServer.shutdown_request() and close_request() of a connection."""
    cdef Channel channel = channel_of(connection)
    if channel.handed_over or channel.descriptor < 0:
        try:
            connection.shutdown(_sys.SHUT_WR)
        except OSError:
            pass
        connection.close()
        return 0
    if channel.waiter is not None and channel.waiter.here():
        try:
            channel.waiter.settle(channel, connection)
        except OSError:
            pass
        if channel.handed_over or channel.descriptor < 0:  # it has waited
            connection.close()
            return 0
    # An OSError here says that the peer is gone already.
    _sys.shutdown(channel.descriptor, _sys.SHUT_WR)
    connection._closed = True
    if connection._io_refs <= 0:
        channel.close()
    return 0


def adopt(cls, connection):
    """A Connection in the place of a plain socket.socket, whose descriptor it takes over."""
    cdef int family = connection.family
    cdef int kind = connection.type
    cdef int proto = connection.proto
    timeout = connection.gettimeout()
    cdef int descriptor = connection.detach()
    try:
        adopted = make_connection(cls, descriptor, family, kind, proto)
    except BaseException:
        _sys.close(descriptor)
        raise
    if timeout != gettimeout(adopted):
        settimeout(adopted, timeout)
    return adopted


def initialised(connection):
    """Give a Connection that was made like any socket (by dup(), by a program) its channel."""
    connection._channel = Channel.__new__(Channel)


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


def ask(waiting):
    """waiting(): how the caller waits, see ``Channel.guest()``."""
    global _how_to_wait
    _how_to_wait = waiting


def waiting():
    """How the caller waits for (descriptor, read, write, seconds); None: it may simply block."""
    return _how_to_wait()


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


def await_ready(connection, bint writing):
    """In such a task, wait until a call that isn't ours would probably not."""
    cdef Channel channel = channel_of(connection)
    if channel.waiter is not None and channel.waiter.here():
        channel.waiter.await_ready(channel, connection, writing)


def lazily(connection):
    """(family, type, proto) of a connection whose socket object knows none, or None."""
    cdef Channel channel = channel_of(connection)
    return None if channel.handed_over else (channel.family, channel.kind, channel.proto)


# The methods of Connection; each does what the method of socket.socket with its name does.


def recv(self, bufsize, flags=0, /):
    """Receive up to bufsize bytes; see ``socket.socket.recv``."""
    cdef Channel channel = channel_of(self)
    cdef Py_ssize_t size = bufsize
    cdef int c_flags = PyNumber_Index(flags)
    if size <= 0:
        channel.hand_over(self)
        return _recv(self, size, c_flags)
    return receive_bytes(channel, self, size, c_flags)


cdef char _scratch[SCRATCH]


cdef object _and_more(Channel channel, object connection, Py_ssize_t size):
    """The bytes in the scratch buffer, and what else is there already, up to size in all."""
    cdef size_t more = _waiting(channel.descriptor)
    cdef PyObject *data
    channel.received += SCRATCH
    if more == 0:
        return PyBytes_FromStringAndSize(_scratch, SCRATCH)
    size = min(size, SCRATCH + <Py_ssize_t> more)
    data = new_bytes(NULL, size)
    memcpy(bytes_of(data), _scratch, SCRATCH)
    more = _at_once(channel.descriptor, bytes_of(data) + SCRATCH, size - SCRATCH)
    channel.received += more
    if SCRATCH + <Py_ssize_t> more != size:
        _PyBytes_Resize(&data, SCRATCH + more)  # frees it if this fails
    received = <object> data
    Py_DECREF(received)
    return received


cdef object receive_bytes(Channel channel, object connection, Py_ssize_t size, int flags):
    """What one recv(2) of up to size bytes brings."""
    cdef Py_ssize_t count
    cdef int error
    if flags == 0 and channel.waiter is not None and channel.waiter.here():
        count = channel.waiter.receive_or_borrow(channel, connection, NULL, size, 0, None)
        if count == OVERDUE:
            raise TimeoutError("timed out")
        if count == NOTHING:
            fail(_sys.EAGAIN)
        return PyBytes_FromStringAndSize(channel.waiter.lent(), count)
    # Programs ask for far more than comes. What is waiting is received into a small buffer first;
    # nobody but who holds the GIL uses it.
    if channel.eager and flags == 0 and not channel.handed_over and size > SCRATCH:
        count = _sys.recv(channel.descriptor, _scratch, SCRATCH, _sys.MSG_DONTWAIT)
        if 0 <= count < SCRATCH:
            channel.received += <size_t> count
            return PyBytes_FromStringAndSize(_scratch, count)
        if count == SCRATCH:
            return _and_more(channel, connection, size)
        error = _sys.errno
        channel.eager = False
        # recv(2) tells an error of the connection once: it is raised here and now.
        if error != _sys.EINTR and (error != _sys.EAGAIN or channel.limit == 0):
            fail(error)
    cdef PyObject *data = new_bytes(NULL, size)
    try:
        count = channel.receive(connection, bytes_of(data), size, flags)
    except BaseException:
        Py_DECREF(<object> data)
        raise
    if count != size:
        _PyBytes_Resize(&data, count)  # frees it if this fails
    received = <object> data
    Py_DECREF(received)
    return received


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
    return _gettimeout(self) if channel.handed_over else _seconds(channel.limit)


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
    if _set_nonblocking(channel.descriptor, limit != NEVER) < 0:
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
            channel.handed = -1
            channel.end()
            _socket_close(self)


def detach(self):
    """Give the descriptor away without closing it; see ``socket.socket.detach``."""
    cdef Channel channel = channel_of(self)
    cdef int descriptor
    if channel.waiter is not None:
        if channel.waiter.here():
            channel.waiter.settle(channel, self)
        channel.waiter.forget(channel)
    self._closed = True
    channel.handed = -1
    if channel.handed_over:
        return _socket_detach(self)
    descriptor = channel.descriptor
    channel.descriptor = -1
    return descriptor
