"""Many ordinary handlers in one thread: MultiplexingMixIn, and what its handlers may call.

A request runs in a greenlet of the thread of ``serve_forever()``. Its connection, rfile and wfile
wait by letting other requests run. So do the functions and classes of this module; used anywhere
else they simply block, so that the same handler runs under ThreadingMixIn.

Everything else that blocks (sockets that a handler makes itself, ``time.sleep()``, ``subprocess``,
the primitives of ``threading``) keeps all others from running, which is reported to the logger
``fastsock``. ``to_thread()`` is for that. (Nothing here is in the standard library's socketserver.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from fastsock import _guests, _hubs, _tls
from fastsock._connection import Connection
from fastsock._cooperative import Spawned, create_connection, sleep, spawn, to_thread, wait
from fastsock._dispatch import timed
from fastsock._hub import Hub
from fastsock._hubs import Tasks
from fastsock._mixins import _begin, _close_timeout, _control_of, _end_request, _failed
from fastsock._servers import TCPServer, UDPServer, UnixDatagramServer, UnixStreamServer
from fastsock._sync import Event, Lock, Queue
from fastsock._types import TYPE_CHECKING, Any, RequestType, RetAddress

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
        elif type(self.request) is tuple and (control := _control_of(server)) is not None:
            # A datagram, of which nothing else would tell when it is over.
            timed(control.ledger, server.process_request_thread, self.request, self.client_address)
        else:
            server.process_request_thread(self.request, self.client_address)

    def left_behind(self) -> None:
        """It will never end: its thread has. Nor will anybody close the files of its request."""
        request = self.request
        try:
            self.server.shutdown_request(request)
        finally:
            if getattr(request, "_closed", False) and hasattr(request, "_real_close"):
                request._real_close()

    def __str__(self) -> str:
        handler = self.server.RequestHandlerClass
        name = getattr(handler, "__qualname__", None) or repr(handler)
        return f"{name} for {self.client_address!r}"

    @property
    def threshold(self) -> float:
        """Seconds; what is shorter is not reported."""
        threshold: float = self.server.slow_handler_threshold
        return threshold


def _is_doomed(server: Any) -> bool:
    tasks: Tasks = vars(server)["_fastsock_tasks"]
    return tasks.hub.current.doomed


class MultiplexingMixIn:
    """Handle each request in a greenlet of its own, all of them in the thread of the loop.

    Stands before the server class, as ThreadingMixIn does, and needs greenlet: ``pip install
    'fastsock[multiplex]'``. ``shutdown()`` returns when nothing is accepted any more;
    ``serve_forever()`` when the handlers have ended. It raises RuntimeError if it is called by a
    handler of such a server.

    To unwind a handler is to raise ``greenlet.GreenletExit`` (no Exception) where it waits, so that
    its ``finally`` and ``finish()`` run.

    Attributes:
        daemon_threads: handlers that still run are unwound when ``serve_forever()`` ends, instead
            of being waited for.
        block_on_close: if false, they are unwound too.
        close_timeout: seconds for which ``serve_forever()`` and ``server_close()`` wait for them;
            then the connections that are left are shut down, and who waits for something else is
            unwound. None: without end.
        slow_handler_threshold: seconds; a handler that has not let others run for longer is
            reported to the logger ``fastsock``. Of several servers in one thread, each its own.
    """

    daemon_threads: bool = False
    block_on_close: bool = True
    close_timeout: float | None = None
    slow_handler_threshold: float = 0.1

    if not TYPE_CHECKING:  # to which the arguments are those of the server class

        def __init__(self, *args: Any, **keywords: Any) -> None:
            """As of the server class that it is mixed into.

            Raises:
                ImportError: greenlet is not installed.
            """
            _hubs.check()
            super().__init__(*args, **keywords)

    def process_request_thread(self, request: RequestType, client_address: RetAddress) -> None:
        """Finish one request and shut it down, in its greenlet. May be overridden."""
        begun = _begin(self)
        try:
            self.finish_request(request, client_address)  # type: ignore[attr-defined]
        except Exception as error:
            if _hubs.raised_by_signal_handler(error):
                raise
            _failed(self, request, client_address)
        finally:
            _end_request(self, request, begun)

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Start a greenlet for the request. It runs as soon as the loop waits.

        Raises:
            ImportError: greenlet is not installed, and the constructor was skipped.
        """
        _tls.prepare()
        tasks = _tasks_of(self)
        _adopt(tasks.hub, request)
        about = _Request(self, request, client_address)
        tasks.start(about.run, about)

    def handle_request(self) -> None:
        """Take a request, and run its handler until that waits for something.

        It goes on while the next call waits for a request, and in ``serve_forever()`` and
        ``server_close()``.
        """
        super().handle_request()  # type: ignore[misc]
        tasks: Tasks | None = vars(self).get("_fastsock_tasks")
        if tasks is None or tasks.hub.closed:  # no handler has been left behind
            return
        if _hubs.is_main(tasks.hub):
            tasks.hub.turn()
            _hubs.release(tasks.hub)

    def server_close(self) -> None:
        """Close, then wait for the handlers that are left, or unwind them, as ``serve_forever()``.

        From any thread. In that of the handlers, if its loop does not run any more, they run now.
        """
        super().server_close()  # type: ignore[misc]
        _end(self)

    def _fastsock_waiting(self) -> Callable[[list[int], int], list[int]] | None:
        """How handle_request() waits: with the handlers of earlier requests, if there are any."""
        tasks: Tasks | None = vars(self).get("_fastsock_tasks")
        if tasks is None or not tasks.hub.alive or not _hubs.is_main(tasks.hub):
            return None
        hub = tasks.hub

        def wait(descriptors: list[int], milliseconds: int) -> list[int]:
            seconds = None if milliseconds < 0 else milliseconds / 1000
            if not descriptors:
                Event().wait(seconds)
                return []
            return descriptors if hub.wait_in_main(descriptors[0], True, False, seconds) else []

        return wait

    def _fastsock_adopting(self, hub: Hub) -> Callable[[Any], object]:
        """What is to be called with a request before the hooks, which may wait for it."""
        return functools.partial(_adopt, hub)

    def _fastsock_serving(self, servers: list[Any]) -> _hubs.Serving:
        """The context in which a loop serves these servers."""
        _tls.prepare()
        return _hubs.Serving(servers, [_tasks_of(server) for server in servers], _end)


