"""Datagrams over Unix sockets."""

import socketserver

TITLE = "UnixDatagramServer, echo"
LOAD = "datagrams"
FAMILY = "unix"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 8


class Handler(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.packet)


Server = socketserver.UnixDatagramServer
