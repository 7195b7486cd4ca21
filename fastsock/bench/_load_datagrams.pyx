"""The load of datagram servers: as many datagrams per system call as there are.

Each socket is connected, and has a window of datagrams under way. A payload of 8 bytes or more is
the number of the socket and of the datagram, over and over, so that an answer to another socket is
noticed, and one that comes after the answer to a later datagram. A datagram that has no answer in
time is given up for lost, and another takes its place. Should the answer come after all, it is
late, which is no second error.

A Unix server's queue holds net.unix.max_dgram_qlen + 1 (11 by default) from all sockets together:
who could not send waits in turn; a window beyond that lets nobody else send.
"""

import os

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, monotonic
from fastsock.bench cimport _calls
from fastsock.bench._load_base cimport (
    CORRUPTED,
    DISORDERED,
    DUPLICATE,
    FOREIGN,
    LOST,
    NO_CONNECTION,
    REFUSED,
    WRONG_LENGTH,
    checked,
    checked_timeout,
    milliseconds_until,
    nap,
)

from fastsock.bench._load_base import DATAGRAM_TIMEOUT, MOST_CONNECTIONS

cdef enum:
    NUMBER = 8  # bytes
    SOCKET_SHIFT = 40
    MOST_IN_ONE = 65000  # bytes that the kernel cuts into datagrams
    RECEIVE_BUFFER = 1 << 20
    WIDEST = 4096  # datagrams under way on each socket
    MOST_UNDER_WAY = 1 << 22  # on all of them
    PLENTY = 256  # datagrams with the server
    FEW = 16  # sockets with answers
    GATHER = 50_000  # nanoseconds
    SWEEP_EVERY = 20 * MILLISECOND
    TRY_AGAIN = 10 * MILLISECOND


