"""A connection's descriptor, and the one place that waits for it.

A ``Connection`` (the ``socket.socket`` subclass of ``_connection.py``) has a ``Channel``. At first
the channel owns the descriptor, and the socket object underneath is not initialised:
``socket.socket(fileno=...)`` always calls getsockname(2). The methods in ``_methods`` do without.
The first that isn't one of them hands the descriptor over to the socket object, which owns it from
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
import weakref

cimport cython

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, PyObject
from libc.limits cimport INT_MAX
from libc.math cimport ceil
from libc.string cimport memcpy

from fastsock cimport _sys
from fastsock._clock cimport (
    MILLISECOND,
    NEVER,
    SECOND,
    deadline_of,
    monotonic,
    nanoseconds,
)
from fastsock._ledger cimport IDLE, READING, WORKING, WRITING
from fastsock._turn cimport await_turn, threads_share_a_core, turn_over
from fastsock._visitors cimport forget, transfer_by, waiting
from fastsock._waiter cimport NOTHING, OVERDUE, Endpoint, fail

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

cdef object _reference = weakref.ref
cdef object _init = _socket.socket.__init__
cdef object _fileno = _socket.socket.fileno
cdef object _settimeout = _socket.socket.settimeout
cdef object _getdefaulttimeout = _socket.getdefaulttimeout
cdef tuple _NOTHING = ()


cdef int set_nonblocking(int descriptor, bint on) noexcept nogil:
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
    cdef size_t there = _waiting(descriptor)
    cdef Py_ssize_t count
    if there == 0:
        return 0
    count = _sys.recv(descriptor, buffer, min(size, there), _sys.MSG_DONTWAIT)
    return 0 if count < 0 else <size_t> count  # another thread was there first


@cython.no_gc_clear  # as its record
cdef class Channel(Endpoint):
    """The descriptor of a connection; one per connection."""

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
        # Under the GIL, as whatever closes it: it is the connection's.
        cdef int descriptor = self.owned()
        if descriptor >= 0:
            if direction != _sys.SHUT_RD and self.waiter is not None:
                self.waiter.way(self)  # which sends what the hub holds back, if that can be sent
            _sys.shutdown(descriptor, direction)
        return 0

    cdef bint has_packets(self) noexcept:
        """Whether a receive into too small a buffer may lose bytes."""
        return self.kind != _sys.SOCK_STREAM

    cdef bint is_between_messages(self, int descriptor) noexcept:
        return not self.in_message and self.has_answered() and _waiting(descriptor) == 0

    cdef int after_wait(self, object connection) noexcept nogil:
        """The descriptor: another thread may have closed it, and its number be somebody else's."""
        cdef int descriptor = self.descriptor  # before the flag, which hand_over() sets first
        if not self.handed_over:
            return descriptor
        with gil:
            descriptor = _fileno(connection)
        return self.still(descriptor)

    cdef int still(self, int descriptor) noexcept nogil:
        """The descriptor, or -1, which whoever has just given up the GIL has found before.

        Giving it up may have let another thread run that has closed it.
        """
        cdef int own = self.descriptor  # as in after_wait()
        if not self.handed_over:
            return own
        return -1 if self.gone else descriptor

    cdef int hand_over(self, object connection) except -1:
        """Give descriptor and timeout to the socket object, for methods that aren't ours."""
        self.settle(connection)
        if self.handed_over or self.descriptor < 0:
            return 0
        self.heir = _reference(connection)
        _init(connection, self.family, self.kind, self.proto, self.descriptor)
        self.handed_over = True
        self.descriptor = -1
        if self.limit != NEVER or _getdefaulttimeout() is not None:
            _settimeout(connection, seconds_of(self.limit))
        return 0

    cdef Py_ssize_t receive(self, object connection, void *buffer, size_t size,
                            int flags) except -1:
        """recv(2), waiting as the connection's timeout says; 0 at the end of the stream."""
        if self.waiter is not None:
            if self.waiter.here():
                return self.waiter.receive(self, connection, <char *> buffer, size, flags)
            wait = self.guest(connection)
            if wait is not None:
                return transfer_by(wait, self, connection, False, <char *> buffer, size, flags,
                                   False)
        cdef nanoseconds limit
        cdef int descriptor = self.current(connection, &limit)
        cdef Py_ssize_t count
        cdef nanoseconds deadline
        cdef int error
        if self.deadlines is not None:
            self.check_whole()
            if flags & _sys.MSG_WAITALL and limit == NEVER and waits_for_all(flags, self.kind):
                return self.receive_all(connection, <char *> buffer, size, flags)
        if self.eager and flags == 0:
            count = _sys.recv(descriptor, buffer, size, _sys.MSG_DONTWAIT)
            if count >= 0:
                self.came(count)
                return count
            error = _sys.errno
            self.eager = False
            if error != _sys.EINTR and (error != _sys.EAGAIN or limit == 0):
                fail(error)
        deadline = self.until(limit, False, 0)
        if self.deadlines is not None and deadline != NEVER:
            if limit == NEVER and flags & (_sys.MSG_DONTWAIT | _sys.MSG_OOB):
                deadline = NEVER  # it waits for nothing
            flags |= _sys.MSG_DONTWAIT  # of a descriptor that blocks, perhaps
        self.doing = READING if self.in_message else IDLE
        if (self.ledger is not None and self.ledger.draining
                and self.is_between_messages(descriptor)):
            self.doing = WORKING
            return 0
        try:
            count = self.transfer(connection, _sys.POLLIN, <char *> buffer, size, flags,
                                  deadline, 0, &error)
        finally:
            self.doing = WORKING
        if error:
            fail(error)
        if not flags & _sys.MSG_PEEK:
            self.came(count)
        # The sender is ahead of us: the next bytes will probably be there.
        self.eager = <size_t> count == size
        return count

    cdef Py_ssize_t receive_all(self, object connection, char *buffer, size_t size,
                                int flags) except -1:
        """receive() with MSG_WAITALL, which MSG_DONTWAIT undoes."""
        cdef Py_ssize_t count
        cdef size_t received = 0
        while received < size:
            try:
                count = self.receive(connection, buffer + received, size - received,
                                     flags & ~_sys.MSG_WAITALL)
            except OSError:
                if received == 0:
                    raise
                break  # the next call meets it, if it lasts
            if count == 0:
                break
            received += <size_t> count
        return received

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
                    count = transfer_by(wait, self, connection, True, <char *> data, size, flags,
                                        all_of_it)
                finally:
                    self.writers -= 1
                if self.behind is not None and count == <Py_ssize_t> size:
                    self.send_behind(connection)
                return count
        cdef nanoseconds limit, deadline, begun = 0
        cdef int descriptor = self.current(connection, &limit)
        cdef size_t sent = 0
        cdef int error
        if self.deadlines is not None:
            self.check_whole()
            begun = self.write_begun()
        if size <= SENT_WITH_GIL and flags == 0 and not threads_share_a_core():
            count = _sys.send(descriptor, data, size, _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
            if count >= 0:
                sent = <size_t> count
                self.went(count, sent == size, data, size)
                if sent == size or (limit != NEVER and not all_of_it):
                    if self.behind is not None and sent == size:
                        self.send_behind(connection)
                    return sent
            else:
                error = _sys.errno
                if error != _sys.EINTR and (error != _sys.EAGAIN or limit == 0):
                    fail(error)
        deadline = self.until(limit, True, begun)
        if self.deadlines is not None and deadline != NEVER:
            if limit == NEVER and flags & _sys.MSG_DONTWAIT:
                deadline = NEVER
            flags |= _sys.MSG_DONTWAIT
        self.writers += 1
        try:
            while True:
                self.doing = WRITING
                count = self.transfer(connection, _sys.POLLOUT, <char *> data + sent, size - sent,
                                      flags | _sys.MSG_NOSIGNAL, deadline, begun, &error)
                self.doing = WORKING
                sent += <size_t> count
                self.went(count, error == 0 and sent >= size, data, size)
                if error:
                    if sent and not all_of_it:
                        return sent  # as send(2) itself: the next call meets the error
                    fail(error)
                if all_of_it:
                    PyErr_CheckSignals()  # as socket.sendall() between its calls
                # Without a timeout send(2) takes all, but for a signal or where it is not to wait.
                if sent >= size or not (all_of_it or (limit == NEVER and deadline != NEVER)):
                    break
                if not all_of_it:
                    PyErr_CheckSignals()
        finally:
            self.doing = WORKING
            self.writers -= 1
        if self.behind is not None and sent == size:
            self.send_behind(connection)
        return sent

    cdef int send_behind(self, object connection) except -1:
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
                             int flags, nanoseconds deadline, nanoseconds begun,
                             int *error) except -1:
        """One recv(2) (POLLIN) or send(2) (POLLOUT): the place where a connection waits.

        What the call itself fails with is in error, and not raised. begun: see ``until()``.
        """
        cdef nanoseconds limit
        cdef int descriptor = self.current(connection, &limit)
        cdef nanoseconds own = NEVER if self.deadlines is None else deadline_of(limit)
        cdef Py_ssize_t count = -1
        cdef int ready
        while True:
            ready = 1
            error[0] = 0
            with nogil:
                if deadline == NEVER:
                    descriptor = self.still(descriptor)
                else:
                    ready = _wait(self.still(descriptor), events, deadline)
                    if ready > 0:
                        descriptor = self.after_wait(connection)
                if ready > 0:
                    if events == _sys.POLLIN:
                        count = _sys.recv(descriptor, data, size, flags)
                        if count > 0:
                            self.doing = WORKING  # without the GIL: a drain is to let it be
                    else:
                        count = _sys.send(descriptor, data, size, flags)
                if ready < 0 or (ready > 0 and count < 0):
                    error[0] = _sys.errno
                await_turn()
            turn_over()
            if error[0] == 0 and ready > 0:
                return count
            if error[0] == _sys.EINTR:
                PyErr_CheckSignals()  # whose handlers may close the connection
                descriptor = self.current(connection, &limit)
                continue
            if ready > 0:
                if error[0] != _sys.EAGAIN or deadline == NEVER:
                    return 0
                # poll(2) said that it is ready and the call that it isn't: perhaps for good.
                PyErr_CheckSignals()
                if monotonic() <= deadline:
                    continue
            if events == _sys.POLLOUT:
                self.overdue(True, begun)
            deadline = self.late(own)
            descriptor = self.current(connection, &limit)

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
        return waiting()

    cdef int close(self) except -1:
        """Close a descriptor that is still ours. Never twice: it may be somebody else's then."""
        if self.waiter is not None:
            self.waiter.forget(self)
        cdef int descriptor = self.descriptor
        cdef int error = 0
        self.descriptor = -1
        self.end()
        # Without SO_LINGER, which setsockopt() alone sets, close(2) does not wait.
        if descriptor >= 0 and _sys.close(descriptor) < 0:
            error = _sys.errno
        forget(self)
        if error != 0 and error != _sys.ECONNRESET:
            fail(error)
        return 0


