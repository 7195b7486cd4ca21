"""What the two kinds of load have in common: the address, the counters, the frame of a run.

Ownership: a ``Load`` owns its epoll and its sockets' descriptors from ``open()`` to ``close()``.
Only the call that is in progress touches them; another thread's, or a signal handler's, is turned
away by ``in_use``, since the work goes on without the GIL.
"""

import errno
import os
import resource
import socket

from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from libc.string cimport memcpy, memset

from fastsock._clock cimport MILLISECOND, SECOND, monotonic
from fastsock.bench cimport _calls

cdef enum:
    LONGEST_RUN = 600  # seconds
    MOST_SOCKETS = 60000
    SIGNALS_EVERY = 100 * MILLISECOND
    FEW = 64  # descriptors that the rest of the program may need
    SLACK = 1000  # nanoseconds that a nap may be longer; 50,000 by default, as much as a nap

Address = str | tuple[str, int]
TIMEOUT = 10.0
DATAGRAM_TIMEOUT = 0.2
MOST_ERRORS = TOO_MANY_ERRORS
MOST_CONNECTIONS = MOST_SOCKETS
MOST_SECONDS = <double> LONGEST_RUN

# In the order of the enum.
cdef tuple _NAMES = (
    "refused", "connect", "reset", "early end", "corrupted", "too many bytes", "timeout",
    "status", "malformed", "ended", "lost", "disordered", "wrong length", "foreign", "duplicate",
)
assert len(_NAMES) == ERRORS


cdef nanoseconds checked_seconds(double seconds) except -1:
    if not 0 < seconds <= LONGEST_RUN:
        raise ValueError(f"seconds must be above 0 and at most {LONGEST_RUN}, not {seconds!r}")
    return <nanoseconds> (seconds * SECOND)


cdef nanoseconds checked_timeout(object timeout, double default) except -1:
    cdef double seconds = default if timeout is None else timeout
    if not 0 < seconds <= LONGEST_RUN:
        raise ValueError(f"timeout must be above 0 and at most {LONGEST_RUN}, not {seconds!r}")
    return <nanoseconds> (seconds * SECOND)


cdef Py_ssize_t checked(object number, str what, Py_ssize_t least, Py_ssize_t most) except -1:
    cdef object index = PyNumber_Index(number)
    if not least <= index <= most:
        raise ValueError(f"{what} must be from {least} to {most}, not {number!r}")
    return index


