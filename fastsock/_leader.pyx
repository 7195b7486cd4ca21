"""A thread that has ended its request takes the next one by itself.

Handing a connection over to another thread costs two context switches, more than all the rest that
the core does for it. So while requests follow each other closely the loop appoints the thread of
the latest one as leader (the Leader/Followers pattern): the leader accepts the next connection
when it is done with its request, and the loop sleeps. Only where nobody can notice: each hook that
would run in the loop's thread is the untouched default, which is looked at before every request.
The request is one as every other, with a Thread object of its own.

No connection waits for a handler. The loop looks after the leader every millisecond: when a
connection waits, and the leader has been with the same request since the last look or does not
want the GIL (it sleeps, or computes without it), the loop dismisses it and goes on by itself, and
the more often that happens the longer it appoints no other. What has not been accepted waits in
the backlog, where it would be if the loop were busy.

Threads: all state changes under the GIL, but for ``polling``. ``away`` is held by the leader from
before it polls until the request that it accepted is a worker's: who has acquired it, after
``holder`` was set to None, knows that nothing more will be accepted.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident

from fastsock cimport _sys
from fastsock._accept cimport Accepted, accept_from
from fastsock._clock cimport MILLISECOND, SECOND, monotonic, nanoseconds, sooner
from fastsock._control cimport Control, Wakeup, batch_size
from fastsock._datagram cimport can_take, descriptor_of, inbox_of
from fastsock._dispatch cimport accepts_natively, begins_natively, dispatch_one
from fastsock._hooks cimport (
    ACCEPT,
    ACTIONS,
    FILENO,
    NOBLOCK,
    RECEIVE,
    THREAD_PROCESS,
    TRUNCATED,
    UNLIMITED,
    UNLIMITED_PER_PEER,
    VERIFY,
    Defaults,
    untouched,
)
from fastsock._inbox cimport BATCH
from fastsock._limits cimport unlimited
from fastsock._turn cimport await_turn, turn_over
from fastsock._worker cimport (
    Feeder,
    Pool,
    PyThread_acquire_lock,
    PyThread_acquire_lock_timed,
    PyThread_allocate_lock,
    PyThread_free_lock,
    PyThread_release_lock,
    PyThread_type_lock,
    Worker,
    reset_hooks,
)

cdef enum:
    LOOK = 1 * MILLISECOND  # between the loop's looks at the leader
    PATIENCE = 2  # milliseconds that a leader waits for a request before it resigns
    SHORTEST_PAUSE = 10 * MILLISECOND
    LONGEST_PAUSE = 1 * SECOND
    # A thread that runs Python code gives the GIL up later than this, when asked to.
    AT_ONCE = 50_000
    # A signal that arrives between two of the loop's polls ends none of them: its handler runs
    # after this time at the latest.
    SIGNALS = 20 * MILLISECOND
    # After so many requests, of this leader or more, the last one that got stuck is forgotten.
    STREAK = 64
    # At every so many looks that find a connection waiting while the leader goes on, the loop
    # asks for the GIL: seldom, since the leader loses it.
    ASKING = 8
    # So many of those in a row have to find that the leader does not want the GIL.
    ABSENT = 3
    # So many find it at the same request, and nobody waits.
    UNCHANGED = 5
    UNINTERRUPTED = 50_000  # microseconds that a signal may have to wait for its handler


cdef bint readable(int descriptor) noexcept nogil:
    cdef _sys.pollfd slot
    slot.fd = descriptor
    slot.events = _sys.POLLIN
    slot.revents = 0
    return _sys.poll(&slot, 1, 0) > 0 and slot.revents == _sys.POLLIN


cdef class Leadership(Feeder):
    """Who takes the next request of a server that one loop serves, and no other server with it."""

    def __cinit__(self, server, Control control, Defaults defaults, Wakeup loop):
        self.server = server
        self.control = control
        self.defaults = defaults
        self.loop = loop
        self.recall = Wakeup()
        self.away = PyThread_allocate_lock()
        if self.away == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.away != NULL:
            PyThread_free_lock(self.away)
        if self.has_accepted and self.accepted.descriptor >= 0:
            _sys.close(self.accepted.descriptor)

    # In the loop's thread.

    cdef bint appoint(self) except -1:
        """Have the thread of the latest request take the next one, if that may be."""
        cdef Pool pool = <Pool> self.control.pool
        cdef Worker worker
        if pool is None:
            return False
        worker = pool.newest
        if (worker is None or worker.thread is None or monotonic() < self.not_before
                or self.control.taking != 0
                or self.has_accepted or not self.permits(worker)
                or not self.recall.open()):
            return False
        self.recall.clear()
        self.listener = (self.server.socket.fileno() if self.inbox is None
                         else descriptor_of(self.server.socket))
        self.served = self.seen = 0
        self.unchanged = 0
        self.looked_at = monotonic()
        self.holder = worker
        if self.pool is not None and self.pool is not pool and self.pool.feeder is self:
            self.pool.feeder = None
        self.pool = pool
        pool.feeder = self
        return True

    cdef int wait(self, _sys.pollfd *polled, _sys.nfds_t count, nanoseconds until,
                  PyThread_type_lock wake, int *error) except -2:
        """poll(2) all but the listener, the second of polled, and look after the leader."""
        cdef nanoseconds now, due, asked
        cdef _Look found = _Look.WELL
        cdef int ready = 0
        cdef bint goes_on
        if polled[1].fd != self.listener:  # replaced by the request that is under way
            if wake != NULL:
                PyThread_release_lock(wake)
            self.dismiss()
            return 0
        polled[1].fd = -1
        until = sooner(until, monotonic() + SIGNALS)
        while found == _Look.WAITED_FOR or found == _Look.WELL:
            found = _Look.WELL
            with nogil:
                if wake != NULL:
                    PyThread_release_lock(wake)
                while True:
                    due = self.looked_at + LOOK
                    now = sooner(until, due) - monotonic()
                    ready = _sys.poll(polled, count, 0 if now <= 0 else 1)
                    if ready < 0:
                        error[0] = _sys.errno
                    now = monotonic()
                    if now >= due:
                        self.looked_at = now
                        found = self.look()
                    if found != _Look.WELL or ready != 0 or now >= until:
                        break
                asked = monotonic()
                await_turn()
            turn_over()
            wake = NULL
            goes_on = self.holder is None or self.polling or self.served != self.seen
            if found == _Look.WAITED_FOR:
                if goes_on or monotonic() - asked > AT_ONCE:
                    self.absent = 0
                else:
                    self.absent += 1
                    if self.absent == ABSENT:
                        found = _Look.STUCK
            if goes_on:
                found = _Look.WELL
            if self.holder is None or ready != 0 or monotonic() >= until:
                break
        if found == _Look.STUCK:
            self.absent = self.streak = 0
            self.pause = min(max(2 * self.pause, SHORTEST_PAUSE), LONGEST_PAUSE)
            self.not_before = monotonic() + self.pause
        # Python code runs next: signal handlers, service_actions(). Nothing is accepted beside it.
        self.dismiss()
        return ready

    cdef _Look look(self) noexcept nogil:
        """What the leader does."""
        cdef bint same = self.served == self.seen
        self.seen = self.served
        if self.polling:
            self.unchanged = 0
            return _Look.WELL
        self.unchanged = self.unchanged + 1 if same else 0
        if readable(self.listener) or self.has_ahead():
            if same:
                return _Look.STUCK
            self.waited_for += 1
            return _Look.WAITED_FOR if self.waited_for % ASKING == 0 else _Look.WELL
        # A request that lasts, and nobody waits: no reason to go on looking.
        return _Look.ELSEWHERE if self.unchanged >= UNCHANGED else _Look.WELL

    cdef bint has_ahead(self) noexcept nogil:
        """Whether datagrams wait that were received ahead."""
        return self.ahead

    cdef int dismiss(self) except -1:
        """No request is taken by the leader once this has returned; in any thread."""
        cdef bint away = True
        # Somebody else's dismissal, or an interrupted one, may have left the leader where it is.
        if (self.control.taking == PyThread_get_thread_ident()
                or (self.holder is None and self.control.taking == 0)):
            return 0
        self.holder = None
        self.recall.wake()
        while away:
            with nogil:
                away = PyThread_acquire_lock_timed(self.away, UNINTERRUPTED, 0) != 1
                if not away:
                    PyThread_release_lock(self.away)
                await_turn()
            turn_over()
            if away:
                PyErr_CheckSignals()
        return 0

    cdef int check(self) except -1:
        """Raise what the leader has met that ends the loop."""
        if self.error is not None:
            failed, self.error = self.error, None
            raise failed
        return 0

    cdef int retire(self) except -1:
        """The loop is over."""
        try:
            try:
                self.dismiss()
            except BaseException:
                self.dismiss()  # what it accepts now would be lost: only a second Ctrl-C ends this
                raise
        finally:
            self.recall.retire()
            if self.pool is not None and self.pool.feeder is self:
                self.pool.feeder = None
            self.pool = None
        return 0

    # In the leader's thread.

    cdef bint permits(self, Worker worker) except -1:
        """Whether nobody can tell that the worker takes a request in the loop's place."""
        cdef Control control = self.control
        cdef Defaults defaults = self.defaults
        server = self.server
        cdef unsigned int looked = control.hooks.look(
            server, defaults,
            NOBLOCK | ACCEPT | RECEIVE | TRUNCATED | VERIFY | THREAD_PROCESS | ACTIONS | FILENO
            | UNLIMITED | UNLIMITED_PER_PEER)
        return (not control._stop and control.draining == 0 and control.held is None
                and control.watched is None
                and control.paused_until == 0
                and control.singly == 0 and len(control.wakeups) == 1
                and worker.pool is control.pool and worker.fits(bool(server.daemon_threads))
                and untouched(server, defaults, looked, NOBLOCK)
                and self.takes_natively(server, looked)
                and untouched(server, defaults, looked, VERIFY)
                and untouched(server, defaults, looked, THREAD_PROCESS)
                and begins_natively(server, control)
                and unlimited(server, looked)
                and untouched(server, defaults, looked, ACTIONS)
                and untouched(server, defaults, looked, FILENO))

    cdef bint takes_natively(self, object server, unsigned int looked) except -1:
        """Whether get_request() has no say, and nobody but this server takes from the socket."""
        cdef Defaults defaults = self.defaults
        if accepts_natively(server, defaults, looked):
            self.inbox = None
            self.ahead = False
            return self.control.is_own(server.socket)
        sock = server.socket
        if (type(sock) is not defaults.datagram_socket
                or not untouched(server, defaults, looked, RECEIVE)
                or not can_take(sock, server.max_packet_size)
                or not untouched(server, defaults, looked, TRUNCATED)
                or batch_size(server, self.control, defaults) != BATCH):
            return False
        self.inbox = inbox_of(sock)
        self.ahead = self.inbox.waiting() != 0
        return True

    cdef bint feed(self, Worker worker) except -1:
        """Give the worker, in whose thread this runs, the next request; false if it gets none."""
        cdef Accepted accepted
        if self.holder is not worker:
            return False
        PyThread_acquire_lock(self.away, 1)
        self.control.taking = worker.ident
        try:
            while self.holder is worker:
                if (not self.permits(worker)
                        or not (self.take(worker, &accepted) if self.inbox is None
                                else self.take_datagram(worker))):
                    self.resign()
                    return worker.thread is not None
                if worker.thread is not None:
                    self.served += 1
                    self.streak += 1
                    if self.streak == STREAK:
                        self.pause = 0
                    return True
        except BaseException as error:
            self.error = error  # ends the loop, as it would if that had met it
            self.resign()
        finally:
            self.control.taking = 0
            PyThread_release_lock(self.away)
        return worker.thread is not None

    cdef bint take(self, Worker worker, Accepted *accepted) except -1:
        """Accept a connection if there is one, or else wait; false when there came none."""
        cdef Pool pool = <Pool> self.control.pool
        cdef _sys.pollfd polled[2]
        cdef int ready
        cdef bint has_accepted
        self.listener = polled[0].fd = self.server.socket.fileno()
        polled[1].fd = self.recall.descriptor
        polled[0].events = polled[1].events = _sys.POLLIN
        polled[0].revents = polled[1].revents = 0
        # Under the GIL: what comes after the hooks were looked at is not accepted before they are
        # looked at again.
        ready = _sys.poll(polled, 2, 0)
        has_accepted = polled[0].revents == _sys.POLLIN and not polled[1].revents
        self.polling = True
        with nogil:
            if has_accepted:
                accept_from(polled[0].fd, accepted)
            elif ready == 0:
                ready = _sys.poll(polled, 2, PATIENCE)
            await_turn()
        self.polling = False
        turn_over()
        if not has_accepted:
            return ready > 0 and polled[0].revents == _sys.POLLIN
        # Something has changed since the accept, or there is an error to be logged.
        if accepted.descriptor < 0 or not self.permits(worker):
            self.accepted = accepted[0]
            self.has_accepted = True
            return False
        reset_hooks()  # not to be met by code of the loop's
        pool.feeding = worker
        try:
            dispatch_one(self.server, self.control, self.defaults, True, accepted, False, 1)
        finally:
            pool.feeding = None
            if worker.thread is None:
                worker.forget()
        return self.control.broken is None

    cdef bint take_datagram(self, Worker worker) except -1:
        """Begin the request of a datagram that is there, or wait; false when there came none."""
        cdef Pool pool = <Pool> self.control.pool
        cdef _sys.pollfd polled[2]
        cdef int ready = 0
        if not self.inbox.waiting():
            self.listener = polled[0].fd = descriptor_of(self.server.socket)
            polled[1].fd = self.recall.descriptor
            polled[0].events = polled[1].events = _sys.POLLIN
            polled[0].revents = polled[1].revents = 0
            # Under the GIL, in the same breath as the look at the hooks.
            if _sys.poll(polled, 2, 0) == 0:
                self.polling = True
                with nogil:
                    ready = _sys.poll(polled, 2, PATIENCE)
                    await_turn()
                self.polling = False
                turn_over()
                return ready > 0 and polled[0].revents == _sys.POLLIN
            if polled[1].revents:
                return False
        reset_hooks()  # not to be met by code of the loop's
        pool.feeding = worker
        try:
            dispatch_one(self.server, self.control, self.defaults, True, NULL, False, 0)
        finally:
            pool.feeding = None
            self.ahead = self.inbox.waiting() != 0
            if worker.thread is None:
                worker.forget()
        return self.control.broken is None

    cdef int resign(self) except -1:
        """Leave the next request to the loop."""
        self.holder = None
        self.loop.wake()
        return 0

    cdef int gone(self, Worker worker) except -1:
        """The worker's thread ends."""
        if self.holder is worker:
            self.resign()
        return 0

    cdef int abandon(self) except -1:
        """In a child process: the leader, which may have held the lock, is not there."""
        cdef PyThread_type_lock away = PyThread_allocate_lock()
        if away == NULL:
            raise MemoryError
        self.away = away
        self.holder = None
        self.polling = False
        self.control.taking = 0
        if self.has_accepted:  # it is the parent's to serve
            self.has_accepted = False
            if self.accepted.descriptor >= 0:
                _sys.close(self.accepted.descriptor)
        return 0
