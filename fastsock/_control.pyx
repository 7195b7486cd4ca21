"""What a server and the loops that serve it share.

Threads: a ``Control`` and a ``Wakeup`` may be used from any thread that holds the GIL, and from
signal handlers. All of their state changes under the GIL.
"""

import os
import weakref

from cpython.pythread cimport PyThread_get_thread_ident

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, NEVER, SECOND, monotonic, nanoseconds
from fastsock._datagram cimport inbox_of, send_gathered
from fastsock._hooks cimport FILENO, PROCESS, THREAD_PROCESS, Defaults, Hooks, untouched
from fastsock._inbox cimport BATCH, Inbox
from fastsock._ledger cimport Ledger
from fastsock._limits cimport gate_of
from fastsock._log import report

cdef enum:
    SHORTEST_PAUSE = 10 * MILLISECOND
    LONGEST_PAUSE = 1 * SECOND
    # accept(2) passes on errors of the connection that it would have returned; this many in a
    # row without one connection are an error of the listener, and are paused after.
    ABORTED_IN_A_ROW = 64

cdef nanoseconds LOG_EVERY = 5 * <nanoseconds> SECOND

# Descriptors or memory have run out: trying again at once would only burn the processor.
cdef tuple _SHORTAGES = (_sys.EMFILE, _sys.ENFILE, _sys.ENOBUFS, _sys.ENOMEM)
# The listener itself is no longer one.
cdef tuple _BROKEN = (_sys.EBADF, _sys.EINVAL, _sys.ENOTSOCK)


# The wake-ups of the loops that run in this process. A child process closes its copies: an eventfd
# is shared over fork(2), and a child that wrote to it would wake its parent.
cdef set _in_use = set()


# How often this process, or one that it was forked from, has forked.
cdef unsigned long _forks = 0


def _after_fork_in_parent():
    global _forks
    _forks += 1


def _after_fork_in_child():
    cdef Wakeup wakeup
    _after_fork_in_parent()
    for wakeup in _in_use:
        wakeup.close()


os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


cdef class Wakeup:
    """An eventfd(2) that a poll watches, so that another thread can end its wait.

    Only exists while a loop runs. Where no descriptor is left for it the loop waits in short
    slices instead, and asks for one again.
    """

    def __cinit__(self):
        self.descriptor = -1
        self.thread = PyThread_get_thread_ident()
        _in_use.add(self)

    def __dealloc__(self):
        self.close()

    cdef int retire(self) except -1:
        """The loop is over."""
        self.close()
        _in_use.discard(self)
        return 0

    cdef bint open(self) noexcept:
        if self.descriptor < 0:
            self.descriptor = _sys.eventfd(0, _sys.EFD_CLOEXEC | _sys.EFD_NONBLOCK)
        return self.descriptor >= 0

    cdef void wake(self) noexcept:
        # Under the GIL, as close() is: never a write to a number that was closed meanwhile.
        if self.descriptor >= 0:
            _sys.eventfd_write(self.descriptor, 1)

    cdef void clear(self) noexcept:
        cdef _sys.eventfd_t count
        _sys.eventfd_read(self.descriptor, &count)

    cdef void close(self) noexcept:
        cdef int descriptor = self.descriptor
        self.descriptor = -1
        if descriptor >= 0:
            _sys.close(descriptor)


