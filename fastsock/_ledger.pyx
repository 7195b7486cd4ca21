"""The book of one server: its requests that are under way, and what it counts.

Every ``Channel`` is a record, so entering a connection allocates nothing. What get_request() of a
program's own returns has one of its own here, and so has what was given to a child process.
Datagrams are counted, and not entered.

Threads: everything changes under the GIL. A record is taken off the list wherever it ends, at the
latest when it is freed.
"""

import _socket
import os
import weakref

cimport cython
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap,
    munmap,
)

from cpython.exc cimport PyErr_SetFromErrno

from fastsock cimport _sys
from fastsock._clock cimport monotonic, nanoseconds

cdef extern from *:
    """
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <string.h>
    #include <sys/socket.h>

    /* What the kernel counts of a TCP connection; 0 where it does not (before Linux 4.1). The
     * headers of a C library may know a shorter struct tcp_info than the kernel has. */
    static int fastsock_counted(int fd, unsigned long long *received, unsigned long long *sent) {
        enum { ACKED = 120, RECEIVED = 128, END = 136 };
        char info[END];
        socklen_t size = END;
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) < 0 || size < END)
            return 0;
        memcpy(sent, info + ACKED, 8);
        memcpy(received, info + RECEIVED, 8);
        /* The peer's FIN counts as a byte. */
        if (info[0] == TCP_CLOSE_WAIT || info[0] == TCP_LAST_ACK || info[0] == TCP_CLOSING)
            --*received;
        return 1;
    }

    #define fastsock_add(place, count) \
        __atomic_fetch_add(&(place), (count), __ATOMIC_RELAXED)
    """
    int fastsock_counted(int fd, unsigned long long *received, unsigned long long *sent) noexcept
    void fastsock_add(unsigned long long place, unsigned long long count) noexcept
    int leading_zeros "__builtin_clzll"(unsigned long long number) noexcept

cdef object _shutdown = _socket.socket.shutdown
cdef object _fileno = _socket.socket.fileno
# How often this process, or one that it was forked from, was forked.
cdef flag _forks = 0

cdef tuple _DOING = ("working", "idle", "reading", "writing")


def _after_fork_in_child():
    global _forks
    _forks += 1


os.register_at_fork(after_in_child=_after_fork_in_child)


@cython.no_gc_clear  # it takes itself off its ledger's list, also when the collector drops it
cdef class Record:
    """A request that is under way. Each subclass ends it when it is freed, before all else."""

    cdef void end(self) noexcept:
        """The request is over; for any number of times."""
        cdef Ledger ledger = self.ledger
        if ledger is None:
            return
        self.leave()
        ledger.finished += 1
        ledger.received += self.received
        ledger.sent += self.sent
        ledger.took(monotonic() - self.since)

    cdef void leave(self) noexcept:
        """Take an entered one off the list, without counting it as finished."""
        cdef Ledger ledger = self.ledger
        if self.view is not None:
            self.view.end()
            self.view = None
        self.ledger = None
        if self.newer != NULL:
            (<Record> self.newer).older = self.older
        else:
            ledger.newest = self.older
        if self.older != NULL:
            (<Record> self.older).newer = self.newer
        self.newer = self.older = NULL
        ledger.active -= 1
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

    cdef int look(self) except -1:
        """See how many bytes have come and gone, where nobody counts them meanwhile."""
        return 0

    @property
    def is_live(self):
        return self.ledger is not None


cdef class View:
    """What is to be known of a record, by who does not keep it: a connection that is dropped is
    closed by that.
    """

    cdef void end(self) noexcept:
        cdef Record record = <Record> self.record
        self.record = NULL
        self.received = record.received
        self.sent = record.sent

    def close(self):
        """Shut its connection down, both ways; whoever serves it finds that out, and closes it.

        Nothing is done to one that has ended: whose connection that is nobody knows.
        """
        cdef Record record
        if self.record != NULL:
            record = <Record> self.record
            if record.forks == _forks:  # else it is the parent process's affair
                record.cut(_sys.SHUT_RDWR)

    @property
    def is_live(self):
        return self.record != NULL

    @property
    def client_address(self):
        return self.peer

    @property
    def seconds(self):
        """Since it began."""
        return (monotonic() - self.since) / 1e9

    @property
    def bytes_received(self):
        cdef Record record
        if self.record == NULL:
            return self.received
        record = <Record> self.record
        record.look()
        return record.received

    @property
    def bytes_sent(self):
        cdef Record record
        if self.record == NULL:
            return self.sent
        record = <Record> self.record
        record.look()
        return record.sent

    @property
    def state(self):
        return _DOING[WORKING if self.record == NULL else (<Record> self.record).doing]


cdef View view_of(Record record):
    """That of a record which is under way."""
    cdef View view = record.view
    if view is None:
        view = View.__new__(View)
        view.record = <void *> record
        view.peer = record.peer
        view.since = record.since
        record.view = view
    return view


