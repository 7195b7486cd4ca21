"""Lasting connections, a thread for each; each line is echoed."""

import socketserver

TITLE = "ThreadingTCPServer, line echo"
LOAD = "lines"
CONNECTIONS = (50,)
PAYLOAD = 64


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
