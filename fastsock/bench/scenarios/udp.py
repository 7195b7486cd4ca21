"""Datagrams, echoed through wfile."""

import socketserver

TITLE = "UDPServer, echo"
LOAD = "datagrams"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 8


class Handler(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.packet)


Server = socketserver.UDPServer