cdef bint waits_for_all(int flags, int kind) noexcept:
    """Whether recv(2) with MSG_WAITALL would, on a blocking descriptor."""
    return not flags & (_sys.MSG_PEEK | _sys.MSG_DONTWAIT) and kind == _sys.SOCK_STREAM


cdef object seconds_of(nanoseconds limit):
    """A timeout as socket.gettimeout() gives it."""
    if limit == NEVER:
        return None
    if limit % SECOND == 0:
        return <double> (limit // SECOND)
    return <double> limit / 1e9


cdef Channel channel_of(object connection):
    cdef PyObject *channel = fastsock_channel(connection)
    return <Channel> channel if channel != NULL else <Channel?> connection._channel


cdef Channel channel_if(object request):
    """That of a Connection, None of anything else, of which no attribute is asked for."""
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
        if set_nonblocking(descriptor, True) < 0:
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
    if timeout != adopted.gettimeout():
        adopted.settimeout(timeout)
    return adopted


def initialised(connection):
    """Give a Connection that was made like any socket (by dup(), by a program) its channel."""
    connection._channel = Channel.__new__(Channel)


cdef char _scratch[SCRATCH]


cdef object _and_more(Channel channel, object connection, Py_ssize_t size):
    """The bytes in the scratch buffer, and what else is there already, up to size in all."""
    cdef size_t more = _waiting(channel.descriptor)
    cdef PyObject *data
    channel.came(SCRATCH)
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
            channel.overdue(False, 0)
        if count == NOTHING:
            fail(_sys.EAGAIN)
        return PyBytes_FromStringAndSize(channel.waiter.lent(), count)
    # Programs ask for far more than comes. What is waiting is received into a small buffer first;
    # nobody but who holds the GIL uses it.
    if channel.deadlines is not None:
        channel.check_whole()
    if channel.eager and flags == 0 and not channel.handed_over and size > SCRATCH:
        count = _sys.recv(channel.descriptor, _scratch, SCRATCH, _sys.MSG_DONTWAIT)
        if 0 <= count < SCRATCH:
            channel.came(count)
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
