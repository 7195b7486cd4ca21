"""http.server with persistent connections, as it comes.

Each reply is two small writes, of which the standard library's second waits up to 40 ms for the
acknowledgement of the first; fastsock sets TCP_NODELAY. See http_nodelay.
"""

from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer as Server

TITLE = "ThreadingHTTPServer, keep-alive, as it comes (40 ms of delayed ACK)"
LOAD = "http"
CONNECTIONS = (50,)
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = b"Hello World\n"

__all__ = ["Handler", "Server"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments: object) -> None:
        pass
