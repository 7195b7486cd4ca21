"""What has come for a task lies in its hub's buffer, which is the tasks' alone.

Where it is read by somebody else a mistake is a crash or other connections' bytes: these run in
processes of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from support import TIMEOUT, event
from talks import Served, output, program

from fastsock import multiplexing

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


def test_what_is_there_already_for_another(ss: Any, serve: Serve) -> None:
    """It is received at once, and not over what the first one has not read yet."""
    reads, has_come, go_on = threading.Event(), threading.Event(), event(ss)

    def handle(self: Any) -> None:
        if self.rfile.readline() == b"first\n":
            reads.set()
            assert has_come.wait(TIMEOUT)  # nobody else runs
            assert go_on.wait(TIMEOUT)
            self.wfile.write(self.rfile.readline())
        else:
            go_on.set()

    served = serve(handle)
    first = served.connect(b"first\nsecond\n")
    assert reads.wait(TIMEOUT)
    served.connect(b"somebody else's\n" * 3)
    has_come.set()
    with first.makefile("rb") as answer:
        assert answer.readline() == b"second\n"


@pytest.mark.fastsock_only("io.BufferedReader loses some: it looks at its buffer before its turn")
def test_two_read_lines_of_one_file(ss: Any, serve: Serve) -> None:
    """Each gets whole ones, and none is lost."""
    count = 50
    asked, lines = threading.Event(), []

    def handle(self: Any) -> None:
        def read() -> None:
            for _ in range(count):
                lines.append(self.rfile.readline())

        both = [multiplexing.spawn(read) for _ in range(2)]
        multiplexing.sleep(0)
        asked.set()
        for each in both:
            each.join()
        self.wfile.write(b"all\n")

    client = serve(handle).connect()
    assert asked.wait(TIMEOUT)
    expected = [b"%d\n" % number for number in range(2 * count)]
    client.sendall(b"".join(expected[:10]))
    for line in expected[10:]:
        client.sendall(line[:1])
        client.sendall(line[1:])
    with client.makefile("rb") as answer:
        assert answer.readline() == b"all\n"
    assert sorted(lines, key=int) == expected
