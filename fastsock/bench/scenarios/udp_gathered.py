"""Datagrams whose replies leave together; `gather_replies` is nothing to the standard library."""

import socketserver

TITLE = "UDPServer, echo, gather_replies"
LOAD = "datagrams"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 8


class Handler(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.packet)


class Server(socketserver.UDPServer):
    gather_replies = True
