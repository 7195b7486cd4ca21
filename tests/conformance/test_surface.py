"""What is there: names, class hierarchy, signatures, defaults, and the private names in use."""

from __future__ import annotations

import inspect
import io
import os
import selectors
import socket
import sys
import threading
from types import FunctionType, ModuleType
from typing import Any

import pytest
from support import about_threads, is_fastsock, multiplexes, new, requires

SERVERS = {
    "BaseServer": "",
    "TCPServer": "BaseServer",
    "UDPServer": "TCPServer BaseServer",
    "UnixStreamServer": "TCPServer BaseServer",
    "UnixDatagramServer": "UDPServer TCPServer BaseServer",
    "ThreadingTCPServer": "ThreadingMixIn TCPServer BaseServer",
    "ThreadingUDPServer": "ThreadingMixIn UDPServer TCPServer BaseServer",
    "ThreadingUnixStreamServer": "ThreadingMixIn UnixStreamServer TCPServer BaseServer",
    "ThreadingUnixDatagramServer": (
        "ThreadingMixIn UnixDatagramServer UDPServer TCPServer BaseServer"
    ),
    "ForkingTCPServer": "ForkingMixIn TCPServer BaseServer",
    "ForkingUDPServer": "ForkingMixIn UDPServer TCPServer BaseServer",
    "ForkingUnixStreamServer": "ForkingMixIn UnixStreamServer TCPServer BaseServer",
    "ForkingUnixDatagramServer": "ForkingMixIn UnixDatagramServer UDPServer TCPServer BaseServer",
    "ThreadingMixIn": "",
    "ForkingMixIn": "",
    "BaseRequestHandler": "",
    "StreamRequestHandler": "BaseRequestHandler",
    "DatagramRequestHandler": "BaseRequestHandler",
}
NEW_IN_3_12 = ("ForkingUnixStreamServer", "ForkingUnixDatagramServer")

REQUEST = "(self, request, client_address)"
SIGNATURES = {
    "BaseServer.__init__": "(self, server_address, RequestHandlerClass)",
    "BaseServer.server_activate": "(self)",
    "BaseServer.serve_forever": "(self, poll_interval=0.5)",
    "BaseServer.shutdown": "(self)",
    "BaseServer.service_actions": "(self)",
    "BaseServer.handle_request": "(self)",
    "BaseServer._handle_request_noblock": "(self)",
    "BaseServer.handle_timeout": "(self)",
    "BaseServer.verify_request": REQUEST,
    "BaseServer.process_request": REQUEST,
    "BaseServer.server_close": "(self)",
    "BaseServer.finish_request": REQUEST,
    "BaseServer.shutdown_request": "(self, request)",
    "BaseServer.close_request": "(self, request)",
    "BaseServer.handle_error": REQUEST,
    "BaseServer.__enter__": "(self)",
    "BaseServer.__exit__": "(self, *args)",
    "TCPServer.__init__": "(self, server_address, RequestHandlerClass, bind_and_activate=True)",
    "TCPServer.server_bind": "(self)",
    "TCPServer.server_activate": "(self)",
    "TCPServer.server_close": "(self)",
    "TCPServer.fileno": "(self)",
    "TCPServer.get_request": "(self)",
    "TCPServer.shutdown_request": "(self, request)",
    "TCPServer.close_request": "(self, request)",
    "UDPServer.get_request": "(self)",
    "UDPServer.server_activate": "(self)",
    "UDPServer.shutdown_request": "(self, request)",
    "UDPServer.close_request": "(self, request)",
    "ForkingMixIn.collect_children": "(self, *, blocking=False)",
    "ForkingMixIn.handle_timeout": "(self)",
    "ForkingMixIn.service_actions": "(self)",
    "ForkingMixIn.process_request": REQUEST,
    "ForkingMixIn.server_close": "(self)",
    "ThreadingMixIn.process_request_thread": REQUEST,
    "ThreadingMixIn.process_request": REQUEST,
    "ThreadingMixIn.server_close": "(self)",
    "BaseRequestHandler.__init__": "(self, request, client_address, server)",
    "BaseRequestHandler.setup": "(self)",
    "BaseRequestHandler.handle": "(self)",
    "BaseRequestHandler.finish": "(self)",
    "StreamRequestHandler.setup": "(self)",
    "StreamRequestHandler.finish": "(self)",
    "DatagramRequestHandler.setup": "(self)",
    "DatagramRequestHandler.finish": "(self)",
    "_SocketWriter.__init__": "(self, sock)",
    "_SocketWriter.write": "(self, b)",
    "_SocketWriter.writable": "(self)",
    "_SocketWriter.fileno": "(self)",
}

DEFAULTS = {
    "BaseServer.timeout": None,
    "TCPServer.address_family": socket.AF_INET,
    "TCPServer.socket_type": socket.SOCK_STREAM,
    "TCPServer.allow_reuse_address": False,
    "TCPServer.allow_reuse_port": False,
    "TCPServer.request_queue_size": socket.SOMAXCONN,
    "UDPServer.allow_reuse_address": False,
    "UDPServer.allow_reuse_port": False,
    "UDPServer.socket_type": socket.SOCK_DGRAM,
    "UDPServer.max_packet_size": 8192,
    "UnixStreamServer.address_family": socket.AF_UNIX,
    "UnixDatagramServer.address_family": socket.AF_UNIX,
    "ForkingMixIn.timeout": 300,
    "ForkingMixIn.active_children": None,
    "ForkingMixIn.max_children": 40,
    "ForkingMixIn.block_on_close": True,
    "ThreadingMixIn.daemon_threads": False,
    "ThreadingMixIn.block_on_close": True,
    "StreamRequestHandler.rbufsize": -1,
    "StreamRequestHandler.wbufsize": 0,
    "StreamRequestHandler.timeout": None,
    "StreamRequestHandler.disable_nagle_algorithm": False,
}
NEW_DEFAULTS = {"allow_reuse_port": (3, 11), "request_queue_size": (3, 15)}


