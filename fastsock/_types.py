"""The types of requests and addresses, named as in typeshed's ``socketserver``.

At run time they are Any, so that ``typing.get_type_hints()`` works on the public classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "Address",
    "AfInet6Address",
    "AfInetAddress",
    "AfUnixAddress",
    "ReadableBuffer",
    "RequestType",
    "RetAddress",
    "Self",
]

if TYPE_CHECKING:
    # what a program may pass as an address, and what a socket returns as one
    from _socket import _Address as Address
    from _socket import _RetAddress as RetAddress
    from socket import socket
    from typing import TypeAlias

    from _typeshed import ReadableBuffer
    from typing_extensions import Self

    RequestType: TypeAlias = socket | tuple[bytes, socket]
    AfUnixAddress: TypeAlias = str | ReadableBuffer
    AfInetAddress: TypeAlias = tuple[str | bytes | bytearray, int]
    AfInet6Address: TypeAlias = tuple[str | bytes | bytearray, int, int, int]
else:
    RequestType = Address = RetAddress = ReadableBuffer = Self = Any
    AfUnixAddress = AfInetAddress = AfInet6Address = Any
