"""The serve loop: poll the descriptors, then take and dispatch one request from each ready one.

Threads: a ``Loop`` belongs to the thread that runs it, which gives up the GIL in ``poll`` only.
"""

import math
import os

from cpython.exc cimport PyErr_CheckSignals
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, realloc

from fastsock cimport _sys
from fastsock._accept cimport fail
from fastsock._clock cimport MILLISECOND, NEVER, monotonic, nanoseconds, sooner
from fastsock._control cimport Control, Defaults, Wakeup, dispatch_one, is_default

cdef enum:
    # A listener that is closed or broken has this long for a shutdown(), or for another
    # self.socket, before serve_forever() raises. It is looked at this often.
    GRACE = 500 * MILLISECOND
    LOOK_AGAIN = 10 * MILLISECOND
    # How long to wait at a time where there is no wake-up.
    SLICE = 20 * MILLISECOND


cdef inline int _poll_timeout(nanoseconds deadline) noexcept nogil:
    """Milliseconds until the deadline as poll(2) wants them: rounded up, never early."""
    cdef nanoseconds left
    if deadline == NEVER:
        return -1
    left = deadline - monotonic()
    if left <= 0:
        return 0
    left = (left + MILLISECOND - 1) // MILLISECOND
    return INT_MAX if left > INT_MAX else <int> left


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


cdef class _Entry:
    """A server in a loop."""

    cdef object server
    cdef Control control
    cdef object ended
    cdef bint own_flag
    cdef bint registered
    cdef nanoseconds actions_at  # when service_actions() is next due without a request
    cdef nanoseconds broken_until  # 0, or the end of the grace of a broken listener

    cdef bint stopping(self) except -1:
        return bool(self.control._stop or (self.own_flag
                                           and self.server._BaseServer__shutdown_request))

    cdef int fails(self, object error) except -1:
        """The listener cannot be used: pause, and raise once that has lasted for GRACE."""
        cdef nanoseconds now = monotonic()
        if self.broken_until == 0:
            self.broken_until = now + GRACE
        elif now >= self.broken_until:
            raise error
        self.control.paused_until = now + LOOK_AGAIN
        return 0


cdef class Loop:
    """One run of serve_forever(), for one server or several.

    poll_interval: seconds, None or 0, as selectors take it. wait: None for poll(2), or a function
    (descriptors, milliseconds) -> ready descriptors that is used in its place.
    """

    cdef Wakeup wakeup
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
        self.entries = []

    def __dealloc__(self):
        free(self.polled)

    def add(self, server, Control control not None, ended, own_flag):
        """Serve this server too; ended(server) is called as soon as it is no longer served.

        own_flag: the server's class has a _BaseServer__shutdown_request of its own, to be read.
        """
        cdef _Entry entry = _Entry()
        entry.server = server
        entry.control = control
        entry.ended = ended
        entry.own_flag = own_flag
        control.wakeups.append(self.wakeup)
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
        self.wakeup.retire()
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
            if entry.stopping():
                if len(self.entries) == 1:
                    # shutdown() may return from here on: leave no descriptor behind.
                    self.wakeup.close()
                self.drop(index)
            else:
                index += 1
        return 0

    cdef int drop(self, Py_ssize_t index) except -1:
        cdef _Entry entry = self.entries.pop(index)
        entry.control.wakeups.remove(self.wakeup)
        entry.control.let_go()
        entry.ended(entry.server)
        return 0

    cdef nanoseconds prepare(self) except -2:
        """Fill in what to poll; return when to wake up without an event.

        fileno() is read anew each time, since self.socket may have been replaced: poll(2)
        takes the whole list at every call, so nothing of the old socket is left behind.
        """
        cdef _Entry entry
        cdef _sys.pollfd *slot = self.polled
        cdef nanoseconds now = monotonic()
        cdef nanoseconds until = NEVER
        cdef int descriptor
        slot.events = _sys.POLLIN
        if not self.wakeup.open():
            until = now + SLICE
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
                until = sooner(until, entry.control.paused_until)
            slot.fd = descriptor  # poll(2) skips a negative one
            until = sooner(until, entry.actions_at)
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
            if entry.stopping():
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
            if took or (entry.actions_at != NEVER and monotonic() >= entry.actions_at):
                entry.server.service_actions()
                if self.interval != NEVER:
                    entry.actions_at = monotonic() + self.interval
        return 0

    cdef bint is_current(self, _Entry entry, Py_ssize_t index) except -1:
        """Whether a handler that ran since the poll has left this server's descriptor alone."""
        return _descriptor(entry.server, False) == self.polled[index].fd

    cdef bint dispatch(self, _Entry entry) except -1:
        noblock = entry.server._handle_request_noblock
        if is_default(noblock, entry.server, self.defaults.handle_request_noblock):
            return dispatch_one(entry.server, entry.control, self.defaults, True)
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
    cdef nanoseconds deadline = NEVER if interval == NEVER else monotonic() + interval
    cdef nanoseconds until
    cdef int milliseconds, ready, error = 0
    slot.events = _sys.POLLIN
    while True:
        slot.fd = _descriptor(server, True)
        until = deadline
        if interval != 0 and control.paused_until > monotonic():
            slot.fd = -1  # short of descriptors: the same pause as in serve_forever()
            until = sooner(until, control.paused_until)
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
            if not is_default(noblock, server, defaults.handle_request_noblock):
                return True, noblock()
            if dispatch_one(server, control, defaults, True):
                return True, None
        if deadline != NEVER and monotonic() >= deadline:
            return False, None
