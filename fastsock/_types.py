"""The types of requests and addresses, named as in typeshed's ``socketserver``.

At run time they are ``object``, so that ``typing.get_type_hints()`` works on the public classes.
``typing`` itself is not imported: that takes half as long as ``import socketserver``, and its pages
are copied by every fork().
"""

from __future__ import annotations

TYPE_CHECKING = False

__all__ = [
    "TYPE_CHECKING",
    "Address",
    "AfInet6Address",
    "AfInetAddress",
    "AfUnixAddress",
    "Any",
    "ClassVar",
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
    from typing import Any, ClassVar, TypeAlias

    from _typeshed import ReadableBuffer
    from typing_extensions import Self

    RequestType: TypeAlias = socket | tuple[bytes, socket]
    AfUnixAddress: TypeAlias = str | ReadableBuffer
    AfInetAddress: TypeAlias = tuple[str | bytes | bytearray, int]
    AfInet6Address: TypeAlias = tuple[str | bytes | bytearray, int, int, int]
else:
    Any = RequestType = Address = RetAddress = ReadableBuffer = Self = object
    AfUnixAddress = AfInetAddress = AfInet6Address = object

    class ClassVar:
        """``ClassVar[T]`` is T."""

        def __class_getitem__(cls, item):
            return item