cdef int milliseconds_until(nanoseconds until, nanoseconds now, nanoseconds most) noexcept nogil:
    """As epoll_wait(2) wants them: rounded up, never negative, at most ``most`` nanoseconds."""
    cdef nanoseconds left = min(until - now, most)
    return <int> ((left + MILLISECOND - 1) // MILLISECOND) if left > 0 else 0


cdef void nap(long long duration) noexcept nogil:
    cdef _sys.timespec time
    time.tv_sec = 0
    time.tv_nsec = duration
    _calls.nanosleep(&time, NULL)


cdef bytes _LOOPBACK6 = socket.inet_pton(socket.AF_INET6, "::1")


cdef int _make_room(Py_ssize_t wanted) except -1:
    """Raise RLIMIT_NOFILE's soft limit to the hard one, and see whether that is enough."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and wanted + FEW > hard:
        raise OSError(
            errno.EMFILE,
            f"{wanted} sockets and {FEW} other files are more than this process may open "
            f"(RLIMIT_NOFILE: {hard})",
        )
    return 0


cdef bytes _unix_address(str path):
    cdef bytes name = os.fsencode(path)
    # A path's struct has room for the zero behind it; an abstract name has none, and counts.
    if b"\0" in name[1:] or len(name) > 107:
        raise ValueError("a Unix address has at most 107 bytes, and no zero in it")
    return name


cdef class Load:
    def __cinit__(self, *_, **__):
        self.poller = -1
        self.latency = Histogram()

    def __init__(self):
        raise TypeError("a Load is either a StreamLoad or a DatagramLoad")

    @property
    def errors(self):
        cdef int kind
        return {_NAMES[kind]: self.errors_of[kind]
                for kind in range(ERRORS) if self.errors_of[kind]}

    @property
    def too_many_errors(self):
        return self.errors_in_all >= TOO_MANY_ERRORS

    def open(self, double seconds):
        cdef nanoseconds limit = checked_seconds(seconds)
        if self.poller >= 0:
            raise RuntimeError("the load is open already")
        self.enter()
        try:
            _make_room(self.descriptors() + 1)
            self.forget()
            self.poller = _calls.epoll_create1(_calls.EPOLL_CLOEXEC)
            if self.poller < 0:
                raise OSError(_sys.errno, os.strerror(_sys.errno))
            self.prepare(monotonic() + limit, seconds)
        except BaseException:
            self.release()
            raise
        finally:
            self.leave()

    def run(self, double seconds, long long count=0):
        cdef nanoseconds start, end, now
        cdef int slack
        end = checked_seconds(seconds)
        if count < 0:
            raise ValueError("count must not be negative")
        if self.poller < 0:
            raise RuntimeError("the load is not open")
        self.enter()
        slack = _calls.prctl(_calls.PR_GET_TIMERSLACK, 0)
        _calls.prctl(_calls.PR_SET_TIMERSLACK, SLACK)
        start = monotonic()
        try:
            self.forget()
            self.wanted = count
            end += start
            with nogil:
                self.resume(start - self.paused)
            while True:
                now = monotonic()
                if now >= end or self.enough():
                    break
                with nogil:
                    self.work(min(end, now + SIGNALS_EVERY))
                PyErr_CheckSignals()
        finally:
            self.seconds = <double> (monotonic() - start) / SECOND
            self.served = self.count_served()
            if slack > 0:
                _calls.prctl(_calls.PR_SET_TIMERSLACK, slack)
            self.leave()

    def close(self):
        self.enter()
        with nogil:
            self.release()
        self.leave()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    cdef int enter(self) except -1:
        if self.in_use:
            raise RuntimeError("another call of this load is in progress")
        self.in_use = True
        return 0

    cdef int leave(self) except -1:
        self.paused = monotonic()
        self.in_use = False
        return 0

    cdef void forget(self) noexcept nogil:
        """Let the counters begin anew."""
        self.operations = 0
        self.verified = 0
        self.served = 0
        self.seconds = 0
        self.wanted = 0
        self.errors_in_all = 0
        memset(self.errors_of, 0, sizeof(self.errors_of))
        self.latency.empty()

    cdef int set_address(self, object address) except -1:
        """Take the server's address; only this machine's own ones."""
        cdef _calls.sockaddr_in *inet = <_calls.sockaddr_in *> &self.address
        cdef _sys.sockaddr_in6 *inet6 = <_sys.sockaddr_in6 *> &self.address
        cdef bytes name
        cdef object family
        memset(&self.address, 0, sizeof(self.address))
        if isinstance(address, str) and address[:1] in ("/", "\0"):
            name = _unix_address(address)
            self.address.ss_family = _sys.AF_UNIX
            memcpy((<_sys.sockaddr_un *> &self.address).sun_path, <const char *> name, len(name))
            self.address_length = sizeof(_sys.sa_family_t) + len(name) + (name[0] != 0)
            return 0
        if isinstance(address, tuple) and len(address) == 2 and isinstance(address[0], str):
            family = socket.AF_INET if address[0].startswith("127.") else socket.AF_INET6
            try:
                name = socket.inet_pton(family, address[0])
            except (OSError, ValueError):  # a zero in it, or no character
                name = b""
            if name == _LOOPBACK6:
                inet6.sin6_port = _calls.htons(checked(address[1], "the port", 1, 65535))
                memcpy(&inet6.sin6_addr, <const char *> name, len(name))
                self.address.ss_family = _sys.AF_INET6
                self.address_length = sizeof(_sys.sockaddr_in6)
                return 0
            if len(name) == 4:
                inet.sin_port = _calls.htons(checked(address[1], "the port", 1, 65535))
                memcpy(&inet.sin_addr, <const char *> name, len(name))
                self.address.ss_family = _sys.AF_INET
                self.address_length = sizeof(_calls.sockaddr_in)
                return 0
        raise ValueError(
            "loopback only: (an address of 127.0.0.0/8 or '::1', a port), the absolute path of a "
            f"Unix socket, or its abstract name; not {address!r}"
        )

    cdef int prepare(self, nanoseconds until, double seconds) except -1:
        raise NotImplementedError

    cdef Py_ssize_t descriptors(self) except -1:
        raise NotImplementedError

    cdef void resume(self, nanoseconds pause) noexcept nogil:
        pass

    cdef void work(self, nanoseconds until) noexcept nogil:
        pass

    cdef Py_ssize_t count_served(self) noexcept nogil:
        return 0

    cdef void release(self) noexcept nogil:
        pass
