"""What can be measured: the scenarios, one a file, and the peers, one library a file.

A scenario is a program as a user would write it, and a few constants. To add one, drop a file into
``scenarios/``; its name is the file's. A name that begins with an underscore is left alone.

=============  ====================================================================================
``TITLE``      one line
``LOAD``       ``once`` (a connection per request: PAYLOAD bytes, echoed, then the end), ``lines``
               (lasting connections, each line of PAYLOAD bytes is echoed), ``datagrams``, ``http``
               and ``http-close`` (REQUEST, answered with 200 and BODY), ``opening`` (how long it
               takes until all connections have exchanged a line, and what memory they hold)
``Server``     a class of ``socketserver``, called as ``Server(address, Handler)``
``Handler``    its handler
``FAMILY``     ``tcp`` (for datagrams: UDP) or ``unix``; default ``tcp``
CONNECTIONS    a tuple of numbers, each of which is measured; for ``once`` and ``http-close`` how
               many at a time, for ``datagrams`` how many sockets
``PAYLOAD``    bytes of a message
``DEPTH``      messages that are under way on each connection; default 1
``IDLE``       so many further connections exchange a line and are silent from then on; default 0
``COLD``       true: lasting connections are opened at once, while it is counted, for 3 s at least,
               and the backlog is the server's own, whatever ``--backlog`` says; default false
``REQUEST``    bytes, for http
``BODY``       bytes, for http
``ORDERED``    false: datagrams may be answered in another order; default true
``QUICK``      false: left out by ``--quick``, as more than 100 connections are; default true
=============  ====================================================================================

A file of ``peers/`` has ``PEERS`` (name -> distribution that has to be installed, or empty),
``WORKS`` (name -> the loads it serves) and ``serve(name, work, address, backlog, tell, enlarge)``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import socketserver
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from fastsock.bench._results import ScenarioInfo

FOLDER = Path(__file__).resolve().parent
LOADS = ("once", "lines", "datagrams", "http", "http-close", "opening")
FAMILIES = ("tcp", "unix")
#: what of the reference server does the same work: load -> (server, argument)
REFERENCES = {
    "once": (("C", "once"),),
    "lines": (("C", "lines"),),
    "opening": (("C", "lines"),),
    "datagrams": (("C", "udp"), ("C batched", "udpbatch")),
}
QUICK_CONNECTIONS = 100


class ScenarioError(Exception):
    """A file that is no scenario; the message names it."""


@dataclass(frozen=True)
class Scenario:
    """What the load does, and the file with the server."""

    name: str
    path: Path
    info: ScenarioInfo
    connections: tuple[int, ...]
    request: bytes  # one message, or the HTTP request
    body: bytes  # of the HTTP answer
    ordered: bool
    quick: bool
    threading: bool  # a thread for each request, of which multiplexing may take the place

    @property
    def work(self) -> str:
        """What a server must be able to do for it."""
        return "lines" if self.info.load == "opening" else self.info.load

    @property
    def lasting(self) -> bool:
        """Are there connections that last, and are there before it is counted?"""
        return self.info.load in ("lines", "http", "opening") and not self.info.cold


@dataclass(frozen=True)
class Peer:
    """A server of another library."""

    name: str
    path: Path
    distribution: str  # empty: the standard library's
    version: str  # empty: not installed
    works: tuple[str, ...]


def message(size: int) -> bytes:
    """A line of so many bytes, of which neighbours differ, so that a shifted one is noticed."""
    letters = b"abcdefghijklmnopqrstuvwxyz0123456789"
    return (letters * (size // len(letters) + 1))[: size - 1] + b"\n" if size else b""


def _module(path: Path, kind: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_bench_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ScenarioError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ScenarioError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def _is_threading(server: object) -> bool:
    return isinstance(server, type) and issubclass(server, socketserver.ThreadingMixIn)


def read(path: Path) -> Scenario:
    """One scenario.

    Raises:
        ScenarioError: something is missing or of another kind.
    """
    constants = vars(_module(path, "scenario"))

    def get(name: str, kind: type, default: object = None) -> object:
        value = constants.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ScenarioError(f"{path}: {name} has to be of type {kind.__name__}")
        return value

    def number(name: str, default: int | None, least: int) -> int:
        value = get(name, int, default)
        assert isinstance(value, int)
        if value < least:
            raise ScenarioError(f"{path}: {name} is {value}, less than {least}")
        return value

    def one_of(name: str, choices: tuple[str, ...], default: str | None) -> str:
        value = get(name, str, default)
        if value not in choices:
            raise ScenarioError(f"{path}: {name} is {value!r}, not one of {', '.join(choices)}")
        return str(value)

    load = one_of("LOAD", LOADS, None)
    family = one_of("FAMILY", FAMILIES, "tcp")
    if not callable(constants.get("Server")) or not callable(constants.get("Handler")):
        raise ScenarioError(f"{path}: Server and Handler have to be classes")
    connections = get("CONNECTIONS", tuple)
    assert isinstance(connections, tuple)
    if not connections or not all(type(one) is int and one > 0 for one in connections):
        raise ScenarioError(f"{path}: CONNECTIONS has to be a tuple of positive numbers")
    body = request = b""
    if load.startswith("http"):
        request, body = (bytes(get(name, bytes)) for name in ("REQUEST", "BODY"))  # type: ignore[call-overload]
        payload = len(body)
    else:
        payload = number("PAYLOAD", None, 0 if load == "datagrams" else 1)
        request = message(payload)
    cold = bool(get("COLD", bool, False))
    if cold and (load not in ("lines", "http") or constants.get("IDLE")):
        raise ScenarioError(f"{path}: COLD is of lasting connections, none of them idle")
    return Scenario(
        path.stem,
        path,
        ScenarioInfo(
            title=str(get("TITLE", str)),
            load=load,
            family=family,
            payload=payload,
            depth=number("DEPTH", 1, 1),
            idle=number("IDLE", 0, 0),
            cold=cold,
        ),
        connections,
        request,
        body,
        bool(get("ORDERED", bool, True)),
        bool(get("QUICK", bool, True)),
        _is_threading(constants["Server"]),
    )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if not path.stem.startswith("_"))


#: the order in which they are shown; what isn't named here comes behind, by name
ORDER = (
    "sync",
    "sync_unix",
    "threads",
    "forks",
    "lines",
    "lines_pipelined",
    "lines_long",
    "lines_unix",
    "udp",
    "udp_gathered",
    "udp_sendto",
    "unix_datagrams",
    "udp_threads",
    "http_keepalive",
    "http_cold",
    "http_nodelay",
    "http_close",
    "xmlrpc",
    "idle",
    "opening",
    "connections",
)


def scenarios(further: Iterable[Path] = ()) -> dict[str, Scenario]:
    """All there are, by name; of two with the same name the later, in the earlier's place.

    Raises:
        ScenarioError: a file is none.
    """
    found = {path.stem: path for path in _files(FOLDER / "scenarios")}
    names = [name for name in ORDER if name in found]
    names += sorted(found.keys() - set(names))
    ordered = {name: found[name] for name in names}
    ordered.update({path.stem: path for path in further})
    return {name: read(path) for name, path in ordered.items()}


def peers() -> list[Peer]:
    """Those there are, installed or not."""
    found = []
    for path in _files(FOLDER / "peers"):
        module = _module(path, "peer")
        for name, distribution in module.PEERS.items():
            found.append(
                Peer(name, path, distribution, version_of(distribution), module.WORKS[name])
            )
    return found


def version_of(distribution: str) -> str:
    """Of an installed distribution; '' if it isn't; Python's own for the standard library."""
    if not distribution:
        return sys.version.split()[0]
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
