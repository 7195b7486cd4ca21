"""DatagramSocket: what a datagram server receives from, a ``socket.socket`` with an inbox.

Its methods are those of ``fastsock._datagram``, and for the rest those of ``socket.socket``.
"""

from __future__ import annotations

import socket
import struct
from collections import namedtuple

from fastsock import _datagram
from fastsock._connection import _Base, reduce_as_socket
from fastsock._types import TYPE_CHECKING, Any

#: socket(7) does not name it, nor does the socket module
_SO_MEMINFO = 55
_DROPS = 8  # SK_MEMINFO_DROPS of linux/sock_diag.h

if TYPE_CHECKING:
    from typing import NamedTuple

    class DatagramCounts(NamedTuple):
        truncated: int
        dropped: int

else:  # typing takes long to import
    DatagramCounts = namedtuple("DatagramCounts", "truncated dropped")

DatagramCounts.__doc__ = """What ``UDPServer.datagram_counts()`` returns.

truncated: datagrams longer than max_packet_size that the server has received.
dropped: datagrams that the kernel could not deliver to this socket, for want of room in its
buffer mostly; exact, as of the call.
"""


def counts_of(sock: socket.socket, truncated: int) -> DatagramCounts:
    """Ask the kernel. Raises OSError as getsockopt(2)."""
    size = struct.calcsize("I")
    info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, size * (_DROPS + 1))
    return DatagramCounts(truncated, struct.unpack_from("I", info, size * _DROPS)[0])


def sent_by(server: Any) -> int:
    """How many datagrams have been sent by a server's DatagramSocket, if it has one."""
    try:
        sock = server.socket
    except Exception:  # a program has something else of that name
        return 0
    return _datagram.sent(sock) if type(sock) is DatagramSocket else 0


class DatagramSocket(_Base):
    """The socket that a datagram server makes.

    Has the methods, attributes and errors of ``socket.socket``, of which it is a subclass. A
    server that receives several datagrams at once keeps those here which it has not served yet:
    the recv methods return them first. Only who polls the descriptor does not learn of them.
    """

    __slots__ = ("_inbox",)

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """As ``socket.socket()``."""
        _datagram.initialised(self)
        super().__init__(*args, **keywords)

    if not TYPE_CHECKING:
        recv = _datagram.recv
        recv_into = _datagram.recv_into
        recvfrom = _datagram.recvfrom
        recvfrom_into = _datagram.recvfrom_into
        recvmsg = _datagram.recvmsg
        recvmsg_into = _datagram.recvmsg_into
        send = _datagram.send
        sendall = _datagram.sendall
        sendto = _datagram.sendto
        sendmsg = _datagram.sendmsg
        fileno = _datagram.fileno
        detach = _datagram.detach
        dup = _datagram.dup
        _real_close = _datagram._real_close

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_as_socket(self, DatagramSocket) or super().__reduce_ex__(protocol)


DatagramSocket.__module__ = __package__

_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)


def make_socket(family: int) -> socket.socket:
    """A socket for datagrams.

    Raises:
        OSError: as socket(2).
    """
    if family in _FAMILIES and _datagram.genuine():
        return DatagramSocket(family, socket.SOCK_DGRAM)
    return socket.socket(family, socket.SOCK_DGRAM)
