"""What has come for a task lies in its hub's buffer, which is the tasks' alone.

Where it is read by somebody else a mistake is a crash or other connections' bytes: these run in
processes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from talks import Served, output, program

Script = Callable[..., Any]
Serve = Callable[..., Served]

#: ways to read the twelve bytes that come to a thread
WAYS = {
    "readline": "file.readline()",
    "next": "next(file)",
    "read": "file.read(12)",
    "readinto": "bytes(room[: file.readinto(room)])",
    "readinto1": "b''.join(iter(lambda: bytes(small[: file.readinto1(small)]), b'!')) + b'!'",
    "read1": "b''.join(iter(lambda: file.read1(1), b'!')) + b'!'",
    "peek": "file.peek(1) and file.read(12)",
    "readlines": "b''.join(file.readlines(11))",
}

IN_A_THREAD = """
import threading

begun = threading.Event()
room, small = bytearray(12), bytearray(1)

def read(file):
    begun.set()
    return WAY

def handle(self):
    line = self.rfile.readline()
    if line == b"thread\\n":
        self.wfile.write(b"got " + multiplexing.to_thread(read, self.rfile))
        return
    while line:
        self.wfile.write(line)
        line = self.rfile.readline()

with Served(ss, handle) as served:
    reader, other = served.connect(b"thread\\nBEFORE"), served.connect()
    assert begun.wait(TIMEOUT)
    with other.makefile("rb") as echoes:
        for number in range(300):
            line = b"%d " % number * (number if number % 3 else 5000) + b"\\n"
            other.sendall(line)
            assert echoes.readline() == line, number
    reader.sendall(b"REST")
    with reader.makefile("rb") as answer:
        print(answer.readline())
"""


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("before", [b"", b"ab", b"abcdef"])
def test_another_thread_reads_on(script: Script, way: str, before: bytes) -> None:
    """Of the same rfile, while the hub receives for others. What had come before is not lost."""
    whole = b"abcdefghijk!" if way in ("read1", "readinto1") else b"abcdefghijk\n"
    text = IN_A_THREAD.replace("WAY", WAYS[way])
    text = text.replace("BEFORE", before.decode())
    text = text.replace("REST", whole[len(before) :].decode().replace("\n", "\\n"))
    assert output(script(program(text))) == f"{b'got ' + whole!r}\n"


def test_a_thread_reads_what_was_only_peeked_at(script: Script) -> None:
    """It had the hub's buffer of 64 KiB made smaller."""
    text = """
    def handle(self):
        if self.rfile.peek()[:1] == b"t":
            self.wfile.write(b"peeked\\n")
            self.wfile.write(b"got " + multiplexing.to_thread(self.rfile.readline))
        while line := self.rfile.readline():
            self.wfile.write(line)

    with Served(ss, handle) as served:
        reader, other = served.connect(b"thr"), served.connect()
        with reader.makefile("rb") as answer, other.makefile("rb") as echoes:
            assert answer.readline() == b"peeked\\n"
            for number in range(20):
                line = b"x" * 60000 + b"%d\\n" % number
                other.sendall(line)
                assert echoes.readline() == line
            reader.sendall(b"ead\\n")
            print(answer.readline())
    """
    assert output(script(program(text))) == "b'got thread\\n'\n"


@pytest.mark.parametrize("where", ["loop", "thread"])
def test_after_the_loop(script: Script, where: str) -> None:
    """An rfile that was kept, whose bytes were in the buffer when its loop ended."""
    text = """
    import threading

    kept, ready, go_on = [], threading.Event(), threading.Event()

    def handle(self):
        self.rfile.peek()
        kept.extend([self.rfile, self.request])
        ready.set()

    def keep(self, *request):
        pass

    server_class = type("Server", (ss.ThreadingTCPServer,), {"shutdown_request": keep})
    handler = type("Handler", (ss.StreamRequestHandler,), {"handle": handle, "finish": keep})
    server = server_class(("127.0.0.1", 0), handler)

    def talk():
        with socket.create_connection(server.server_address, TIMEOUT) as client:
            client.sendall(b"hello ")
            assert ready.wait(TIMEOUT)
            server.shutdown()
            client.sendall(b"world" * 3000 + b"\\n")
            go_on.wait(TIMEOUT)

    talking = threading.Thread(target=talk)
    talking.start()
    server.serve_forever(0.002)
    junk = [bytearray(100) for _ in range(1000)]

    def read():
        print(kept[0].readline() == b"hello " + b"world" * 3000 + b"\\n")

    if sys.argv[1] == "loop":
        read()
    else:
        reader = threading.Thread(target=read)
        reader.start()
        reader.join()
    go_on.set()
    talking.join()
    for one in kept:
        one.close()
    server.server_close()
    """
    assert output(script(program(text), where)) == "True\n"
