"""How the rate goes with the number of connections, all of them active."""

import socketserver

TITLE = "ThreadingTCPServer, line echo, by connections"
LOAD = "lines"
CONNECTIONS = (1, 10, 100, 1000, 9900)
PAYLOAD = 64


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
