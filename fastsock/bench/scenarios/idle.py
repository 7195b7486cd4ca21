"""Active connections beside many that are silent."""

import socketserver

TITLE = "ThreadingTCPServer, line echo beside idle connections"
LOAD = "lines"
CONNECTIONS = (50,)
PAYLOAD = 64
IDLE = 9000
QUICK = False


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
