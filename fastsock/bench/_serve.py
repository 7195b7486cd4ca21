"""One server to be measured, in a process of its own. Run by its path, never imported.

    _serve.py scenario FILE implementation address backlog
    _serve.py peer     FILE name work      address backlog

Prints the port (0 for a Unix socket) when the server listens, then serves until it is killed.

So that the standard library is measured as its users have it, nothing of fastsock is imported for
it. For fastsock :func:`fastsock.install` is called first, and then the very same file is run: its
``import socketserver`` is the only thing that differs. So it is for "fastsock multiplexing", where
the names of the threading classes stand for the multiplexing ones.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

SO_RCVBUFFORCE = 33  # beyond net.core.rmem_max, for those with CAP_NET_ADMIN: socket(7)
DATAGRAM_ROOM = 1 << 20  # bytes


def load(path: str) -> ModuleType:
    """A file as a module, under a name that shadows nobody's."""
    spec = importlib.util.spec_from_file_location(f"_bench_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def enlarge(sock: socket.socket) -> None:
    """Room for what all clients of a datagram server have under way."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, DATAGRAM_ROOM)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_ROOM)


def teller() -> Callable[[int], None]:
    """What says that the server listens; whatever else is printed goes to standard error.

    Nobody reads our standard output but for that line: a handler that prints would block.
    """
    out = os.dup(1)  # not inherited by a program that a handler starts
    os.dup2(2, 1)

    def tell(port: int) -> None:
        os.write(out, b"%d\n" % port)
        os.close(out)

    return tell


def serve_scenario(
    path: str, implementation: str, address: Any, backlog: int, tell: Callable[[int], None]
) -> None:
    """The standard library's classes, or ours in their place."""
    if implementation.startswith("fastsock"):
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        import fastsock

        fastsock.install(multiplex=implementation.endswith("multiplexing"))
    scenario = load(path)
    if backlog:
        scenario.Server.request_queue_size = backlog
    with scenario.Server(address, scenario.Handler) as server:
        if server.socket_type == socket.SOCK_DGRAM:
            enlarge(server.socket)
        tell(0 if isinstance(address, str) else server.server_address[1])
        server.serve_forever()


def main(arguments: list[str]) -> None:
    """Serve until killed."""
    kind, path, name, *rest = arguments
    where, backlog = rest[-2], int(rest[-1])
    address = where if where.startswith("/") else (where, 0)
    if sys.path[:1] == [str(Path(__file__).parent)]:  # not so with PYTHONSAFEPATH
        del sys.path[0]  # no module of ours is to hide one of somebody else's
    tell = teller()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if kind == "scenario":
        serve_scenario(path, name, address, backlog, tell)
    else:
        load(path).serve(name, rest[0], address, backlog, tell, enlarge)


if __name__ == "__main__":
    main(sys.argv[1:])
