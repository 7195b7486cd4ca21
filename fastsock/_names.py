"""The names that servers and handlers have here and not in the standard library.

Where a program's class has one of them for something of its own, that is what it means, as ever.
Which of its bases comes first says nothing: with the standard library no other has that name.
"""

from __future__ import annotations

from fastsock._types import Any

OF_SERVERS = (
    "broadcast",
    "close_timeout",
    "connection_refused",
    "connections",
    "datagram_counts",
    "drain",
    "gather_replies",
    "handle_accept_error",
    "handle_timeout_error",
    "handle_truncated",
    "lingering_close",
    "max_connections",
    "max_connections_per_peer",
    "max_threads",
    "overload",
    "quiet_disconnects",
    "receive_buffer_size",
    "reuse_threads",
    "stats",
    "tcp_nodelay",
    "thread_idle_timeout",
)
OF_HANDLERS = (
    "first_byte_timeout",
    "idle_timeout",
    "max_line_size",
    "reply_if_empty",
    "request_timeout",
    "write_timeout",
)


def give_way(cls: type, names: tuple[str, ...]) -> None:
    """Have a class find those of the bases of a program's own that come after ours."""
    lineage = cls.__mro__
    if all(map(_is_ours, lineage[1:-1])):
        return  # object is nobody's
    for name in names:
        having = [base for base in lineage if name in vars(base)]
        if having and _is_ours(having[0]):
            for base in having:
                if not _is_ours(base):
                    type.__setattr__(cls, name, vars(base)[name])
                    break


def own_value(server: Any, name: str) -> Any:
    """An attribute that a program may have for something else; None also where it fails."""
    try:
        return getattr(server, name, None)
    except Exception:
        return None


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == __package__