def _adopt(hub: Hub, request: Any) -> None:
    """Have the calls on a request's socket wait by the hub."""
    if type(request) is Connection:
        hub.adopt(request)
    else:
        _guests.adopt(request)


def _tasks_of(server: Any) -> Tasks:
    attributes = vars(server)
    tasks: Tasks | None = attributes.get("_fastsock_tasks")
    # Another thread's, if a loop is run there: process_request() may be called in any.
    if tasks is None or tasks.hub.closed or not (_hubs.is_of_caller(tasks.hub) or tasks.hub.active):
        if tasks is not None and tasks.running:  # in a thread whose loop an exception has ended
            attributes.setdefault("_fastsock_left", []).append(tasks)
        tasks = attributes["_fastsock_tasks"] = Tasks(_hubs.of_thread())
        tasks.hub.set_threshold(server.slow_handler_threshold)
    return tasks


def _end(server: Any) -> None:
    attributes = vars(server)
    control = _control_of(server)
    seconds = _close_timeout(server)
    drained = control is not None and control.draining != 0  # which gives them their time
    for tasks in (attributes.get("_fastsock_tasks"), *attributes.get("_fastsock_left", ())):
        if tasks is not None and tasks.running:
            if _hubs.is_orphaned(tasks.hub):
                tasks.bury()
                continue
            if (server.daemon_threads or not server.block_on_close) and not drained:
                tasks.kill()
            if seconds is None or drained:
                tasks.join()
            else:
                _join_in_time(server, tasks, seconds)
        elif tasks is not None:
            _hubs.release(tasks.hub)


def _join_in_time(server: Any, tasks: Tasks, seconds: float) -> None:
    from fastsock import _drain

    def runs() -> bool:
        """Whether tasks of others are left, and there is a thread that lets them run."""
        hub = tasks.hub
        mine = hub.runs_here() and hub.current in tasks.running
        return len(tasks.running) > mine and (hub.is_mine() or hub.active)

    _drain.end_in_time(server, _control_of(server), seconds, runs)
    if _hubs.is_of_caller(tasks.hub):
        _hubs.release(tasks.hub)


class MultiplexingTCPServer(MultiplexingMixIn, TCPServer):
    """A TCPServer with a greenlet for each request."""


class MultiplexingUDPServer(MultiplexingMixIn, UDPServer):
    """A UDPServer with a greenlet for each request."""


class MultiplexingUnixStreamServer(MultiplexingMixIn, UnixStreamServer):
    """A UnixStreamServer with a greenlet for each request."""


class MultiplexingUnixDatagramServer(MultiplexingMixIn, UnixDatagramServer):
    """A UnixDatagramServer with a greenlet for each request."""
