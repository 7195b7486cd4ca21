"""Datagrams, answered with sendto(), as in the documentation's example."""

import socketserver

TITLE = "UDPServer, echo with sendto()"
LOAD = "datagrams"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 8


class Handler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, sock = self.request
        sock.sendto(data, self.client_address)


Server = socketserver.UDPServer
