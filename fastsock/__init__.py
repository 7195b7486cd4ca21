"""Python's ``socketserver`` on a Cython core.

``import fastsock as socketserver``: the same classes, mix-ins, handlers, hooks and attributes,
documented at https://docs.python.org/3/library/socketserver.html, those of the newest Python on
every supported one. ``python -m fastsock run app.py`` runs a program unchanged.

Beyond ``socketserver``:

serve_forever(*servers, poll_interval=0.5)
    Serves several servers in one thread.
Connection
    What the request of a stream server is: a ``socket.socket`` made straight from accept(2).
DatagramSocket, DatagramCounts
    What a datagram server receives from, and what it counts.
MultiplexingMixIn, MultiplexingTCPServer, MultiplexingUDPServer, ...
    Many handlers in one thread. ``fastsock.multiplexing`` has what they may call.
DeadlineError, LineTooLongError
    What handlers meet whose class has deadlines, or a limit for the length of lines.
run(*servers, drain_timeout=10.0)
    Serves until a SIGINT or SIGTERM, then lets the requests that run end. ``server.drain()`` does
    only that.
install(), uninstall()
    Put this package in the place of ``socketserver`` for every later import, and take it out.
"""

# The modules and names that are attributes of `socketserver` too: programs reach for
# `socketserver.socket.error`, `socketserver.threading` and the like.
import os
import selectors
import socket
import sys
import threading
import warnings
from io import BufferedIOBase
from time import monotonic as time

import fastsock._native
from fastsock._connection import Connection
from fastsock._datagram_socket import DatagramCounts, DatagramSocket
from fastsock._deadlines import DeadlineError
from fastsock._handlers import (
    BaseRequestHandler,
    DatagramRequestHandler,
    StreamRequestHandler,
    _SocketWriter,
)
from fastsock._mixins import (
    ForkingMixIn,
    ForkingTCPServer,
    ForkingUDPServer,
    ForkingUnixDatagramServer,
    ForkingUnixStreamServer,
    ThreadingMixIn,
    ThreadingTCPServer,
    ThreadingUDPServer,
    ThreadingUnixDatagramServer,
    ThreadingUnixStreamServer,
    _NoThreads,
    _Threads,
)
from fastsock._plain import ServerSelector as _ServerSelector
from fastsock._reader import LineTooLongError
from fastsock._replace import install, uninstall
from fastsock._running import run
from fastsock._servers import (
    BaseServer,
    TCPServer,
    UDPServer,
    UnixDatagramServer,
    UnixStreamServer,
    serve_forever,
)
from fastsock._types import TYPE_CHECKING

if TYPE_CHECKING:
    from fastsock import multiplexing
    from fastsock._drain import DrainReport
    from fastsock.multiplexing import (
        MultiplexingMixIn,
        MultiplexingTCPServer,
        MultiplexingUDPServer,
        MultiplexingUnixDatagramServer,
        MultiplexingUnixStreamServer,
    )

__all__ = [
    "BaseRequestHandler",
    "BaseServer",
    "Connection",
    "DatagramCounts",
    "DatagramRequestHandler",
    "DatagramSocket",
    "DeadlineError",
    "ForkingMixIn",
    "ForkingTCPServer",
    "ForkingUDPServer",
    "ForkingUnixDatagramServer",
    "ForkingUnixStreamServer",
    "LineTooLongError",
    "MultiplexingMixIn",
    "MultiplexingTCPServer",
    "MultiplexingUDPServer",
    "MultiplexingUnixDatagramServer",
    "MultiplexingUnixStreamServer",
    "StreamRequestHandler",
    "TCPServer",
    "ThreadingMixIn",
    "ThreadingTCPServer",
    "ThreadingUDPServer",
    "ThreadingUnixDatagramServer",
    "ThreadingUnixStreamServer",
    "UDPServer",
    "UnixDatagramServer",
    "UnixStreamServer",
    "install",
    "serve_forever",
    "uninstall",
]

if TYPE_CHECKING:  # not for `from socketserver import *`: programs have a `run` of their own
    __all__ += ["DrainReport", "run"]

#: the version of fastsock; `__version__` is that of socketserver
VERSION = "0.1.0"


#: what fastsock.multiplexing defines. Imported when it is asked for: others do without it
_MULTIPLEXING = frozenset(name for name in __all__ if name.startswith("Multiplexing"))


def __dir__() -> list[str]:
    return sorted({*globals(), *_MULTIPLEXING, "multiplexing", "DrainReport"})


if not TYPE_CHECKING:  # to which it would say that every name exists

    def __getattr__(name: str) -> object:
        """What is imported late; and ``__version__``, deprecated since Python 3.15."""
        if name in _MULTIPLEXING or name == "multiplexing":
            import fastsock.multiplexing  # from now on an attribute of the package

            module = sys.modules["fastsock.multiplexing"]
            return module if name == "multiplexing" else getattr(module, name)
        if name == "DrainReport":
            from fastsock._drain import DrainReport

            return DrainReport
        if name == "__version__":
            if sys.version_info >= (3, 15):
                warnings.warn(
                    "'__version__' is deprecated and slated for removal in Python 3.20",
                    DeprecationWarning,
                    stacklevel=2,
                )
            return "0.4"
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
