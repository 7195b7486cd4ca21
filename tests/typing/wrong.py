# ruff: noqa: B018, F401
"""Mistakes that a type checker has to find, on both implementations alike."""

import socketserver
from socketserver import Nothing
from typing import Any


class Handler(socketserver.BaseRequestHandler):
    def handle(self, more: int) -> None: ...

    def setup(self) -> int:
        return self.nothing


class Lines(socketserver.StreamRequestHandler):
    rbufsize = "large"
    timeout = "5"
    disable_nagle_algorithm = None

    def handle(self) -> None:
        self.wfile.write("text")
        self.rfile.readline("x").upper("y")
        text: str = self.rfile.readline()
        self.connection = text
        self.rbufsize = 3


class Datagram(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.packet.encode()
        self.socket.nothing()
        self.wfile.getvalue()


class Server(socketserver.TCPServer):
    allow_reuse_address = "yes"
    address_family = None
    request_queue_size = 1.5
    timeout = "5"

    def get_request(self) -> None: ...

    def verify_request(self, request: Any, client_address: Any) -> None: ...

    def process_request(self, request: Any) -> None: ...

    def fileno(self) -> str: ...

    def serve_forever(self, interval: str) -> None: ...

    def handle_error(self, request: int, client_address: Any) -> None: ...

    def service_actions(self, more: int) -> None: ...

    def untyped(self, request):
        return request


class Mixed(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = None
    block_on_close = "no"

    def process_request_thread(self) -> None: ...


class Forks(socketserver.ForkingMixIn, socketserver.UDPServer):
    active_children = [1]
    max_children = "many"
    max_packet_size = "8192"

    def collect_children(self, blocking: str) -> None: ...


def use(handler: type[socketserver.BaseRequestHandler]) -> int:
    socketserver.TCPServer("localhost", handler)
    socketserver.TCPServer(("localhost", "80"), handler)
    socketserver.TCPServer(("localhost", 80), int)
    socketserver.TCPServer(("localhost", 80), object())
    socketserver.TCPServer(("localhost", 80))
    socketserver.TCPServer(("localhost", 80), handler, bind=True)
    socketserver.UnixStreamServer(("localhost", 80), handler)
    socketserver.TCPServer(("localhost", 80), lambda request: handler(request, None, None))
    socketserver.BaseRequestHandler(None, None, None)
    with socketserver.ForkingUDPServer(("", 0), handler) as server:
        server.nothing()
        server.serve_forever("1")
        server.serve_forever(None)
        server.handle_request(1)
        server.collect_children(True)
        server.socket = 3
        server.server_address = "path"
        server.max_packet_size = 3
        server.active_children = {"1"}
        server.get_request().nothing
        print(server.fileno() + "x", server.shutdown())
    socketserver.serve()
    return server.verify_request()


class Right(socketserver.UDPServer):
    def get_request(self) -> Any:  # type: ignore[override]
        return super().get_request()
