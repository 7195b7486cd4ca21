"""Runs of the benchmark that nobody measured: as realistic as the tests need them."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastsock.bench._results import (
    Latency,
    LeftOut,
    Machine,
    Measurement,
    Run,
    ScenarioInfo,
    Settings,
)

SERVERS = ("socketserver", "fastsock", "C")
ALL_SERVERS = (
    "socketserver",
    "fastsock",
    "fastsock multiplexing",
    "asyncio streams",
    "asyncio Protocol",
    "uvloop streams",
    "uvloop Protocol",
    "gevent",
    "C",
)
#: name -> title, load, family, payload, depth, idle, connections
TABLE: dict[str, tuple[str, str, str, int, int, int, tuple[int, ...]]] = {
    "sync": ("TCPServer, a connection per request", "once", "tcp", 64, 1, 0, (16,)),
    "sync_unix": ("UnixStreamServer, a connection per request", "once", "unix", 64, 1, 0, (16,)),
    "threads": ("ThreadingTCPServer, a connection per request", "once", "tcp", 64, 1, 0, (16,)),
    "forks": ("ForkingTCPServer, a connection per request", "once", "tcp", 64, 1, 0, (16,)),
    "lines": ("ThreadingTCPServer, line echo", "lines", "tcp", 64, 1, 0, (50,)),
    "pipelined": ("ThreadingTCPServer, line echo, pipelined", "lines", "tcp", 64, 16, 0, (50,)),
    "long": ("ThreadingTCPServer, line echo, long lines", "lines", "tcp", 16384, 1, 0, (50,)),
    "lines_unix": ("ThreadingUnixStreamServer, line echo", "lines", "unix", 64, 1, 0, (50,)),
    "udp": ("UDPServer, echo", "datagrams", "tcp", 64, 8, 0, (50,)),
    "udp_sendto": ("UDPServer, echo with sendto()", "datagrams", "tcp", 64, 8, 0, (50,)),
    "udp_threads": ("ThreadingUDPServer, echo", "datagrams", "tcp", 64, 8, 0, (50,)),
    "http": ("ThreadingHTTPServer, keep-alive", "http", "tcp", 13, 1, 0, (50,)),
    "http_close": (
        "ThreadingHTTPServer, a connection per request",
        "http-close",
        "tcp",
        13,
        1,
        0,
        (16,),
    ),
    "xmlrpc": (
        "SimpleXMLRPCServer, add(2, 3), a connection per call",
        "http-close",
        "tcp",
        121,
        1,
        0,
        (16,),
    ),
    "idle": (
        "ThreadingTCPServer, line echo beside idle connections",
        "lines",
        "tcp",
        64,
        1,
        9000,
        (50,),
    ),
    "opening": (
        "ThreadingTCPServer, opening connections",
        "opening",
        "tcp",
        64,
        1,
        0,
        (100, 1000, 9000),
    ),
    "connections": (
        "ThreadingTCPServer, line echo, by connections",
        "lines",
        "tcp",
        64,
        1,
        0,
        (1, 10, 100, 1000, 9000),
    ),
}
WITHOUT_PEERS = ("http", "http-close")

MACHINE = Machine(
    cpu="Made-up CPU @ 2.50GHz",
    cores=2,
    kernel="Linux 6.1.0",
    python="CPython 3.11.7",
    fastsock="0.1.0",
    compiler="cc (Debian 12.2.0-14) 12.2.0",
    peers={"uvloop": "0.21.0", "gevent": ""},
    when="2026-01-02T03:04:05+00:00",
)
SETTINGS = Settings(rounds=3, seconds=2.0, backlog=1024, quick=False)


def info(name: str = "lines", **changes: Any) -> ScenarioInfo:
    return dataclasses.replace(ScenarioInfo(*TABLE[name][:6]), **changes)


def measurement(**changes: Any) -> Measurement:
    """100,000 operations a second of fastsock; ``rate`` may be given instead of operations."""
    fields: dict[str, Any] = {
        "scenario": "lines",
        "server": "fastsock",
        "connections": 50,
        "pinned": False,
        "round": 0,
        "seconds": 2.0,
        "cpu": 8.0,
        "memory": None,
        "opening": None,
        "latency": Latency(400.0, 900.0, 1500.0, 4000.0),
        "errors": {},
        "verified": 12_800_000,
    }
    fields["operations"] = round(changes.pop("rate", 100_000) * changes.get("seconds", 2.0))
    fields.update(changes)
    fields.setdefault("served", fields["connections"])
    return Measurement(**fields)


def run(
    measurements: Iterable[Measurement],
    scenarios: Mapping[str, ScenarioInfo] | None = None,
    left_out: Iterable[LeftOut] = (),
    **settings: Any,
) -> Run:
    """``settings``: fields of Settings and of Machine that differ."""
    taken = list(measurements)
    names = dict.fromkeys(one.scenario for one in taken)
    machine = {name: settings.pop(name) for name in list(settings) if hasattr(MACHINE, name)}
    return Run(
        dataclasses.replace(MACHINE, **machine),
        dataclasses.replace(SETTINGS, **settings),
        dict(scenarios) if scenarios is not None else {name: info(name) for name in names},
        taken,
        list(left_out),
    )


def speed(scenario: str, server: str, connections: int) -> float:
    """What a server does a second, before all noise; of no particular truth."""
    base = 4_000 + 900 * (list(TABLE).index(scenario) * 7 % 11)
    factors = {
        "socketserver": 1.0,
        "fastsock": 2 + 33 * (list(TABLE).index(scenario) * 5 % 13) / 12,
        "asyncio streams": 0.5,
        "asyncio Protocol": 1.9,
        "uvloop streams": 1.4,
        "uvloop Protocol": 6.0,
        "gevent": 0.8,
        "C": 36.0,
    }
    slower = 1 + math.log10(connections) * (0.5 if server == "socketserver" else 0.15)
    return base * factors.get(server, 3.0) / slower * min(connections, 4)


def simulate(
    seed: int,
    *,
    scenarios: Iterable[str] = tuple(TABLE),
    servers: Iterable[str] = SERVERS,
    rounds: int = 3,
    pinned: Iterable[bool] = (False,),
    noise: tuple[float, float] = (0.03, 0.06),
    shared: float = 0.5,
    modes: float = 40.0,
    takes: float = 2.0,
    slow: float = 1.25,
    outliers: float = 0.01,
    factor: Callable[[str, str], float] = lambda scenario, server: 1.0,
    **settings: Any,
) -> Run:
    """A run in the order in which one is measured, on a machine that flips between two speeds.

    Args:
        noise: of one figure, lognormal; each scenario has a level in between.
        shared: how much of the variance rate and CPU have in common.
        modes: how long the machine stays in a mode, in seconds, on average.
        takes: the seconds of a measurement, with the start of the server.
        slow: how much slower the slow mode is.
        outliers: the share of measurements whose rate is 0.7 of what it would be.
        factor: what the rate of a server is divided by in a scenario, and its CPU multiplied.
    """
    dice = random.Random(seed)
    mode, remaining = dice.random() < 0.5, dice.uniform(0, 1.6) * modes
    names = list(scenarios)
    level = {
        name: noise[0] + (noise[1] - noise[0]) * (list(TABLE).index(name) * 3 % 7) / 6
        for name in names
    }
    found = []
    for number in range(rounds):
        for pin in pinned:
            for name in names:
                for connections in TABLE[name][6]:
                    load = TABLE[name][1]
                    for server in servers:
                        if load in WITHOUT_PEERS and server not in ("socketserver", "fastsock"):
                            continue
                        remaining -= takes
                        while remaining < 0:
                            mode = not mode
                            remaining += dice.uniform(0.4, 1.6) * modes
                        sigma = level[name]
                        common = dice.gauss(0, sigma * math.sqrt(shared))
                        own = [dice.gauss(0, sigma * math.sqrt(1 - shared)) for _ in range(2)]
                        cost = (slow if mode else 1.0) * factor(name, server)
                        cost *= 1.3 if pin else 1.0
                        cost /= 0.7 if dice.random() < outliers else 1.0
                        ideal = speed(name, server, connections)
                        lasting = load in ("lines", "http", "opening")
                        rate = ideal / cost * math.exp(-common - own[0])
                        found.append(
                            measurement(
                                scenario=name,
                                server=server,
                                connections=connections,
                                pinned=pin,
                                round=number,
                                rate=rate,
                                cpu=7e5 / ideal * cost * math.exp(common + own[1]),
                                memory=(9.0 if lasting else None)
                                and 9.0 * math.exp(dice.gauss(0, 0.01)),
                                opening=connections / rate if lasting else None,
                                latency=Latency(
                                    connections / rate * 1e6,
                                    connections / rate * 2.2e6,
                                    connections / rate * 4e6,
                                    connections / rate * 2e7,
                                ),
                                served=connections if lasting else 0,
                            )
                        )
    return run(found, rounds=rounds, **settings)
