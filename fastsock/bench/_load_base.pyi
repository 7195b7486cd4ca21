from collections.abc import Mapping
from types import TracebackType
from typing import TypeAlias

from typing_extensions import Self

from fastsock.bench._histogram import Histogram

#: seconds that an operation of a stream may be without a whole answer until it is given up
TIMEOUT: float
#: the same for a datagram
DATAGRAM_TIMEOUT: float
#: a run that has seen so many errors ends
MOST_ERRORS: int
#: connections, busy and idle, of one load
MOST_CONNECTIONS: int
#: seconds that one call may be told to take
MOST_SECONDS: float

#: the absolute path of a Unix socket, or its abstract name, which begins with a zero byte; or a
#: literal address, of 127.0.0.0/8 or ::1, and a port
Address: TypeAlias = str | tuple[str, int]

class Load:
    """What both kinds have in common. Not to be made itself (TypeError).

    It belongs to one thread at a time: while a call is in progress, another one (of another thread,
    or of a signal handler) raises RuntimeError. The counters are those of the last ``open()`` or
    ``run()``. A closed load may be opened again.
    """

    @property
    def operations(self) -> int:
        """Requests that were answered in full, every byte of it being right."""

    @property
    def seconds(self) -> float:
        """How long the last ``run()`` counted."""

    @property
    def verified(self) -> int:
        """Bytes of answers that were compared and right; of HTTP, of bodies.

        Also of answers that were not complete, whether they were under way when the run began or
        ended, or failed later on.
        """

    @property
    def served(self) -> int:
        """How many of the lasting connections, or of the sockets of datagrams, had an answer.

        0 where each request has a connection of its own.
        """

    @property
    def latency(self) -> Histogram:
        """Nanoseconds of each operation, from the beginning of its send to its last byte.

        Where requests have connections of their own: from the beginning of connect(2) to the end
        of the stream. With a ``depth``: of the whole batch, counted ``depth`` times. The time
        between two runs is not in it. The object is the same for all runs.
        """

    @property
    def errors(self) -> Mapping[str, int]:
        """How many errors there were, by kind; no kind that did not occur. A new dict each time.

        Of streams, each being followed by a new connection:

        ========== =====================================================================
        refused    nobody listens (ECONNREFUSED)
        connect    connect(2) failed otherwise, or was not done within the timeout
        reset      ECONNRESET, EPIPE
        early end  the end of the stream before that of the answer
        corrupted  other bytes than had to come; a Content-Length that isn't the body's
        too many bytes  the answer, and then more
        timeout    connected, but no whole answer within the timeout
        status     of HTTP: not 200
        malformed  of HTTP: not HTTP/1, a header of more than 16 KB, no Content-Length on a
                   connection that lasts, or a Transfer-Encoding, none being understood
        ended      a silent connection was ended; if it is an idle one, it has no successor
        ========== =====================================================================

        Of datagrams:

        ============ ===================================================================
        lost         no answer within the timeout; should it come later, that is no error
        disordered   a right answer, which counts, but after that to a later datagram
        corrupted    other bytes than were sent
        wrong length more bytes or fewer
        foreign      an answer to another socket's datagram (which is lost then)
        duplicate    a second answer
        refused      nobody has bound the address
        connect      the kernel refused to send, or to receive, for another reason
        ============ ===================================================================
        """

    @property
    def too_many_errors(self) -> bool:
        """Whether there were ``MOST_ERRORS``, which ends a run early."""

    def open(self, seconds: float) -> None:
        """Make the sockets; let every lasting connection exchange one round, the idle ones too.

        At most 128 connections are without their first answer at a time. The rounds count as those
        of ``run()`` do; the errors may have been mended by trying again. Where each request has a
        connection of its own nothing is connected yet. RLIMIT_NOFILE is raised to its hard limit.

        Args:
            seconds: until it is given up, at most ``MOST_SECONDS``.

        Raises:
            ValueError: seconds are out of bounds.
            RuntimeError: it is open.
            TimeoutError: "N of M connections were served within S s".
            OSError: of errno EMFILE, if so many files may not be opened; or what a system call
                failed with that isn't about the server.

        Whatever is raised, nothing remains open.
        """

    def run(self, seconds: float, count: int = 0) -> None:
        """Keep the server busy, and count.

        Counters begin at zero, the first run being a warm-up. What is under way at the end is
        answered in the next one, and counts there. Signals are handled about every 100 ms, and
        when they interrupt a wait; after an exception of theirs the load is open still.

        Args:
            seconds: how long, at most ``MOST_SECONDS``.
            count: the run ends earlier, with so many operations (rounded up to a multiple of
                ``depth``), if it isn't 0.

        Raises:
            ValueError: something is out of bounds.
            RuntimeError: it is not open.
        """

    def close(self) -> None:
        """Close all sockets. Does nothing if that was done."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
