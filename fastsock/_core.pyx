"""The serve loop: poll, accept or receive, dispatch through the hooks.

Knows file descriptors and the hooks' names, nothing of the classes above: what it needs to know
of them (which ``get_request`` is the untouched default) comes as data, in ``Defaults``.

Threads: a ``Loop`` belongs to the thread that runs it. A ``Control`` may be used from any thread
that holds the GIL, and from signal handlers; all of its state changes under the GIL, which is
given up in ``poll`` and in ``accept4`` only.
"""

import logging
import math
import os

from cpython.exc cimport PyErr_CheckSignals
from cpython.method cimport PyMethod_Check, PyMethod_GET_FUNCTION, PyMethod_GET_SELF
from cpython.ref cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, realloc

from fastsock cimport _sys
from fastsock._accept cimport (accept_connection, can_accept, can_receive, fail,
                               receive_datagram)

ctypedef long long nanoseconds

cdef enum:
    NEVER = -1
    MILLISECOND = 1_000_000
    SECOND = 1_000_000_000
    SHORTEST_PAUSE = 10 * MILLISECOND
    LONGEST_PAUSE = 1 * SECOND
    # A listener that is closed or broken has this long for a shutdown(), or for another
    # self.socket, before serve_forever() raises.
    GRACE = 500 * MILLISECOND
    # accept(2) passes on errors of the connection that it would have returned; this many in a
    # row without one connection are an error of the listener, and are paused after.
    ABORTED_IN_A_ROW = 64

cdef nanoseconds LOG_EVERY = 5 * <nanoseconds> SECOND

# Descriptors or memory have run out: trying again at once would only burn the processor.
cdef tuple _SHORTAGES = (_sys.EMFILE, _sys.ENFILE, _sys.ENOBUFS, _sys.ENOMEM)
# The listener itself is no longer one.
cdef tuple _BROKEN = (_sys.EBADF, _sys.EINVAL, _sys.ENOTSOCK)

cdef object _log = logging.getLogger("fastsock")


cdef nanoseconds _now() noexcept nogil:
    cdef _sys.timespec time
    _sys.clock_gettime(_sys.CLOCK_MONOTONIC, &time)
    return <nanoseconds> time.tv_sec * SECOND + time.tv_nsec


cdef inline int _poll_timeout(nanoseconds deadline) noexcept nogil:
    """Milliseconds until the deadline as poll(2) wants them: rounded up, never early."""
    cdef nanoseconds left
    if deadline == NEVER:
        return -1
    left = deadline - _now()
    if left <= 0:
        return 0
    left = (left + MILLISECOND - 1) // MILLISECOND
    return INT_MAX if left > INT_MAX else <int> left


cdef inline nanoseconds _sooner(nanoseconds one, nanoseconds other) noexcept nogil:
    if one == NEVER:
        return other
    if other == NEVER or one < other:
        return one
    return other


cdef nanoseconds _interval(object seconds) except -2:
    """A timeout as selectors.PollSelector.select() takes it; NEVER for None."""
    if seconds is None:
        return NEVER
    if seconds <= 0:
        return 0
    milliseconds = math.ceil(seconds * 1e3)
    if milliseconds > INT_MAX:
        raise OverflowError("timeout is too large")
    return <nanoseconds> milliseconds * MILLISECOND


cdef int _descriptor(object server, bint must_be_valid) except -2:
    """The descriptor to poll, with the errors of selectors.BaseSelector.register()."""
    try:
        number = int(server.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"Invalid file object: {server!r}") from None
    if number < 0:
        if must_be_valid:
            raise ValueError(f"Invalid file descriptor: {number}")
        return -1
    return number


cdef class Wakeup:
    """An eventfd(2) that a poll watches, so that another thread can end its wait.

    Only exists while a loop runs. Where no descriptor is left for it the loop waits in short
    slices instead, and asks for one again.
    """

    cdef int descriptor

    def __cinit__(self):
        self.descriptor = -1

    def __dealloc__(self):
        self.close()

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


