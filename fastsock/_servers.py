"""The server classes of :mod:`socketserver`, and ``serve_forever()`` for several of them.

Plain Python classes, free to be subclassed, mixed, patched and combined. The loop that calls
their hooks is ``fastsock._core``.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from _socket import socket as _socket_type
from collections.abc import Callable, Iterable
from socket import socket as _socket
from types import FunctionType, TracebackType

from fastsock import _core, _plain
from fastsock._accept import unpatched
from fastsock._channel import adopt
from fastsock._connection import GENUINE, Connection
from fastsock._control import Control
from fastsock._datagram_socket import (
    DatagramCounts,
    DatagramSocket,
    counts_of,
    make_socket,
)
from fastsock._dispatch import dispatch
from fastsock._handlers import BaseRequestHandler
from fastsock._hooks import Defaults
from fastsock._log import report
from fastsock._names import OF_SERVERS, give_way, own_value
from fastsock._serving import _control_of, _loop_runs, _LoopEnded, _serving
from fastsock._types import (
    TYPE_CHECKING,
    Address,
    AfInet6Address,
    AfInetAddress,
    AfUnixAddress,
    Any,
    ClassVar,
    ReadableBuffer,
    RequestType,
    RetAddress,
    Self,
)

if TYPE_CHECKING:
    from fastsock._broadcast import Broadcast
    from fastsock._drain import DrainReport, Loops
    from fastsock._hub import Hub
    from fastsock._stats import LiveConnection, Stats
else:
    # of modules that are imported late; named for typing.get_type_hints()
    Broadcast = DrainReport = LiveConnection = Stats = Any


class _Connections:
    """An attribute of servers that they may have for something else: not a data descriptor."""

    def __get__(self, server: Any, cls: type) -> list[LiveConnection]:
        if server is None:
            return self  # type: ignore[return-value]
        from fastsock._stats import connections_of

        return connections_of(server, _control_of(server))


_new: Any = object.__new__
_init: Any = BaseRequestHandler.__init__


def _is_method(cls: type, init: Any) -> bool:
    """Whether a class has init as its ``__init__`` as it is: no staticmethod() of it, say."""
    if init is _init:
        return True
    for base in cls.__mro__:
        if "__init__" in base.__dict__:
            return type(init) is FunctionType and base.__dict__["__init__"] is init
    return False


class BaseServer:
    """The loop and the hooks of every server; needs no socket of its own.

    A subclass that defines ``fileno()`` (a descriptor that becomes readable) and
    ``get_request()`` serves requests from any source. (Documented: ``socketserver.BaseServer``.)

    For the caller: ``serve_forever()``, ``shutdown()``, ``handle_request()``,
    ``server_close()``, the context manager, which closes.

    Hooks, in the order in which they run: ``get_request()``, ``verify_request()``,
    ``process_request()``, ``finish_request()``, ``shutdown_request()``, ``close_request()``;
    ``service_actions()``, ``handle_timeout()``, ``handle_error()``; ``server_activate()``.
    All are looked up anew for every request.

    Attributes:
        server_address: the address given to the constructor; for servers with a socket, what
            the socket is bound to.
        RequestHandlerClass: called with (request, client_address, server) for each request.
        timeout: seconds that ``handle_request()`` waits at most; None: for ever.
        max_connections: with as many connections, or processes, no more are taken; None, or no
            positive int: no limit. (This and the following are not in the standard library.)
        overload: what happens to those beyond it: "wait" (they stay in the backlog until an eighth,
            at least one, has ended) or "reject" (they are taken and closed at once, until then).
        max_connections_per_peer: what is beyond that, by IPv4 address or IPv6 network of /64, is
            taken and closed at once; None: no limit.
        quiet_disconnects: handle_error() prints one line, and no traceback, of a
            ConnectionResetError or BrokenPipeError: the peer has gone.
    """

    max_connections: int | None = None
    max_connections_per_peer: int | None = None
    overload: str = "wait"
    quiet_disconnects: bool = False

    server_address: Address
    timeout: float | None = None
    RequestHandlerClass: Callable[[Any, RetAddress, Self], BaseRequestHandler]

    def __init__(
        self,
        server_address: Address,
        RequestHandlerClass: Callable[[Any, RetAddress, Self], BaseRequestHandler],
    ) -> None:
        """Constructor. May be extended; do not override."""
        self.server_address = server_address
        self.RequestHandlerClass = RequestHandlerClass
        self.__is_shut_down: threading.Event = _LoopEnded()
        self.__shutdown_request = False

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        give_way(cls, OF_SERVERS)

    @property
    def __shutdown_request(self) -> bool:
        """Whether the loop was asked to stop; assigning a true value wakes it."""
        stop: bool = _control_of(self).stop
        return stop

    @__shutdown_request.setter
    def __shutdown_request(self, value: bool) -> None:
        _control_of(self).stop = value

    @__shutdown_request.deleter
    def __shutdown_request(self) -> None:
        _control_of(self).stop = False

    def server_activate(self) -> None:
        """Called by the constructor of servers with a socket. May be overridden."""

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Handle requests until ``shutdown()``. Ignores ``timeout``.

        ``service_actions()`` runs after each request and whenever poll_interval has passed
        without one. (Documented: ``socketserver.BaseServer.serve_forever``.)

        Args:
            poll_interval: seconds, to the millisecond; 0: do not wait; None: without end.

        Raises:
            ValueError: the server is closed.
            OSError: the listener is closed or broken, and neither ``shutdown()`` nor another
                ``self.socket`` came within half a second.
        """
        _serve([self], poll_interval)

    def shutdown(self) -> None:
        """Stop ``serve_forever()``, and wait until it has ended.

        Does not wait when called from the loop's own thread (a handler, a hook, a signal
        handler) or while no loop runs; then the next ``serve_forever()`` ends at once. What was
        not accepted yet stays in the backlog. (Documented: ``socketserver.BaseServer.shutdown``.)
        """
        self.__shutdown_request = True
        control = _control_of(self)
        control.wake()  # also where a subclass has an attribute of that name
        ended = self.__is_shut_down
        if not isinstance(ended, _LoopEnded):
            ended.wait()  # an event that the program put in place
        elif ended.runs_elsewhere() and not control.takes_here():
            ended.join()

    def service_actions(self) -> None:
        """Called by the loop after each request and each poll_interval. May be overridden."""

    def handle_request(self) -> None:
        """Handle one request, or run ``handle_timeout()`` when none came in time.

        Waits for ``timeout`` seconds or the socket's own timeout, whichever is shorter.
        (Documented: ``socketserver.BaseServer.handle_request``.)

        Raises:
            ValueError: the server is closed.
        """
        timeout = self.timeout
        listener = getattr(self, "socket", None)
        if listener is not None:
            by_socket = listener.gettimeout()
            if timeout is None:
                timeout = by_socket
            elif by_socket is not None:
                timeout = min(by_socket, timeout)
        wait = _waiter()
        if wait is None and hasattr(type(self), "_fastsock_waiting"):
            wait = self._fastsock_waiting()  # type: ignore[attr-defined]
        handled, result = _core.handle_one(self, _control_of(self), _DEFAULTS, timeout, wait)
        if not handled:
            return self.handle_timeout()
        return result  # type: ignore[no-any-return]

    def _handle_request_noblock(self) -> None:
        """Take one request, which is there already, and run the hooks on it."""
        dispatch(self, _control_of(self), _DEFAULTS)

    def handle_timeout(self) -> None:
        """Called by ``handle_request()`` when no request came in time. May be overridden."""

    def verify_request(self, request: RequestType, client_address: RetAddress) -> bool:
        """Return whether to process the request; if not, it is shut down. May be overridden."""
        return True

    def process_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Finish the request and shut it down. Mix-ins do so in a thread or a process."""
        begun = 0
        if type(request) is tuple:  # a datagram, of which nothing else would tell when it is over
            control: Any = getattr(self, "__dict__", {}).get("_fastsock")
            if type(control) is Control:
                begun = control.ledger.begin_here()
        self.finish_request(request, client_address)
        self.shutdown_request(request)
        if begun:
            control.ledger.end(request, begun)

    def server_close(self) -> None:
        """Give up what the server holds. May be overridden."""

    def finish_request(self, request: RequestType, client_address: RetAddress) -> None:
        """Make an instance of RequestHandlerClass, which does the work."""
        cls: Any = self.RequestHandlerClass
        kind: Any = type(cls)
        init: Any = getattr(cls, "__init__", None)
        if kind is type and cls.__new__ is _new and _is_method(cls, init):
            # What type.__call__() does, without its C frames: every suspended handler of a
            # multiplexing server keeps a copy of them.
            returned = init(_new(cls), request, client_address, self)
            if returned is not None:
                raise TypeError(f"__init__() should return None, not {type(returned).__name__!r}")
        else:
            cls(request, client_address, self)

    def shutdown_request(self, request: RequestType) -> None:
        """End one request. Overridden to do nothing, it leaves the request to the handler."""
        self.close_request(request)

    def close_request(self, request: RequestType) -> None:
        """Give up what one request holds. May be overridden."""

    def handle_error(self, request: RequestType, client_address: RetAddress) -> None:
        """Print the exception that left the handler to standard error. May be overridden.

        Runs inside the exception: ``raise`` and ``sys.exc_info()`` work. An exception that
        leaves this hook leaves ``serve_forever()`` too, after the request was shut down.
        """
        error = sys.exc_info()[1]
        has_gone = isinstance(error, (ConnectionResetError, BrokenPipeError))
        if has_gone and getattr(self, "quiet_disconnects", None) is True:
            print(f"{client_address} has gone: {error}", file=sys.stderr)
            return
        print("-" * 40, file=sys.stderr)
        print(
            "Exception occurred during processing of request from",
            client_address,
            file=sys.stderr,
        )
        _print_exception()
        print("-" * 40, file=sys.stderr)

    def connection_refused(self, client_address: RetAddress, reason: str) -> None:
        """Called when a connection was taken that is one too many; it is then shut down.

        May be overridden; does nothing by default. (Not in the standard library.)

        Args:
            client_address: the peer's address.
            reason: "max_connections" or "max_connections_per_peer".
        """

    def handle_accept_error(self, error: OSError) -> None:
        """Called in the loop when accept(2) or recvfrom(2) has failed. May be overridden.

        What is done about it (ARCHITECTURE.md has the table) does not depend on this; an exception
        leaves ``serve_forever()``. (Not in the standard library.)
        """

    def drain(self, timeout: float | None = None) -> DrainReport:
        """Stop accepting, and let the requests that run end; then the listener is closed.

        What the kernel has completed by now is still served. Connections that wait for a next
        message, having got an answer to what they sent, find the end of the stream. What still
        runs when the time is over is cut off: its connection is shut down, a child process gets
        SIGTERM, a greenlet that waits for something else GreenletExit. (Not in the standard
        library.)

        For any thread but those of the loop and the handlers. Where no loop runs, one is run in a
        thread of its own for what waits. ``server_close()`` is left to the caller.

        Args:
            timeout: seconds; None: without end. It returns within a tenth of a second after.

        Returns:
            How many requests have finished, were closed as idle, and were cut off.

        Raises:
            RuntimeError: called by a handler, a hook or a signal handler, for which it would wait.
            TypeError: timeout is no number.
            ValueError: timeout is NaN.
        """
        from fastsock import _drain  # late: few programs need it

        return _drain.drain([(self, _control_of(self))], timeout, _loops())[0]

    def stats(self) -> Stats:
        """What the server has done, and does: counted, not sampled.

        Returns:
            A snapshot, which does not change any more. (Not in the standard library.)
        """
        from fastsock._stats import stats_of  # late: what it needs is slow to import

        return stats_of(self, _control_of(self))

    #: the connections that are being served, the latest first, as a list of ``LiveConnection``;
    #: a snapshot (not in the standard library)
    connections = _Connections()

    def broadcast(self, data: ReadableBuffer, exclude: object = None) -> Broadcast:
        """Send bytes to all connections that are being served.

        Never waits, so a client whose buffer has no room for all of them gets none: it is skipped,
        and told of. Never in the middle of what a handler sends: a write to ``wfile``, a
        ``sendall()``, a ``sendfile()`` come first. Skipped are also TLS connections, those that
        child processes serve, and those that a handler has detached. For any thread, and for
        handlers. (Not in the standard library.)

        Args:
            data: bytes, or any buffer; much less than what a socket's send buffer holds.
            exclude: the request of a connection that does not get them.

        Raises:
            TypeError: data is no buffer.
        """
        from fastsock._broadcast import broadcast_to_all

        return broadcast_to_all(self, _control_of(self), data, exclude)

    def handle_timeout_error(
        self, request: RequestType, client_address: RetAddress, which: str
    ) -> None:
        """Called in the place of handle_error() when DeadlineError has left a handler.

        Runs inside the exception. By default a debug message goes to the logger
        "fastsock.deadlines". May be overridden. (Not in the standard library.)

        Args:
            which: the handler's attribute whose time was over, "idle_timeout" for example.
        """
        report(
            "deadlines",
            "timed_out",
            "%s of %s is over",
            which,
            client_address,
            server=self,
            peer=client_address,
            level="debug",
            deadline=which,
        )

    def __enter__(self) -> Self:
        return self

    if TYPE_CHECKING:  # as in typeshed

        def __exit__(
            self,
            exc_type: type[BaseException] | None,
            exc_val: BaseException | None,
            exc_tb: TracebackType | None,
        ) -> None: ...

        def get_request(self) -> tuple[Any, Any]: ...  # expected of subclasses

    else:

        def __exit__(self, *args):
            self.server_close()


class TCPServer(BaseServer):
    """A server on a stream socket, one request after another.

    Hooks besides those of BaseServer: ``server_bind()``, ``server_activate()``.
    (Documented: ``socketserver.TCPServer``.)

    Attributes:
        socket: the listener. May be replaced at any time, by a TLS socket for example.
        address_family, socket_type: of the socket that the constructor makes (``AF_INET``,
            ``SOCK_STREAM``).
        allow_reuse_address: set SO_REUSEADDR before binding.
        allow_reuse_port: set SO_REUSEPORT before binding, INET and INET6 only.
        tcp_nodelay: set TCP_NODELAY for all connections, INET and INET6 only: small writes are
            sent at once. (This and the next are not in the standard library.)
        lingering_close: before a connection is closed, read and drop what the peer still sends,
            64 KiB at most and for two seconds: unread, it would have the kernel reset the
            connection, and the peer lose the end of the reply. Whoever closes waits meanwhile; a
            server that handles one request after another serves nobody then.
        request_queue_size: the backlog, in connections, given to ``listen()``.
    """

    address_family: int = socket.AF_INET
    socket_type: int = socket.SOCK_STREAM
    request_queue_size: int = getattr(socket, "SOMAXCONN", 5)
    allow_reuse_address: bool = False
    allow_reuse_port: bool = False
    tcp_nodelay: bool = True
    lingering_close: bool = False

    socket: _socket
    server_address: AfInetAddress | AfInet6Address

    def __init__(
        self,
        server_address: AfInetAddress | AfInet6Address,
        RequestHandlerClass: Callable[[Any, RetAddress, Self], BaseRequestHandler],
        bind_and_activate: bool = True,
    ) -> None:
        """Make the socket; bind it and listen unless bind_and_activate is false.

        Raises:
            OSError, TypeError: as ``socket.bind()`` does; the socket is closed again.
        """
        BaseServer.__init__(self, server_address, RequestHandlerClass)
        self.socket = _socket_for(self)
        if bind_and_activate:
            try:
                self.server_bind()
                self.server_activate()
            except BaseException:
                self.server_close()
                raise

    def server_bind(self) -> None:
        """Bind the socket to server_address, and learn the address it got. May be overridden.

        Raises:
            OSError: as bind(2); the address is its ``filename``.
        """
        if self.allow_reuse_address and hasattr(socket, "SO_REUSEADDR"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if (
            self.allow_reuse_port
            and hasattr(socket, "SO_REUSEPORT")
            # Linux refuses it to other families since 6.12.9.
            and self.address_family in (socket.AF_INET, socket.AF_INET6)
        ):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Here, since UDPServer has no server_bind() of its own in the standard library.
        if isinstance(self, UDPServer) and self.receive_buffer_size is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_size)
        try:
            self.socket.bind(self.server_address)
        except OSError as error:
            if error.errno is not None and error.filename is None:
                with contextlib.suppress(AttributeError):
                    error.filename = self.server_address
            raise
        _control_of(self).bound(self.socket)
        self.server_address = self.socket.getsockname()

    def server_activate(self) -> None:
        """Listen. May be overridden.

        Connections inherit the listener's TCP_NODELAY (tcp(7)).

        Raises:
            OSError: as listen(2).
        """
        if (
            self.tcp_nodelay
            and self.address_family in (socket.AF_INET, socket.AF_INET6)
            and self.socket_type == socket.SOCK_STREAM
            and isinstance(self.socket, _socket_type)
        ):
            with contextlib.suppress(OSError):  # a protocol that has no such option
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.listen(self.request_queue_size)

    def server_close(self) -> None:
        """Close the socket. May be overridden."""
        self.socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, an int; -1 once it is closed."""
        return self.socket.fileno()

    def get_request(self) -> tuple[_socket, RetAddress]:
        """Accept: return (request, client_address). May be overridden.

        Raises:
            OSError: as accept(2); there is no request, and the loop goes on.
            TimeoutError: of a listener with a timeout, after as many seconds.
        """
        request, client_address = self.socket.accept()
        if GENUINE is not None and type(request) is GENUINE and unpatched():
            request = adopt(Connection, request)
            control = getattr(self, "__dict__", {}).get("_fastsock")
            if type(control) is Control and control.adopt is not None:
                control.adopt(request)  # an override of this may read from it at once
        return request, client_address

    def shutdown_request(self, request: RequestType) -> None:
        """Shut the connection down for writing, then ``close_request()``."""
        # The peer sees the end of the reply even if another process holds the connection open.
        try:
            request.shutdown(socket.SHUT_WR)  # type: ignore[union-attr]
        except OSError:
            pass
        else:
            if own_value(self, "lingering_close") is True:
                with contextlib.suppress(OSError):  # no descriptor is left to read it with
                    from fastsock._linger import linger

                    linger(request)
        self.close_request(request)

    def close_request(self, request: RequestType) -> None:
        """Close the connection."""
        request.close()  # type: ignore[union-attr]
        control = getattr(self, "__dict__", {}).get("_fastsock")
        if type(control) is Control:
            control.released()


