"""close_timeout: server_close() does not wait for ever for a client that says nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from living import LATE, Living, until_end
from support import TIMEOUT, Background, hang_up, wait_until

Live = Callable[..., Living]
WAITING = ("threading", "forking", "multiplexing")  # whose server_close() waits for requests


def reads(handler: Any) -> None:
    handler.wfile.write(handler.rfile.readline().upper())


def is_stuck(handler: Any) -> None:
    handler.gate.wait()


def end(living: Living) -> float:
    """shutdown(), the end of serve_forever(), server_close(): the seconds that it all takes."""
    begin = time.monotonic()
    living.server.shutdown()
    assert living.loop is not None
    living.loop.result()
    living.server.server_close()
    return time.monotonic() - begin


def begun(living: Living) -> None:
    living.await_active(1)
    wait_until(lambda: living.flavour != "forking" or living.server.active_children)


@pytest.mark.parametrize("flavour", WAITING)
def test_a_silent_client(live: Live, flavour: str) -> None:
    living = live(flavour, reads, close_timeout=0.3)
    client = living.connect()
    begun(living)
    assert 0.3 <= end(living) <= 0.3 + LATE
    assert until_end(client) == b""
    collect = getattr(living.server, "collect_children", lambda: None)  # one may take its time
    wait_until(lambda: collect() or not living.server._fastsock.ledger.active)


@pytest.mark.parametrize("flavour", WAITING)
def test_one_that_answers_in_time(live: Live, flavour: str) -> None:
    living = live(flavour, reads, close_timeout=TIMEOUT)
    client = living.connect()
    begun(living)
    ending = Background(end, living)
    wait_until(lambda: not living.server._fastsock.is_served)
    client.sendall(b"hello\n")
    assert until_end(client) == b"HELLO\n"
    assert ending.result() < TIMEOUT / 4


@pytest.mark.parametrize("flavour", WAITING)
def test_a_handler_that_is_stuck(live: Live, flavour: str) -> None:
    """It is not waited for; a child process and a greenlet end all the same."""
    living = live(flavour, is_stuck, close_timeout=0.2)
    client = living.connect()
    living.gate.await_one()
    begun(living)
    assert 0.2 <= end(living) <= 0.2 + LATE
    assert until_end(client) == b""


@pytest.mark.parametrize("flavour", WAITING)
@pytest.mark.parametrize("value", [None, "1", True, -1, float("nan")], ids=str)
def test_without_one_it_waits(live: Live, flavour: str, value: Any) -> None:
    living = live(flavour, reads, close_timeout=value)
    client = living.connect()
    begun(living)
    ending = Background(end, living)
    wait_until(lambda: not living.server._fastsock.is_served)
    ending.join(0.1)
    assert ending.is_alive()
    hang_up(client)
    ending.result()


def test_greenlets_that_the_closer_s_thread_has_to_run(live: Live) -> None:
    """handle_request() has left them behind."""
    pytest.importorskip("greenlet")
    living = live("multiplexing", reads, close_timeout=0.2, serves=False)
    client = living.connect()
    living.server.handle_request()
    begin = time.monotonic()
    living.server.server_close()
    assert 0.2 <= time.monotonic() - begin <= 0.2 + LATE
    assert until_end(client) == b""


def test_a_child_that_does_not_heed_sigterm(live: Live) -> None:
    import signal

    def handle(handler: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        handler.gate.wait()

    living = live("forking", handle, close_timeout=0.2, max_children=1)
    living.connect()
    living.gate.await_one()
    begun(living)
    assert 0.2 <= end(living) <= 0.2 + LATE
    assert living.server.active_children
    living.gate.open()
    wait_until(lambda: living.server.collect_children() or not living.server.active_children)