# Loops that run in this process. A child process closes its copies of their wake-ups: an
# eventfd is shared over fork(2), and a child that wrote to it would wake its parent.
cdef set _running = set()


def _after_fork_in_child():
    cdef Loop loop
    for loop in _running:
        loop.wakeup.close()


os.register_at_fork(after_in_child=_after_fork_in_child)


cdef class Defaults:
    """The functions that the core may stand in for, to know a server that has overridden none.

    accept: the get_request of the stream servers; receive: that of the datagram servers; the
    others: the BaseServer's methods of these names. pair: a Python function that unpacks what an
    overridden get_request returned, with Python's own error messages.
    """

    cdef object accept
    cdef object receive
    cdef object verify_request
    cdef object process_request
    cdef object finish_request
    cdef object handle_request_noblock
    cdef object pair

    def __init__(self, *, accept, receive, verify_request, process_request, finish_request,
                 handle_request_noblock, pair):
        self.accept = accept
        self.receive = receive
        self.verify_request = verify_request
        self.process_request = process_request
        self.finish_request = finish_request
        self.handle_request_noblock = handle_request_noblock
        self.pair = pair


cdef inline bint _is_default(object method, object server, object function) noexcept:
    """Whether a hook that was looked up on the server is the given function, bound to it.

    True of no instance attribute, no override and no patched class, whenever they were made.
    """
    return (PyMethod_Check(method)
            and PyMethod_GET_FUNCTION(method) == <PyObject *> function
            and PyMethod_GET_SELF(method) == <PyObject *> server)


