"""http.server with persistent connections, all of it as it comes: fifty clients come at once.

The standard library's backlog is 5, fastsock's as much as the system allows. Whom it has no room
for, the kernel lets try again after a second, and after three.
"""

from http.server import BaseHTTPRequestHandler
from http.server import ThreadingHTTPServer as Server

TITLE = "ThreadingHTTPServer, keep-alive, as it comes, its own backlog"
LOAD = "http"
CONNECTIONS = (50,)
COLD = True
QUICK = False
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
