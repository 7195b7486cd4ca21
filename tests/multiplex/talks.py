"""A server whose handlers are threads or tasks, and its clients.

Without pytest: programs in processes of their own begin here, too.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 20.0


class Served:
    """A threading server of an implementation that runs; its clients are closed first."""

    def __init__(
        self,
        ss: Any,
        handle: Callable[[Any], Any],
        transport: str = "TCP",
        base: str = "StreamRequestHandler",
        handler: dict[str, Any] | None = None,
        **attributes: Any,
    ) -> None:
        self.stack = contextlib.ExitStack()
        server_class: Any = getattr(ss, f"Threading{transport}Server")
        server_class = type("Server", (server_class,), {"request_queue_size": 64, **attributes})
        address: Any = ("127.0.0.1", 0)
        if transport == "UnixStream":
            folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="fs"))
            address = f"{folder}/s"
        made = {"handle": handle, **(handler or {})}
        self.server = server_class(address, type("Handler", (getattr(ss, base),), made))
        self.stack.callback(self.server.server_close)
        self.loop = threading.Thread(target=self.server.serve_forever, args=(0.002,), daemon=True)
        self.loop.start()
        self.stack.callback(self._stop)

    def _stop(self) -> None:
        if self.loop.is_alive():
            self.server.shutdown()
            self.loop.join(TIMEOUT)

    def connect(self, said: bytes = b"") -> socket.socket:
        """A client, which has said something."""
        sock = socket.socket(self.server.address_family, self.server.socket_type)
        self.stack.enter_context(sock)
        sock.settimeout(TIMEOUT)
        sock.connect(self.server.server_address)
        if said:
            sock.sendall(said)
        return sock

    def ask(self, line: bytes) -> bytes:
        """A line's answer, of a client of its own."""
        with self.connect(line) as sock, sock.makefile("rb") as file:
            return file.readline()

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.stack.close()


def program(text: str) -> str:
    """A program for the fixture `script`, with the names of this module."""
    # tests/selection.py finds by the word Threading in it what multiplexing is tested with, too.
    folder = str(Path(__file__).resolve().parent)
    beginning = f"""\
import faulthandler, os, sys
faulthandler.enable()
sys.path.insert(0, {folder!r})
from talks import *  # Served, whose servers are Threading ones
from fastsock import multiplexing
"""
    return beginning + textwrap.dedent(text)


def output(process: Any) -> str:
    """What a program has printed; it has ended well."""
    out: str
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, (process.returncode, out, err)
    return out
