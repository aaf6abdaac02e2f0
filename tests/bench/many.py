"""Many sleeping containers started through the Docker API, some at a time, by plain HTTP.

No time of a docker client is in it, which for so many would be most of it.
"""

from __future__ import annotations

import json
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

MANY = 200
_AT_A_TIME = 10
_VERSION = "v1.43"
_PATIENCE = 120.0  # seconds for one answer


def name_of(network: str) -> str:
    """The row's name for containers on this network."""
    return f"{MANY} sleeping started through the API, {_AT_A_TIME} at a time, {network}"


class _Connection(HTTPConnection):
    """HTTP over the Unix socket that a DOCKER_HOST names."""

    def __init__(self, host: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE)
        self._path = host.removeprefix("unix://")

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_PATIENCE)
        self.sock.connect(self._path)

    def ask(self, method: str, path: str, body: object = None) -> bytes:
        """The answer's body; SystemExit for an error."""
        headers = {"Content-Type": "application/json"}
        self.request(method, f"/{_VERSION}{path}", None if body is None else json.dumps(body), headers)
        answer = self.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"{self._path}: {method} {path}: {answer.status} {data.decode()}")
        return data


def _shared_out(host: str, jobs: Sequence[Callable[[_Connection], str]]) -> list[str]:
    """Do the jobs, some at a time, each of these on one connection."""

    def some(first: int) -> list[str]:
        connection = _Connection(host)
        try:
            return [job(connection) for job in jobs[first::_AT_A_TIME]]
        finally:
            connection.close()

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        return [made for part in pool.map(some, range(_AT_A_TIME)) for made in part]


def _start(connection: _Connection, image: str, network: str) -> str:
    wanted = {"Image": image, "Cmd": ["sleep", "3600"], "HostConfig": {"NetworkMode": network}}
    made = str(json.loads(connection.ask("POST", "/containers/create", wanted))["Id"])
    connection.ask("POST", f"/containers/{made}/start")
    return made


def _remove(connection: _Connection, container: str) -> str:
    connection.ask("DELETE", f"/containers/{container}?force=1")
    return container


def started(host: str, image: str, network: str) -> float:
    """Milliseconds until MANY containers of the image have been started; they are removed again."""
    began = time.perf_counter()
    ids = _shared_out(host, [lambda connection: _start(connection, image, network)] * MANY)
    took = (time.perf_counter() - began) * 1000
    _shared_out(host, [lambda connection, id=made: _remove(connection, id) for made in ids])  # type: ignore[misc]
    return took


def medians(hosts: Sequence[str], image: str, network: str, rounds: int) -> list[float]:
    """The median for each host, measured in turn."""
    times = [[started(host, image, network) for host in hosts] for _ in range(rounds)]
    return [statistics.median(turn[index] for turn in times) for index in range(len(hosts))]