cdef class Control:
    """What one server and the loops that serve it share; one per server.

    watched: an object with fileno(), or None; the loops poll it too, and call on_watched(server)
    when it is readable. That returns whether it has seen to it; if not, it is left alone until
    after the next service_actions(). before_sleep: None, or a function of the server that a loop
    calls once, before it waits the next time.
    accept_errors: how often accept or receive failed, by errno.
    start_failures: how often a thread or a process for a request could not be started.
    truncated: how many datagrams were longer than max_packet_size.
    """

    def __init__(self):
        self.ledger = Ledger()
        self.hooks = Hooks()
        self._stop = False
        self.wakeups = []
        self.accept_errors = {}
        self.logged = NEVER

    @property
    def stop(self):
        """What was last assigned to ``_BaseServer__shutdown_request``."""
        return self._stop

    @stop.setter
    def stop(self, value):
        self._stop = value
        self.stopped_by = PyThread_get_thread_ident()
        if value:
            self.wake()

    cpdef int wake(self) except -1:
        """Have every loop that serves this server look at its stop flag; no more than that."""
        cdef Wakeup wakeup
        for wakeup in self.wakeups:
            wakeup.wake()
        return 0

    cpdef int released(self) except -1:
        """The server closed a descriptor of its own: a listener short of them is tried at once."""
        if self.paused_until and self.for_descriptor:
            self.paused_until = 1
            self.wake()
        return 0

    def hold(self, instead):
        """Poll something else in the listener's place until it is readable.

        service_actions() runs then, which may hold again. Returns False, and holds nothing,
        where no loop runs in the calling thread that could wait for it.

        instead: an object with fileno(), and with is_over(), which is asked when it is readable.
        """
        if self.serves_here():
            self.held = instead
            return True
        return False

    def let_go(self, instead):
        """Poll the listener again, if this is what is polled in its place."""
        if self.held is instead:
            self.held = None
            self.wake()  # a loop that polls it

    def serves_here(self):
        """Whether a loop of this thread serves the server."""
        cdef Wakeup wakeup
        for wakeup in self.wakeups:
            if wakeup.thread == PyThread_get_thread_ident():
                return True
        return False

    @property
    def is_served(self):
        """Whether a loop of ours serves the server, in this process."""
        return len(self.wakeups) > 0

    def takes_here(self):
        """Whether this thread takes a request in the loop's place just now."""
        cdef unsigned long here = PyThread_get_thread_ident()
        return self.taking == here or self.handling == here

    def bound(self, sock):
        """This process has bound the socket: until it forks no other can accept from it."""
        try:
            self.own_socket = weakref.ref(sock)
        except TypeError:  # it is no socket.socket
            self.own_socket = None
        self.forks = _forks

    cdef bint is_own(self, object sock) except -1:
        """Whether no other process can accept from the listener."""
        return self.own_socket is not None and self.forks == _forks and self.own_socket() is sock

    def start_failed(self):
        """A thread or process for a request could not be started: leave the listener alone.

        handle_error() reports it, since the failure leaves process_request().
        """
        self.start_failures += 1
        self.back_off(False)

    cdef nanoseconds back_off(self, bint for_descriptor) noexcept:
        cdef nanoseconds now = monotonic()
        self.pause = min(max(2 * self.pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        self.paused_until = now + self.pause
        self.for_descriptor = for_descriptor
        return now

    cdef int cannot_take(self, object server, object error) except -1:
        cdef nanoseconds now = self.back_off(True)
        if self.logged == NEVER or now - self.logged >= LOG_EVERY:
            self.logged = now
            report("accept", "cannot_take",
                   "server on %r cannot take a request: %s; trying again after %d ms, "
                   "later %d ms (failures so far, by errno: %r)",
                   getattr(server, "server_address", None), error,
                   self.pause // MILLISECOND, LONGEST_PAUSE // MILLISECOND, self.accept_errors,
                   server=server, errno=error.errno)
        return 0

    cdef int refused(self, object server, object error, bint native) except -1:
        """get_request() raised OSError. The loop goes on, or pauses, or ends as the errno says."""
        try:
            number = error.errno
        except Exception:
            number = None
        if not native:
            # An overridden get_request() fails for reasons of its own (a TLS handshake).
            if number in _SHORTAGES:
                self.count(number)
                self.cannot_take(server, error)
                tell_accept_error(server, error)
            return 0
        self.count(number)
        if number in _BROKEN:
            self.broken = error
        elif number in _SHORTAGES:
            self.cannot_take(server, error)
        else:
            self.aborted_in_a_row += 1
            if self.aborted_in_a_row >= ABORTED_IN_A_ROW:
                self.cannot_take(server, error)
        return tell_accept_error(server, error)

    cdef int count(self, object number) except -1:
        self.accept_errors[number] = self.accept_errors.get(number, 0) + 1
        return 0

    cdef void took_one(self) noexcept:
        self.aborted_in_a_row = 0
        if self.for_descriptor:
            self.resume()

    cdef void resume(self) noexcept:
        self.pause = 0
        self.paused_until = 0

    cdef bint has_datagrams(self, object server) except -1:
        """Whether a request can be taken of what was received ahead."""
        cdef object source = self.source
        if source is None:
            return False
        if server.socket is source and self.held is None and inbox_of(source).waiting():
            return self.paused_until == 0 or self.paused_until <= monotonic()
        return False

    cdef bint find_datagrams(self, object server, Defaults defaults) except -1:
        """As has_datagrams(), also of what the loop of another server has received ahead."""
        if self.source is None and self.has_fileno(server, defaults):
            sock = server.socket
            if type(sock) is defaults.datagram_socket and inbox_of(sock).waiting():
                self.source = sock
        return self.has_datagrams(server)

    cdef bint has_fileno(self, object server, Defaults defaults) except -1:
        """Whether its fileno() is that of its socket."""
        return untouched(server, defaults, self.hooks.look(server, defaults, FILENO), FILENO)

    cdef unsigned int waiting(self) except? 0:
        """How many datagrams wait that were received ahead."""
        return 0 if self.source is None else inbox_of(self.source).waiting()

    cdef bint limit(self, object server) except -1:
        """Whether the server has enough connections; then the listener is not polled any more."""
        try:
            gate = gate_of(server, self.ledger)
        except OSError:
            self.back_off(False)  # no descriptor is left to wait by
            return True
        if gate is None:
            return False
        if self.held is None:  # else it is asked again when that is over
            self.hold(gate)
        return True

    cdef int end_batch(self) except -1:
        """Send the replies that were held back."""
        cdef object source = self.source
        cdef Inbox inbox
        if source is None:
            return 0
        inbox = inbox_of(source)
        if not inbox.waiting():
            self.source = None
        inbox.gatherer = 0
        if inbox.gathered:
            send_gathered(source, inbox)
        return 0


cdef int tell_accept_error(object server, object error) except -1:
    hook = getattr(server, "handle_accept_error", None)
    if callable(hook):  # else it is the program's own
        hook(error)
    return 0


cdef unsigned int batch_size(object server, Control control, Defaults defaults) except 0:
    """How many datagrams may be received before the first of them is served.

    Several only if nobody else waits for them: another process, loop or thread that serves the
    same socket would be idle meanwhile, and a child process would serve them once more.
    """
    cdef Inbox inbox = inbox_of(server.socket)
    cdef unsigned int looked
    if (len(control.wakeups) != 1 or control.singly or not control.is_own(server.socket)
            or inbox.watched or _is_served_twice(server, inbox)
            or not control.has_fileno(server, defaults)):
        return 1
    looked = control.hooks.look(server, defaults, PROCESS | THREAD_PROCESS)
    if (untouched(server, defaults, looked, PROCESS)
            or (untouched(server, defaults, looked, THREAD_PROCESS)
                and type(getattr(server, "max_threads", None)) is not int)):
        return BATCH
    return 1


# The servers that loops of this process serve.
cdef list _served = []


cdef int serves(object server, bint begins) except -1:
    """A loop begins, or has ceased, to serve a server."""
    cdef Py_ssize_t index
    if begins:
        _served.append(server)
        return 0
    for index in range(len(_served)):
        if _served[index] is server:  # which may have an __eq__ of its own
            del _served[index]
            break
    return 0


cdef bint _is_served_twice(object server, Inbox inbox) except -1:
    """Whether the loop of another server takes from this socket, or a duplicate of it, too."""
    if len(_served) > 1:
        for other in list(_served):
            if other is not server:
                sock = getattr(other, "socket", None)
                if type(sock) is type(server.socket) and inbox_of(sock) is inbox:
                    return True
    return False
