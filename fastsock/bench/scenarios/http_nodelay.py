"""http.server with persistent connections, and TCP_NODELAY on both implementations."""

from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer as Server

TITLE = "ThreadingHTTPServer, keep-alive, TCP_NODELAY"
LOAD = "http"
CONNECTIONS = (50,)
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"Hello World\n"

__all__ = ["Handler", "Server"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # fastsock's default; without it the standard library waits 40 ms for the client's delayed ACK
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments: object) -> None:
        pass
