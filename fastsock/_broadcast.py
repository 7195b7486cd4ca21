"""broadcast(): bytes for all connections of a server."""

from __future__ import annotations

from dataclasses import dataclass

from fastsock._control import Control
from fastsock._ledger import Record, views
from fastsock._post import is_of, post
from fastsock._stats import LiveConnection, live_records
from fastsock._types import Any, ReadableBuffer


@dataclass(frozen=True)
class Broadcast:
    """What has become of a ``BaseServer.broadcast()``.

    Attributes:
        sent: how many connections get the bytes.
        skipped: the others, of which none has got any.
    """

    sent: int
    skipped: tuple[LiveConnection, ...]


def broadcast_to_all(
    server: Any, control: Control, data: ReadableBuffer, exclude: object
) -> Broadcast:
    """See ``BaseServer.broadcast()``."""
    with memoryview(data) as view:
        given = data if type(data) is bytes else view.tobytes()
    sent = 0
    skipped: list[Record] = []
    other = control.ledger.others.get(id(exclude))
    for record in live_records(server, control):
        if record is other or is_of(record, exclude):
            continue
        if post(record, given):
            sent += 1
        else:
            skipped.append(record)
    return Broadcast(sent, tuple(map(LiveConnection, views(skipped))))
