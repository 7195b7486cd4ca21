"""A connection per request, a thread for each."""

import socketserver

TITLE = "ThreadingTCPServer, a connection per request"
LOAD = "once"
CONNECTIONS = (16,)
PAYLOAD = 64


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(65536))


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
