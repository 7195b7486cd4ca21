"""Datagrams, a thread for each."""

import socketserver

TITLE = "ThreadingUDPServer, echo"
LOAD = "datagrams"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 8
ORDERED = False


class Handler(socketserver.DatagramRequestHandler):
    def handle(self) -> None:
        self.wfile.write(self.packet)


class Server(socketserver.ThreadingUDPServer):
    daemon_threads = True
