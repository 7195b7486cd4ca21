"""The serve loop: poll the descriptors, then take and dispatch one request from each ready one.

Threads: a ``Loop`` belongs to the thread that runs it, which gives up the GIL in ``poll`` only.
"""

import math
import os

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, realloc

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, NEVER, monotonic, nanoseconds, sooner
from fastsock._accept cimport Accepted, accept_from
from fastsock._control cimport Control, Wakeup, serves
from fastsock._datagram cimport descriptor_of
from fastsock._dispatch cimport accepts_natively, dispatch_one
from fastsock._limits cimport Gate, gate_of, unlimited
from fastsock._hub cimport Hub
from fastsock._hooks cimport (
    ACCEPT,
    ACTIONS,
    FILENO,
    NOBLOCK,
    UNLIMITED,
    UNLIMITED_PER_PEER,
    Defaults,
    untouched,
)
from fastsock._leader cimport Leadership, readable
from fastsock._waiter cimport fail
from fastsock._worker cimport (
    Feeder,
    Pool,
    PyThread_release_lock,
    PyThread_type_lock,
    Worker,
)

cdef enum:
    # A listener that is closed or broken has this long for a shutdown(), or for another
    # self.socket, before serve_forever() raises. It is looked at this often.
    GRACE = 500 * MILLISECOND
    LOOK_AGAIN = 10 * MILLISECOND
    # How long to wait at a time where there is no wake-up.
    SLICE = 20 * MILLISECOND
    # A poll that was shorter found an event that was there already.
    AT_ONCE = 20_000
    # Requests that are not further apart than this follow each other closely.
    CLOSELY = 1 * MILLISECOND
    # A loop that calls service_actions() more often than this has no time to sleep.
    OFTEN = 10 * MILLISECOND


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


