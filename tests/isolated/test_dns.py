"""A DNS server made with dnslib, asked by dig: over UDP and TCP, on both implementations."""

from __future__ import annotations

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from programs import Programs
from support import TIMEOUT

pytest.importorskip("dnslib", reason="dnslib is not installed (ci/requirements-test.txt)")
pytestmark = pytest.mark.skipif(
    shutil.which("dig") is None, reason="no dig here (Debian: bind9-dnsutils)"
)

PROGRAM = """
    import sys

    implementation, transport = sys.argv[1:]
    if implementation == "fastsock":
        import fastsock
        fastsock.install()
    import dnslib.server
    import socketserver

    class Resolver(dnslib.server.BaseResolver):
        zone = [
            *dnslib.RR.fromZone("host.example. 60 A 192.0.2.1"),
            *dnslib.RR.fromZone("host.example. 60 A 192.0.2.2"),
            *dnslib.RR.fromZone('host.example. 60 TXT "several words"'),
            *dnslib.RR.fromZone("six.example. 60 AAAA 2001:db8::1"),
        ]

        def resolve(self, request, handler):
            reply = request.reply()
            asked = request.q.qname
            if str(asked).startswith("n"):  # n17.example. has the address 10.0.0.17
                number = str(asked)[1:].partition(".")[0]
                reply.add_answer(*dnslib.RR.fromZone(f"{asked} 60 A 10.0.0.{number}"))
            for record in self.zone:
                if record.rname == asked and record.rtype == request.q.qtype:
                    reply.add_answer(record)
            if not reply.rr and asked not in [record.rname for record in self.zone]:
                reply.header.rcode = dnslib.RCODE.NXDOMAIN
            return reply

    server = dnslib.server.DNSServer(
        Resolver(), address="127.0.0.1", tcp=transport == "tcp",
        logger=dnslib.server.DNSLogger("-request,-reply,-truncated,-error"), port=0,
    )
    assert issubclass(dnslib.server.UDPServer, socketserver.UDPServer)
    module = socketserver.UDPServer.__module__
    assert module.partition(".")[0] == implementation, module
    server.start_thread()
    print(server.server.server_address[1], flush=True)
    sys.stdin.readline()
    server.stop()
    server.server.server_close()
    server.thread.join(10)
    print(server.isAlive())
"""

both = pytest.mark.parametrize("implementation", ["socketserver", "fastsock"])
transports = pytest.mark.parametrize("transport", ["udp", "tcp"])


class Server:
    def __init__(self, programs: Programs, implementation: str, transport: str) -> None:
        self.process = programs.script(PROGRAM, implementation, transport)
        assert self.process.stdout is not None
        self.port = self.process.stdout.readline().strip()
        assert self.port, self.process.communicate(timeout=TIMEOUT)
        self.options = ["+tries=1", "+time=10", "+tcp" if transport == "tcp" else "+notcp"]

    def dig(self, *arguments: str) -> str:
        done = subprocess.run(
            ["dig", "@127.0.0.1", "-p", self.port, *self.options, *arguments],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done
        return done.stdout

    def short(self, *arguments: str) -> list[str]:
        return self.dig("+short", *arguments).splitlines()

    def end(self) -> None:
        out, err = self.process.communicate("\n", TIMEOUT)
        assert (out, err, self.process.returncode) == ("False\n", "", 0)


@both
@transports
def test_answers(programs: Programs, implementation: str, transport: str) -> None:
    server = Server(programs, implementation, transport)
    assert sorted(server.short("host.example", "A")) == ["192.0.2.1", "192.0.2.2"]
    assert server.short("host.example", "TXT") == ['"several words"']
    assert server.short("six.example", "AAAA") == ["2001:db8::1"]
    assert server.short("six.example", "A") == []
    missing = server.dig("missing.example", "A")
    assert re.search(r"status: NXDOMAIN\b", missing) and "ANSWER: 0" in missing
    found = server.dig("host.example", "A")
    assert re.search(r"status: NOERROR\b", found) and "ANSWER: 2" in found
    server.end()


@both
@transports
def test_many_at_once(programs: Programs, implementation: str, transport: str) -> None:
    """Several dig processes which ask ten questions each; each question has its own answer."""
    server = Server(programs, implementation, transport)

    def ask(first: int) -> list[str]:
        return server.short(*[f"n{number}.example" for number in range(first, first + 10)])

    firsts = range(0, 80, 10)
    with ThreadPoolExecutor(8) as pool:
        for first, answers in zip(firsts, pool.map(ask, firsts)):
            assert answers == [f"10.0.0.{number}" for number in range(first, first + 10)]
    server.end()
