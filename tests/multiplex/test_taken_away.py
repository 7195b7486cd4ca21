"""A connection that others close, detach or shut down while a handler waits for it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crews import Crew

from fastsock import multiplexing

TESTS = Path(__file__).resolve().parent.parent
#: of the quick form of ci/soak torture
ROUNDS = int(os.environ.get("FASTSOCK_TORTURE_ROUNDS", "4000"))


def outcome(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except OSError as error:
        return error.errno


@pytest.mark.parametrize("call", ["recv", "recvmsg"])
def test_closed_between_its_event_and_its_turn(tasks: Crew, call: str) -> None:
    """Its number is somebody else's by the time that the task runs, who has nothing to read."""
    found: list[Any] = []
    others: list[socket.socket] = list(socket.socketpair())

    def act() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            first, second = (
                multiplexing.create_connection(listener.getsockname()) for _ in range(2)
            )
            peers = [listener.accept()[0] for _ in range(2)]

        def wait() -> None:
            found.append(outcome(getattr(first, call), 10))

        def take_away() -> None:
            second.recv(10)
            number = first.fileno()
            first.close()
            os.dup2(others[0].fileno(), number)
            others.append(socket.socket(fileno=number))

        both = [multiplexing.spawn(wait), multiplexing.spawn(take_away)]
        multiplexing.sleep(0.01)
        for peer in peers:  # one poll tells of both: first's task becomes ready, second's runs
            peer.send(b"x")
        assert [spawned.join(5) for spawned in both] == [True, True]
        for sock in (second, *peers, *others):
            sock.close()

    tasks.run(act)
    # recv() has been brought its byte with the event
    assert found == [b"x" if call == "recv" else errno.EBADF]


def test_torture(fastsock_dir: str | None) -> None:
    """Some thousand connections, as ci/soak does it with a million."""
    import fastsock

    environment = {**os.environ, "PYTHONPATH": str(Path(fastsock.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "soak", "torture", "--rounds", str(ROUNDS)],
        cwd=TESTS,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60 + ROUNDS / 100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("soak: passed\n"), done.stdout
