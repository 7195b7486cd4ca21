"""How long it takes until so many connections have exchanged a line, and what each costs."""

import socketserver

TITLE = "ThreadingTCPServer, opening connections"
LOAD = "opening"
CONNECTIONS = (100, 1000, 9050)
PAYLOAD = 64


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