class UDPServer(TCPServer):
    """A server on a datagram socket; a request is (data, socket).

    While ``serve_forever()`` runs, up to 32 datagrams that are there are received with one call,
    and served one after another. (Documented: ``socketserver.UDPServer``.)

    Hooks besides those of TCPServer: ``handle_truncated()``.

    Attributes:
        socket: a ``DatagramSocket``; its recv methods return the next datagram, wherever it is.
        max_packet_size: the largest datagram, in bytes; what is longer is cut off.
        receive_buffer_size: SO_RCVBUF (socket(7)), in bytes, set before binding; None: the
            system's default. (This and the following are not in the standard library.)
        gather_replies: hold the replies of DatagramRequestHandlers back while datagrams that
            were received together are served, and send them with one call; for handlers that
            do not wait for anything.
    """

    socket_type: int = socket.SOCK_DGRAM
    allow_reuse_address: bool = False
    allow_reuse_port: bool = False
    max_packet_size: ClassVar[int] = 8192
    receive_buffer_size: int | None = None
    gather_replies: bool = False

    def get_request(self) -> tuple[tuple[bytes, _socket], RetAddress]:  # type: ignore[override]
        """Receive a datagram: return ((data, socket), client_address). May be overridden.

        data: bytes, max_packet_size of them at most; the rest of a longer one is lost.

        Raises:
            OSError: as recvfrom(2); there is no request, and the loop goes on.
        """
        data, client_address = self.socket.recvfrom(self.max_packet_size)
        return (data, self.socket), client_address

    def handle_truncated(self, data: bytes, full_length: int, client_address: RetAddress) -> bool:
        """Return whether to serve a datagram that was longer than max_packet_size.

        Called before ``verify_request()``; if not, the request is shut down. May be overridden.
        (Not in the standard library, which serves it.)

        Args:
            data: its first max_packet_size bytes.
            full_length: how many bytes it had.
        """
        return True

    def datagram_counts(self) -> DatagramCounts:
        """How many datagrams were cut, and how many were lost here.

        Raises:
            OSError: the socket is closed, or the kernel has no SO_MEMINFO (Linux 4.12).
        """
        return counts_of(self.socket, _control_of(self).truncated)

    def server_activate(self) -> None:
        """Nothing to do: a datagram socket does not listen."""

    def shutdown_request(self, request: RequestType) -> None:
        """``close_request()``; there is no connection to shut down."""
        self.close_request(request)

    def close_request(self, request: RequestType) -> None:
        """Nothing to do: the request's socket is the server's."""


