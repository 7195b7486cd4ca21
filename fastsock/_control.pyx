"""What a server and the loops that serve it share, and the dispatch of one request.

Knows the hooks' names, nothing of the classes that have them: what it needs to know of those (which
``get_request`` is the untouched default) comes as data, in ``Defaults``.

Threads: a ``Control`` and a ``Wakeup`` may be used from any thread that holds the GIL, and from
signal handlers. All of their state changes under the GIL, which is given up in ``accept4`` only.
"""

import os
import sys
import weakref

from cpython.pythread cimport PyThread_get_thread_ident

from fastsock cimport _sys
from fastsock._accept cimport (
    Accepted,
    accept_connection,
    accept_from,
    can_accept,
)
from fastsock._channel cimport channel_if, channel_of, end_connection
from fastsock._clock cimport MILLISECOND, NEVER, SECOND, monotonic, nanoseconds
from fastsock._datagram cimport (
    can_receive,
    can_take,
    inbox_of,
    receive_datagram,
    send_gathered,
    take,
)
from fastsock._hooks cimport (
    ACCEPT,
    CLOSE,
    CLOSE_DATAGRAM,
    FILENO,
    FINISH,
    PROCESS,
    PROMPT,
    RECEIVE,
    SHUTDOWN,
    SHUTDOWN_DATAGRAM,
    THREAD_PROCESS,
    THREAD_TARGET,
    TRUNCATED,
    UNLIMITED,
    UNLIMITED_PER_PEER,
    VERIFY,
    Defaults,
    Hooks,
    untouched,
)
from fastsock._deadlines import DeadlineError
from fastsock._ledger cimport Ledger, Record
from fastsock._limits cimport gate_of, refusal, unlimited
from fastsock._log import report
from fastsock._inbox cimport BATCH, Inbox
from fastsock._worker cimport Pool

cdef enum:
    # Of one request, by when they are needed.
    TAKING = ACCEPT | RECEIVE | UNLIMITED | UNLIMITED_PER_PEER
    SERVING = VERIFY | PROCESS | THREAD_PROCESS | FINISH
    ENDING = SHUTDOWN | CLOSE | PROMPT
    ENDING_DATAGRAM = SHUTDOWN_DATAGRAM | CLOSE_DATAGRAM

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

    cdef bint has_datagrams(self, object server, Defaults defaults) except -1:
        """Whether a request can be taken of what was received ahead."""
        cdef object source = self.source
        if source is None:
            return False
        if (server.socket is source and self.held is None
                and self.has_fileno(server, defaults)
                and inbox_of(source).waiting()):
            return self.paused_until == 0 or self.paused_until <= monotonic()
        return False

    cdef bint find_datagrams(self, object server, Defaults defaults) except -1:
        """As has_datagrams(), also of what the loop of another server has received ahead."""
        if self.source is None and self.has_fileno(server, defaults):
            sock = server.socket
            if type(sock) is defaults.datagram_socket and inbox_of(sock).waiting():
                self.source = sock
        return self.has_datagrams(server, defaults)

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


cdef bint accepts_natively(object server, Defaults defaults, unsigned int looked) except -1:
    """Whether accept4() on the descriptor of its socket is all that get_request() would do."""
    return (untouched(server, defaults, looked, ACCEPT)
            and can_accept(server.socket))


