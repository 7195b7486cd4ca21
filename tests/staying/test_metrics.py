"""fastsock.metrics, scraped as Prometheus does it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import http.client
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from books import echo, live, served, server_class, stats_when, talk
from support import Background, connect, hang_up, receive

prometheus_client = pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

import fastsock.metrics  # noqa: E402
from fastsock._stats import Stats  # noqa: E402
from fastsock.metrics import Collector  # noqa: E402

Samples = dict[str, list[tuple[dict[str, str], float]]]


def parsed(text: str) -> tuple[Samples, dict[str, str]]:
    """The samples by name, and the types of the metrics."""
    samples: Samples = {}
    kinds = {}
    for family in text_string_to_metric_families(text):
        kinds[family.name] = family.type
        assert family.documentation.endswith("."), family.name
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return samples, kinds


@pytest.fixture
def scraping() -> Iterator[Callable[..., Callable[[], Samples]]]:
    """scraping(collector): a function that asks a server of prometheus_client's, over HTTP."""
    with contextlib.ExitStack() as stack:

        def begin(collector: Any) -> Callable[[], Samples]:
            registry = prometheus_client.CollectorRegistry()
            registry.register(collector)
            # what start_http_server() serves, on a server of ours
            handler = type(
                "Scraped",
                (prometheus_client.MetricsHandler,),
                {"registry": registry, "log_message": lambda *arguments: None},
            )
            server = stack.enter_context(fastsock.ThreadingTCPServer(("127.0.0.1", 0), handler))
            loop = Background(server.serve_forever, 0.002)
            stack.callback(loop.result)
            stack.callback(server.shutdown)
            port = server.server_address[1]

            def scrape() -> Samples:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                with contextlib.closing(connection):
                    connection.request("GET", "/metrics")
                    answer = connection.getresponse()
                    assert answer.status == 200
                    return parsed(answer.read().decode())[0]

            return scrape

        yield begin


def value(samples: Samples, name: str, **labels: str) -> float:
    (found,) = [number for given, number in samples[name] if labels.items() <= given.items()]
    return found


def test_what_is_scraped(scraping: Any) -> None:
    def handle(self: Any) -> None:
        for line in self.rfile:
            if line == b"fail\n":
                raise ValueError
            self.wfile.write(line)

    def verify_request(self: Any, request: Any, client_address: Any) -> bool:
        return not self.refuses

    with served("threading", handle, verify_request=verify_request, refuses=False) as server:
        scrape = scraping(Collector(server))
        client = talk(server, b"12345\n")
        failing = talk(server, b"123\n")
        samples = scrape()
        labels = {"server": f"127.0.0.1:{server.server_address[1]}", "transport": "tcp"}
        assert all(
            labels.items() <= given.items() for each in samples.values() for given, _ in each
        )
        assert value(samples, "fastsock_connections_accepted_total") == 2
        assert value(samples, "fastsock_connections_active") == 2
        assert value(samples, "fastsock_connections_peak") == 2
        assert value(samples, "fastsock_threads_busy") == 2
        assert value(samples, "fastsock_threads_peak") == 2
        assert value(samples, "fastsock_received_bytes_total") == 10
        assert value(samples, "fastsock_sent_bytes_total") == 10
        assert 0 < value(samples, "fastsock_longest_running_seconds") < 20
        assert "fastsock_requests_refused_total" not in samples
        failing.sendall(b"fail\n")
        assert receive(failing) == b""
        failing.close()
        server.refuses = True
        with connect(server) as refused:
            assert receive(refused) == b""
        stats_when(server, lambda stats: stats.finished == 1 and stats.active == 1)
        server._fastsock.accept_errors[errno.EMFILE] = 3
        server._fastsock.ledger.time_out("idle")
        samples = scrape()
        assert value(samples, "fastsock_connections_accepted_total") == 3
        assert value(samples, "fastsock_requests_finished_total") == 1
        assert value(samples, "fastsock_requests_failed_total") == 1
        assert value(samples, "fastsock_requests_refused_total", reason="verify_request") == 1
        assert value(samples, "fastsock_accept_errors_total", errno="EMFILE") == 3
        assert value(samples, "fastsock_timeouts_total", deadline="idle") == 1
        buckets = samples["fastsock_request_duration_seconds_bucket"]
        counts = [count for _, count in buckets]
        assert counts == sorted(counts)
        assert counts[-1] == value(samples, "fastsock_request_duration_seconds_count") == 1
        assert buckets[-1][0]["le"] == "+Inf"
        bounds = [float(given["le"]) for given, _ in buckets]
        assert bounds == sorted(set(bounds))
        assert 0 < value(samples, "fastsock_request_duration_seconds_sum") < 20
        client.close()