class UnixStreamServer(TCPServer):
    """A TCPServer on a Unix socket; the address is a path, or an abstract name in bytes."""

    address_family: int = socket.AF_UNIX
    server_address: AfUnixAddress  # type: ignore[assignment]

    if TYPE_CHECKING:

        def __init__(
            self,
            server_address: AfUnixAddress,
            RequestHandlerClass: Callable[[Any, RetAddress, Self], BaseRequestHandler],
            bind_and_activate: bool = True,
        ) -> None: ...


class UnixDatagramServer(UDPServer):
    """A UDPServer on a Unix socket; the address is a path, or an abstract name in bytes."""

    address_family: int = socket.AF_UNIX
    server_address: AfUnixAddress  # type: ignore[assignment]

    if TYPE_CHECKING:

        def __init__(
            self,
            server_address: AfUnixAddress,
            RequestHandlerClass: Callable[[Any, RetAddress, Self], BaseRequestHandler],
            bind_and_activate: bool = True,
        ) -> None: ...


def _socket_for(server: Any) -> _socket:
    if isinstance(server, UDPServer) and server.socket_type == socket.SOCK_DGRAM:
        return make_socket(server.address_family)
    return socket.socket(server.address_family, server.socket_type)


def serve_forever(*servers: BaseServer, poll_interval: float | None = 0.5) -> None:
    """Serve several servers in this thread, as each one's ``serve_forever()`` would.

    A server's ``shutdown()`` ends its own part and returns; the call returns when all have
    stopped. An exception that leaves a hook of one ends the serving of all.

    Args:
        servers: the servers; ``serve_forever()`` methods that they override are not called.
        poll_interval: as in ``BaseServer.serve_forever()``, for each server.

    Raises:
        ValueError: a server is closed.
        TypeError: something is no server.
    """
    for server in servers:
        if not isinstance(server, BaseServer):
            raise TypeError(f"not a fastsock server: {server!r}")
    _serve({id(server): server for server in servers}.values(), poll_interval)


