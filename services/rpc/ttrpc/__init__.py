"""ttrpc over Unix sockets: containerd's light RPC, client and server, on asyncio.

Only unary calls are spoken here; a streaming request is answered with UNIMPLEMENTED.
Source: containerd/ttrpc PROTOCOL.md and request.proto.
"""

from __future__ import annotations

from rpc.ttrpc.client import Client
from rpc.ttrpc.frames import HEADER
from rpc.ttrpc.server import Server

__all__ = ["HEADER", "Client", "Server"]
