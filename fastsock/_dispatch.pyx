"""The dispatch of one request: it is taken, and runs through the hooks of its server.

Knows the hooks' names, nothing of the classes that have them: what it needs to know of those (which
``get_request`` is the untouched default) comes as data, in ``Defaults``.

Threads: for any, of which each dispatches another request. The GIL is given up in ``accept4`` only.
"""

import sys

from cpython.pythread cimport PyThread_get_thread_ident

from fastsock cimport _sys
from fastsock._accept cimport Accepted, accept_connection, accept_from, can_accept
from fastsock._channel cimport channel_if, channel_of, end_connection
from fastsock._clock cimport monotonic, nanoseconds
from fastsock._control cimport Control, batch_size
from fastsock._datagram cimport can_receive, can_take, inbox_of, receive_datagram, take
from fastsock._deadlines import DeadlineError
from fastsock._hooks cimport (
    ACCEPT,
    CLOSE,
    CLOSE_DATAGRAM,
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
    untouched,
)
from fastsock._inbox cimport Inbox
from fastsock._ledger cimport Ledger, Record
from fastsock._limits cimport refusal, unlimited
from fastsock._worker cimport Pool

cdef enum:
    # Of one request, by when they are needed.
    TAKING = ACCEPT | RECEIVE | UNLIMITED | UNLIMITED_PER_PEER
    SERVING = VERIFY | PROCESS | THREAD_PROCESS | FINISH
    ENDING = SHUTDOWN | CLOSE | PROMPT
    ENDING_DATAGRAM = SHUTDOWN_DATAGRAM | CLOSE_DATAGRAM


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
            and (looked & PROMPT or not lingers(server))):
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


cdef bint lingers(object server) noexcept:
    """What is not True, or fails, is the program's own."""
    try:
        return getattr(server, "lingering_close", None) is True
    except Exception:
        return False


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