@pytest.mark.parametrize("name", SERVERS)
def test_class(ss: ModuleType, name: str) -> None:
    if name in NEW_IN_3_12:
        requires(ss, (3, 12), name)
    assert name in ss.__all__
    cls = getattr(ss, name)
    public = [base for base in cls.__mro__ if not base.__name__.startswith("_")]
    expected = [name, *SERVERS[name].split(), "object"]
    if multiplexes(ss):
        expected = [base.replace("Threading", "Multiplexing") for base in expected]
    assert [base.__name__ for base in public] == expected
    for base in public[:-1]:
        assert getattr(ss, base.__name__.replace("Multiplexing", "Threading")) is base


def test_all_is_a_superset(ss: ModuleType) -> None:
    import socketserver

    assert set(ss.__all__) >= set(socketserver.__all__)
    assert all(hasattr(ss, name) for name in ss.__all__)


@pytest.mark.parametrize("member", SIGNATURES)
def test_signature(ss: ModuleType, member: str) -> None:
    cls, name = member.split(".")
    signature = inspect.signature(getattr(getattr(ss, cls), name))
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
    ]
    stripped = signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)
    assert str(stripped) == SIGNATURES[member]


@pytest.mark.parametrize("member", DEFAULTS)
def test_default(ss: ModuleType, member: str) -> None:
    cls, name = member.split(".")
    if name in NEW_DEFAULTS:
        requires(ss, NEW_DEFAULTS[name], member)
    default = vars(getattr(ss, cls))[name]
    assert default == DEFAULTS[member]
    assert type(default) is type(DEFAULTS[member])


@pytest.mark.parametrize("name", SERVERS)
def test_plain_python_class(ss: ModuleType, name: str) -> None:
    """Mutable, and free to be combined with a base that has an instance layout."""
    if name in NEW_IN_3_12:
        requires(ss, (3, 12), name)
    cls = getattr(ss, name)
    new("Combined", cls, dict)
    new("Combined", cls, threading.Thread)
    new("Combined", OSError, cls)
    cls.some_attribute = 1
    del cls.some_attribute
    hooks = ("process_request", "shutdown_request", "get_request", "setup", "handle", "finish")
    for hook in hooks:
        if hasattr(cls, hook):
            assert isinstance(getattr(cls, hook), FunctionType)


def test_every_class_is_documented(ss: ModuleType) -> None:
    for name in SERVERS:
        if hasattr(ss, name):
            assert inspect.getdoc(getattr(ss, name)), name


def test_modules(ss: ModuleType) -> None:
    """Programs reach through it: socketserver.socket, socketserver.threading, ..."""
    for module in (socket, selectors, os, sys, threading):
        assert getattr(ss, module.__name__) is module


def test_server_selector(ss: ModuleType) -> None:
    assert ss._ServerSelector is selectors.PollSelector


def test_socket_writer_is_a_buffered_file(ss: ModuleType) -> None:
    assert issubclass(ss._SocketWriter, io.BufferedIOBase)


@about_threads("_threads: there are none to keep")
def test_no_threads(ss: ModuleType) -> None:
    assert isinstance(ss.ThreadingMixIn._threads, ss._NoThreads)
    nothing = ss._NoThreads()
    assert nothing.append(threading.current_thread()) is None
    assert nothing.join() is None


def test_threads(ss: ModuleType) -> None:
    assert issubclass(ss._Threads, list)
    threads = ss._Threads()
    release = threading.Event()
    daemon = threading.Thread(target=release.wait, daemon=True)
    threads.append(daemon)
    assert list(threads) == []
    members = [threading.Thread(target=release.wait) for _ in range(2)]
    for thread in members:
        thread.start()
        threads.append(thread)
    assert list(threads) == members
    popped = threads.pop_all()
    assert (popped, list(threads)) == (members, [])
    threads.extend(popped)
    release.set()
    threads.join()
    assert not any(thread.is_alive() for thread in members)
    assert list(threads) == []
    threads.extend(members)
    threads.reap()
    assert list(threads) == []


def test_initial_state(ss: ModuleType) -> None:
    handler = new("Handler", ss.BaseRequestHandler)
    server: Any = ss.BaseServer("anything", handler)
    assert server.server_address == "anything"
    assert server.RequestHandlerClass is handler
    assert server._BaseServer__shutdown_request is False
    assert server._BaseServer__is_shut_down.is_set() is False
    assert not hasattr(server, "socket")
    assert not hasattr(ss.BaseServer, "fileno")
    assert not hasattr(ss.BaseServer, "get_request")


def test_default_hooks_of_the_base_class(ss: ModuleType) -> None:
    server = ss.BaseServer(None, None)
    request = object()
    assert server.server_activate() is None
    assert server.service_actions() is None
    assert server.handle_timeout() is None
    assert server.verify_request(request, None) is True
    assert server.server_close() is None
    assert server.shutdown_request(request) is None
    assert server.close_request(request) is None
    with server as entered:
        assert entered is server


def test_subclass_without_super_init(ss: ModuleType) -> None:
    """An instance that skips __init__ still has its class attributes and simple hooks."""
    server = ss.TCPServer.__new__(ss.TCPServer)
    assert server.timeout is None
    assert server.verify_request(None, None) is True


def test_module_docstring(ss: ModuleType) -> None:
    assert ss.__doc__
    if is_fastsock(ss):
        assert "socketserver" in ss.__doc__
