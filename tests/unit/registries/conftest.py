"""A host that answers as a test says, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Host:
    """`answers` maps a path to status, headers and body; what it does not have is 404."""

    name: str
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path with query, Authorization
    forms: list[str] = field(default_factory=list)

    def authorizations(self) -> set[str]:
        return {authorization for _, authorization in self.asked}


@pytest.fixture
def make_host() -> Iterator[Callable[[], Host]]:
    """Starts hosts on loopback addresses of their own ports."""
    servers = []

    def make() -> Host:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append((self.path, self.headers.get("Authorization", "")))
                length = int(self.headers.get("Content-Length") or 0)
                if length:
                    host.forms.append(self.rfile.read(length).decode())
                path = self.path.partition("?")[0]
                if path == "/v2/" and self.headers.get("Authorization"):
                    path = "/v2/ authorized"
                status, headers, body = host.answers.get(path, (404, {}, b""))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the library's name

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        host = Host(f"127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return host

    yield make
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()
