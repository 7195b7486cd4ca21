"""The request handler classes of :mod:`socketserver`."""

from __future__ import annotations

import socket as _socket_module
from io import DEFAULT_BUFFER_SIZE, BufferedIOBase, BytesIO
from socket import socket as _socket

from fastsock._connection import Connection
from fastsock._datagram import reply
from fastsock._datagram_socket import DatagramSocket
from fastsock._direct import DirectWriter, stand_for
from fastsock._methods import begin
from fastsock._names import OF_HANDLERS, give_way
from fastsock._reader import bound_of, reader_of
from fastsock._types import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    ReadableBuffer,
    RequestType,
    RetAddress,
)
from fastsock._writer import writer_of

if TYPE_CHECKING:
    from fastsock._servers import BaseServer
else:
    BaseServer = Any  # the layer above; named for typing.get_type_hints()


class BaseRequestHandler:
    """What is done with one request; an instance is made for each.

    The constructor runs the three hooks: ``setup()``, ``handle()`` and ``finish()``. Override
    ``handle()`` at least. ``finish()`` also runs when ``handle()`` raises, though not when
    ``setup()`` does. (Documented: ``socketserver.BaseRequestHandler``.)

    Attributes:
        request: the connected socket of a stream server; (data as bytes, the server's socket) of
            a datagram server; or whatever the server's ``get_request()`` returned.
        client_address: the peer's address as ``get_request()`` returned it.
        server: the server that took the request.
        first_byte_timeout: seconds until the peer must have sent something; None, or no positive
            number: no limit. (This and the following are not in the standard library. They are
            set in the class, read when the handler begins, hold for recv, recv_into, send,
            sendall, rfile and wfile of a connection that is not wrapped by ssl, and raise
            ``DeadlineError``, a TimeoutError.)
        idle_timeout: seconds that may pass between the latest byte, in either direction, and the
            first one of another message.
        request_timeout: seconds for the whole connection.
        write_timeout: seconds for one write, until the peer's system has taken all of it.
    """

    first_byte_timeout: ClassVar[float | None] = None
    idle_timeout: ClassVar[float | None] = None
    request_timeout: ClassVar[float | None] = None
    write_timeout: ClassVar[float | None] = None

    # `request` is what get_request() of any server makes it; Any is what typeshed says too.
    request: Any
    client_address: RetAddress
    server: BaseServer

    def __init__(
        self, request: RequestType, client_address: RetAddress, server: BaseServer
    ) -> None:
        self.request = request
        self.client_address = client_address
        self.server = server
        begin(request, self)
        self.setup()
        try:
            self.handle()
        finally:
            self.finish()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        give_way(cls, OF_HANDLERS)

    def setup(self) -> None:
        """Prepare for ``handle()``. May be overridden; does nothing by default."""

    def handle(self) -> None:
        """Serve the request. To be overridden; does nothing by default."""

    def finish(self) -> None:
        """Clean up after ``handle()``, however it ended. May be overridden."""


