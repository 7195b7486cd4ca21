"""Lines that are sent without waiting for the answers to those before."""

import socketserver

TITLE = "ThreadingTCPServer, line echo, pipelined, TCP_NODELAY"
LOAD = "lines"
CONNECTIONS = (50,)
PAYLOAD = 64
DEPTH = 16


class Handler(socketserver.StreamRequestHandler):
    # fastsock's default; without it the standard library waits 40 ms for the client's delayed ACK
    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
