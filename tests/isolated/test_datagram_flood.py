"""Far more datagrams than a server can take: each is served or counted as dropped.

flood.c sends them, numbered. The standard library checks the test.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import Ended, Programs, end

HERE = Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """No flood beside that of another Python's tests: each takes the whole machine."""
    with open(Path(tempfile.gettempdir()) / f"fastsock-flood-{os.getuid()}", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


each_implementation = pytest.mark.parametrize("implementation", ["socketserver", "fastsock"])

PROGRAM = """
    import importlib, json, os, socket, struct, subprocess, sys, threading, time
    from pathlib import Path

    def elsewhere():  # dropped before they came to the socket
        return 0

    implementation, flavour, flood, sent, buffer = sys.argv[1:6]
    sent = int(sent)
    ss = importlib.import_module(implementation)
    SO_MEMINFO = 55

    def dropped():
        return struct.unpack("9I", server.socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[8]

    def softnet():
        # What no socket has seen: the processor's own queue was full. Of the whole machine.
        lines = Path("/proc/net/softnet_stat").read_text().splitlines()
        return sum(int(line.split()[1], 16) for line in lines)

    times = bytearray(sent)  # that each was served
    served = twice = threads = tasks = 0
    lock = threading.Lock()

    class Handler(ss.BaseRequestHandler):
        def handle(self):
            global served, twice, threads, tasks
            number, = struct.unpack_from("Q", self.request[0])
            if flavour:
                active = threading.active_count()
                running = len(os.listdir("/proc/self/task")) if number % 100 == 0 else 0
                with lock:
                    served += 1
                    twice += times[number]
                    times[number] = 1
                    threads, tasks = max(threads, active), max(tasks, running)
            else:
                served += 1
                twice += times[number]
                times[number] = 1

    server = getattr(ss, flavour + "UDPServer")(("127.0.0.1", 0), Handler)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, int(buffer))
    # END OF PREPARATION
    before = softnet()
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    begin = time.monotonic()
    sender = subprocess.run(
        [flood, str(server.server_address[1]), str(sent), "8", "64"],
        stdout=subprocess.PIPE, check=True, timeout=18,
    )
    made, refused = map(int, sender.stdout.split())
    assert made == sent
    deadline = begin + 18
    while time.monotonic() < deadline:
        if served + dropped() + elsewhere() + softnet() - before >= sent:
            break
        time.sleep(0.01)
    server.shutdown()
    serving.join()
    facts = dict(served=served, twice=twice, dropped=dropped(), elsewhere=elsewhere(),
                 softnet=softnet() - before, threads=threads, tasks=tasks, refused=refused,
                 took=time.monotonic() - begin)
    server.server_close()
    if flavour:
        facts["served"] = served  # server_close() has waited for the last handlers
    print(json.dumps(facts))
"""

PACED = """
    import fastsock, json, os, socket, sys, threading, time

    count = int(sys.argv[1])
    barrier = threading.Barrier(count)
    lock = threading.Lock()
    begun = ended = 0

    class Handler(fastsock.BaseRequestHandler):
        def handle(self):
            global begun, ended
            with lock: begun += 1
            barrier.wait(15)
            with lock: ended += 1

    class Server(fastsock.ThreadingUDPServer):
        receive_buffer_size = 200_000

    server = Server(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.connect(server.server_address)
    begin = time.monotonic()
    for number in range(count):
        while begun < number - 100 and time.monotonic() < begin + 15: time.sleep(0.001)
        client.send(b"%d" % number)
    while ended < count and time.monotonic() < begin + 15: time.sleep(0.001)
    server.shutdown(); serving.join(); server.server_close(); client.close()
    print(json.dumps(dict(begun=begun, ended=ended)))
"""

NETFILTER = """
    # In a network of its own: what a rule has dropped.
    import re

    def tool(*command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print("cannot:", *command, done.stderr)
            sys.exit(77)
        return done.stdout

    tool("ip", "link", "set", "lo", "up")
    port = str(server.server_address[1])
    if sys.argv[6] == "nft":
        tool("nft", "add table inet flood")
        tool("nft", "add chain inet flood input { type filter hook input priority 0; }")
        tool("nft", "add rule inet flood input udp dport " + port
             + " numgen random mod 10 == 0 counter drop")
        listing, counter = ("nft", "list", "table", "inet", "flood"), r"counter packets (\\d+)"
    else:
        tool("iptables", "-A", "INPUT", "-p", "udp", "--dport", port, "-m", "statistic",
             "--mode", "random", "--probability", "0.1", "-j", "DROP")
        listing, counter = ("iptables", "-L", "INPUT", "-v", "-n", "-x"), r"(\\d+) +\\d+ +DROP"

    def elsewhere():
        return int(re.search(counter, tool(*listing))[1])
"""


@pytest.fixture(scope="module")
def flood(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    assert compiler, "a C compiler is needed, as for building fastsock"
    program = tmp_path_factory.mktemp("flood") / "flood"
    subprocess.run([*compiler.split(), "-O2", "-o", program, HERE / "flood.c"], check=True)
    return program


def facts_of(ended: Ended) -> dict[str, Any]:
    assert ended.status == 0, ended
    assert ended.err == ""
    facts: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    return facts


def check_all_accounted_for(facts: dict[str, Any], sent: int) -> None:
    assert facts["twice"] == 0
    missing = sent - facts["served"] - facts["dropped"] - facts["elsewhere"] - facts["refused"]
    assert 0 <= missing <= facts["softnet"], facts
    assert facts["served"] > 100, facts


@pytest.mark.once("what the kernel has dropped, and the native loop beside it")
@each_implementation
def test_a_million(programs: Programs, flood: Path, implementation: str) -> None:
    """At a small receive buffer."""
    sent = 1_000_000
    ended = programs.run_script(PROGRAM, implementation, "", flood, str(sent), "20000")
    facts = facts_of(ended)
    check_all_accounted_for(facts, sent)
    assert facts["dropped"] > 0
    assert facts["took"] < 20


def test_quick_handlers_need_few_threads(programs: Programs, flood: Path) -> None:
    sent = 100_000
    for _ in range(3):  # on a machine that gives threads no time none is quick
        ended = programs.run_script(PROGRAM, "fastsock", "Threading", flood, str(sent), "200000")
        facts = facts_of(ended)
        check_all_accounted_for(facts, sent)
        if facts["threads"] <= 80 and facts["tasks"] <= 80:
            return
    pytest.fail(f"three times: {facts}")


def test_a_thousand_handlers_that_wait_for_each_other(programs: Programs) -> None:
    """No limit to the threads, if that is what it takes; the client sends when there is room."""
    facts = facts_of(programs.run_script(PACED, "1000"))
    assert facts == {"begun": 1000, "ended": 1000}


@each_implementation
@pytest.mark.parametrize("filter_tool", ["nft", "iptables"])
def test_a_lossy_network(
    programs: Programs, flood: Path, implementation: str, filter_tool: str
) -> None:
    """A netfilter rule drops a tenth and counts them: then those of the socket add up with it."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a network namespace")
    for tool in ("unshare", "ip", filter_tool):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces here: unshare -n fails")
    sent = 200_000
    text = PROGRAM.replace("    # END OF PREPARATION\n", NETFILTER)
    process = programs.start(
        "-c",
        "import os, sys; os.execvp('unshare', ['unshare', '-n', sys.executable, *sys.argv[1:]])",
        "-c",
        textwrap.dedent(text),
        *(implementation, "", str(flood), str(sent), "20000", filter_tool),
    )
    ended = end(process)
    if ended.status == 77:
        pytest.skip(ended.out)
    facts = facts_of(ended)
    check_all_accounted_for(facts, sent)
    assert sent * 0.08 < facts["elsewhere"] < sent * 0.12
    assert facts["dropped"] > 0
