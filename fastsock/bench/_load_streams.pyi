from typing import Literal, final

from fastsock.bench._load_base import Address, Load

@final
class StreamLoad(Load):
    """The load of a stream server.

    ==========  ============================================================================
    once        a connection per request: connect, send it, read it back, then the end
    lines       lasting connections; the echo of ``depth`` requests at a time
    http        lasting connections; HTTP/1 responses with a Content-Length, to ``depth``
                requests at a time
    http-close  a connection per request; the response ends with the stream
    ==========  ============================================================================
    """

    def __init__(
        self,
        address: Address,
        kind: Literal["once", "lines", "http", "http-close"] | str,
        connections: int,
        request: bytes,
        body: bytes | None = None,
        *,
        depth: int = 1,
        idle: int = 0,
        cold: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Say what the load is. Nothing is opened.

        Args:
            address: of the server.
            kind: one of the above.
            connections: that are busy at the same time.
            request: what is sent, up to 16 MiB; for "lines" with the newline at its end. All of a
                batch up to 64 MiB.
            body: of the response, for HTTP: up to 64 MiB. Nothing (or empty) for the others.
            depth: requests that are under way on a connection, up to 1024; a new batch of them is
                sent when the last is answered in full. 1 where connections don't last.
            idle: further connections, which ``open()`` makes and which are silent after a round of
                their own. 0 where connections don't last.
            cold: lasting connections are made by ``run()``, all at once, instead of ``open()``; the
                first round of each begins with that. No idle ones then.
            timeout: seconds that a round may take; None: ``TIMEOUT``.

        Raises:
            ValueError: something is out of bounds, or the address isn't one of this machine.
        """