cdef class Control:
    """What one server and the loops that serve it share; one per server.

    accept_errors: how often accept or receive failed, by errno. start_failures: how often a
    thread or a process for a request could not be started.
    """

    cdef object _stop
    cdef list loops
    cdef nanoseconds paused_until  # 0: not paused
    cdef nanoseconds pause
    cdef bint for_descriptor  # the pause may end as soon as one is free again
    cdef nanoseconds logged
    cdef int aborted_in_a_row
    cdef object broken  # the OSError of a listener that is no longer one
    cdef object held  # what is polled in the listener's place, or None
    cdef readonly dict accept_errors
    cdef readonly unsigned long long start_failures

    def __init__(self):
        self._stop = False
        self.loops = []
        self.accept_errors = {}
        self.logged = NEVER

    @property
    def stop(self):
        """What was last assigned to ``_BaseServer__shutdown_request``."""
        return self._stop

    @stop.setter
    def stop(self, value):
        self._stop = value
        if value:
            self.wake()

    cdef int wake(self) except -1:
        cdef Loop loop
        for loop in self.loops:
            loop.wakeup.wake()
        return 0

    def released(self):
        """The server closed a descriptor of its own: a listener short of them is tried at once."""
        if self.paused_until and self.for_descriptor:
            self.paused_until = 1
            self.wake()

    def hold(self, instead):
        """Poll something else in the listener's place until it is readable; then close it.

        service_actions() runs then, which may hold again. Returns False, and holds nothing,
        where no loop runs in the calling thread that could wait for it.

        instead: an object with fileno() and close(), owned by the loop from here on.
        """
        cdef Loop loop
        for loop in self.loops:
            if loop.thread == PyThread_get_thread_ident():
                self.let_go()
                self.held = instead
                return True
        return False

    cdef int let_go(self) except -1:
        held, self.held = self.held, None
        if held is not None:
            held.close()
        return 0

    def start_failed(self):
        """A thread or process for a request could not be started: leave the listener alone.

        handle_error() reports it, since the failure leaves process_request().
        """
        self.start_failures += 1
        self.back_off(False)

    cdef nanoseconds back_off(self, bint for_descriptor) noexcept:
        cdef nanoseconds now = _now()
        self.pause = min(max(2 * self.pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        self.paused_until = now + self.pause
        self.for_descriptor = for_descriptor
        return now

    cdef int cannot_take(self, object server, object error) except -1:
        cdef nanoseconds now = self.back_off(True)
        if self.logged == NEVER or now - self.logged >= LOG_EVERY:
            self.logged = now
            _log.warning("server on %r cannot take a request: %s; trying again after %d ms, "
                         "later %d ms (failures so far, by errno: %r)",
                         getattr(server, "server_address", None), error,
                         self.pause // MILLISECOND, LONGEST_PAUSE // MILLISECOND,
                         self.accept_errors)
        return 0

    cdef int refused(self, object server, object error, bint native) except -1:
        """get_request() raised OSError. The loop goes on, or pauses, or ends as the errno says."""
        number = error.errno
        if not native:
            # An overridden get_request() fails for reasons of its own (a TLS handshake).
            if number in _SHORTAGES:
                self.count(number)
                self.cannot_take(server, error)
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
        return 0

    cdef inline int count(self, object number) except -1:
        self.accept_errors[number] = self.accept_errors.get(number, 0) + 1
        return 0

    cdef void took_one(self) noexcept:
        self.aborted_in_a_row = 0
        if self.for_descriptor:
            self.resume()

    cdef inline void resume(self) noexcept:
        self.pause = 0
        self.paused_until = 0


cdef bint _dispatch(object server, Control control, Defaults defaults) except -1:
    """Take one request and run it through the hooks; false when there was none after all."""
    cdef unsigned long long failed_starts = control.start_failures
    cdef bint by_core = False
    try:
        get_request = server.get_request
        if _is_default(get_request, server, defaults.accept):
            source = server.socket
            by_core = can_accept(source)
            taken = accept_connection(source) if by_core else get_request()
        elif _is_default(get_request, server, defaults.receive):
            source = server.socket
            size = server.max_packet_size
            by_core = can_receive(source, size)
            taken = receive_datagram(source, size) if by_core else get_request()
        else:
            taken = get_request()
        if by_core and taken is None:
            return False
        if type(taken) is not tuple or len(taken) != 2:
            taken = defaults.pair(taken)
        request, client_address = taken
    except OSError as error:
        control.refused(server, error, by_core)
        return True
    taken = None
    control.took_one()

    try:
        hook = server.verify_request
        verified = (_is_default(hook, server, defaults.verify_request)
                    or bool(hook(request, client_address)))
    except BaseException:
        server.shutdown_request(request)
        raise
    if not verified:
        server.shutdown_request(request)
        return True
    try:
        hook = server.process_request
        if _is_default(hook, server, defaults.process_request):
            _process(server, defaults, request, client_address)
        else:
            hook(request, client_address)
    except Exception:
        try:
            server.handle_error(request, client_address)
        finally:
            server.shutdown_request(request)
    except BaseException:
        server.shutdown_request(request)
        raise
    if control.start_failures == failed_starts:
        control.resume()
    return True


cdef inline int _process(object server, Defaults defaults, object request,
                         object client_address) except -1:
    """BaseServer.process_request() and, if it is untouched too, finish_request()."""
    hook = server.finish_request
    if _is_default(hook, server, defaults.finish_request):
        server.RequestHandlerClass(request, client_address, server)
    else:
        hook(request, client_address)
    server.shutdown_request(request)
    return 0


def dispatch(server, Control control not None, Defaults defaults not None):
    """Handle one request of a readable server, as BaseServer._handle_request_noblock() does."""
    _dispatch(server, control, defaults)


cdef class _Entry:
    """A server in a loop."""

    cdef object server
    cdef Control control
    cdef object ended
    cdef bint registered
    cdef nanoseconds actions_at  # when service_actions() is next due without a request
    cdef nanoseconds broken_until  # 0, or the end of the grace of a broken listener

    cdef int fails(self, object error) except -1:
        """The listener cannot be used: pause, and raise once that has lasted for GRACE."""
        cdef nanoseconds now = _now()
        if self.broken_until == 0:
            self.broken_until = now + GRACE
        elif now >= self.broken_until:
            raise error
        self.control.paused_until = now + SHORTEST_PAUSE
        return 0


cdef class Loop:
    """One run of serve_forever(), for one server or several.

    poll_interval: seconds, None or 0, as selectors take it. wait: None for poll(2), or a function
    (descriptors, milliseconds) -> ready descriptors that is used in its place.
    """

    cdef Wakeup wakeup
    cdef unsigned long thread
    cdef list entries
    cdef nanoseconds interval
    cdef object wait
    cdef Defaults defaults
    cdef _sys.pollfd *polled  # of this run alone; the first is the wake-up
    cdef size_t room

    def __init__(self, poll_interval, Defaults defaults not None, wait):
        self.interval = _interval(poll_interval)
        self.defaults = defaults
        self.wait = wait
        self.wakeup = Wakeup()
        self.thread = PyThread_get_thread_ident()
        self.entries = []
        _running.add(self)

    def __dealloc__(self):
        free(self.polled)

    def add(self, server, Control control not None, ended):
        """Serve this server too; ended() is called as soon as it is no longer served."""
        cdef _Entry entry = _Entry()
        entry.server = server
        entry.control = control
        entry.ended = ended
        control.loops.append(self)
        self.entries.append(entry)

    def run(self):
        """Serve until every server was asked to stop, or until an exception leaves a hook."""
        cdef size_t count
        while True:
            self.drop_stopped()
            if not self.entries:
                return
            count = len(self.entries) + 1
            if count > self.room:
                self.make_room(count)
            self.poll(self.prepare())
            # Python's signal handlers run here; KeyboardInterrupt ends the loop.
            PyErr_CheckSignals()
            self.serve_ready()

    def close(self):
        """Give the wake-up back, and end the serving of whatever is still served."""
        _running.discard(self)
        self.wakeup.close()
        while self.entries:
            self.drop(len(self.entries) - 1)

    cdef int make_room(self, size_t count) except -1:
        cdef void *larger = realloc(self.polled, count * sizeof(_sys.pollfd))
        if larger == NULL:
            raise MemoryError
        self.polled = <_sys.pollfd *> larger
        self.room = count
        return 0

    cdef int drop_stopped(self) except -1:
        cdef _Entry entry
        cdef Py_ssize_t index = 0
        while index < len(self.entries):
            entry = self.entries[index]
            if entry.control._stop:
                if len(self.entries) == 1:
                    # shutdown() may return from here on: leave no descriptor behind.
                    self.wakeup.close()
                self.drop(index)
            else:
                index += 1
        return 0

    cdef int drop(self, Py_ssize_t index) except -1:
        cdef _Entry entry = self.entries.pop(index)
        entry.control.loops.remove(self)
        entry.control.let_go()
        entry.ended()
        return 0

    cdef nanoseconds prepare(self) except -2:
        """Fill in what to poll; return when to wake up without an event.

        fileno() is read anew each time, since self.socket may have been replaced: poll(2)
        takes the whole list at every call, so nothing of the old socket is left behind.
        """
        cdef _Entry entry
        cdef _sys.pollfd *slot = self.polled
        cdef nanoseconds now = _now()
        cdef nanoseconds until = NEVER
        cdef int descriptor
        slot.events = _sys.POLLIN
        if not self.wakeup.open():
            until = now + 20 * MILLISECOND
        slot.fd = self.wakeup.descriptor
        for entry in self.entries:
            slot += 1
            slot.events = _sys.POLLIN
            descriptor = _descriptor(entry.server, not entry.registered)
            if not entry.registered:
                entry.registered = True
                entry.actions_at = NEVER if self.interval == NEVER else now + self.interval
            if entry.control.paused_until > now:
                descriptor = -1
            elif entry.control.held is not None:
                descriptor = entry.control.held.fileno()
            elif descriptor < 0:
                entry.fails(_ebadf())
            if entry.control.paused_until > now:
                until = _sooner(until, entry.control.paused_until)
            slot.fd = descriptor  # poll(2) skips a negative one
            until = _sooner(until, entry.actions_at)
        return until

    cdef int poll(self, nanoseconds until) except -1:
        cdef _sys.nfds_t count = len(self.entries) + 1
        cdef int timeout = _poll_timeout(until)
        cdef int ready, error = 0
        cdef _sys.nfds_t index
        for index in range(count):
            self.polled[index].revents = 0
        if self.wait is not None:
            descriptors = [self.polled[index].fd for index in range(count)
                           if self.polled[index].fd >= 0]
            for descriptor in self.wait(descriptors, timeout):
                for index in range(count):
                    if self.polled[index].fd == <int> descriptor:
                        self.polled[index].revents = _sys.POLLIN
        else:
            with nogil:
                ready = _sys.poll(self.polled, count, timeout)
                if ready < 0:
                    error = _sys.errno
            if ready < 0:
                for index in range(count):
                    self.polled[index].revents = 0
                if error != _sys.EINTR:
                    fail(error)
        if self.polled[0].revents:
            self.wakeup.clear()
        return 0

    cdef int serve_ready(self) except -1:
        cdef _Entry entry
        cdef Control control
        cdef Py_ssize_t index = 0
        cdef short events
        cdef bint took
        for entry in self.entries:
            index += 1
            control = entry.control
            if control._stop:
                continue
            events = self.polled[index].revents
            took = False
            if events and control.held is not None:
                control.let_go()
                took = True
            elif events & _sys.POLLNVAL:
                entry.fails(_ebadf())
            elif events and (index == 1 or self.is_current(entry, index)):
                control.broken = None
                took = self.dispatch(entry)
                if control.broken is not None:
                    entry.fails(control.broken)
                else:
                    entry.broken_until = 0
            elif self.polled[index].fd >= 0:
                entry.broken_until = 0
            if took or (entry.actions_at != NEVER and _now() >= entry.actions_at):
                entry.server.service_actions()
                if self.interval != NEVER:
                    entry.actions_at = _now() + self.interval
        return 0

    cdef bint is_current(self, _Entry entry, Py_ssize_t index) except -1:
        """Whether a handler that ran since the poll has left this server's descriptor alone."""
        return _descriptor(entry.server, False) == self.polled[index].fd

    cdef bint dispatch(self, _Entry entry) except -1:
        noblock = entry.server._handle_request_noblock
        if _is_default(noblock, entry.server, self.defaults.handle_request_noblock):
            return _dispatch(entry.server, entry.control, self.defaults)
        noblock()
        return True


cdef object _ebadf():
    return OSError(_sys.EBADF, os.strerror(_sys.EBADF))


def handle_one(server, Control control not None, Defaults defaults not None, timeout, wait):
    """Wait up to timeout seconds (None: for ever) for a request, and handle it.

    The waiting half of BaseServer.handle_request(). Returns (True, what
    _handle_request_noblock() returned), or (False, None) when the time is over without a
    request and the caller has to run handle_timeout(). Signal handlers run while it waits.
    """
    cdef _sys.pollfd slot
    cdef nanoseconds interval = _interval(timeout)
    cdef nanoseconds deadline = NEVER if interval == NEVER else _now() + interval
    cdef nanoseconds until
    cdef int milliseconds, ready, error = 0
    slot.events = _sys.POLLIN
    while True:
        slot.fd = _descriptor(server, True)
        until = deadline
        if interval != 0 and control.paused_until > _now():
            slot.fd = -1  # short of descriptors: the same pause as in serve_forever()
            until = _sooner(until, control.paused_until)
        milliseconds = _poll_timeout(until)
        slot.revents = 0
        if wait is not None:
            ready = len(wait([slot.fd] if slot.fd >= 0 else [], milliseconds))
        else:
            with nogil:
                ready = _sys.poll(&slot, 1, milliseconds)
                if ready < 0:
                    error = _sys.errno
            if ready < 0 and error != _sys.EINTR:
                fail(error)
        PyErr_CheckSignals()
        if ready > 0:
            noblock = server._handle_request_noblock
            if not _is_default(noblock, server, defaults.handle_request_noblock):
                return True, noblock()
            if _dispatch(server, control, defaults):
                return True, None
        if deadline != NEVER and _now() >= deadline:
            return False, None