cdef bint dispatch_one(object server, Control control, Defaults defaults, bint polled,
                       Accepted *accepted, bint defer, unsigned int most) except -1:
    """Take one request and run it through the hooks; false when there was none after all.

    polled: the caller has waited for the request, and waits again if there is none. If not, a
    get_request() that blocks, or times out, must be left to do so. accepted: what the caller has
    accepted already, or NULL. defer: the caller wakes the thread of the request, if it gets one,
    with control.pool.flush(). most: 1, or 0: as many datagrams as may be received ahead are.
    """
    cdef Accepted own
    cdef int descriptor
    cdef Pool pool
    cdef unsigned long long failed_starts = control.start_failures
    cdef bint by_core = False
    cdef bint limited = False
    cdef bint verified
    cdef size_t length = 0
    cdef unsigned int looked = 0
    try:
        if accepted == NULL:
            looked = control.hooks.look(server, defaults, TAKING)
        if accepted != NULL:
            by_core = True
            try:
                source = server.socket
            except BaseException:
                if accepted.descriptor >= 0:
                    _sys.close(accepted.descriptor)
                raise
            taken = accept_connection(source, defaults.connection, accepted)
        elif polled and untouched(server, defaults, looked, ACCEPT):
            limited = not unlimited(server, looked)
            if limited and control.limit(server):
                return False
            source = server.socket
            by_core = can_accept(source)
            if by_core:
                descriptor = source.fileno()
                with nogil:
                    accept_from(descriptor, &own)
                taken = accept_connection(source, defaults.connection, &own)
            else:
                taken = server.get_request()
        elif polled and untouched(server, defaults, looked, RECEIVE):
            source = server.socket
            size = server.max_packet_size
            if type(source) is defaults.datagram_socket and can_take(source, size):
                by_core = True
                taken = take_datagram(server, control, defaults, source, size, most, &length)
            elif can_receive(source, size):
                by_core = True
                taken = receive_datagram(source, size, &length)
            else:
                taken = server.get_request()
        else:
            limited = not unlimited(server, looked)
            if limited and polled and control.limit(server):
                return False
            taken = server.get_request()
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

    if limited and type(request) is not tuple:  # what was accepted ahead had no limit then
        reason = refusal(server, control.ledger, client_address)
        if reason is not None:
            turn_away(server, control, defaults, request, client_address, reason)
            return True
    if type(request) is defaults.connection:
        control.ledger.enter(channel_of(request), client_address)
    elif type(request) is tuple:
        control.ledger.datagrams += 1
    else:
        control.ledger.enter_other(request, client_address)
    try:
        if control.adopt is not None:
            control.adopt(request)
        if length > 0 and length > <size_t> len(request[0]):
            control.truncated += 1
            if not accepts_truncated(server, control, defaults, request, length, client_address):
                refuse_entered(control, request, "handle_truncated")
                server.shutdown_request(request)
                return True
        looked = control.hooks.look(server, defaults, SERVING)
        if untouched(server, defaults, looked, VERIFY):
            verified = True
        else:
            verified = bool(server.verify_request(request, client_address))
            looked = control.hooks.look(server, defaults, SERVING)
    except BaseException:
        give_up(server, control, request)
        raise
    if not verified:
        refuse_entered(control, request, "verify_request")
        give_up(server, control, request)
        return True
    try:
        if untouched(server, defaults, looked, PROCESS):
            _process(server, control, defaults, request, client_address, looked)
        elif control.pool is not None and untouched(server, defaults, looked, THREAD_PROCESS):
            pool = <Pool> control.pool
            # Not while more is to be dispatched before the loop's next poll.
            pool.deferring = defer and (control.source is None
                                        or not inbox_of(control.source).waiting())
            pool.patient = type(request) is tuple and by_core
            try:
                if not begin_in_thread(server, control, defaults, request, client_address):
                    server.process_request(request, client_address)
            finally:
                pool.deferring = pool.patient = False
        else:
            server.process_request(request, client_address)
    except Exception:
        try:
            control.ledger.stop()
            failed(server, control, request, client_address)
        finally:
            control.ledger.ending(request)
            try:
                server.shutdown_request(request)
            finally:
                over(control, request)
    except BaseException:
        give_up(server, control, request)
        raise
    if control.start_failures == failed_starts:
        control.resume()
    if limited:
        control.limit(server)
    return True


cdef int give_up(object server, Control control, object request) except -1:
    """Shut down a request that is not served, or not to its end."""
    try:
        server.shutdown_request(request)
    finally:
        if type(request) is not tuple:
            over(control, request)
    return 0


