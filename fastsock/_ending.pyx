"""What ends the connections of a server: of a drain, and of a close that lingers.

Threads: for any, under the GIL, as whatever closes a descriptor.
"""

from fastsock cimport _sys
from fastsock._channel cimport Channel, channel_if
from fastsock._ledger cimport IDLE, ChildRecord, Ledger, Record

cdef enum:
    PIECE = 1 << 14


def wake_idle(Ledger ledger not None):
    """End the wait of each connection that waits for a next message; how many those are.

    shutdown(2) for reading: what has come in that very moment is received all the same.
    """
    cdef Record record
    cdef Channel channel
    cdef int count = 0, descriptor
    for record in ledger.records():
        if type(record) is not Channel or record.doing != IDLE or record.woken:
            continue
        channel = <Channel> record
        descriptor = channel.owned()
        if descriptor >= 0 and channel.is_between_messages(descriptor):
            channel.woken = True
            channel.cut(_sys.SHUT_RD)
            count += 1
    return count


def woken(Ledger ledger not None):
    """How many of those are still under way."""
    cdef Record record
    cdef int count = 0
    for record in ledger.records():
        count += record.woken
    return count


def cut_off(Ledger ledger not None):
    """Shut down what is left, both ways, but for what child processes serve."""
    cdef Record record
    for record in ledger.records():
        if type(record) is not ChildRecord:
            record.cut(_sys.SHUT_RDWR)


def may_have_replied(request):
    """Whether something was written to it, as far as is known."""
    cdef Channel channel = channel_if(request)
    return channel is None or channel.handed_over or channel.sent > 0


def drop(int descriptor, size_t most):
    """Receive up to so many bytes of what is there, for nobody.

    Returns how many, 0 at the end of the stream or when the peer is gone, -1 if nothing is there.
    """
    cdef char buffer[PIECE]
    cdef Py_ssize_t count = _sys.recv(descriptor, buffer, min(most, <size_t> PIECE),
                                      _sys.MSG_DONTWAIT)
    if count >= 0:
        return count
    return -1 if _sys.errno == _sys.EAGAIN or _sys.errno == _sys.EINTR else 0