cdef int _descriptor(object server, Control control, Defaults defaults,
                     bint must_be_valid) except -2:
    """The descriptor to poll, with the errors of selectors.BaseSelector.register()."""
    try:
        if not control.has_fileno(server, defaults):
            number = int(server.fileno())
        elif control.source is not None and server.socket is control.source:
            return descriptor_of(control.source)  # its fileno() is for those who poll by themselves
        else:
            number = int(server.socket.fileno())
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
    cdef bint watch_muted  # left to the next service_actions()
    cdef object holding  # what is polled in the listener's place, or None
    cdef bint drained  # nothing was there, or as much as a drain may take was taken

    cdef bint stopping(self) except -1:
        return bool(self.control._stop or (self.own_flag
                                           and self.server._BaseServer__shutdown_request))

    cdef bint is_idle(self, int descriptor, nanoseconds now) except -1:
        """Whether there is no request to be taken just now."""
        held = self.control.held
        return (self.control.paused_until > now
                or not readable(descriptor if held is None else held.fileno()))

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
    cdef Hub hub
    cdef Defaults defaults
    cdef _sys.pollfd *polled  # of this run alone; the first is the wake-up
    cdef size_t room
    cdef Accepted accepted
    cdef bint has_accepted  # or has failed to: to be dispatched in this pass
    cdef bint busy  # the last poll did not have to wait
    cdef nanoseconds took_at  # when the latest request came
    cdef bint closely  # it came so soon that its thread may be made the leader
    cdef Leadership leadership  # of the only server, or None
    cdef bint left_over  # datagrams have been received and not served
    cdef bint without_leader  # there cannot be one just now
    cdef bint has_looked  # the latest poll has told what is ready
    cdef bint drains  # a server is drained

    def __init__(self, poll_interval, Defaults defaults not None, wait, Hub hub=None):
        self.hub = hub
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
        cdef Feeder feeder
        cdef _Entry entry = _Entry()
        entry.server = server
        entry.control = control
        entry.ended = ended
        entry.own_flag = own_flag
        control.wakeups.append(self.wakeup)
        self.entries.append(entry)
        serves(server, True)
        if control.pool is not None:
            feeder = (<Pool> control.pool).feeder
            if feeder is not None:
                feeder.dismiss()  # another loop's

    def run(self):
        """Serve until every server was asked to stop, or until an exception leaves a hook."""
        cdef size_t count
        while True:
            self.drop_stopped()
            if not self.entries:
                return
            count = 2 * len(self.entries) + 1
            if count > self.room:
                self.make_room(count)
            self.poll(self.prepare())
            if not self.has_accepted:
                # Python's signal handlers run here; KeyboardInterrupt ends the loop.
                PyErr_CheckSignals()
            self.serve_ready()

    def close(self):
        """Give the wake-up back, and end the serving of whatever is still served."""
        self.wakeup.retire()
        failed = None
        self.discard()
        while self.entries:
            try:
                self.drop(len(self.entries) - 1)
            except BaseException as error:
                failed = failed or error
        self.discard()
        if failed is not None:
            raise failed

    cdef void discard(self) noexcept:
        """Close what was accepted and not dispatched: a hook could not be looked up."""
        if self.has_accepted and self.accepted.descriptor >= 0:
            _sys.close(self.accepted.descriptor)
        self.has_accepted = False

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
            if entry.drained or entry.stopping():
                if entry.control.source is not None:
                    self.drain(entry)
                if len(self.entries) == 1:
                    # shutdown() may return from here on: leave no descriptor behind.
                    self.wakeup.close()
                self.drop(index)
            else:
                index += 1
        return 0

    cdef int drop(self, Py_ssize_t index) except -1:
        cdef _Entry entry = self.entries.pop(index)
        try:
            self.flush(entry)
            entry.control.end_batch()
            if self.leadership is not None:
                try:
                    self.leadership.retire()
                    if self.took_over():
                        self.dispatch(entry)  # it was accepted before
                finally:
                    self.leadership = None
        finally:
            serves(entry.server, False)
            entry.control.wakeups.remove(self.wakeup)
            entry.ended(entry.server)
        return 0

    cdef bint took_over(self) except -1:
        """Whether there is a connection that a leader has accepted and may not begin."""
        if self.leadership is None:
            return False
        self.leadership.check()
        if not self.leadership.has_accepted:
            return False
        self.leadership.has_accepted = False
        self.accepted = self.leadership.accepted
        self.has_accepted = True
        self.polled[1].revents = _sys.POLLIN
        return True

    cdef int flush(self, _Entry entry) except -1:
        """Wake the thread of the last request, if that was left to the poll."""
        if entry.control.pool is not None:
            (<Pool> entry.control.pool).flush()
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
        self.left_over = self.drains = False
        slot.events = _sys.POLLIN
        if not self.wakeup.open():
            until = now + SLICE
        slot.fd = self.wakeup.descriptor
        for entry in self.entries:
            slot += 1
            slot.events = _sys.POLLIN
            descriptor = _descriptor(entry.server, entry.control, self.defaults,
                                     not entry.registered)
            if not entry.registered:
                entry.registered = True
                entry.actions_at = NEVER if self.interval == NEVER else now + self.interval
            if entry.control.before_sleep is not None and entry.is_idle(descriptor, now):
                before_sleep, entry.control.before_sleep = entry.control.before_sleep, None
                before_sleep(entry.server)
                descriptor = _descriptor(entry.server, entry.control, self.defaults, False)
            entry.holding = None
            if (type(entry.control.held) is Gate
                    and not (<Gate> entry.control.held).lasts(entry.server)):
                entry.control.held = None
            if entry.control.paused_until > now:
                descriptor = -1
            elif entry.control.held is not None and entry.control.held.fileno() >= 0:
                entry.holding = entry.control.held
                descriptor = entry.holding.fileno()
            elif descriptor < 0:
                if entry.control.draining:
                    entry.drained = True
                else:
                    entry.fails(_ebadf())
            if (entry.control.draining and entry.holding is None
                    and entry.control.paused_until <= now):
                until = now  # nobody is waited for who is not there
                self.drains = True
            if entry.control.paused_until > now:
                until = sooner(until, entry.control.paused_until)
            if entry.control.find_datagrams(entry.server, self.defaults):
                self.left_over = True
            slot.fd = descriptor  # poll(2) skips a negative one
            slot += 1
            slot.events = _sys.POLLIN
            slot.fd = -1
            if entry.control.watched is not None and not entry.watch_muted:
                slot.fd = entry.control.watched.fileno()
            until = sooner(until, entry.actions_at)
        return until

    cdef int poll(self, nanoseconds until) except -1:
        cdef _sys.nfds_t count = 2 * len(self.entries) + 1
        cdef int timeout = _poll_timeout(until)
        cdef int ready, error = 0
        cdef _sys.nfds_t index
        cdef _Entry first = self.entries[0]
        cdef PyThread_type_lock wake = NULL
        cdef bint accepts
        cdef unsigned long served
        for index in range(count):
            self.polled[index].revents = 0
        self.has_looked = False
        if self.wait is not None:
            descriptors = [self.polled[index].fd for index in range(count)
                           if self.polled[index].fd >= 0]
            for descriptor in self.wait(descriptors, 0 if self.left_over else timeout):
                for index in range(count):
                    if self.polled[index].fd == <int> descriptor:
                        self.polled[index].revents = _sys.POLLIN
            self.has_looked = True
        elif self.hub is not None:
            ready = self.hub.wait(self.polled, count, 0 if self.left_over else until)
            if ready == 0 and self.drains:
                ready = _sys.poll(self.polled, count, 0)  # the hub may not have asked
            self.has_looked = ready >= 0
            if ready < 0:
                for index in range(count):
                    self.polled[index].revents = 0
        else:
            # Getting the GIL back is what is slow where threads contend for it: so a thread is
            # woken, the poll done and a connection accepted between giving it up and that. But
            # nothing is accepted after a wait, in which get_request() may have been replaced.
            accepts = (self.busy and count == 3 and first.control.pool is not None
                       and first.control.held is None and self.accepts(first))
            if self.took_over():
                return 0
            if self.closely:
                self.closely = False
                self.without_leader = not self.appoint(first, count)
            if first.control.pool is not None:
                wake = (<Pool> first.control.pool).take_pending()
            if self.leadership is not None and self.leadership.holder is not None:
                self.busy = False
                served = self.leadership.served
                ready = self.leadership.wait(self.polled, count, until, wake, &error)
                if self.leadership.served != served:
                    self.took_at = monotonic()
            else:
                ready = self.poll_and_accept(count, 0 if self.left_over else timeout, accepts,
                                             wake, &error)
                self.has_looked = ready >= 0
            if ready < 0:
                for index in range(count):
                    self.polled[index].revents = 0
                if error != _sys.EINTR:
                    fail(error)
        if self.polled[0].revents:
            self.wakeup.clear()
        return 0

    cdef int poll_and_accept(self, _sys.nfds_t count, int timeout, bint accepts,
                             PyThread_type_lock wake, int *error) except -2:
        cdef int ready = 0
        cdef nanoseconds begun
        if accepts:
            # Under the GIL: get_request() may be replaced as soon as that is given up.
            ready = _sys.poll(self.polled, count, 0)
            accepts = (ready > 0 and self.polled[1].revents == _sys.POLLIN
                       and not self.polled[0].revents)
        with nogil:
            if wake != NULL:
                PyThread_release_lock(wake)
            if accepts:
                accept_from(self.polled[1].fd, &self.accepted)
                self.has_accepted = True
            if ready == 0:
                begun = monotonic()
                ready = _sys.poll(self.polled, count, timeout)
                self.busy = monotonic() - begun < AT_ONCE
            if ready < 0:
                error[0] = _sys.errno
        return ready

    cdef int serve_ready(self) except -1:
        cdef _Entry entry
        cdef Control control
        cdef Py_ssize_t index = -1
        cdef short events
        cdef bint took
        for entry in self.entries:
            index += 2
            control = entry.control
            if not self.has_accepted and entry.stopping():
                continue
            events = self.polled[index].revents
            if events == 0 and control.has_datagrams(entry.server):
                events = _sys.POLLIN
            took = False
            if control.draining and self.is_drained(entry, index, events):
                entry.drained = True
                continue
            # Not by what is held now: another thread may have let go since the poll.
            holding = entry.holding if entry.holding is not None else control.held
            if holding is not None and (events or control.held is not holding
                                        or holding.fileno() < 0):
                if control.held is not holding or holding.fileno() < 0 or holding.is_over():
                    if control.held is holding:
                        control.held = None
                        if len(control.wakeups) > 1:
                            control.wake()  # of the others each may have missed the event
                    if not unlimited(entry.server, control.hooks.look(
                            entry.server, self.defaults, UNLIMITED | UNLIMITED_PER_PEER)):
                        control.limit(entry.server)
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
                entry.watch_muted = False
                entry.server.service_actions()  # also the default: who traces the loop sees it
                if control.source is None:
                    pass
                elif len(self.entries) == 1 and (control.pool is None or self.without_leader
                                                 or self.wait is not None):
                    self.drain(entry)
                elif not control.has_datagrams(entry.server):
                    # A leader has taken them, or the loop one in each pass, beside other servers.
                    control.end_batch()
                if self.interval != NEVER:
                    entry.actions_at = monotonic() + self.interval
            elif self.polled[index + 1].revents:
                entry.watch_muted = not control.on_watched(entry.server)
        return 0

    cdef int drain(self, _Entry entry) except -1:
        """Serve what was received along with the request before.

        A stop that was asked for in this thread, by a handler say, comes before the next
        request, as ever. Who asks for it in another thread cannot know which that is: what was
        received is served.
        """
        cdef unsigned int waiting
        while (entry.control.has_datagrams(entry.server)
               and not (entry.stopping()
                        and (entry.own_flag
                             or entry.control.stopped_by == PyThread_get_thread_ident()))):
            PyErr_CheckSignals()
            waiting = entry.control.waiting()
            if not self.dispatch(entry):
                break
            if not untouched(entry.server, self.defaults, entry.control.hooks.look(
                    entry.server, self.defaults, ACTIONS), ACTIONS):
                entry.server.service_actions()
            if entry.control.waiting() >= waiting:
                break  # another get_request() has been put in place, which takes something else
        entry.control.end_batch()
        return 0

    cdef bint is_drained(self, _Entry entry, Py_ssize_t index, short events) noexcept:
        """Whether the loop is to end that drains a server."""
        if self.has_accepted:
            return False
        return (entry.control.left <= 0 or (events == 0 and self.has_looked
                                            and entry.holding is None
                                            and self.polled[index].fd >= 0))

    cdef bint is_current(self, _Entry entry, Py_ssize_t index) except -1:
        """Whether a handler that ran since the poll has left this server's descriptor alone."""
        return self.polled[index].fd == _descriptor(entry.server, entry.control, self.defaults,
                                                    False)

    cdef bint accepts(self, _Entry entry) except -1:
        """Whether to accept right after the poll."""
        cdef unsigned int looked = entry.control.hooks.look(
            entry.server, self.defaults, NOBLOCK | ACCEPT | UNLIMITED | UNLIMITED_PER_PEER)
        return (untouched(entry.server, self.defaults, looked, NOBLOCK)
                and accepts_natively(entry.server, self.defaults, looked)
                and unlimited(entry.server, looked)
                and entry.server.socket.fileno() == self.polled[1].fd)

    cdef bint dispatch(self, _Entry entry) except -1:
        cdef Accepted *accepted = &self.accepted if self.has_accepted else NULL
        cdef bint defer, drains
        cdef nanoseconds now
        cdef unsigned int looked = entry.control.hooks.look(
            entry.server, self.defaults,
            NOBLOCK if entry.control.pool is None else NOBLOCK | ACTIONS | FILENO)
        if accepted == NULL and not untouched(entry.server, self.defaults, looked, NOBLOCK):
            entry.control.left -= entry.control.draining != 0
            entry.server._handle_request_noblock()
            return True
        # Nothing but the poll follows, so the thread of the request need not be woken before.
        defer = (entry.control.pool is not None and self.wait is None and len(self.entries) == 1
                 and untouched(entry.server, self.defaults, looked, ACTIONS)
                 and untouched(entry.server, self.defaults, looked, FILENO))
        self.has_accepted = False
        drains = entry.control.draining != 0  # from before it, not since it has begun
        entry.control.left -= drains
        if not dispatch_one(entry.server, entry.control, self.defaults, True, accepted, defer,
                            0 if self.wait is None else 1):
            entry.control.left += drains  # there was none after all, or there are enough
            return False
        if defer and entry.control.pool is not None:
            now = monotonic()
            self.closely = now - self.took_at < CLOSELY
            self.took_at = now
        return True

    cdef bint appoint(self, _Entry entry, _sys.nfds_t count) except -1:
        """Leave the next request to this one's thread.

        Nothing but the wait follows: no code of the program's, not even a signal handler, runs in
        this thread while another one accepts.
        """
        if count != 3 or entry.own_flag or (self.interval != NEVER and self.interval < OFTEN):
            return False
        if self.leadership is None:
            self.leadership = Leadership(entry.server, entry.control, self.defaults, self.wakeup)
        return self.leadership.appoint()