cdef int turn_away(object server, Control control, Defaults defaults, object request,
                   object client_address, str reason) except -1:
    """Close a connection that was accepted, and is one too many."""
    cdef unsigned int looked
    hook = getattr(server, "connection_refused", None)
    control.ledger.accepted += 1
    control.ledger.refuse(reason)
    try:
        if callable(hook):
            hook(client_address, reason)
    finally:
        looked = control.hooks.look(server, defaults, ENDING)
        if not untouched(server, defaults, looked, SHUTDOWN):
            server.shutdown_request(request)
        elif (type(request) is defaults.connection  # whatever lingering_close says: the loop waits
                and untouched(server, defaults, looked, CLOSE)):
            end_connection(request)
            control.released()
        else:
            try:
                request.shutdown(_sys.SHUT_WR)
            except OSError:
                pass
            server.close_request(request)
    return 0


cdef object take_datagram(object server, Control control, Defaults defaults, object source,
                          size_t size, unsigned int most, size_t *length):
    cdef Inbox inbox = inbox_of(source)
    if most == 0 and not inbox.waiting():
        most = batch_size(server, control, defaults)
    taken = take(source, inbox, size, most, length)
    if most != 1 and inbox.waiting() and control.source is not source:
        control.source = source
        control.ledger.ended_at = monotonic()
        if (getattr(server, "gather_replies", False)
                and untouched(server, defaults, control.hooks.look(server, defaults, PROCESS),
                              PROCESS)):
            inbox.gatherer = PyThread_get_thread_ident()
    return taken


cdef bint accepts_truncated(object server, Control control, Defaults defaults, object request,
                            size_t length, object client_address) except -1:
    if untouched(server, defaults, control.hooks.look(server, defaults, TRUNCATED), TRUNCATED):
        return True
    hook = getattr(server, "handle_truncated", None)
    return hook is None or bool(hook(request[0], length, client_address))


cdef inline int _process(object server, Control control, Defaults defaults, object request,
                         object client_address, unsigned int looked) except -1:
    """BaseServer.process_request() and what it calls, as far as that is untouched too."""
    cdef Ledger ledger = control.ledger
    cdef bint timed = type(request) is tuple
    cdef nanoseconds begun
    if timed:
        # Of those that were received together each begins when the one before has ended.
        begun = monotonic() if control.source is None else ledger.ended_at
        ledger.began_at = begun
    if untouched(server, defaults, looked, FINISH):
        server.RequestHandlerClass(request, client_address, server)
    else:
        server.finish_request(request, client_address)
    if timed:
        ledger.began_at = 0
        ledger.ended_at = monotonic()
        ledger.took(ledger.ended_at - begun)
    return shut_down(server, control, defaults, request)


cdef bint begins_natively(object server, Control control) except -1:
    """Whether begin_in_thread() is all that ThreadingMixIn.process_request() would do."""
    cdef Pool pool = control.pool
    return (pool is not None and type(server._threads) is pool.list_class
            and type(getattr(server, "max_threads", None)) is not int
            and bool(getattr(server, "reuse_threads", True))
            and pool.ready())


cpdef bint begin_in_thread(object server, Control control, Defaults defaults, object request,
                           object client_address) except -1:
    """ThreadingMixIn.process_request() in the usual case; false where it has more to do."""
    cdef Pool pool = control.pool
    cdef bint daemon, named = True
    cdef tuple arguments
    if not begins_natively(server, control):
        return False
    threads = server._threads
    daemon = bool(server.daemon_threads)
    name = None
    if untouched(server, defaults, control.hooks.look(server, defaults, THREAD_TARGET),
                 THREAD_TARGET):
        target = _finish_in_thread
        arguments = (server, control, defaults, request, client_address)
    else:
        target = server.process_request_thread
        name = getattr(target, "__name__", None)
        named = name is not None
        arguments = (request, client_address)
        if type(request) is tuple:
            arguments = (control.ledger, target, request, client_address)
            target = timed
    thread = pool.new_thread(name, daemon)
    if not named:
        thread._of = None
    if not daemon:
        pool.keep(threads, thread)
    try:
        pool.begin(thread, target, arguments, daemon)
    except BaseException as error:
        if thread in threads:
            threads.remove(thread)  # it never ran: server_close() must not wait for it
        if isinstance(error, Exception):
            control.start_failed()
        raise
    return True


