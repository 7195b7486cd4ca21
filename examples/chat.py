"""A chat: what somebody says, everybody else reads.

    python examples/chat.py 8080
    python examples/chat.py --threads 8080

and then, as often as you like::

    nc localhost 8080

The first line is the name. Each client has a queue of the lines that it is to be sent, and somebody
who sends them: whoever says something only puts it into the queues, and never waits for a reader.
Who does not read for so long that its queue is full is thrown out.

With fastsock's multiplexing all clients share one thread; with --threads each has two.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import socket
from typing import Any

import fastsock
from fastsock import multiplexing
from fastsock.multiplexing import Lock, Queue, spawn

LONGEST_LINE = 1000  # bytes
MOST_LINES = 100  # that wait for a client


class Room:
    """Those who are there."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.members: dict[str, Member] = {}

    def enter(self, member: Member) -> bool:
        """Add somebody, unless the name is taken."""
        with self.lock:
            if member.name in self.members:
                return False
            self.members[member.name] = member
        self.say(f"* {member.name} is here")
        return True

    def leave(self, member: Member) -> None:
        with self.lock:
            del self.members[member.name]
        self.say(f"* {member.name} has left")

    def say(self, line: str, speaker: str = "") -> None:
        """Let everybody but the speaker know."""
        with self.lock:  # so that all get the lines in the same order
            for member in self.members.values():
                if member.name != speaker:
                    member.tell(line)


class Member(fastsock.StreamRequestHandler):
    """Serves one client."""

    server: Server
    name: str

    def handle(self) -> None:
        self.wfile.write(b"your name?\n")
        self.name = self.hear() or ""
        self.lines: Queue[str | None] = Queue(MOST_LINES)
        if not self.name or not self.server.room.enter(self):
            self.wfile.write(b"not with that name\n")
            return
        sender = spawn(self.send)
        try:
            while (line := self.hear()) is not None:
                self.server.room.say(f"{self.name}: {line}", self.name)
        finally:
            self.server.room.leave(self)
            self.tell(None)
            sender.join()

    def hear(self) -> str | None:
        """The next line; None: there is none any more."""
        try:
            line = self.rfile.readline(LONGEST_LINE)
        except OSError:
            return None
        return line.decode(errors="replace").rstrip("\r\n") if line else None

    def tell(self, line: str | None) -> None:
        """Have a line sent. Does not wait: it is others who call this."""
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.hang_up()

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)  # both hear() and send() find the end

    def send(self) -> None:
        """Send what is told."""
        try:
            while (line := self.lines.get()) is not None:
                self.wfile.write(f"{line}\n".encode())
        except OSError:
            self.hang_up()


class Server:
    """Mixed into a server class."""

    allow_reuse_address = True
    request_queue_size = 1024
    room: Room


class MultiplexingChat(Server, multiplexing.MultiplexingTCPServer):
    """All clients in one thread."""


class ThreadingChat(Server, fastsock.ThreadingTCPServer):
    """Two threads for each client."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A chat.")
    parser.add_argument("port", type=int, help="to listen on; 0: any")
    parser.add_argument("--threads", action="store_true", help="threads for each client")
    options = parser.parse_args()
    server_class: Any = ThreadingChat if options.threads else MultiplexingChat
    with server_class(("127.0.0.1", options.port), Member) as server:
        server.daemon_threads = True
        server.room = Room()
        print(f"listening on port {server.server_address[1]}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