def _serve(servers: Iterable[Any], poll_interval: float | None) -> None:
    servers = list(servers)
    serving = [server for server in servers if hasattr(type(server), "_fastsock_serving")]
    if serving:  # some of them are multiplexing
        with serving[0]._fastsock_serving(serving) as hub:
            _run_loop(servers, poll_interval, hub)
    else:
        _run_loop(servers, poll_interval, None)


def _run_loop(servers: list[Any], poll_interval: float | None, hub: Hub | None) -> None:
    loop = _core.Loop(poll_interval, _DEFAULTS, _waiter(), hub)
    try:
        for server in servers:
            server._BaseServer__is_shut_down.clear()
            flag = getattr(type(server), "_BaseServer__shutdown_request", None)
            control = _control_of(server)
            if hub is not None and hasattr(type(server), "_fastsock_serving"):
                control.adopt = server._fastsock_adopting(hub)
            loop.add(server, control, _loop_ended, flag is not _FLAG)
        loop.run()
    finally:
        loop.close()


def _loop_ended(server: Any) -> None:
    control = _control_of(server)
    control.stop = False
    control.adopt = None
    if control.draining:
        from fastsock import _drain

        _drain.loop_ended(server, control)
    server._BaseServer__shutdown_request = False
    server._BaseServer__is_shut_down.set()