cdef object _ebadf():
    return OSError(_sys.EBADF, os.strerror(_sys.EBADF))


def handle_one(server, Control control not None, Defaults defaults not None, timeout, wait):
    """Wait up to timeout seconds (None: for ever) for a request, and handle it.

    The waiting half of BaseServer.handle_request(). Returns (True, what
    _handle_request_noblock() returned), or (False, None) when the time is over without a
    request and the caller has to run handle_timeout(). Signal handlers run while it waits.
    """
    cdef Pool pool
    cdef Feeder feeder
    cdef Worker feeding = None
    cdef unsigned long handling = control.handling
    control.singly += 1
    control.handling = PyThread_get_thread_ident()
    try:
        pool = control.pool
        if pool is not None:
            feeding, pool.feeding = pool.feeding, None
            pool.newest = None
            feeder = pool.feeder
            if feeder is not None:
                feeder.dismiss()  # a loop's that runs beside
            feeder = None
        return _handle_one(server, control, defaults, timeout, wait)
    finally:
        if pool is not None and feeding is not None:
            pool.feeding = feeding
        control.handling = handling
        control.singly -= 1


cdef tuple _handle_one(object server, Control control, Defaults defaults, object timeout,
                       object wait):
    cdef _sys.pollfd slots[2]
    cdef _sys.pollfd *slot = slots
    cdef bint mute = False
    cdef nanoseconds interval = _interval(timeout)
    cdef nanoseconds deadline = NEVER if interval == NEVER else monotonic() + interval
    cdef nanoseconds until
    cdef int milliseconds, ready, error = 0
    slots[0].events = slots[1].events = _sys.POLLIN
    while True:
        slot.fd = _descriptor(server, control, defaults, True)
        slots[1].fd = -1
        until = deadline
        gate = None
        if not unlimited(server, control.hooks.look(server, defaults,
                                                    UNLIMITED | UNLIMITED_PER_PEER)):
            try:
                gate = gate_of(server, control.ledger)
                if gate is not None and control.before_sleep is not None:
                    control.before_sleep(server)  # nobody else collects children meanwhile
                    gate = gate_of(server, control.ledger)
            except OSError:  # no descriptor is left to wait by
                slot.fd = -1
                until = sooner(until, monotonic() + SLICE)
            if gate is not None:
                slot.fd = gate.fileno()  # it has enough connections
                if control.watched is not None and not mute:
                    slots[1].fd = control.watched.fileno()
                if slots[1].fd < 0 and control.before_sleep is not None:
                    until = sooner(until, monotonic() + SLICE)
        if interval != 0 and control.paused_until > monotonic():
            slot.fd = -1  # short of descriptors: the same pause as in serve_forever()
            until = sooner(until, control.paused_until)
        milliseconds = _poll_timeout(until)
        slots[0].revents = slots[1].revents = 0
        if control.find_datagrams(server, defaults):
            ready = 1  # a loop has received them
        elif wait is not None:
            found = wait([slots[index].fd for index in range(2) if slots[index].fd >= 0],
                         milliseconds)
            ready = len(found)
            if slots[1].fd >= 0 and slots[1].fd in found:
                slots[1].revents = _sys.POLLIN
        else:
            with nogil:
                ready = _sys.poll(slots, 2, milliseconds)
                if ready < 0:
                    error = _sys.errno
            if ready < 0 and error != _sys.EINTR:
                fail(error)
        PyErr_CheckSignals()
        if ready > 0 and slots[1].revents:
            mute = not control.on_watched(server)
        elif ready > 0 and gate is not None:
            gate.is_over()
        elif ready > 0:
            if not untouched(server, defaults, control.hooks.look(server, defaults, NOBLOCK),
                             NOBLOCK):
                return True, server._handle_request_noblock()
            if dispatch_one(server, control, defaults, True, NULL, False, 1):
                if control.pool is not None:
                    (<Pool> control.pool).await_begun()
                return True, None
        if deadline != NEVER and monotonic() >= deadline:
            return False, None
