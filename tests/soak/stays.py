"""The server of ``shortage``, ``slow`` and ``unread``, by one of the implementations.

Prints its address; serves until its standard input ends, then prints what it has counted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import sys
import threading
from typing import Any

PIECE = bytes(1 << 16)


def handle(handler: Any) -> None:
    """Lines are sent back; who asks for a flood gets one."""
    for line in handler.rfile:
        if line == b"flood\n":
            while True:
                handler.wfile.write(PIECE)
        handler.wfile.write(line)


def classes(implementation: str) -> tuple[Any, Any]:
    """A server that handles several connections at a time, and its handlers."""
    if implementation == "multiplexing":
        module = importlib.import_module("fastsock")
        return module.MultiplexingTCPServer, module.StreamRequestHandler
    module = importlib.import_module(implementation)
    return module.ThreadingTCPServer, module.StreamRequestHandler


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("implementation", choices=("socketserver", "fastsock", "multiplexing"))
    parser.add_argument("--descriptors", type=int)
    parser.add_argument("--server", type=json.loads, default={}, help="its attributes")
    parser.add_argument("--handler", type=json.loads, default={})
    options = parser.parse_args()
    server_class, handler_class = classes(options.implementation)
    threading.stack_size(1 << 18)
    handler_class = type("Handler", (handler_class,), {"handle": handle, **options.handler})
    attributes = {
        "request_queue_size": 4096,
        "daemon_threads": True,
        "allow_reuse_address": True,
        "handle_error": lambda *arguments: None,
        **options.server,
    }
    server_class = type("Server", (server_class,), attributes)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors or hard, hard))
    server = server_class(("127.0.0.1", 0), handler_class)
    print(json.dumps(server.server_address), flush=True)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    sys.stdin.read()
    counted = {}
    if options.implementation != "socketserver":
        ledger = server._fastsock.ledger
        counted = {
            "accepted": ledger.accepted,
            "peak": ledger.peak,
            "refused": ledger.refused,
            "timed out": ledger.timed_out,
            "accept errors": server._fastsock.accept_errors,
        }
    print(json.dumps(counted), flush=True)
    sys.stdout.close()
    importlib.import_module("os")._exit(0)  # handlers may be stuck for good


if __name__ == "__main__":
    main()
