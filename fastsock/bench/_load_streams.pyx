"""The load of stream servers.

A client is a place for one connection after another. It goes CLOSED, UNDER_WAY, and, if the
connections last, by way of SILENT to UNDER_WAY again. A connection that fails is closed, counted
under the kind of its error, and dialled anew.

Whom connect(2) does not take at once for want of room (a Unix listener whose backlog is full says
EAGAIN, and no epoll tells when that is over) stands in a queue, in which only the first tries. Who
was refused rests first: a server that is not there must not keep the core busy.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from fastsock cimport _sys
from fastsock._clock cimport MILLISECOND, monotonic
from fastsock.bench cimport _calls
from fastsock.bench._load_base cimport (
    CORRUPTED,
    EARLY_END,
    ENDED,
    MALFORMED,
    NO_CONNECTION,
    NO_ERROR,
    REFUSED,
    RESET,
    STATUS,
    TIMED_OUT,
    TOO_MANY_BYTES,
    checked,
    checked_timeout,
    milliseconds_until,
    nap,
)
from fastsock.bench._response cimport LONGEST_HEADER, header_size, read_header

from fastsock.bench._load_base import MOST_CONNECTIONS, TIMEOUT

cdef enum:
    CHUNK = 1 << 18
    AT_A_TIME = 128  # without an answer during open(), so that no backlog overflows
    REST = 10 * MILLISECOND
    BACK_OFF = 100_000  # nanoseconds until a full backlog is tried again
    SWEEP_EVERY = 20 * MILLISECOND
    SWEEP_MANY_EVERY = 50 * MILLISECOND  # with more clients than the cache holds
    MANY = 4096
    MOST_PER_ADDRESS = 20000  # connections from one address: it has 28,232 ports by default
    LARGEST = 1 << 24  # bytes of a request or a body
    LARGEST_IN_ALL = 1 << 26
    DEEPEST = 1024

cdef tuple KINDS = ("once", "lines", "http", "http-close")


@cython.final
cdef class StreamLoad(Load):
    def __init__(self, address, kind, connections, request, body=None, *, depth=1, idle=0,
                 cold=False, timeout=None):
        if self.clients != NULL:
            raise RuntimeError("the load is open")
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        self.set_address(address)
        self.http = kind.startswith("http")
        self.per_request = kind in ("once", "http-close")
        self.patience = checked_timeout(timeout, TIMEOUT)
        self.busy = checked(connections, "connections", 1, MOST_CONNECTIONS)
        self.idle = checked(idle, "idle", 0, MOST_CONNECTIONS - self.busy)
        self.depth = checked(depth, "depth", 1, DEEPEST)
        if self.per_request and (self.idle or self.depth > 1):
            raise ValueError(f"depth and idle are of connections that last, not of {kind!r}")
        self.cold = cold
        if cold and self.idle:
            raise ValueError("idle connections are made by open(), which makes none of a cold load")
        checked(len(request), "the request's size", 1, LARGEST)
        checked(len(request) * self.depth, "the size of all requests of a batch", 1, LARGEST_IN_ALL)
        if self.http and body is None:
            raise ValueError(f"{kind!r} needs the body that is to come")
        if body and not self.http:
            raise ValueError(f"a body is of HTTP, not of {kind!r}")
        self.messages = bytes(request) * self.depth
        self.request = PyBytes_AS_STRING(self.messages)
        self.request_size = PyBytes_GET_SIZE(self.messages)
        self.body = bytes(body) if self.http else self.messages
        checked(len(self.body), "the body's size", 0, LARGEST_IN_ALL)
        self.answer = PyBytes_AS_STRING(self.body)
        self.answer_size = PyBytes_GET_SIZE(self.body)

    def __dealloc__(self):
        self.release()

    # --- the frame: what the base class asks for

    cdef Py_ssize_t descriptors(self) except -1:
        if self.request == NULL:
            raise RuntimeError("__init__() was not called")
        return self.busy + self.idle

    cdef int prepare(self, nanoseconds until, double seconds) except -1:
        cdef Py_ssize_t total = self.busy + self.idle, i
        self.clients = <Client *> calloc(total, sizeof(Client))
        self.queue = <Client **> calloc(total, sizeof(Client *))
        self.chunk = <char *> malloc(CHUNK)
        if self.clients == NULL or self.queue == NULL or self.chunk == NULL:
            raise MemoryError
        for i in range(total):
            self.clients[i].fd = -1
        self.queue_first = self.queued = 0
        self.dialled = self.opened = 0
        self.swept = monotonic()
        if self.per_request or self.cold:
            return 0
        self.opening = True
        try:
            while self.opened < total:
                if monotonic() >= until:
                    raise TimeoutError(
                        f"{self.opened} of {total} connections were served within {seconds:g} s"
                        + (f" (errors: {self.errors})" if self.errors else "")
                    )
                with nogil:
                    self.open_more(min(until, monotonic() + 100 * MILLISECOND))
                PyErr_CheckSignals()
        finally:
            self.opening = False
        return 0

    cdef void open_more(self, nanoseconds until) noexcept nogil:
        cdef Py_ssize_t total = self.busy + self.idle
        while self.opened < total:
            while self.dialled < total and self.dialled - self.opened < AT_A_TIME:
                self.dialled += 1
                self.dial(&self.clients[self.dialled - 1])
            if self.turn(until) >= until:
                return

    cdef void resume(self, nanoseconds pause) noexcept nogil:
        """Begin what is not under way. What is was not waited for during the pause."""
        cdef Py_ssize_t i
        cdef Client *c
        for i in range(self.busy):
            c = &self.clients[i]
            c.served = 0
            c.since += pause
            if c.state == SILENT:
                self.begin(c, monotonic())
                self.sends(c)
            elif c.state == CLOSED:
                self.dial(c)
        self.swept = monotonic()

    cdef void work(self, nanoseconds until) noexcept nogil:
        while not self.enough():
            if self.turn(until) >= until:
                return

    cdef Py_ssize_t count_served(self) noexcept nogil:
        cdef Py_ssize_t count = 0, i
        for i in range(0 if self.per_request else self.busy):
            count += self.clients[i].served > 0
        return count

    cdef void release(self) noexcept nogil:
        cdef Py_ssize_t i
        if self.clients != NULL:
            for i in range(self.busy + self.idle):
                self.drop(&self.clients[i])
        free(self.clients)
        free(self.queue)
        free(self.chunk)
        self.clients = NULL
        self.queue = NULL
        self.chunk = NULL
        if self.poller >= 0:
            _sys.close(self.poller)
        self.poller = -1

    # --- connecting

    cdef bint make_socket(self, Client *c) noexcept nogil:
        cdef int family = self.address.ss_family
        cdef int one = 1
        cdef Py_ssize_t place = c - self.clients
        cdef _calls.sockaddr_in own
        c.fd = _calls.socket(
            family, _calls.SOCK_STREAM | _calls.SOCK_NONBLOCK | _sys.SOCK_CLOEXEC, 0)
        if c.fd < 0:
            return False
        if family != _sys.AF_UNIX:
            _calls.setsockopt(c.fd, _calls.IPPROTO_TCP, _calls.TCP_NODELAY, &one, sizeof(one))
        if family == _sys.AF_INET and place >= MOST_PER_ADDRESS:
            # All of 127.0.0.0/8 is this machine's own. Should it fail, connect(2) says so.
            own = (<_calls.sockaddr_in *> &self.address)[0]
            own.sin_port = 0
            own.sin_addr.s_addr = _calls.htonl(
                _calls.INADDR_LOOPBACK + <unsigned int> (place // MOST_PER_ADDRESS))
            _calls.setsockopt(c.fd, _calls.IPPROTO_IP, _calls.IP_BIND_ADDRESS_NO_PORT, &one,
                              sizeof(one))
            _calls.bind(c.fd, <_sys.sockaddr *> &own, sizeof(own))
        return True

    cdef void dial(self, Client *c) noexcept nogil:
        self.begin(c, monotonic())
        if self.queued or not self.connects(c):
            self.enqueue(c)

    cdef bint connects(self, Client *c) noexcept nogil:
        """Whether connect(2) took it, or it failed: it did not say "try again"."""
        cdef int error
        if c.fd < 0 and not self.make_socket(c):
            self.failed(c, NO_CONNECTION)
            return True
        c.state = UNDER_WAY
        c.connected = False
        if _calls.connect(c.fd, <_sys.sockaddr *> &self.address, self.address_length) < 0:
            error = _sys.errno
            if error == _sys.EAGAIN:
                return False
            if error != _calls.EINPROGRESS:
                self.failed(c, REFUSED if error == _calls.ECONNREFUSED else NO_CONNECTION)
                return True
        self.sends(c)  # on loopback the connection is there already
        return True

    cdef void enqueue(self, Client *c) noexcept nogil:
        c.state = QUEUED
        self.queue[(self.queue_first + self.queued) % <size_t> (self.busy + self.idle)] = c
        self.queued += 1

    cdef void advance(self) noexcept nogil:
        """Dial those that wait, as far as they are taken."""
        cdef Client *head
        cdef size_t left = self.queued  # those that fail meanwhile are for the next time
        while left:
            left -= 1
            head = self.queue[self.queue_first]
            # It leaves the queue first: if it fails at once, it may come in at the other end.
            self.queue_first = (self.queue_first + 1) % <size_t> (self.busy + self.idle)
            self.queued -= 1
            if not self.connects(head):
                self.queue_first = (self.queue_first or <size_t> (self.busy + self.idle)) - 1
                self.queued += 1
                head.state = QUEUED
                return

    cdef void drop(self, Client *c) noexcept nogil:
        """Close, which takes it out of the epoll."""
        if c.fd >= 0:
            _sys.close(c.fd)
        c.fd = -1
        c.watched = 0
        free(c.header)
        c.header = NULL
        c.state = CLOSED

    cdef void failed(self, Client *c, Error kind) noexcept nogil:
        self.wrong(kind)
        self.drop(c)
        if self.opening or kind == REFUSED or kind == NO_CONNECTION:
            c.state = RESTING
            c.since = monotonic() + REST
        else:
            # Not dialled here: that might fail at once, and so on, ever deeper.
            self.begin(c, monotonic())
            self.enqueue(c)

    # --- one round

    cdef void begin(self, Client *c, nanoseconds since) noexcept nogil:
        c.state = UNDER_WAY
        c.unsent = self.request_size
        c.unread = self.depth if self.http else self.answer_size
        c.held = 0
        c.body_left = 0
        c.since = since

    cdef bint watch(self, Client *c, unsigned int events) noexcept nogil:
        cdef _calls.epoll_event event
        cdef int operation = _calls.EPOLL_CTL_MOD if c.watched else _calls.EPOLL_CTL_ADD
        if c.watched == events:
            return True
        event.events = events
        event.data.ptr = c
        if _calls.epoll_ctl(self.poller, operation, c.fd, &event) < 0:
            self.failed(c, NO_CONNECTION)
            return False
        c.watched = events
        return True

    cdef void sends(self, Client *c) noexcept nogil:
        cdef Py_ssize_t sent
        cdef int error
        while c.unsent:
            sent = _sys.send(c.fd, self.request + (self.request_size - c.unsent), c.unsent,
                             _sys.MSG_NOSIGNAL)
            if sent < 0:
                error = _sys.errno
                if error == _sys.EAGAIN or error == _calls.ENOTCONN:
                    # What comes meanwhile is read, or a server that waits for room in the other
                    # direction would wait for ever.
                    self.watch(c, _calls.EPOLLIN | _calls.EPOLLOUT)
                    return
                if error == _calls.ECONNREFUSED:
                    self.failed(c, REFUSED)
                elif error == _sys.ECONNRESET or error == _calls.EPIPE:
                    self.failed(c, RESET)
                else:
                    self.failed(c, RESET if c.connected else NO_CONNECTION)
                return
            c.connected = True
            c.unsent -= <size_t> sent
        if self.watch(c, _calls.EPOLLIN) and not c.unread and not self.per_request:
            self.done(c)  # the answer was faster than the request

    cdef bint reads(self, Client *c) noexcept nogil:
        """Whether the same round goes on."""
        cdef Py_ssize_t got
        cdef int error
        cdef Error kind
        while True:
            got = _sys.recv(c.fd, self.chunk, CHUNK, 0)
            if got <= 0:
                error = _sys.errno
                if got < 0 and (error == _sys.EAGAIN or error == _sys.EINTR):
                    return True
                if got < 0 and not c.connected and error == _calls.ECONNREFUSED:
                    self.failed(c, REFUSED)
                elif got < 0:
                    self.failed(c, RESET if c.connected or error == _sys.ECONNRESET
                                else NO_CONNECTION)
                elif c.unread or c.unsent or not self.per_request:
                    self.failed(c, EARLY_END)
                else:
                    self.done(c)
                return False
            if self.http:
                kind = self.take_response(c, <size_t> got)
            else:
                kind = self.take_echo(c, <size_t> got)
            if kind != NO_ERROR:
                self.failed(c, kind)
                return False
            if not self.per_request:
                if not c.unread and not c.unsent:
                    self.done(c)
                    return False
                if got < CHUNK:
                    return True

    cdef Error take_echo(self, Client *c, size_t got) noexcept nogil:
        cdef size_t expected = min(got, c.unread)
        if memcmp(self.chunk, self.answer + (self.answer_size - c.unread), expected):
            return CORRUPTED
        self.verified += <long long> expected
        c.unread -= expected
        return TOO_MANY_BYTES if got > expected else NO_ERROR

    cdef Error take_response(self, Client *c, size_t got) noexcept nogil:
        """Of one recv(2), which may bring several responses, or a piece of one."""
        cdef const char *at = self.chunk
        cdef const char *end = self.chunk + got
        cdef Error kind
        while at < end:
            if not c.unread:
                return TOO_MANY_BYTES
            if not c.body_left:
                kind = self.take_header(c, &at, end)
            else:
                kind = self.take_body(c, &at, end)
            if kind != NO_ERROR:
                return kind
        return NO_ERROR

    cdef Error take_header(self, Client *c, const char **at, const char *end) noexcept nogil:
        cdef size_t size = <size_t> (end - at[0]), taken
        cdef const char *text = at[0]
        cdef size_t whole
        cdef long long length
        cdef int status
        if c.held:
            taken = min(size, LONGEST_HEADER - c.held)
            memcpy(c.header + c.held, text, taken)
            text = c.header
            whole = header_size(text, c.held + taken)
            at[0] += whole - c.held if whole else taken
            c.held += taken
        else:
            whole = header_size(text, min(size, <size_t> LONGEST_HEADER))
            at[0] += whole if whole else min(size, <size_t> LONGEST_HEADER)
            if not whole and size < LONGEST_HEADER:
                if c.header == NULL:
                    c.header = <char *> malloc(LONGEST_HEADER)
                    if c.header == NULL:
                        return MALFORMED
                memcpy(c.header, text, size)
                c.held = size
        if not whole:
            return NO_ERROR if 0 < c.held < LONGEST_HEADER else MALFORMED
        c.held = 0
        status = read_header(text, whole, &length)
        if status < 0:
            return MALFORMED
        if status != 200:
            return STATUS
        if length < 0 and not self.per_request:
            return MALFORMED  # nothing tells where it ends
        if length >= 0 and <size_t> length != self.answer_size:
            return CORRUPTED
        c.body_left = self.answer_size
        if not c.body_left:
            c.unread -= 1
        return NO_ERROR

    cdef Error take_body(self, Client *c, const char **at, const char *end) noexcept nogil:
        cdef size_t size = min(<size_t> (end - at[0]), c.body_left)
        if memcmp(at[0], self.answer + (self.answer_size - c.body_left), size):
            return CORRUPTED
        at[0] += size
        self.verified += <long long> size
        c.body_left -= size
        if not c.body_left:
            c.unread -= 1
        return NO_ERROR

    cdef void done(self, Client *c) noexcept nogil:
        cdef nanoseconds now = monotonic()
        self.latency.record(now - c.since, self.depth)
        self.operations += <long long> self.depth
        c.served += 1
        if self.per_request:
            self.drop(c)
            self.dial(c)
        elif self.opening:
            c.state = SILENT
            self.opened += 1
        else:
            self.begin(c, now)
            self.sends(c)

    cdef void disturbed(self, Client *c) noexcept nogil:
        """Something happened to a connection that was silent."""
        cdef Py_ssize_t got = _sys.recv(c.fd, self.chunk, CHUNK, 0)
        if got < 0 and (_sys.errno == _sys.EAGAIN or _sys.errno == _sys.EINTR):
            return
        self.wrong(TOO_MANY_BYTES if got > 0 else ENDED)
        self.drop(c)  # for good, if it is an idle one; the others are dialled by resume()

    # --- all of them

    cdef void sweep(self, nanoseconds now) noexcept nogil:
        """Give up what has had no answer for too long; dial those that have rested."""
        cdef Py_ssize_t count = self.busy + self.idle if self.opening else self.busy
        cdef Py_ssize_t i
        cdef Client *c
        for i in range(count):
            c = &self.clients[i]
            if c.state == RESTING:
                if c.since <= now:
                    self.begin(c, now)
                    self.enqueue(c)
            elif c.state == QUEUED:
                if now - c.since > self.patience:
                    self.wrong(NO_CONNECTION)
                    c.since = now
            elif c.state == UNDER_WAY and now - c.since > self.patience:
                self.failed(c, TIMED_OUT if c.connected else NO_CONNECTION)

    cdef nanoseconds turn(self, nanoseconds until) noexcept nogil:
        """Wait for what is ready, and go on with it. The time; ``until`` if a signal came."""
        cdef nanoseconds every = (SWEEP_EVERY if self.busy + self.idle < MANY
                                  else SWEEP_MANY_EVERY)
        cdef nanoseconds now = monotonic()
        cdef Client *c
        cdef unsigned int happened
        cdef int ready, i
        ready = _calls.epoll_wait(
            self.poller, self.events, EVENTS,
            0 if self.queued else milliseconds_until(until, now, every))
        if ready < 0:
            return until  # EINTR
        for i in range(ready):
            c = <Client *> self.events[i].data.ptr
            happened = self.events[i].events
            if c.state == SILENT:
                self.disturbed(c)
            elif c.state != UNDER_WAY:
                pass
            elif not c.unsent:
                self.reads(c)
            elif not happened & _calls.EPOLLIN or self.reads(c):
                self.sends(c)
            if self.enough() and not self.opening:
                break
        now = monotonic()
        if now - self.swept >= every:
            self.swept = now
            self.sweep(now)
        if self.queued:
            if not ready:
                nap(BACK_OFF)
            self.advance()
        return now
