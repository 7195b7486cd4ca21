"""``socketserver`` after ``fastsock.install(multiplex=True)``: its threads are greenlets.

All names are fastsock's, but for ``ThreadingMixIn`` and the ready-made servers with it.
"""

from __future__ import annotations

import sys

from fastsock import _hubs, _mixins, _servers
from fastsock._types import Any, RequestType, RetAddress
from fastsock.multiplexing import MultiplexingMixIn

_PACKAGE = sys.modules[str(__package__)]

__all__: list[str] = _PACKAGE.__all__


class ThreadingMixIn(MultiplexingMixIn, _mixins.ThreadingMixIn):
    """MultiplexingMixIn where ``serve_forever()`` runs; elsewhere a thread for each request.

    Greenlets need a loop that runs them. A program with a loop of its own around
    ``handle_request()`` waits in it for something else, and its handlers with it. So there they are
    threads, and everything that ``fastsock.ThreadingMixIn`` has is here.
    """

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Start a greenlet for the request, or a thread.

        Raises:
            RuntimeError: no thread could be started.
        """
        if _hubs.loop_runs_here():
            MultiplexingMixIn.process_request(self, request, client_address)
        else:
            _mixins.ThreadingMixIn.process_request(self, request, client_address)


class ThreadingTCPServer(ThreadingMixIn, _servers.TCPServer):
    """A TCPServer with a greenlet for each request."""


class ThreadingUDPServer(ThreadingMixIn, _servers.UDPServer):
    """A UDPServer with a greenlet for each request."""


class ThreadingUnixStreamServer(ThreadingMixIn, _servers.UnixStreamServer):
    """A UnixStreamServer with a greenlet for each request."""


class ThreadingUnixDatagramServer(ThreadingMixIn, _servers.UnixDatagramServer):
    """A UnixDatagramServer with a greenlet for each request."""


def __getattr__(name: str) -> Any:
    """Every other name of ``socketserver``, as it is in fastsock now."""
    if name.startswith("__") and name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_PACKAGE, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(_PACKAGE)})
