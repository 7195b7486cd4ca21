# ruff: noqa: F821
"""What a type checker knows of every documented member."""

import socketserver
from typing import Any


def base(server: socketserver.BaseServer) -> None:
    reveal_type(server.server_address)
    reveal_type(server.timeout)
    reveal_type(server.RequestHandlerClass)
    reveal_type(server.handle_request)
    reveal_type(server.serve_forever)
    reveal_type(server.shutdown)
    reveal_type(server.server_close)
    reveal_type(server.finish_request)
    reveal_type(server.get_request)
    reveal_type(server.handle_error)
    reveal_type(server.handle_timeout)
    reveal_type(server.process_request)
    reveal_type(server.server_activate)
    reveal_type(server.verify_request)
    reveal_type(server.service_actions)
    reveal_type(server.shutdown_request)
    reveal_type(server.close_request)
    reveal_type(server.__enter__)
    reveal_type(server.__exit__)


def tcp(server: socketserver.TCPServer) -> None:
    reveal_type(server.address_family)
    reveal_type(server.socket)
    reveal_type(server.socket_type)
    reveal_type(server.allow_reuse_address)
    reveal_type(server.request_queue_size)
    reveal_type(server.server_address)
    reveal_type(server.fileno)
    reveal_type(server.get_request)
    reveal_type(server.server_bind)
    reveal_type(server.RequestHandlerClass)


def others(
    udp: socketserver.UDPServer,
    unix: socketserver.UnixStreamServer,
    unix_datagram: socketserver.UnixDatagramServer,
    forking: socketserver.ForkingUDPServer,
    threading: socketserver.ThreadingUnixStreamServer,
) -> None:
    reveal_type(udp.max_packet_size)
    reveal_type(udp.get_request)
    reveal_type(unix.server_address)
    reveal_type(unix_datagram.server_address)
    reveal_type(unix_datagram.get_request)
    reveal_type(forking.timeout)
    reveal_type(forking.active_children)
    reveal_type(forking.max_children)
    reveal_type(forking.block_on_close)
    reveal_type(forking.collect_children)
    reveal_type(forking.process_request)
    reveal_type(threading.daemon_threads)
    reveal_type(threading.block_on_close)
    reveal_type(threading.process_request)
    reveal_type(threading.process_request_thread)
    reveal_type(threading.server_close)
    reveal_type(threading.server_address)


def handlers(
    handler: socketserver.BaseRequestHandler,
    stream: socketserver.StreamRequestHandler,
    datagram: socketserver.DatagramRequestHandler,
) -> None:
    reveal_type(handler.request)
    reveal_type(handler.client_address)
    reveal_type(handler.server)
    reveal_type(handler.setup)
    reveal_type(handler.handle)
    reveal_type(handler.finish)
    reveal_type(stream.rbufsize)
    reveal_type(stream.wbufsize)
    reveal_type(stream.timeout)
    reveal_type(stream.disable_nagle_algorithm)
    reveal_type(stream.connection)
    reveal_type(stream.rfile)
    reveal_type(stream.wfile)
    reveal_type(datagram.packet)
    reveal_type(datagram.socket)
    reveal_type(datagram.rfile)
    reveal_type(datagram.wfile)


def made(handler: Any) -> None:
    reveal_type(socketserver.BaseServer)
    reveal_type(socketserver.TCPServer)
    reveal_type(socketserver.UnixStreamServer)
    reveal_type(socketserver.ThreadingTCPServer)
    reveal_type(socketserver.BaseRequestHandler)
    with socketserver.ThreadingTCPServer(("", 0), handler) as server:
        reveal_type(server)