def _loops() -> Loops:
    """What a drain needs to know of the loops here."""
    from fastsock._drain import Loops

    return Loops(lambda server: _serve([server], 0.5), _loop_runs, _serving)


def _waiter() -> _plain.Wait | None:
    package = sys.modules.get(__package__)
    return _plain.waiter(getattr(package, "_ServerSelector", _plain.ServerSelector))


def _print_exception() -> None:
    """``traceback.print_exc()``, imported as late as in the standard library."""
    kind, error, trace = sys.exc_info()
    try:
        import traceback
    except (ImportError, OSError):  # no descriptor is left to read it with
        if kind is not None and error is not None:
            sys.__excepthook__(kind, error, trace)
    else:
        traceback.print_exc()


def _pair(taken: Any) -> tuple[Any, Any]:
    request, client_address = taken
    return request, client_address


_FLAG = vars(BaseServer)["_BaseServer__shutdown_request"]

_DEFAULTS = Defaults(
    accept=TCPServer.get_request,
    receive=UDPServer.get_request,
    verify_request=BaseServer.verify_request,
    process_request=BaseServer.process_request,
    finish_request=BaseServer.finish_request,
    handle_request_noblock=BaseServer._handle_request_noblock,
    shutdown_request=TCPServer.shutdown_request,
    close_request=TCPServer.close_request,
    service_actions=BaseServer.service_actions,
    fileno=TCPServer.fileno,
    connection=Connection,
    datagram_socket=DatagramSocket,
    shutdown_datagram=UDPServer.shutdown_request,
    close_datagram=UDPServer.close_request,
    handle_truncated=UDPServer.handle_truncated,
    pair=_pair,
)