def test_each_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its own name."""
    numbers: dict[str, Any] = {
        field.name: float(number) for number, field in enumerate(dataclasses.fields(Stats), 1)
    }
    numbers.update(refused={"a": 101}, timed_out={"b": 102}, accept_errors={errno.ENFILE: 103})
    numbers["latencies"] = ((0.5, 3), (float("inf"), 4))
    monkeypatch.setattr(fastsock.metrics, "stats_of", lambda *server: Stats(**numbers))
    with server_class("sync")(("127.0.0.1", 0), fastsock.BaseRequestHandler) as server:
        registry = prometheus_client.CollectorRegistry()
        registry.register(Collector(server))
        samples, _ = parsed(prometheus_client.generate_latest(registry).decode())
    names = {
        "connections_accepted_total": "accepted",
        "connections_active": "active",
        "connections_peak": "peak",
        "requests_finished_total": "finished",
        "requests_failed_total": "failed",
        "start_failures_total": "start_failures",
        "received_bytes_total": "bytes_in",
        "sent_bytes_total": "bytes_out",
        "datagrams_received_total": "datagrams_in",
        "datagrams_sent_total": "datagrams_out",
        "datagrams_truncated_total": "datagrams_truncated",
        "datagrams_dropped_total": "datagrams_dropped",
        "threads_busy": "threads_busy",
        "threads_idle": "threads_idle",
        "threads_peak": "threads_peak",
        "children": "children",
        "longest_running_seconds": "longest_running",
        "request_duration_seconds_sum": "latency_sum",
    }
    expected = {f"fastsock_{name}": numbers[figure] for name, figure in names.items()}
    assert {name: value(samples, name) for name in expected} == expected
    rest = {name.removeprefix("fastsock_") for name in samples.keys() - expected.keys()}
    assert rest == {
        "requests_refused_total",
        "timeouts_total",
        "accept_errors_total",
        "request_duration_seconds_bucket",
        "request_duration_seconds_count",
    }
    assert value(samples, "fastsock_requests_refused_total", reason="a") == 101
    assert value(samples, "fastsock_timeouts_total", deadline="b") == 102
    assert value(samples, "fastsock_accept_errors_total", errno="ENFILE") == 103
    assert value(samples, "fastsock_request_duration_seconds_bucket", le="0.5") == 3
    assert value(samples, "fastsock_request_duration_seconds_bucket", le="+Inf") == 7


def test_datagrams_and_children(scraping: Any) -> None:
    with (
        served("sync", lambda self: self.wfile.write(self.packet), "UDP") as udp,
        served("forking", echo) as forking,
    ):
        scrape = scraping(Collector(udp, forking))
        with connect(udp) as client:
            client.send(b"x")
            assert client.recv(10) == b"x"
        child = talk(forking)
        stats_when(udp, lambda stats: stats.finished == 1)
        samples = scrape()
        assert value(samples, "fastsock_datagrams_received_total", transport="udp") == 1
        assert value(samples, "fastsock_datagrams_sent_total", transport="udp") == 1
        assert value(samples, "fastsock_datagrams_dropped_total", transport="udp") == 0
        assert value(samples, "fastsock_children", transport="tcp") == 1
        hang_up(child)


def test_start_http_server() -> None:
    """As prometheus_client itself serves it."""
    registry = prometheus_client.CollectorRegistry()
    with served("sync", echo) as server:
        registry.register(Collector(server))
        http_server, thread = prometheus_client.start_http_server(0, "127.0.0.1", registry=registry)
        try:
            connection = http.client.HTTPConnection(*http_server.server_address[:2], timeout=20)
            with contextlib.closing(connection):
                connection.request("GET", "/metrics")
                samples, kinds = parsed(connection.getresponse().read().decode())
        finally:
            http_server.shutdown()
            http_server.server_close()
            thread.join(20)
    assert value(samples, "fastsock_connections_accepted_total") == 0
    assert kinds["fastsock_connections_accepted"] == "counter"
    assert kinds["fastsock_connections_active"] == "gauge"
    assert kinds["fastsock_request_duration_seconds"] == "histogram"


def labels_of(collector: Any) -> list[tuple[str, str]]:
    (family,) = [each for each in collector.collect() if each.name == "fastsock_children"]
    return [(each.labels["server"], each.labels["transport"]) for each in family.samples]


def test_labels(folder: str) -> None:
    with contextlib.ExitStack() as stack:

        def make(transport: str, address: Any, **attributes: Any) -> Any:
            made = server_class("sync", transport, **attributes)
            return stack.enter_context(made(address, fastsock.BaseRequestHandler))

        tcp = make("TCP", ("127.0.0.1", 0), allow_reuse_port=True)
        port = tcp.server_address[1]
        second = make("TCP", ("127.0.0.1", port), allow_reuse_port=True)
        third = make("TCP", ("127.0.0.1", port), allow_reuse_port=True)
        udp = make("UDP", ("127.0.0.1", port))
        unix = make("UnixStream", f"{folder}/s")
        abstract = make("UnixDatagram", b"\0fastsock-%d" % port)
        named = make("TCP", ("127.0.0.1", 0))
        collector = Collector(tcp, udp, unix, abstract)
        collector.add(named, "front")
        collector.add(named, "not again")
        collector.add(second)
        collector.add(third)
        own = f"127.0.0.1:{port}"
        expected = [
            (own, "tcp"),
            (own, "udp"),
            (f"{folder}/s", "unix"),
            (f"@fastsock-{port}", "unixgram"),
            ("front", "tcp"),
            (f"{own}#2", "tcp"),
            (f"{own}#3", "tcp"),
        ]
        assert labels_of(collector) == expected
        collector.remove(second)
        collector.remove(unix)
        # A label is a server's own for as long as it is told of.
        assert labels_of(collector) == [each for each in expected if each not in expected[2:6:3]]


def test_ipv6_and_no_socket() -> None:
    class Queue(fastsock.BaseServer):
        pass

    class Six(fastsock.TCPServer):
        address_family = socket.AF_INET6

    collector = Collector(Queue("somewhere", fastsock.BaseRequestHandler))
    queue = Queue("somewhere", fastsock.BaseRequestHandler)
    collector.add(queue)
    try:
        server = Six(("::1", 0), fastsock.BaseRequestHandler)
    except OSError:
        pytest.skip("no IPv6 here")
    with server:
        collector.add(server)
        assert labels_of(collector) == [
            ("somewhere", "other"),
            (f"[::1]:{server.server_address[1]}", "tcp"),
        ]


def test_a_server_is_not_kept_alive() -> None:
    server = server_class("sync")(("127.0.0.1", 0), fastsock.BaseRequestHandler)
    collector = Collector(server)
    server.server_close()
    assert len(labels_of(collector)) == 1
    gone = weakref.ref(server)
    del server
    gc.collect()
    assert gone() is None
    assert labels_of(collector) == []


def test_names_of_the_programs_own() -> None:
    """Are not what is told of."""
    with served("threading", echo, stats="mine", connections="mine") as server:
        client = talk(server)
        (family,) = [
            each
            for each in Collector(server).collect()
            if each.name == "fastsock_connections_active"
        ]
        assert family.samples[0].value == 1
        hang_up(client)


def test_what_is_no_server() -> None:
    with pytest.raises(TypeError, match="not a fastsock server"):
        Collector("127.0.0.1")  # type: ignore[arg-type]


def test_two_collectors_in_a_registry() -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector())
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(Collector())


def test_without_the_package(tmp_path: Path) -> None:
    """Nothing else needs it; the error says what does."""
    folder = Path(fastsock.__file__ or "").resolve().parent.parent
    program = f"""\
import sys
sys.path.insert(0, {str(folder)!r})
sys.modules["prometheus_client"] = None
import fastsock
try:
    import fastsock.metrics
except ImportError as error:
    print(error.name, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("prometheus_client ")
    assert "pip install 'fastsock[metrics]'" in done.stdout


def test_scraped_while_it_serves(scraping: Any) -> None:
    with served("threading", echo) as server:
        scrape = scraping(Collector(server))
        asking = Background(lambda: [hang_up(talk(server)) for _ in range(100)])
        last = 0.0
        while asking.is_alive():
            accepted = value(scrape(), "fastsock_connections_accepted_total")
            assert accepted >= last
            last = accepted
        asking.result()
        live(server, 0)
        assert value(scrape(), "fastsock_connections_accepted_total") == 100
