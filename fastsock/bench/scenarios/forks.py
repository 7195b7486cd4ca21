"""A connection per request, a process for each."""

import socketserver

TITLE = "ForkingTCPServer, a connection per request"
LOAD = "once"
CONNECTIONS = (16,)
PAYLOAD = 64


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(65536))


Server = socketserver.ForkingTCPServer
