"""A threaded server whose process has one core: the GIL is given up around every send there."""

from __future__ import annotations

import pytest
from programs import Programs

PROGRAM = """
    import importlib, os, socket, sys, threading

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    ss = importlib.import_module(sys.argv[1])
    LARGE = b"x" * 20_000 + b"\\n"  # of one send
    timed_out = threading.Event()

    class Lines(ss.StreamRequestHandler):
        def handle(self):
            for line in self.rfile:
                if line == b"fill\\n":  # the client does not read
                    self.request.settimeout(0.2)
                    try:
                        while True:
                            self.request.sendall(LARGE)
                    except TimeoutError:
                        timed_out.set()
                        return
                self.wfile.write(line)

    server = ss.ThreadingTCPServer(("127.0.0.1", 0), Lines)
    serving = threading.Thread(target=server.serve_forever, args=(0.05,))
    serving.start()

    def connect():
        return socket.create_connection(server.server_address, 20)

    def talk(number):
        with connect() as client, client.makefile("rb") as replies:
            for line in [b"%d\\n" % number, LARGE] * 50:
                client.sendall(line)
                assert replies.readline() == line

    full = connect()
    full.sendall(b"fill\\n")
    gone = connect()
    gone.sendall(b"line\\n" * 1000)
    gone.close()  # with replies unread: the next send fails
    clients = [threading.Thread(target=talk, args=(number,)) for number in range(20)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert timed_out.wait(20)
    full.close()
    server.shutdown()
    server.server_close()
    serving.join()
    print(threading.active_count())
"""


@pytest.mark.parametrize("implementation", ["socketserver", "fastsock"])
def test_lines(programs: Programs, implementation: str) -> None:
    """Small and large lines of many, a peer that does not read, one that has gone."""
    done = programs.run_script(PROGRAM, implementation)
    assert (done.status, done.out) == (0, "1\n"), done.err
