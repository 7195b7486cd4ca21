"""Long lines."""

import socketserver

TITLE = "ThreadingTCPServer, line echo, long lines"
LOAD = "lines"
CONNECTIONS = (50,)
PAYLOAD = 16384


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
