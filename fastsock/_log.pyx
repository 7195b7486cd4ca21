"""What servers say themselves, in loggers below "fastsock", one for each topic.

accept: requests that cannot be taken. multiplexing: handlers that hold the thread, or do not end.
limits, deadlines, drain: what is done about requests. Records reach the logger "fastsock" too,
unless a program has said otherwise, and have these attributes besides the usual ones:

event: what has happened, a word; peer: the client_address, or None; server_address: that of the
server, or None; and what the event has besides.

``logging`` is imported by the first who has something to say: it takes a third as long as the
import of the package.
"""

import _signal  # signal, without the enums that it makes
import sys
import threading

cdef object _SIGNALS = range(1, _signal.NSIG)
cdef dict _LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def report(str topic, str event, message, *values, server=None, peer=None, level="warning",
           **attributes):
    """Log a message of a server; raises nothing but what a signal handler has raised.

    values: of the message, as ``logging`` takes them. attributes: of the record.
    """
    try:
        if "logging" not in sys.modules and (level == "debug" or level == "info"):
            return  # of which nobody wants to hear who has not imported it
        import logging

        logger = logging.getLogger(f"fastsock.{topic}")
        number = _LEVELS[level]
        if not logger.isEnabledFor(number):
            return
        attributes.update(event=event, peer=peer,
                          server_address=getattr(server, "server_address", None))
        logger.log(number, message, *values, extra=attributes)
    except Exception as error:
        if raised_by_signal_handler(error):
            raise
        _report_plainly(message, values, error)


cdef int _report_plainly(object message, tuple values, object error) except -1:
    """What logging.lastResort would write, where logging cannot be had, or has failed itself."""
    try:
        if sys.stderr is None:
            return 0
        print(message % values, file=sys.stderr)
        if not isinstance(error, (ImportError, OSError)):  # no descriptor is left to read it with
            import traceback

            traceback.print_exception(type(error), error, error.__traceback__)
    except Exception as another:
        if raised_by_signal_handler(another):
            raise
    return 0


def raised_by_signal_handler(error):
    """Whether a function of ``signal.signal()`` has raised it, which runs in whatever task runs.

    Elsewhere it would leave ``serve_forever()``, and so it should here.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    codes = {_code_of(handler) for handler in map(_signal.getsignal, _SIGNALS) if callable(handler)}
    codes.discard(None)
    trace = error.__traceback__ if codes else None
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


cdef object _code_of(object handler):
    """What a function of ``signal.signal()`` runs; None: nothing of Python's."""
    function = getattr(handler, "func", handler)  # of a partial
    function = getattr(function, "__func__", function)
    if not hasattr(function, "__code__"):
        function = type(function).__call__
    return getattr(function, "__code__", None)
