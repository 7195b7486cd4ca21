"""Bytes for a connection from beside its handler: all of them at once, or none.

The handler is never kept waiting for it, nor is whoever posts: all of a post happens under the GIL.
It does not come in the middle of anything: what the handler is sending, or has sent the first part
of (``Channel.writers``), is sent first, and the post behind it by who sends that.

The kernel does not promise to take all or nothing of a stream. So it is asked how much it holds for
the connection, and more is posted only where there is room for all, by an estimate on the safe
side.
"""

from cpython.bytes cimport PyBytes_AS_STRING

from fastsock cimport _sys
from fastsock._channel cimport Channel, channel_if, channel_of
from fastsock._ledger cimport Record
from fastsock._waiter cimport FREE, FULL, Way

cdef extern from *:
    """
    #include <sys/socket.h>

    /* How much of its room for bytes to be sent a socket has used up, and of how much; 0: the
     * kernel does not tell. SO_MEMINFO and SK_MEMINFO_...: linux/sock_diag.h. */
    static int fastsock_room(int fd, unsigned int *used, unsigned int *most) {
        unsigned int info[9];
        socklen_t size = sizeof(info);
        if (getsockopt(fd, SOL_SOCKET, 55, info, &size) < 0 || size < 6 * sizeof(*info))
            return 0;
        *used = info[2] > info[5] ? info[2] : info[5];  /* WMEM_ALLOC, WMEM_QUEUED */
        *most = info[3];  /* SNDBUF */
        return 1;
    }
    """
    int fastsock_room(int fd, unsigned int *used, unsigned int *most) noexcept

cdef enum:
    # What the kernel adds: at most as much again for packets of the usual sizes, and some.
    OVERHEAD = 2048
    # So much is one packet, of which an empty buffer takes all.
    ONE_PACKET = 1024
    # Bytes that may wait behind what a handler is sending.
    MOST_BEHIND = 1 << 16


cdef bint _has_room(Channel channel, int descriptor, size_t size) noexcept:
    """Whether the kernel would take all of so many bytes now."""
    cdef unsigned int used = 0, most = 0
    cdef _sys.pollfd asked
    if channel.kind != _sys.SOCK_STREAM:
        return True  # a packet is taken whole, or not
    if not fastsock_room(descriptor, &used, &most):
        return False
    if used == 0 and size <= ONE_PACKET:
        return True
    if used + 2 * size + OVERHEAD > most:
        return False
    if used == 0 or channel.family == _sys.AF_UNIX:
        return True
    # The limit on bytes that are not sent yet may be lower (TCP_NOTSENT_LOWAT).
    asked.fd = descriptor
    asked.events = _sys.POLLOUT
    asked.revents = 0
    return _sys.poll(&asked, 1, 0) == 1 and asked.revents == _sys.POLLOUT


def post(Record record not None, bytes data not None):
    """Have all of the data sent, now or behind what is being sent; or return False, and none is."""
    cdef Channel channel
    cdef Way way = FREE
    cdef int descriptor
    cdef Py_ssize_t count, size
    if type(record) is not Channel or record.ledger is None or record.of_tls:
        return False
    channel = <Channel> record
    descriptor = channel.owned()
    if descriptor < 0:
        return False
    if channel.waiter is not None:
        way = channel.waiter.way(channel)
    if way == FULL:
        return False
    if channel.behind is not None:
        # Put there when there was room for it; it may have been left by a send that has failed.
        data = channel.behind + data
    size = len(data)
    if not _has_room(channel, descriptor, size):
        return False
    if way != FREE or channel.writers:
        if size > MOST_BEHIND:
            return False
        channel.behind = data
        return True
    count = _sys.send(descriptor, PyBytes_AS_STRING(data), size,
                      _sys.MSG_DONTWAIT | _sys.MSG_NOSIGNAL)
    if count == size:
        channel.behind = None
        channel.sent += <size_t> count
        if channel.deadlines is not None:
            channel.deadlines.moved()
        return True
    if count > 0:
        # It is short of memory. A stream with half a message in it is of no use to anybody.
        channel.sent += <size_t> count
        channel.cut(_sys.SHUT_RDWR)
    return False


def is_of(Record record not None, request):
    """Whether a record is that of a Connection."""
    return channel_if(request) is record


# For writes that are made by the socket object, and not by the channel.


def begin_write(connection):
    """Nothing is to be sent in between until end_write()."""
    cdef Channel channel = channel_of(connection)
    channel.writers += 1


def end_write(connection):
    cdef Channel channel = channel_of(connection)
    channel.writers -= 1
    if channel.behind is not None:
        channel.send_behind(connection)


def count(connection, size_t received, size_t sent):
    """Count bytes that the socket object has received, or sent."""
    cdef Channel channel = channel_of(connection)
    if received:
        channel.came(received)
    if sent:
        channel.went(sent, True, NULL, 0)


def bytes_sent(connection):
    """How many have been."""
    return channel_of(connection).sent
