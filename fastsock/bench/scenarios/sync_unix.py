"""A connection per request over a Unix socket, one request at a time."""

import socketserver

TITLE = "UnixStreamServer, a connection per request"
LOAD = "once"
FAMILY = "unix"
CONNECTIONS = (16,)
PAYLOAD = 64


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(65536))


Server = socketserver.UnixStreamServer