class StreamRequestHandler(BaseRequestHandler):
    """A handler with files to read the request from and write the reply to.

    (Documented: ``socketserver.StreamRequestHandler``.)

    Attributes:
        connection: the request, a connected stream socket.
        rfile: a binary file open for reading from the connection.
        wfile: a binary file open for writing to the connection.
        rbufsize: size of rfile's buffer in bytes; -1: the default of ``socket.makefile()``,
            0: unbuffered.
        wbufsize: size of wfile's buffer in bytes; 0: every write is sent at once and wholly.
        timeout: seconds for each blocking operation on the connection; None: do not set one.
        disable_nagle_algorithm: set TCP_NODELAY on the connection.
        max_line_size: bytes that a line of rfile may have, its end included: a longer one raises
            ``LineTooLongError``, a ValueError, in readline(), readlines() and iteration, unless
            readline() was asked for no more anyway; rfile cannot be read from any more then. None,
            or no positive int: no limit. (Not in the standard library.)
    """

    rbufsize: ClassVar[int] = -1
    wbufsize: ClassVar[int] = 0
    timeout: ClassVar[float | None] = None
    disable_nagle_algorithm: ClassVar[bool] = False
    max_line_size: int | None = None

    connection: Any
    rfile: BufferedIOBase
    wfile: BufferedIOBase

    def setup(self) -> None:
        """Set connection, rfile and wfile. Raises OSError if an option cannot be set."""
        self.connection = self.request
        if self.timeout is not None:
            self.connection.settimeout(self.timeout)
        if self.disable_nagle_algorithm:
            self.connection.setsockopt(_socket_module.IPPROTO_TCP, _socket_module.TCP_NODELAY, True)
        native = type(self.connection) is Connection
        if native and self.rbufsize != 0:
            self.rfile = reader_of(self, self.connection, self.rbufsize)
        else:
            self.rfile = self.connection.makefile("rb", self.rbufsize)
            if most := bound_of(self):
                from fastsock._bounded import BoundedFile  # late: few programs need it

                self.rfile = BoundedFile(self.rfile, most)
        if self.wbufsize == 0:
            if native and _SocketWriter.write is _write:  # a program may have patched it
                self.wfile = DirectWriter(self.connection)
            else:
                self.wfile = _SocketWriter(self.connection)
        elif native:
            self.wfile = writer_of(self.connection, _size(self.wbufsize))
        else:
            self.wfile = self.connection.makefile("wb", self.wbufsize)

    def finish(self) -> None:
        """Flush and close wfile and rfile. A peer that is gone by then is no error."""
        if not self.wfile.closed:
            try:  # noqa: SIM105 (contextlib.suppress() costs more than the rest)
                self.wfile.flush()
            except OSError:  # nobody is left to take the rest of the reply
                pass
        self.wfile.close()
        self.rfile.close()


def _size(size: int | None) -> int:
    return DEFAULT_BUFFER_SIZE if size is None or size < 0 else size


class _SocketWriter(BufferedIOBase):
    """A writer that holds nothing back: each write is sent whole before it returns."""

    def __init__(self, sock: _socket) -> None:
        self._sock = sock

    def writable(self) -> bool:
        return True

    def write(self, b: ReadableBuffer) -> int:
        self._sock.sendall(b)
        if type(b) is bytes:
            return len(b)
        with memoryview(b) as view:
            return view.nbytes

    def fileno(self) -> int:
        return self._sock.fileno()


_write = _SocketWriter.write
stand_for(_SocketWriter)


class DatagramRequestHandler(BaseRequestHandler):
    """A handler that reads one datagram and answers with one.

    What ``handle()`` writes to wfile is sent to the peer as one datagram by ``finish()``, an
    empty one if nothing was written. (Documented: ``socketserver.DatagramRequestHandler``.)

    Attributes:
        packet: the datagram's bytes.
        socket: the server's socket.
        rfile: an ``io.BytesIO`` of the packet.
        wfile: an ``io.BytesIO`` that takes the reply.
        reply_if_empty: answer with an empty datagram if nothing was written; if false, not at
            all. (Not in the standard library.)
    """

    reply_if_empty: bool = True

    packet: bytes
    socket: _socket
    rfile: BufferedIOBase
    wfile: BufferedIOBase

    def setup(self) -> None:
        """Set packet, socket, rfile and wfile."""
        self.packet, self.socket = self.request
        self.rfile = BytesIO(self.packet)
        self.wfile = BytesIO()

    def finish(self) -> None:
        """Send what is in wfile. Raises OSError or TypeError as ``socket.sendto()`` does.

        If the server gathers replies, what fails when they are sent goes to ``handle_error()``.
        """
        data = self.wfile.getvalue()  # type: ignore[attr-defined]
        if not data and not getattr(self, "reply_if_empty", True):  # borrowed by other handlers
            return
        if type(self.socket) is DatagramSocket:
            reply(self.socket, data, self.request, self.client_address, self.server)
        else:
            self.socket.sendto(data, self.client_address)
