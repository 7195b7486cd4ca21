"""Handlers as programs write them: this type-checks."""

import io
import socket
import socketserver
from typing import Any, ClassVar


class Echo(socketserver.BaseRequestHandler):
    def setup(self) -> None:
        self.count = 0

    def handle(self) -> None:
        data: bytes = self.request.recv(1024)
        self.count += len(data)
        self.request.sendall(data)
        host, port = self.client_address
        print(host, port, self.server.server_address)

    def finish(self) -> None:
        print(self.count)


class Lines(socketserver.StreamRequestHandler):
    rbufsize = 65536
    wbufsize = -1
    timeout: ClassVar[float | None] = 5
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(3)

    def handle(self) -> None:
        for line in self.rfile:
            written: int = self.wfile.write(line.upper())
            print(written)
        rest: bytes = self.rfile.read()
        with memoryview(rest) as view:
            self.wfile.write(view)
        self.wfile.flush()
        print(self.wfile.fileno(), self.wfile.closed)
        reader: io.BufferedIOBase = self.rfile
        print(reader.readline())


class Slow(Lines):
    timeout: ClassVar[float | None] = None


class Datagram(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        data: bytes = self.packet
        own: socket.socket = self.socket
        self.wfile.write(self.rfile.read() + data[:1])
        own.sendto(b"", self.client_address)


class WithConstructor(socketserver.BaseRequestHandler):
    def __init__(
        self,
        request: socket.socket | tuple[bytes, socket.socket],
        client_address: Any,
        server: socketserver.BaseServer,
        *,
        greeting: bytes = b"hello",
    ) -> None:
        self.greeting = greeting
        super().__init__(request, client_address, server)


class CountingServer(socketserver.ThreadingTCPServer):
    count = 0


class OfItsServer(socketserver.StreamRequestHandler):
    server: CountingServer

    def handle(self) -> None:
        self.server.count += 1


def show(handler: socketserver.BaseRequestHandler) -> socketserver.BaseServer:
    return handler.server
