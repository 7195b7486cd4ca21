"""Servers as programs write them, with every hook overridden: this type-checks."""

import functools
import os
import socket
import socketserver
import ssl
import threading
from types import TracebackType
from typing import Any

Request = socket.socket | tuple[bytes, socket.socket]


class Handler(socketserver.BaseRequestHandler):
    pass


class Hooks(socketserver.TCPServer):
    address_family = socket.AF_INET6
    socket_type = socket.SOCK_STREAM
    allow_reuse_address = True
    request_queue_size = 128
    timeout: float | None = 2.5

    def __init__(self, port: int, handler: type[socketserver.BaseRequestHandler]) -> None:
        super().__init__(("::1", port, 0, 0), handler, bind_and_activate=False)
        self.server_bind()
        self.server_activate()

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        super().server_bind()

    def server_activate(self) -> None:
        super().server_activate()

    def server_close(self) -> None:
        super().server_close()

    def fileno(self) -> int:
        return super().fileno()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        return ssl.create_default_context().wrap_socket(request, server_side=True), address

    def verify_request(self, request: Request, client_address: Any) -> bool:
        return super().verify_request(request, client_address) and client_address[0] != "::2"

    def process_request(self, request: Request, client_address: Any) -> None:
        super().process_request(request, client_address)

    def finish_request(self, request: Request, client_address: Any) -> None:
        self.RequestHandlerClass(request, client_address, self)  # type: ignore[arg-type]

    def shutdown_request(self, request: Request) -> None:
        super().shutdown_request(request)

    def close_request(self, request: Request) -> None:
        super().close_request(request)

    def handle_timeout(self) -> None:
        super().handle_timeout()

    def handle_error(self, request: Request, client_address: Any) -> None:
        super().handle_error(request, client_address)

    def service_actions(self) -> None:
        super().service_actions()

    def handle_request(self) -> None:
        super().handle_request()

    def serve_forever(self, poll_interval: float = 0.1) -> None:
        super().serve_forever(poll_interval)

    def shutdown(self) -> None:
        super().shutdown()

    def __enter__(self) -> "Hooks":
        super().__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)


class Datagrams(socketserver.UDPServer):
    max_packet_size = 65535

    def get_request(self) -> tuple[tuple[bytes, socket.socket], Any]:  # type: ignore[override]
        return super().get_request()


class Threads(socketserver.ThreadingMixIn, Hooks):
    daemon_threads = True
    block_on_close = False

    def process_request_thread(self, request: Request, client_address: Any) -> None:
        super().process_request_thread(request, client_address)


class Forks(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    max_children = 3
    timeout = None

    def collect_children(self, *, blocking: bool = False) -> None:
        super().collect_children(blocking=blocking)
        if self.active_children is not None:
            print(len(self.active_children), max(self.active_children))


class Queue(socketserver.BaseServer):
    """Without a socket."""

    def fileno(self) -> int:
        return os.pipe()[0]

    def get_request(self) -> tuple[str, int]:
        return "entry", 1


class Extended(socketserver.ThreadingTCPServer):
    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address, self.make_handler)
        self.lock = threading.Lock()

    def make_handler(
        self, request: Any, client_address: Any, server: socketserver.BaseServer
    ) -> Handler:
        return Handler(request, client_address, server)


class WithArgument(Handler):
    def __init__(self, argument: int, *args: Any) -> None:
        self.argument = argument
        super().__init__(*args)


def use() -> None:
    with socketserver.TCPServer(("localhost", 0), Handler) as server:
        host, port = server.server_address[:2]
        print(host, port, server.socket.getsockname())
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}).start()
        server.shutdown()
    with Hooks(0, Handler) as hooks:
        hooks.socket = ssl.create_default_context().wrap_socket(hooks.socket)
        hooks.timeout = None
        hooks.handle_request()
    with Extended(("", 0)) as extended, extended.lock:
        extended.daemon_threads = True
    socketserver.TCPServer(("", 0), lambda *args: Handler(*args), False)
    socketserver.TCPServer(
        ("", 0), lambda request, address, server: Handler(request, address, server)
    )
    socketserver.UDPServer(("", 0), functools.partial(WithArgument, 3))
    socketserver.UnixStreamServer("/tmp/socket", Handler).server_close()
    socketserver.UnixDatagramServer(b"\0name", Handler, bind_and_activate=True)
    socketserver.ThreadingUnixStreamServer("/tmp/socket", Handler)
    socketserver.ForkingTCPServer(server_address=("", 0), RequestHandlerClass=Handler)
    socketserver.TCPServer.allow_reuse_address = True
    socketserver.ThreadingMixIn.daemon_threads = True
    servers: list[socketserver.BaseServer] = [server, Queue("nowhere", Handler)]
    print(servers)
