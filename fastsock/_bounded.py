"""rfile with a bound for its lines where it is no Reader: of a TLS socket, or unbuffered."""

from __future__ import annotations

from io import DEFAULT_BUFFER_SIZE, BufferedIOBase, RawIOBase

from fastsock._reader import LineTooLongError
from fastsock._types import Any


class BoundedFile(BufferedIOBase):
    """A file of ``socket.makefile()``, of which no line is longer than so many bytes.

    After a longer one nothing more can be read: what follows would be the rest of it.
    """

    def __init__(self, file: Any, most: int) -> None:
        self._file = file
        self._most = most
        self._failed = False

    def readline(self, size: int | None = -1, /) -> bytes:
        self._check()
        if size is not None and 0 <= size <= self._most:
            line: bytes = self._file.readline(size)
            return line
        line = self._file.readline(self._most + 1)
        if line is not None and len(line) > self._most:
            self._failed = True
            self._check()
        return line

    def _check(self) -> None:
        if self._failed:
            raise LineTooLongError(f"a line is longer than {self._most} bytes (max_line_size)")

    def read(self, *size: Any) -> Any:
        self._check()
        return self._file.read(*size)

    def read1(self, size: int = -1, /) -> Any:
        self._check()
        if hasattr(self._file, "read1"):
            return self._file.read1(size)
        return self._file.read(DEFAULT_BUFFER_SIZE if size < 0 else size)  # one call, of a SocketIO

    def readinto(self, buffer: Any, /) -> Any:
        self._check()
        return self._file.readinto(buffer)

    def readinto1(self, buffer: Any, /) -> Any:
        self._check()
        return getattr(self._file, "readinto1", self._file.readinto)(buffer)

    def detach(self) -> Any:
        return super().detach() if isinstance(self._file, RawIOBase) else self._file.detach()

    def fileno(self) -> int:
        descriptor: int = self._file.fileno()
        return descriptor

    def readable(self) -> bool:
        return bool(self._file.readable())

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def __getattr__(self, name: str) -> Any:  # peek, raw, name, mode
        return getattr(self._file, name)