def timed(Ledger ledger not None, target, request, client_address):
    """target(request, client_address), which may count the datagram itself."""
    ledger.begin_around(request)
    try:
        return target(request, client_address)
    finally:
        ledger.end_around(request)


def _finish_in_thread(server, Control control, Defaults defaults, request, client_address):
    """ThreadingMixIn.process_request_thread(), and what it calls as far as that is untouched."""
    cdef nanoseconds begun = monotonic() if type(request) is tuple else 0
    try:
        if untouched(server, defaults, control.hooks.look(server, defaults, FINISH), FINISH):
            server.RequestHandlerClass(request, client_address, server)
        else:
            server.finish_request(request, client_address)
    except Exception:
        failed(server, control, request, client_address)
    finally:
        if begun:
            control.ledger.took(monotonic() - begun)
        shut_down(server, control, defaults, request)


cdef int shut_down(object server, Control control, Defaults defaults, object request) except -1:
    """Call shutdown_request(); of a plain connection and untouched hooks, do what they would."""
    cdef bint is_datagram = type(request) is tuple
    cdef unsigned int looked = control.hooks.look(
        server, defaults, ENDING_DATAGRAM if is_datagram else ENDING)
    if (type(request) is defaults.connection
            and untouched(server, defaults, looked, SHUTDOWN)
            and untouched(server, defaults, looked, CLOSE)
            and (looked & PROMPT or getattr(server, "lingering_close", None) is not True)):
        end_connection(request)
        control.released()
        return 0
    if not (is_datagram  # there is nothing to end
            and untouched(server, defaults, looked, SHUTDOWN_DATAGRAM)
            and untouched(server, defaults, looked, CLOSE_DATAGRAM)):
        control.ledger.ending(request)
        server.shutdown_request(request)
    over(control, request)
    return 0


def end_request(server, Control control not None, request, begun):
    """shutdown_request(), where Python code has run the handler; begun: ledger.begin()."""
    control.ledger.ending(request)
    server.shutdown_request(request)
    if type(request) is tuple:
        control.ledger.end(request, begun)
    else:
        over(control, request)


cpdef int over(Control control, object request) except -1:
    """A request has been served, also if shutdown_request() has left it to somebody else."""
    if type(request) is tuple:
        control.ledger.finished += 1
        return 0
    cdef Record record = channel_if(request)
    if record is not None:
        record.end()
    else:
        control.ledger.end_other(request)
    return 0


cdef int refuse_entered(Control control, object request, str reason) except -1:
    """It is not served, after it was entered."""
    cdef Record record = channel_if(request)
    if record is None:
        record = control.ledger.others.pop(id(request), None)
    if record is not None and record.ledger is not None:
        record.leave()
    return control.ledger.refuse(reason)


def give_to_child(Control control not None, request, int pid):
    """A forked child serves it from now on."""
    control.ledger.give(channel_if(request), request, pid)


def begin_in_child(Control control not None, request):
    """This process is the child that serves it."""
    control.ledger.in_child(channel_if(request), request)


cpdef int failed(object server, Control control, object request,
                 object client_address) except -1:
    """An exception has left a handler; in the except clause."""
    error = sys.exc_info()[1]
    hook = None
    if isinstance(error, DeadlineError):
        hook = getattr(server, "handle_timeout_error", None)
    if callable(hook):
        hook(request, client_address, error.which)
    else:
        control.ledger.failed += 1
        server.handle_error(request, client_address)
    return 0


def dispatch(server, Control control not None, Defaults defaults not None):
    """Handle one request of a readable server, as BaseServer._handle_request_noblock() does."""
    dispatch_one(server, control, defaults, False, NULL, False, 1)
