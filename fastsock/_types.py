"""The types of requests and addresses, named as in typeshed's ``socketserver``.

At run time they are Any, so that ``typing.get_type_hints()`` works on the public classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from socket import socket
    from typing import TypeAlias

    from _typeshed import ReadableBuffer as ReadableBuffer
    from typing_extensions import Self as Self

    RequestType: TypeAlias = socket | tuple[bytes, socket]
    #: what a program may pass as the address of a server of any family
    Address: TypeAlias = tuple[Any, ...] | str | ReadableBuffer
    #: what a socket returns as an address
    RetAddress: TypeAlias = Any
    AfUnixAddress: TypeAlias = str | ReadableBuffer
    AfInetAddress: TypeAlias = tuple[str | bytes | bytearray, int]
    AfInet6Address: TypeAlias = tuple[str | bytes | bytearray, int, int, int]
else:
    RequestType = Address = RetAddress = ReadableBuffer = Self = Any
    AfUnixAddress = AfInetAddress = AfInet6Address = Any