def views(list records not None):
    """Of those of the records that are under way."""
    cdef Record record
    return [view_of(record) for record in records if record.ledger is not None]


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

    cdef int look(self) except -1:
        if self.ledger is None or self.ending:
            return 0
        request = self.request()
        return 0 if request is None else self.look_at(request)

    cdef int look_at(self, object request) except -1:
        if isinstance(request, _socket.socket):
            fastsock_counted(_fileno(request), &self.received, &self.sent)
        return 0


@cython.no_gc_clear
cdef class ChildRecord(Record):
    """Of a request that a child process serves."""

    def __dealloc__(self):
        if self.ledger is not None:
            self.end()

    cdef int cut(self, int direction) except -1:
        """End the child, if it is one of this process, and has not been collected.

        Under the GIL from the question to the signal: until then it keeps its pid.
        """
        cdef _sys.siginfo_t told
        memset(&told, 0, sizeof(told))
        if (direction != _sys.SHUT_RD and _sys.waitid(
                _sys.P_PID, self.pid, &told,
                _sys.WEXITED | _sys.WNOHANG | _sys.WNOWAIT) == 0 and told.si_pid == 0):
            _sys.kill(self.pid, _sys.SIGTERM)
        return 0


cdef class Ledger:
    """Of one server."""

    def __cinit__(self):
        self.event = -1
        self.enough = -1

    def __init__(self):
        self.forks = _forks
        self.others = {}
        self.children = {}
        self.refused = {}
        self.timed_out = {}
        self.timing = {}

    def __dealloc__(self):
        if self.event >= 0:
            _sys.close(self.event)
        if self.shared != NULL:
            munmap(self.shared, sizeof(Shared))

    cdef void link(self, Record record) noexcept:
        record.ledger = self
        record.forks = _forks
        record.newer = NULL
        record.older = self.newest
        if self.newest != NULL:
            (<Record> self.newest).newer = <void *> record
        self.newest = <void *> record
        self.active += 1
        if self.active > self.peak:
            self.peak = self.active
        if self.peers is not None:
            try:
                self.count_peer(record.peer, 1)
            except Exception:
                pass  # no memory

    cdef void enter(self, Record record, object peer) noexcept:
        if record.since != 0:  # a get_request() returns a connection that it has returned before
            record.end()
            record.received = record.sent = 0
        record.peer = peer
        record.since = monotonic()
        self.link(record)
        self.accepted += 1

    cdef void took(self, nanoseconds lasted) noexcept:
        """Count a request that has lasted so long, in the bucket of a power of two of 1 us."""
        cdef unsigned long long left = <unsigned long long> lasted >> 10
        cdef int bucket = 64 - leading_zeros(left) if left else 0
        self.buckets[min(bucket, BUCKETS - 1)] += 1
        self.lasted += lasted

    # What is counted by a name. For any thread.

    cpdef int refuse(self, str reason) except -1:
        """Count a connection, or a datagram, that is not served."""
        self.refused[reason] = self.refused.get(reason, 0) + 1
        return 0

    cpdef int time_out(self, str which) except -1:
        """Count a deadline that has passed."""
        self.timed_out[which] = self.timed_out.get(which, 0) + 1
        return 0

    # Limits.

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

    # Requests that are no Connections.

    def enter_other(self, request, peer):
        """Enter a request that is no Connection; it ends with the object, if not before."""
        cdef OtherRecord record
        self.end_other(request)  # a get_request() may return it more than once
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

    def ending(self, request):
        """Such a request is about to be closed: its bytes are counted now, or not at all."""
        cdef OtherRecord record = self.others.get(id(request))
        if record is not None:
            record.look_at(request)
            record.ending = True

    def end_other(self, request):
        """Such a request is over."""
        cdef Record record = self.others.pop(id(request), None)
        if record is not None:
            record.end()

    # Datagrams. The functions are for those that Python code serves.

    cdef void served(self, nanoseconds begun) noexcept:
        """Count a datagram whose handler has begun then."""
        self.finished += 1
        self.took(monotonic() - begun)

    def begin(self):
        """A time, in nanoseconds, for end()."""
        return monotonic()

    def begin_here(self):
        """begin(), in the thread of the dispatch, which sees to its end if its handler fails."""
        self.began_at = monotonic()
        return self.began_at

    cdef void stop(self) noexcept:
        """The handler of a datagram has failed in the thread of the dispatch, if one ran there."""
        if self.began_at:
            self.ended_at = monotonic()
            self.took(self.ended_at - self.began_at)
            self.began_at = 0

    @property
    def is_at_datagram(self):
        """Whether the thread of the dispatch runs the handler of one, of which there is no record.
        """
        return self.began_at != 0

    def end(self, request, nanoseconds begun):
        """A datagram's handler has ended."""
        self.began_at = 0
        self.served(self.timing.pop(id(request), begun))

    def begin_around(self, request):
        """Who begins with a datagram will call end_around(), whether end() is called or not."""
        self.timing[id(request)] = monotonic()

    def end_around(self, request):
        begun = self.timing.pop(id(request), None)
        if begun is not None:
            self.served(begun)

    # Children of a forking server.

    def share(self):
        """Before a fork: have the memory in which children leave what they have counted.

        Where there is none, that is not counted.
        """
        cdef void *memory
        if self.shared == NULL:
            memory = mmap(NULL, sizeof(Shared), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0)
            if memory != MAP_FAILED:
                self.shared = <Shared *> memory

    def give(self, Record record, request, int pid):
        """A child has begun with a request; record: of that, None: it is not entered."""
        cdef ChildRecord child = ChildRecord.__new__(ChildRecord)
        child.pid = pid
        if record is None and type(request) is not tuple:
            record = self.others.pop(id(request), None)
        if record is not None and record.ledger is self:
            child.peer = record.peer
            child.since = record.since
            record.leave()
            self.link(child)
        else:
            child.since = monotonic()
        before = self.children.pop(pid, None)
        if before is not None:  # nobody has told that it had ended
            (<ChildRecord> before).end()
        self.children[pid] = child

    def child_ended(self, int pid, int status):
        """Collected; status: 0: its handler has ended well, or nobody knows."""
        cdef ChildRecord child = self.children.pop(pid, None)
        if child is None:
            return
        if child.ledger is not None:
            child.end()
        else:
            self.served(child.since)
        if status:
            self.failed += 1

    def keep_children(self, pids):
        """What has been given to other children than these is over."""
        if len(self.children) > len(pids):
            for pid in list(self.children):
                if pid not in pids:
                    self.child_ended(pid, 0)

    def in_child(self, Record record, request):
        """After a fork, in the child that serves a request; record: as of give().

        None of the parent's children is one of this process.
        """
        cdef ChildRecord child
        if record is None:
            record = self.others.get(id(request))
        if record is not None and record.ledger is self:
            record.forks = _forks  # this process's from now on
        self.enough = -1  # whose event it is, too
        self.after_fork()
        children, self.children = self.children, {}
        for child in children.values():
            if child.ledger is not None:
                child.leave()
        self.sum_up(&self.told.received, &self.told.sent)
        if record is not None and record.ledger is self:
            # What has come for it before, the parent counts no more.
            self.told.received -= record.received
            self.told.sent -= record.sent

    def tell_parent(self, unsigned long long datagrams_sent):
        """Of a child that is about to end: leave what it has counted since."""
        cdef unsigned long long received, sent
        if self.shared != NULL:
            self.sum_up(&received, &sent)
            fastsock_add(self.shared.received, received - self.told.received)
            fastsock_add(self.shared.sent, sent - self.told.sent)
            fastsock_add(self.shared.datagrams_sent, datagrams_sent)

    # What is asked.

    cpdef int after_fork(self) except -1:
        """Leave what the process has begun that this one was forked from: its threads aren't here.
        """
        if self.forks != _forks:
            self.forks = _forks
            self.records()
        return 0

    def records(self):
        """Those that are under way in this process, the newest first."""
        # Nothing in the loop runs other code: append() allocates no object.
        cdef list found = []
        cdef list foreign = None
        cdef Record record
        cdef void *place = self.newest
        while place != NULL:
            if (<Record> place).forks == _forks:
                found.append(<Record> place)
            else:
                if foreign is None:
                    foreign = []
                foreign.append(<Record> place)
            place = (<Record> place).older
        if foreign is not None:
            self.enough = -1  # whose event it is, too
            for record in foreign:
                if record.ledger is self:
                    record.leave()
        return found

    cdef int sum_up(self, unsigned long long *received, unsigned long long *sent) except -1:
        """The bytes of all that this process has served."""
        cdef OtherRecord record
        cdef void *place
        for record in list(self.others.values()):
            record.look()
        received[0] = self.received
        sent[0] = self.sent
        place = self.newest
        while place != NULL:
            received[0] += (<Record> place).received
            sent[0] += (<Record> place).sent
            place = (<Record> place).older
        return 0

    def bytes(self):
        """(received, sent), of all."""
        cdef unsigned long long received, sent
        self.sum_up(&received, &sent)
        if self.shared != NULL:
            received += self.shared.received
            sent += self.shared.sent
        return received, sent

    @property
    def datagrams_sent_by_children(self):
        return 0 if self.shared == NULL else self.shared.datagrams_sent

    def latencies(self):
        """How many requests have lasted for less than 1.024 us, 2.048 us and so on."""
        return [self.buckets[index] for index in range(BUCKETS)]

    @property
    def seconds_served(self):
        """How long those have lasted together."""
        return self.lasted / 1e9

    def longest(self):
        """Seconds for which the oldest has been under way; 0.0: there is none."""
        cdef ChildRecord child
        cdef void *place = self.newest
        cdef nanoseconds now = monotonic()
        cdef nanoseconds since = self.began_at or now
        while place != NULL:
            since = min(since, (<Record> place).since)
            place = (<Record> place).older
        for child in self.children.values():
            since = min(since, child.since)
        return max(now - since, 0) / 1e9
