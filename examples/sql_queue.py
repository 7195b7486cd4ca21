"""A server without a socket: its requests are entries of an SQL database.

    python examples/sql_queue.py hello world
    python -m fastsock run examples/sql_queue.py hello world

puts each word into a queue, a table in the file named by --database or in memory, has it served,
and prints the answer::

    1: hello -> HELLO
    2: world -> WORLD

``socketserver.BaseServer`` asks two things of a subclass: ``fileno()``, a descriptor that is
readable when there may be a request, and ``get_request()``, which returns (request, client
address), or raises OSError when there is none after all. Here the descriptor is the end of a
pipe, the bell: ``put()`` writes a byte into it, from any thread. The request is the text of an
entry, the "client address" its number in the table.

(The standard library's ``handle_request()`` needs ``self.socket``; fastsock's does not, it waits
for ``self.timeout`` then.)
"""

from __future__ import annotations

import argparse
import errno
import os
import socketserver
import sqlite3
import threading
from contextlib import suppress
from typing import Any

SCHEMA = """
    CREATE TABLE IF NOT EXISTS queue (
        number INTEGER PRIMARY KEY,
        entry TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'waiting',  -- then 'taken', in the end 'done'
        answer TEXT
    )
"""
OLDEST = "SELECT entry, number FROM queue WHERE state = 'waiting' ORDER BY number LIMIT 1"


class QueueServer(socketserver.BaseServer):
    """Serves the entries of a table, oldest first; server_address is the database's path."""

    def __init__(self, database: str, RequestHandlerClass: Any) -> None:
        super().__init__(database, RequestHandlerClass)
        self.database = sqlite3.connect(
            database, timeout=15, isolation_level=None, check_same_thread=False
        )
        self.changed = threading.Condition()  # held by whoever uses the database
        self.execute(SCHEMA)
        self.bell, self.rope = os.pipe()
        os.set_blocking(self.bell, False)
        os.set_blocking(self.rope, False)
        self.ring()  # an earlier run may have left entries

    # --- what BaseServer asks for

    def fileno(self) -> int:
        """The descriptor that the loop watches."""
        return self.bell

    def get_request(self) -> tuple[str, int]:
        """Take the oldest entry; BlockingIOError, which is an OSError, when there is none.

        As long as the bell rings, the loop calls again.
        """
        taken = self.take()
        if taken is None:
            with suppress(BlockingIOError):
                os.read(self.bell, 65536)
            # Look once more: somebody may have put an entry there, and rung, just before that.
            taken = self.take()
            if taken is None:
                raise BlockingIOError(errno.EAGAIN, "the queue is empty")
            self.ring()
        return taken

    def server_close(self) -> None:
        super().server_close()
        self.database.close()
        os.close(self.bell)
        os.close(self.rope)

    # --- the queue

    def put(self, entry: str) -> int:
        """Add an entry, from any thread; return its number."""
        with self.changed:
            self.execute("INSERT INTO queue (entry) VALUES (?)", entry)
            ((number,),) = self.execute("SELECT last_insert_rowid()")
        self.ring()
        return int(number)

    def take(self) -> tuple[str, int] | None:
        with self.changed, self.database:
            self.execute("BEGIN IMMEDIATE")  # another process may serve the same table
            for entry, number in self.execute(OLDEST):
                self.execute("UPDATE queue SET state = 'taken' WHERE number = ?", number)
                return entry, number
        return None

    def answer(self, number: int, answer: str) -> None:
        """Called by the handler of an entry."""
        with self.changed:
            done = "UPDATE queue SET state = 'done', answer = ? WHERE number = ?"
            self.execute(done, answer, number)
            self.changed.notify_all()

    def wait_for_answer(self, number: int, timeout: float = 10) -> str | None:
        """What this server answered to an entry; None if there is no answer in time."""
        answer = "SELECT answer FROM queue WHERE state = 'done' AND number = ?"
        with self.changed:
            found = self.changed.wait_for(lambda: self.execute(answer, number), timeout)
        return found[0][0] if found else None

    def ring(self) -> None:
        with suppress(BlockingIOError):  # the pipe is full: the bell rings as it is
            os.write(self.rope, b"!")

    def execute(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement to its end: one that is not would lock this connection's writes out."""
        with self.changed:
            return self.database.execute(statement, values).fetchall()


class Upper(socketserver.BaseRequestHandler):
    """Answers an entry in upper case."""

    server: QueueServer

    def handle(self) -> None:
        self.server.answer(self.client_address, self.request.upper())


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves entries of an SQL database.")
    parser.add_argument("entries", nargs="*", metavar="entry")
    parser.add_argument("--database", default=":memory:")
    options = parser.parse_args()
    with QueueServer(options.database, Upper) as server:
        loop = threading.Thread(target=server.serve_forever)
        loop.start()
        for entry in options.entries:
            number = server.put(entry)
            print(f"{number}: {entry} -> {server.wait_for_answer(number)}")
        server.shutdown()
        loop.join()


if __name__ == "__main__":
    main()
