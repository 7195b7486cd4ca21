"""quiet_disconnects: a line, and no traceback, of a peer that has gone."""

from __future__ import annotations

import errno
import re
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
from living import Living, echo, until_end
from support import wait_until

Live = Callable[..., Living]
#: as handle_error() prints them
GONE = {
    "reset": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "broken pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
}
OTHERS = {
    "aborted": ConnectionAbortedError(errno.ECONNABORTED, "Software caused connection abort"),
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "timeout": TimeoutError("timed out"),
    "host": OSError(errno.EHOSTUNREACH, "No route to host"),
    "value": ValueError("reset"),
}


TRACEBACK = "(?s)-{40}\\n.*-{40}\\n"


def printed(capfd: pytest.CaptureFixture[str], until: str) -> str:
    """What is printed, also by a child process, until there is something like this."""
    found = ""

    def come() -> bool:
        nonlocal found
        found += capfd.readouterr().err
        return re.search(until, found) is not None

    wait_until(come)
    return found


def raises(error: Exception) -> Callable[[Any], None]:
    def handle(handler: Any) -> None:
        raise error

    return handle


@pytest.mark.parametrize("what", GONE)
def test_one_line(live: Live, flavour: str, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    living = live(flavour, raises(GONE[what]), quiet_disconnects=True)
    client = living.connect()
    assert until_end(client) == b""
    found = printed(capfd, r"\n")
    assert found == f"{client.getsockname()} has gone: {GONE[what]}\n"


@pytest.mark.parametrize("what", OTHERS)
def test_others_are_errors(
    live: Live, flavour: str, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    living = live(flavour, raises(OTHERS[what]), quiet_disconnects=True)
    assert until_end(living.connect()) == b""
    found = printed(capfd, TRACEBACK)
    assert "Traceback" in found
    assert str(OTHERS[what]) in found


@pytest.mark.parametrize("quiet", [False, None, 1, "yes", object()], ids=str)
def test_off(live: Live, flavour: str, quiet: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """By default, and where a program has something else by that name."""
    living = live(flavour, raises(GONE["reset"]), quiet_disconnects=quiet)
    client = living.connect()
    assert until_end(client) == b""
    found = printed(capfd, TRACEBACK)
    assert "Traceback" in found
    assert f"from {client.getsockname()}" in found


@pytest.mark.parametrize("transport", ["TCP", "UnixStream"])
def test_a_peer_that_has_really_gone(
    live: Live, flavour: str, transport: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def handle(handler: Any) -> None:
        handler.rfile.readline()
        handler.gate.wait()
        for _ in range(100):
            handler.wfile.write(bytes(100_000))

    living = live(flavour, handle, transport, quiet_disconnects=True)
    client = living.connect(b"hello\n")
    living.gate.await_one()
    if transport == "TCP":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if flavour == "forking":  # whose child has a copy
        client.shutdown(socket.SHUT_RDWR)
    client.close()
    living.gate.open()
    found = printed(capfd, r"\n")
    assert found.count("\n") == 1
    assert "has gone: [Errno" in found


def test_it_is_counted_as_failed_all_the_same(
    live: Live, capfd: pytest.CaptureFixture[str]
) -> None:
    living = live("threading", raises(GONE["reset"]), quiet_disconnects=True)
    assert until_end(living.connect()) == b""
    assert living.server._fastsock.ledger.failed == 1
    printed(capfd, r"\n")


def test_an_overridden_hook_has_all_of_them(live: Live) -> None:
    called = []
    living = live(
        "threading",
        raises(GONE["reset"]),
        quiet_disconnects=True,
        handle_error=lambda server, *args: called.append(args[1]),
    )
    client = living.connect()
    assert until_end(client) == b""
    assert called == [client.getsockname()]


def test_set_on_the_way(live: Live, capfd: pytest.CaptureFixture[str]) -> None:
    living = live("threading", raises(GONE["reset"]))
    assert until_end(living.connect()) == b""
    assert "Traceback" in printed(capfd, TRACEBACK)
    living.server.quiet_disconnects = True
    assert until_end(living.connect()) == b""
    assert "Traceback" not in printed(capfd, r"\n")


def test_a_server_that_is_used_by_itself(live: Live, capfd: pytest.CaptureFixture[str]) -> None:
    """handle_error() of a class that has none of the attributes here."""
    module = live("threading", echo).module

    class Foreign:
        handle_error = module.BaseServer.handle_error

    try:
        raise GONE["reset"]
    except ConnectionResetError:
        Foreign().handle_error(None, "somebody")
    found = capfd.readouterr().err
    assert "Traceback" in found
    assert "from somebody" in found