@cython.final
cdef class DatagramLoad(Load):
    def __init__(self, address, connections, size, *, window=1, timeout=None):
        if self.peers != NULL:
            raise RuntimeError("the load is open")
        self.set_address(address)
        self.patience = checked_timeout(timeout, DATAGRAM_TIMEOUT)
        self.count = checked(connections, "connections", 1, MOST_CONNECTIONS)
        self.size = checked(size, "size", 0, LARGEST)
        self.window = checked(window, "window", 1, WIDEST)
        checked(connections * window, "the number of all datagrams under way", 1, MOST_UNDER_WAY)

    def __dealloc__(self):
        self.release()

    # --- the frame: what the base class asks for

    cdef Py_ssize_t descriptors(self) except -1:
        if self.count == 0:
            raise RuntimeError("__init__() was not called")
        return self.count

    cdef int prepare(self, nanoseconds until, double seconds) except -1:
        cdef size_t i
        cdef Peer *p
        self.peers = <Peer *> calloc(self.count, sizeof(Peer))
        self.queue = <Peer **> calloc(self.count, sizeof(Peer *))
        self.buffers = <Buffers *> calloc(1, sizeof(Buffers))
        if self.peers == NULL or self.queue == NULL or self.buffers == NULL:
            raise MemoryError
        for i in range(self.count):
            self.peers[i].fd = -1
        for i in range(<size_t> BATCH):
            self.buffers.pieces[0][i].iov_base = self.buffers.outgoing + i * self.size
            self.buffers.pieces[0][i].iov_len = self.size
            self.buffers.pieces[1][i].iov_base = self.buffers.incoming[i]
            self.buffers.pieces[1][i].iov_len = STRIDE
            self.buffers.to_send[i].msg_hdr.msg_iov = &self.buffers.pieces[0][i]
            self.buffers.to_send[i].msg_hdr.msg_iovlen = 1
            self.buffers.received[i].msg_hdr.msg_iov = &self.buffers.pieces[1][i]
            self.buffers.received[i].msg_hdr.msg_iovlen = 1
        self.queue_first = self.queued = 0
        self.watched = NULL
        self.cut_by_kernel = self.address.ss_family != _sys.AF_UNIX and self.size > 0
        for i in range(self.count):
            p = &self.peers[i]
            self.make_socket(p)
            while not self.connects(p):
                if monotonic() >= until:
                    raise TimeoutError(
                        f"{i} of {self.count} sockets were connected within {seconds:g} s"
                        f" ({os.strerror(_sys.errno)})"
                    )
                nap(TRY_AGAIN)
                PyErr_CheckSignals()
        return 0

    cdef void resume(self, nanoseconds pause) noexcept nogil:
        """Fill the windows. What is under way was not waited for during the pause."""
        cdef size_t i, j
        cdef Peer *p
        for i in range(self.count):
            p = &self.peers[i]
            p.served = 0
            for j in range(p.under_way):
                p.sent[p.first + j].since += pause
        for i in range(self.count):
            self.refill(&self.peers[i])
        self.swept = monotonic()

    cdef void work(self, nanoseconds until) noexcept nogil:
        while not self.enough():
            if self.turn(until) >= until:
                return

    cdef Py_ssize_t count_served(self) noexcept nogil:
        cdef Py_ssize_t found = 0
        cdef size_t i
        for i in range(self.count):
            found += self.peers[i].served > 0
        return found

    cdef void release(self) noexcept nogil:
        cdef size_t i
        if self.peers != NULL:
            for i in range(self.count):
                if self.peers[i].fd >= 0:
                    _sys.close(self.peers[i].fd)
                free(self.peers[i].sent)
                free(self.peers[i].lost)
        free(self.peers)
        free(self.queue)
        free(self.buffers)
        self.peers = NULL
        self.queue = NULL
        self.buffers = NULL
        if self.poller >= 0:
            _sys.close(self.poller)
        self.poller = -1

    # --- sockets

    cdef int make_socket(self, Peer *p) except -1:
        cdef int much = RECEIVE_BUFFER, segment = <int> self.size
        cdef int family = self.address.ss_family
        cdef _calls.epoll_event event
        cdef _sys.sockaddr own
        p.sent = <Sent *> calloc(2 * self.window, sizeof(Sent))
        p.lost = <unsigned long long *> calloc(self.window, NUMBER)
        if p.sent == NULL or p.lost == NULL:
            raise MemoryError
        p.next = <unsigned long long> (p - self.peers) << SOCKET_SHIFT
        p.fd = _calls.socket(
            family, _sys.SOCK_DGRAM | _calls.SOCK_NONBLOCK | _sys.SOCK_CLOEXEC, 0)
        if p.fd < 0:
            raise OSError(_sys.errno, os.strerror(_sys.errno))
        if family == _sys.AF_UNIX:  # only the family: the kernel finds an abstract name
            memset(&own, 0, sizeof(own))
            own.sa_family = _sys.AF_UNIX
            if _calls.bind(p.fd, &own, sizeof(_sys.sa_family_t)) < 0:
                raise OSError(_sys.errno, os.strerror(_sys.errno))
        _calls.setsockopt(p.fd, _sys.SOL_SOCKET, _calls.SO_RCVBUF, &much, sizeof(much))
        if self.cut_by_kernel:
            self.cut_by_kernel = _calls.setsockopt(
                p.fd, _calls.IPPROTO_UDP, _calls.UDP_SEGMENT, &segment, sizeof(segment)) == 0
        event.events = _calls.EPOLLIN
        event.data.ptr = p
        if _calls.epoll_ctl(self.poller, _calls.EPOLL_CTL_ADD, p.fd, &event) < 0:
            raise OSError(_sys.errno, os.strerror(_sys.errno))
        return 0

    cdef bint connects(self, Peer *p) noexcept nogil:
        return _calls.connect(
            p.fd, <_sys.sockaddr *> &self.address, self.address_length) == 0

    cdef void watch(self, Peer *p, unsigned int events, int operation) noexcept nogil:
        cdef _calls.epoll_event event
        event.events = events
        event.data.ptr = p
        _calls.epoll_ctl(self.poller, operation, p.fd, &event)

    # --- payloads

    cdef void fill(self, char *payload, unsigned long long number) noexcept nogil:
        """May write up to 7 bytes behind the payload."""
        cdef size_t at = 0
        if self.size < NUMBER:
            memset(payload, c'x', self.size)
            return
        while at < self.size:
            memcpy(payload + at, &number, NUMBER)
            at += NUMBER

    cdef bint as_filled(self, const char *payload, unsigned long long number) noexcept nogil:
        self.fill(self.buffers.expected, number)
        return memcmp(payload, self.buffers.expected, self.size) == 0

    # --- sending

    cdef int transmit(self, Peer *p, size_t wanted) noexcept nogil:
        """How many the kernel took, or -1 with errno.

        With UDP_SEGMENT a batch goes through the kernel as one packet until it comes to the
        server's socket, which gets it as ordinary datagrams, one each. That is what makes this
        client cheaper than a server which answers in batches. Unix sockets have nothing of the
        kind.
        """
        if not self.cut_by_kernel:
            return _sys.sendmmsg(
                p.fd, self.buffers.to_send, <unsigned int> wanted, _sys.MSG_NOSIGNAL)
        if _sys.send(p.fd, self.buffers.outgoing, wanted * self.size, _sys.MSG_NOSIGNAL) < 0:
            return -1
        return <int> wanted

    cdef bint sends(self, Peer *p) noexcept nogil:
        """Whether the window is full again, or the socket rests; if not, the server's queue is."""
        cdef size_t wanted, i
        cdef nanoseconds since
        cdef int sent, error, _
        cdef Sent *slot
        while p.under_way < self.window:
            wanted = min(self.window - p.under_way, <size_t> BATCH)
            if self.cut_by_kernel and wanted * self.size > MOST_IN_ONE:
                wanted = MOST_IN_ONE // self.size
            for i in range(wanted):
                self.fill(self.buffers.outgoing + i * self.size, p.next + i)
            since = monotonic()
            sent = self.transmit(p, wanted)
            if sent < 0:
                error = _sys.errno
                if error == _sys.EAGAIN or error == _sys.ENOBUFS:
                    return False
                self.unreachable(p, error)
                return True
            for _ in range(sent):
                if p.first + p.under_way == 2 * self.window:
                    memmove(p.sent, p.sent + p.first, p.under_way * sizeof(Sent))
                    p.first = 0
                slot = p.sent + p.first + p.under_way
                slot.number = p.next
                slot.since = since
                p.under_way += 1
                p.next += 1
            if <size_t> sent < wanted:
                return False
        return True

    cdef void refill(self, Peer *p) noexcept nogil:
        """Fill the window, or queue up for it.

        All sockets send into the one queue of the server's, so that none has to try while another
        waits. Only the first of those that wait asks for EPOLLOUT: a Unix server that takes a
        datagram wakes everybody who does, at its own expense.
        """
        if p.waiting or p.resting or p.under_way == self.window:
            return
        if not self.queued and self.sends(p):
            return
        p.waiting = True
        self.queue[(self.queue_first + self.queued) % self.count] = p
        self.queued += 1

    cdef void advance(self) noexcept nogil:
        cdef Peer *head
        while self.queued:
            head = self.queue[self.queue_first]
            if not self.sends(head):
                if self.watched != head:
                    self.watch(head, _calls.EPOLLIN | _calls.EPOLLOUT, _calls.EPOLL_CTL_MOD)
                self.watched = head
                return
            if self.watched == head:
                self.watch(head, _calls.EPOLLIN, _calls.EPOLL_CTL_MOD)
            self.watched = NULL
            head.waiting = False
            self.queue_first = (self.queue_first + 1) % self.count
            self.queued -= 1

    cdef void unreachable(self, Peer *p, int error) noexcept nogil:
        """A call failed. UDP tells what ICMP said about an earlier datagram; Unix, about this.

        A Unix socket whose peer was closed is connected to nobody from then on.
        """
        self.wrong(REFUSED if error == _calls.ECONNREFUSED or error == _calls.ENOTCONN
                   or error == _sys.ECONNRESET else NO_CONNECTION)
        p.resting = True
        p.severed = self.address.ss_family == _sys.AF_UNIX

    # --- receiving

    cdef void answered(self, Peer *p, const char *payload, nanoseconds at) noexcept nogil:
        cdef Sent *oldest = p.sent + p.first
        cdef unsigned long long number = oldest.number if p.under_way else 0
        cdef size_t place = 0
        if self.size >= NUMBER:
            memcpy(&number, payload, NUMBER)
        if not self.as_filled(payload, number):
            self.spoilt(p, payload, self.size, CORRUPTED)
            return
        if self.size >= NUMBER:
            if (number >> SOCKET_SHIFT != <unsigned long long> (p - self.peers)
                    or number >= p.next):
                self.wrong(FOREIGN)  # of another socket, or of nothing that was sent
                return
            while place < p.under_way and oldest[place].number != number:
                place += 1
        if place == p.under_way:
            if not self.was_owed(p, number):
                self.wrong(DUPLICATE)
            return
        self.latency.record(at - oldest[place].since, 1)
        self.operations += 1
        self.verified += <long long> self.size
        p.served += 1
        if number < p.latest:
            self.wrong(DISORDERED)
        else:
            p.latest = number
        _remove(p, place)

    cdef void spoilt(self, Peer *p, const char *payload, size_t size, Error kind) noexcept nogil:
        """Count a bad answer, and, if any part of it tells which datagram it answers, that one as
        answered: it would be called lost besides."""
        cdef unsigned long long number
        cdef size_t at = 0, place
        self.wrong(kind)
        while at + NUMBER <= size:
            memcpy(&number, payload + at, NUMBER)
            for place in range(p.under_way):
                if p.sent[p.first + place].number == number:
                    _remove(p, place)
                    return
            at += NUMBER

    cdef bint was_owed(self, Peer *p, unsigned long long number) noexcept nogil:
        """Whether the answer was given up: then it is late, once."""
        cdef size_t place
        for place in range(p.owed):
            if p.lost[place] == number or self.size < NUMBER:
                p.owed -= 1
                memmove(p.lost + place, p.lost + place + 1, (p.owed - place) * NUMBER)
                return True
        return False

    cdef void reads(self, Peer *p) noexcept nogil:
        cdef unsigned int most = BATCH
        cdef int count, error, i
        cdef nanoseconds at
        cdef size_t length
        if self.wanted and self.wanted - self.operations < BATCH:
            most = <unsigned int> (self.wanted - self.operations)
        count = _sys.recvmmsg(p.fd, self.buffers.received, most, _sys.MSG_DONTWAIT, NULL)
        if count < 0:
            error = _sys.errno
            if error != _sys.EAGAIN and error != _sys.EINTR:
                self.unreachable(p, error)
            return
        at = monotonic()
        for i in range(count):
            length = self.buffers.received[i].msg_len
            if length != self.size:
                self.spoilt(p, self.buffers.incoming[i], min(length, <size_t> STRIDE),
                            WRONG_LENGTH)
            else:
                self.answered(p, self.buffers.incoming[i], at)
        self.refill(p)

    cdef void sweep(self, nanoseconds before) noexcept nogil:
        """Give up what was sent before; let those try again that rested."""
        cdef size_t i
        cdef Peer *p
        for i in range(self.count):
            p = &self.peers[i]
            while p.under_way and p.sent[p.first].since < before:
                if p.owed == self.window:  # the oldest of them will hardly come any more
                    p.owed -= 1
                    memmove(p.lost, p.lost + 1, p.owed * NUMBER)
                p.lost[p.owed] = p.sent[p.first].number
                p.owed += 1
                _remove(p, 0)
                self.wrong(LOST)
            if p.severed:
                if not self.connects(p):
                    continue
                p.severed = False
            p.resting = False
            self.refill(p)

    cdef nanoseconds turn(self, nanoseconds until) noexcept nogil:
        """Wait for what is ready, and go on with it. The time; ``until`` if a signal came."""
        cdef nanoseconds now = monotonic()
        cdef int ready, i
        ready = _calls.epoll_wait(
            self.poller, self.events, EVENTS, milliseconds_until(until, now, SWEEP_EVERY))
        if ready < 0:
            return until  # EINTR
        for i in range(ready):
            if self.events[i].events & ~<unsigned int> _calls.EPOLLOUT:
                self.reads(<Peer *> self.events[i].data.ptr)
                if self.enough():
                    return monotonic()
        now = monotonic()
        if now >= self.swept + SWEEP_EVERY:
            self.swept = now
            self.sweep(now - self.patience)
        self.advance()
        # Answers that are taken one by one cost most, and the server pays for every wake-up of who
        # sleeps in epoll_wait(2). So they are let gather while the server has work for longer.
        if ready < FEW and not self.queued and self.count * self.window >= PLENTY:
            nap(GATHER)
        return now


cdef inline void _remove(Peer *p, size_t place) noexcept nogil:
    cdef Sent *oldest = p.sent + p.first
    p.under_way -= 1
    if place:
        memmove(oldest + place, oldest + place + 1, (p.under_way - place) * sizeof(Sent))
    else:
        p.first += 1
