"""Lines that are sent without waiting for the answers to those before."""

import socketserver

TITLE = "ThreadingTCPServer, line echo, pipelined"
LOAD = "lines"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 16


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
