"""Lasting connections over a Unix socket, a thread for each."""

import socketserver

TITLE = "ThreadingUnixStreamServer, line echo"
LOAD = "lines"
FAMILY = "unix"
CONNECTIONS = (50,)
PAYLOAD = 64


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
