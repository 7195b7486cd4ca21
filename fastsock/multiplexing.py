"""Many ordinary handlers in one thread: MultiplexingMixIn, and what its handlers may call.

A request runs in a greenlet of the thread of ``serve_forever()``. Its connection, rfile and wfile
wait by letting other requests run. So do the functions of this module; called anywhere else they
simply block, so that the same handler runs under ThreadingMixIn.
"""

from __future__ import annotations

from fastsock import _hubs, _tls
from fastsock._connection import Connection
from fastsock._cooperative import Spawned, create_connection, sleep, spawn, to_thread, wait
from fastsock._hubs import Tasks
from fastsock._servers import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from fastsock._sync import Event, Lock, Queue
from fastsock._types import Any, RequestType, RetAddress

__all__ = [
    "Event",
    "Lock",
    "MultiplexingMixIn",
    "MultiplexingTCPServer",
    "MultiplexingUDPServer",
    "MultiplexingUnixDatagramServer",
    "MultiplexingUnixStreamServer",
    "Queue",
    "Spawned",
    "create_connection",
    "sleep",
    "spawn",
    "to_thread",
    "wait",
]


class _Request:
    """What a task is about, for reports."""

    __slots__ = ("client_address", "request", "server")

    def __init__(self, server: Any, request: Any, client_address: Any) -> None:
        self.server = server
        self.request = request
        self.client_address = client_address

    def run(self) -> None:
        server = self.server
        if _is_doomed(server):
            server.shutdown_request(self.request)
        else:
            server.process_request_thread(self.request, self.client_address)

    def __str__(self) -> str:
        handler = self.server.RequestHandlerClass
        name = getattr(handler, "__qualname__", None) or repr(handler)
        return f"{name} for {self.client_address!r}"


def _is_doomed(server: Any) -> bool:
    tasks: Tasks = vars(server)["_fastsock_tasks"]
    return tasks.hub.current.doomed


class MultiplexingMixIn:
    """Handle each request in a greenlet of its own, all of them in the thread of the loop.

    Needs greenlet (``pip install 'fastsock[multiplex]'``). (Not in the standard library.)

    Attributes:
        daemon_threads: handlers that still run are unwound when ``serve_forever()`` ends, instead
            of being waited for.
        block_on_close: if false, they are unwound too.
        slow_handler_threshold: seconds; a handler that has not let others run for longer is
            reported to the logger ``fastsock``.
    """

    daemon_threads: bool = False
    block_on_close: bool = True
    slow_handler_threshold: float = 0.1

    def __init__(self, *args: Any, **keywords: Any) -> None:
        """As of the server class that it is mixed into.

        Raises:
            ImportError: greenlet is not installed.
        """
        _hubs.check()
        super().__init__(*args, **keywords)

    def process_request_thread(self, request: RequestType, client_address: RetAddress) -> None:
        """Finish one request and shut it down, in its greenlet. May be overridden."""
        try:
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
        except Exception as error:
            if _hubs.raised_by_signal_handler(error):
                raise
            self.handle_error(request, client_address)  # type: ignore[attr-defined]
        finally:
            self.shutdown_request(request)  # type: ignore[attr-defined]

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Start a greenlet for the request."""
        _tls.prepare()
        tasks = _tasks_of(self)
        if type(request) is Connection:
            tasks.hub.adopt(request)
        about = _Request(self, request, client_address)
        tasks.start(about.run, about)

    def handle_request(self) -> None:
        """As of every server; what the handlers do until they wait for something is done then."""
        super().handle_request()  # type: ignore[misc]
        tasks: Tasks | None = vars(self).get("_fastsock_tasks")
        if tasks is None:
            return
        if _hubs.is_main(tasks.hub):
            tasks.hub.turn()
            _hubs.release(tasks.hub)

    def server_close(self) -> None:
        """Close, then wait for the handlers as ``serve_forever()`` does."""
        super().server_close()  # type: ignore[misc]
        _end(self)

    def _fastsock_serving(self, servers: list[Any]) -> _hubs.Serving:
        """The context in which a loop serves these servers."""
        _tls.prepare()
        return _hubs.Serving(servers, [_tasks_of(server) for server in servers], _end)


def _tasks_of(server: Any) -> Tasks:
    attributes = vars(server)
    tasks: Tasks | None = attributes.get("_fastsock_tasks")
    if tasks is None or tasks.hub.closed or not (tasks.running or tasks.hub.is_mine()):
        tasks = attributes["_fastsock_tasks"] = Tasks(_hubs.of_thread())
        tasks.hub.set_threshold(server.slow_handler_threshold)
    return tasks


def _end(server: Any) -> None:
    tasks: Tasks | None = vars(server).get("_fastsock_tasks")
    if tasks is not None and tasks.running:
        if server.daemon_threads or not server.block_on_close:
            tasks.kill()
        tasks.join()
    elif tasks is not None:
        _hubs.release(tasks.hub)


class MultiplexingTCPServer(MultiplexingMixIn, TCPServer):
    """A TCPServer with a greenlet for each request."""


class MultiplexingUDPServer(MultiplexingMixIn, UDPServer):
    """A UDPServer with a greenlet for each request."""


class MultiplexingUnixStreamServer(MultiplexingMixIn, UnixStreamServer):
    """A UnixStreamServer with a greenlet for each request."""


class MultiplexingUnixDatagramServer(MultiplexingMixIn, UnixDatagramServer):
    """A UnixDatagramServer with a greenlet for each request."""
