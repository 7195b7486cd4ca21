"""The book of one server: its requests that are under way, and what it counts.

Every ``Channel`` is a record, so entering a connection allocates nothing. What get_request() of a
program's own returns has one of its own here. Datagrams are counted, and not entered.

Threads: everything changes under the GIL. A record is taken off the list wherever it ends, at the
latest when it is freed.
"""

import _socket
import weakref

cimport cython

from cpython.exc cimport PyErr_SetFromErrno

from fastsock cimport _sys
from fastsock._clock cimport monotonic, nanoseconds

cdef object _shutdown = _socket.socket.shutdown
cdef tuple _DOING = ("working", "idle", "reading", "writing")


@cython.no_gc_clear  # it takes itself off its ledger's list, also when the collector drops it
cdef class Record:
    """A request that is under way."""

    def __dealloc__(self):
        if self.ledger is not None:
            self.end()

    cdef void end(self) noexcept:
        """The request is over; for any number of times."""
        cdef Ledger ledger = self.ledger
        if ledger is None:
            return
        self.ledger = None
        if self.newer != NULL:
            (<Record> self.newer).older = self.older
        else:
            ledger.newest = self.older
        if self.older != NULL:
            (<Record> self.older).newer = self.newer
        self.newer = self.older = NULL
        ledger.active -= 1
        ledger.finished += 1
        ledger.received += self.received
        ledger.sent += self.sent
        ledger.took(monotonic() - self.since)
        if ledger.peers is not None:
            try:
                ledger.count_peer(self.peer, -1)
            except Exception:
                pass  # no memory
        if ledger.active <= ledger.enough:
            _sys.eventfd_write(ledger.event, 1)

    cdef bint has_answered(self) noexcept:
        """Whether it has received something, and sent something since: what it waits for is new."""
        return self.received > 0 and self.answered

    cdef int cut(self, int direction) except -1:
        """shutdown(2) its connection, if it has one."""
        return 0

    def close(self):
        """Shut its connection down, both ways; whoever serves it finds that out, and closes it."""
        self.cut(_sys.SHUT_RDWR)

    @property
    def is_live(self):
        return self.ledger is not None

    @property
    def client_address(self):
        return self.peer

    @property
    def seconds(self):
        """For how long it has been under way."""
        return (monotonic() - self.since) / 1e9

    @property
    def bytes_received(self):
        return self.received

    @property
    def bytes_sent(self):
        return self.sent

    @property
    def state(self):
        return _DOING[self.doing]


@cython.no_gc_clear
cdef class OtherRecord(Record):
    """Of a request that is no Connection: a TLS socket, say."""

    def __dealloc__(self):
        if self.ledger is not None:
            self.end()  # before anything of it is given up: what is on the list can be used

    cdef int cut(self, int direction) except -1:
        request = self.request()
        if isinstance(request, _socket.socket):
            try:
                _shutdown(request, direction)  # that of an ssl.SSLSocket would forget its session
            except OSError:
                pass  # not connected any more
        return 0


cdef class Ledger:
    """Of one server."""

    def __cinit__(self):
        self.event = -1
        self.enough = -1

    def __init__(self):
        self.others = {}
        self.refused = {}
        self.timed_out = {}

    def __dealloc__(self):
        if self.event >= 0:
            _sys.close(self.event)

    cdef void enter(self, Record record, object peer) noexcept:
        record.peer = peer
        record.since = monotonic()
        record.ledger = self
        record.newer = NULL
        record.older = self.newest
        if self.newest != NULL:
            (<Record> self.newest).newer = <void *> record
        self.newest = <void *> record
        self.accepted += 1
        self.active += 1
        if self.active > self.peak:
            self.peak = self.active
        if self.peers is not None:
            try:
                self.count_peer(peer, 1)
            except Exception:
                pass  # no memory

    cdef void took(self, nanoseconds lasted) noexcept:
        """Count a request that has lasted so long, in the bucket of a power of two of 1 us."""
        cdef unsigned long long left = <unsigned long long> lasted >> 10
        cdef int bucket = 0
        while left and bucket < BUCKETS - 1:
            left >>= 1
            bucket += 1
        self.buckets[bucket] += 1

    cdef int count_peer(self, object peer, int step) except -1:
        key = self.peer_key(peer)
        if key is None:
            return 0
        count = self.peers.get(key, 0) + step
        if count > 0:
            self.peers[key] = count
        else:
            self.peers.pop(key, None)
        return 0

    cdef int count_peers(self, object peer_key) except -1:
        """From now on, count connections by peer too."""
        cdef Record record
        self.peer_key = peer_key
        self.peers = {}
        for record in self.records():
            self.count_peer(record.peer, 1)
        return 0

    cdef int renew_event(self) except -1:
        """An event of this process."""
        cdef int event = _sys.eventfd(0, _sys.EFD_CLOEXEC | _sys.EFD_NONBLOCK)
        if event < 0:
            PyErr_SetFromErrno(OSError)
        if self.event >= 0:
            _sys.close(self.event)
        self.event = event
        self.process = _sys.getpid()
        return 0

    cdef int refuse(self, object reason) except -1:
        """Count a connection that is not served."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        return 0

    cdef int time_out(self, object which) except -1:
        """Count a connection of which a deadline is over."""
        self.timed_out[which] = self.timed_out.get(which, 0) + 1
        return 0

    def enter_other(self, request, peer):
        """Enter a request that is no Connection; it ends with the object, if not before."""
        cdef OtherRecord record
        number = id(request)
        others = self.others
        record = OtherRecord.__new__(OtherRecord)

        def gone(reference):
            if others.get(number) is record:
                del others[number]
            record.end()

        try:
            record.request = weakref.ref(request, gone)
        except TypeError:
            return None  # nobody would tell when it is over
        others[number] = record
        self.enter(record, peer)
        return record

    def end_other(self, request):
        """Such a request is over."""
        cdef Record record = self.others.pop(id(request), None)
        if record is not None:
            record.end()

    def records(self):
        """Those that are under way, the newest first."""
        # Nothing in the loop runs other code: append() allocates no object.
        cdef list found = []
        cdef void *place = self.newest
        while place != NULL:
            found.append(<Record> place)
            place = (<Record> place).older
        return found

    def bytes(self):
        """(received, sent), of all."""
        cdef unsigned long long received = self.received, sent = self.sent
        cdef void *place = self.newest
        while place != NULL:
            received += (<Record> place).received
            sent += (<Record> place).sent
            place = (<Record> place).older
        return received, sent

    def latencies(self):
        """How many requests have lasted for less than 1.024 us, 2.048 us and so on."""
        return [self.buckets[index] for index in range(BUCKETS)]

    def longest(self):
        """Seconds for which the oldest has been under way; 0.0: there is none."""
        cdef void *place = self.newest
        cdef nanoseconds since = monotonic()
        cdef nanoseconds now = since
        while place != NULL:
            since = min(since, (<Record> place).since)
            place = (<Record> place).older
        return (now - since) / 1e9
