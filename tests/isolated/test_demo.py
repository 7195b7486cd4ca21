"""``python -m fastsock demo``, and what else the command line says."""

from __future__ import annotations

import os
import re

import pytest
from programs import Programs, end

# Said by the examples of the documentation, in this order.
DOCUMENTED = r"""
Sent:     hello world with TCP
Received from 127\.0\.0\.1: b'hello world with TCP'
Received: HELLO WORLD WITH TCP
Sent:     python is nice
Received from 127\.0\.0\.1: b'python is nice'
Received: PYTHON IS NICE
Sent:     hello world with TCP
127\.0\.0\.1 wrote: b'hello world with TCP'
Received: HELLO WORLD WITH TCP
Sent:     python is nice
127\.0\.0\.1 wrote: b'python is nice'
Received: PYTHON IS NICE
Sent:     hello world with UDP
127\.0\.0\.1 wrote: b'hello world with UDP'
Received: HELLO WORLD WITH UDP
Sent:     python is nice
127\.0\.0\.1 wrote: b'python is nice'
Received: PYTHON IS NICE
Server loop running in thread: Thread-\d+ \(serve_forever\)
Received: Thread-\d+ \(process_request_thread\): Hello World 1
Received: Thread-\d+ \(process_request_thread\): Hello World 2
Received: Thread-\d+ \(process_request_thread\): Hello World 3
Received: hello
Received: b'', the end
""".strip().splitlines()


def test_demo(programs: Programs) -> None:
    process = programs.start("-W", "error", "-m", "fastsock", "demo", "--seconds", "0.6")
    found = end(process)
    assert (found.status, found.err) == (0, "")
    said = [
        line for line in found.out.splitlines() if re.search("Sent|wrote|Received|running", line)
    ]
    assert len(said) == len(DOCUMENTED), said
    for line, expected in zip(said, DOCUMENTED, strict=True):
        assert re.search(f"(?:^|\\s){expected}$", line), (line, expected)
    rates = re.findall(r"^\s*(\w+)\s+([\d,]+) requests/s", found.out, re.MULTILINE)
    assert [name for name, _ in rates] == ["socketserver", "fastsock"]
    assert all(int(rate.replace(",", "")) > 100 for _, rate in rates), rates
    with pytest.raises(ProcessLookupError):  # nothing of its process group is left
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("command", [[], ["nothing"], ["demo", "--seconds", "x"]], ids=" ".join)
def test_wrong_command_line(programs: Programs, command: list[str]) -> None:
    found = programs.run("-m", "fastsock", *command)
    assert (found.status, found.out) == (2, "")
    assert found.err.startswith("usage: python -m fastsock ")
    assert "Traceback" not in found.err


@pytest.mark.parametrize("command", [["-h"], ["--help"], ["run", "--help"], ["demo", "--help"]])
def test_help(programs: Programs, command: list[str]) -> None:
    found = programs.run("-m", "fastsock", *command)
    assert (found.status, found.err) == (0, "")
    assert found.out.startswith("usage: python -m fastsock ")


def test_version(programs: Programs) -> None:
    found = programs.run("-m", "fastsock", "--version")
    expected = programs.run("-c", "import fastsock; print('fastsock', fastsock.VERSION)")
    assert found == expected
    assert re.fullmatch(r"fastsock \d+\.\d+\S*\n", found.out)
