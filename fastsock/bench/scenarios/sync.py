"""A connection per request, one request at a time: the documented example."""

import socketserver

TITLE = "TCPServer, a connection per request"
LOAD = "once"
CONNECTIONS = (16,)
PAYLOAD = 64


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(65536))


Server = socketserver.TCPServer
