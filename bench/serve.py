"""One server to be measured: ``serve.py implementation scenario address``.

The same source for both implementations; prints the port (0 for a Unix socket), then serves.
"""

from __future__ import annotations

import importlib
import resource
import socket
import sys
from typing import Any

BACKLOG = 4096  # the kernel takes net.core.somaxconn if that is less
SO_RCVBUFFORCE = 33  # beyond net.core.rmem_max, for those with CAP_NET_ADMIN


def build(implementation: str, scenario: str, backlog: int) -> Any:
    ss: Any = importlib.import_module(implementation)

    class Once(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(self.request.recv(65536))

    class Lines(ss.StreamRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            for line in self.rfile:
                self.wfile.write(line)

    class Reply(ss.DatagramRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.wfile.write(self.packet)

    class SendTo(ss.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(data, self.client_address)

    attributes: dict[str, Any] = {}
    if scenario.startswith("http"):
        if implementation == "fastsock":
            ss.install()
        server = importlib.import_module("http.server")

        class Page(server.BaseHTTPRequestHandler):  # type: ignore[misc]
            protocol_version = "HTTP/1.0" if scenario.endswith("close") else "HTTP/1.1"

            def do_GET(self) -> None:
                body = b"Hello World\n"
                self.send_response(200)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        base: Any = server.ThreadingHTTPServer
        handler: Any = Page
    else:
        kind, what = scenario.split("-")
        base = getattr(
            ss,
            {
                "sync": "TCPServer",
                "unix": "UnixStreamServer",
                "threads": "ThreadingTCPServer",
                "forks": "ForkingTCPServer",
                "udp": "UDPServer",
                "unixdgram": "UnixDatagramServer",
                "udpthreads": "ThreadingUDPServer",
            }[kind],
        )
        handler = {
            "once": Once,
            "lines": Lines,
            "reply": Reply,
            "gathered": Reply,
            "sendto": SendTo,
        }[what]
        if what == "gathered":
            attributes["gather_replies"] = True
    if issubclass(base, ss.ThreadingMixIn):
        attributes["daemon_threads"] = True
    if backlog:
        attributes["request_queue_size"] = backlog
    return type("Server", (base,), attributes), handler


def enlarge(sock: socket.socket) -> None:
    """Room for what all clients of a datagram server have under way."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 20)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


def main() -> None:
    implementation, scenario, where, backlog = sys.argv[1:5]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    server_class, handler = build(implementation, scenario, int(backlog))
    address = where if where.startswith("/") else (where, 0)
    with server_class(address, handler) as server:
        if server.socket_type == socket.SOCK_DGRAM:
            enlarge(server.socket)
        print(0 if where.startswith("/") else server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
