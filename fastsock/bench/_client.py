"""The load, in a process of its own: reads what to do from standard input, prints what it found.

Both are JSON. It also reads the server's CPU time and memory, from the operating system, right
where the counting begins and ends.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fastsock.bench._load import DatagramLoad, Load, StreamLoad

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Of a process, all its threads and the children it has waited for.

    The process's own come from its CPU clock (clock_getcpuclockid(3)), in nanoseconds; those of
    children from proc(5), in ticks of 10 ms.
    """
    own = time.clock_gettime((~pid << 3) | 2)
    # the name of the program stands in parentheses and may have spaces and parentheses itself
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return own + (int(fields[13]) + int(fields[14])) / TICKS


def anonymous_memory(pid: int) -> int:
    """Resident, in KB: RssAnon of proc(5). Not what the kernel holds for sockets and threads."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise LookupError("no RssAnon in /proc/PID/status")


def make_load(job: dict[str, Any], *, idle: bool = True) -> Load:
    """As the job says, or without its idle connections."""
    address = job["address"]
    if not isinstance(address, str):
        address = tuple(address)
    if job["load"] == "datagrams":
        return DatagramLoad(address, job["connections"], job["payload"], window=job["depth"])
    return StreamLoad(
        address,
        "lines" if job["load"] == "opening" else job["load"],
        job["connections"],
        base64.b64decode(job["request"]),
        base64.b64decode(job["body"]),
        depth=job["depth"],
        idle=job["idle"] if idle else 0,
        cold=job["cold"],
        timeout=job["timeout"],
    )


def run_alone(job: dict[str, Any]) -> tuple[float, Counter[str]]:
    """Operations a second of the busy connections alone, and the errors.

    On the same server, right before the idle ones come: what else differs between two measurements
    is more than what a server loses by them.
    """
    with make_load(job, idle=False) as load:
        load.open(job["patience"])
        errors = Counter(load.errors)
        load.run(job["warm_up"])
        errors += load.errors
        load.run(job["seconds"])
        errors += load.errors
        return load.operations / load.seconds, errors


def run(job: dict[str, Any]) -> dict[str, Any]:
    """What of a measurement the load can know."""
    pid: int = job["pid"]
    memory = opening = alone = None
    errors: Counter[str] = Counter()
    before = anonymous_memory(pid)
    if job["idle"]:
        alone, errors = run_alone(job)
    with make_load(job) as load:
        own = time.process_time()
        begin, spent = time.perf_counter(), cpu_seconds(pid)
        load.open(job["patience"])
        seconds = time.perf_counter() - begin
        spent, own = cpu_seconds(pid) - spent, time.process_time() - own
        errors += load.errors
        held = job["connections"] + job["idle"]
        if job["lasting"]:
            opening, memory = seconds, (anonymous_memory(pid) - before) / held
        if job["load"] == "opening":
            operations, verified, served = held, held * job["payload"], held
        else:
            if not job["cold"]:
                load.run(job["warm_up"])
                errors += load.errors
            spent, own = cpu_seconds(pid), time.process_time()
            load.run(job["seconds"])
            spent, own = cpu_seconds(pid) - spent, time.process_time() - own
            seconds, operations = load.seconds, load.operations
            verified, served = load.verified, load.served
            errors += load.errors
            if not operations and not errors:  # else the errors say it
                raise TimeoutError(f"no answer within {seconds:.3g} s")
        if not job["ordered"]:
            del errors["disordered"]
        p50, p99, p999 = (load.latency.percentile(part) / 1e3 for part in (0.5, 0.99, 0.999))
        return {
            "operations": operations,
            "seconds": seconds,
            "cpu": spent / operations * 1e6 if operations else None,
            "load_cpu": own / operations * 1e6 if operations else None,
            "memory": memory,
            "opening": opening,
            "alone": alone,
            "latency": {"p50": p50, "p99": p99, "p999": p999, "max": load.latency.max() / 1e3},
            "errors": dict(errors),
            "verified": verified,
            "served": served,
        }


def main() -> int:
    """Exit status 3 and a line on standard error: it could not be measured."""
    try:
        print(json.dumps(run(json.load(sys.stdin))), flush=True)
    except (OSError, LookupError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0
