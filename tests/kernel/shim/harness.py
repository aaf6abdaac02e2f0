"""A real nursery, real shims, bundles with busybox, and a client that speaks to them like containerd-svc."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import errdefs
from container_log.reader import LogOptions, LogReader
from linux.fds import send_fds
from linux.interpreter import remove_mounts
from pb.buoy.attach.v1 import Attach, Reply, Request
from pb.buoy.facts.v1 import Fact, NextRequest, NextResponse
from pb.buoy.nursery.v1 import StartRequest as NurseryStart
from pb.buoy.nursery.v1 import StartResponse as NurseryStarted
from pb.containerd.runc.v1 import Options
from pb.containerd.task import v2 as task
from pb.containerd.types import Mount
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as PbAny
from pb.google.protobuf import Empty
from rpc import ttrpc

TASK = "containerd.task.v2.Task"
PYTHON = sys.executable
BUSYBOX = shutil.which("busybox")


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Poll until the condition is true; returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process is over; some hosts' init takes seconds to wait for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def make_rootfs(folder: Path) -> Path:
    """A root file system of busybox alone."""
    assert BUSYBOX is not None
    for name in ("bin", "proc", "sys", "dev", "tmp", "etc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, folder / "bin" / "busybox")
    for applet in (
        "sh",
        "sleep",
        "cat",
        "echo",
        "true",
        "head",
        "stty",
        "seq",
        "kill",
        "id",
        "nc",
        "ls",
        "dd",
    ):
        (folder / "bin" / applet).symlink_to("busybox")
    return folder


def make_spec(
    args: Sequence[str], *, terminal: bool = False, annotations: dict[str, str] | None = None, **linux: Any
) -> dict[str, Any]:
    """An OCI spec with five namespaces and few mounts."""
    capabilities = ["CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"]
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": terminal,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "root": {"path": "rootfs"},
        "hostname": "buoy",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {
                "destination": "/dev/pts",
                "type": "devpts",
                "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")],
            **linux,
        },
        "annotations": annotations or {},
    }


class Box:
    """One container with its bundle, its folder on disk and a connection to its shim."""

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.id = name
        self.bundle = place.state / "moby" / name
        self.folder = place.root / "containers" / name
        self.log = self.folder / f"{name}-json.log"
        self.attach_path = str(place.sockets / f"{name[:16]}.a")
        self.shim_pid = 0
        self.address = ""
        self.runtime = ""
        self.client: ttrpc.Client | None = None
        self.terminal = False
        self.mounts: list[Any] = []
        self.facts_after = 0
        self.epoch = ""

    def write(
        self, args: Sequence[str], *, terminal: bool = False, driver: str = "json-file", **more: Any
    ) -> None:
        """Write the bundle for this command line."""
        self.bundle.mkdir(parents=True, exist_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.terminal = terminal
        annotations = {
            "dev.buoy.container-dir": str(self.folder),
            "dev.buoy.log.driver": driver,
            "dev.buoy.log.path": str(self.log) if driver in ("json-file", "local") else "",
            **more.pop("annotations", {}),
        }
        more.setdefault("cgroupsPath", f"/{self.place.cgroup}/{self.id}")
        spec = make_spec(args, terminal=terminal, annotations=annotations, **more)
        (self.bundle / "config.json").write_text(json.dumps(spec))

    async def shim(self) -> None:
        """Have the nursery fork a shim, and connect."""
        nursery = await ttrpc.Client.connect(str(self.place.nursery_path))
        try:
            started = await nursery.call(
                "buoy.nursery.v1.Nursery",
                "Start",
                NurseryStart(namespace="moby", id=self.id, bundle=str(self.bundle)),
                NurseryStarted,
            )
        finally:
            await nursery.close()
        self.shim_pid, self.address = started.pid, started.address
        await self.connect()

    async def connect(self) -> None:
        self.client = await ttrpc.Client.connect(self.address)

    async def call(self, method: str, request: Any, reply: Any = Empty, **more: Any) -> Any:
        assert self.client is not None
        return await self.client.call(TASK, method, request, reply, **more)

    async def create(self, *, stdio: str = "attach", stdin: bool = False, **more: Any) -> int:
        """Create the task; returns init's pid."""
        uri = f"attach://{self.attach_path}" if stdio == "attach" else stdio
        self.mounts = more.pop("rootfs", None) or [
            task_mount("bind", str(self.place.rootfs), ["rbind", "ro"]),
        ]
        options = Options(binary_name=self.runtime)
        request = task.CreateTaskRequest(
            id=self.id,
            bundle=str(self.bundle),
            rootfs=self.mounts,
            terminal=self.terminal,
            stdin=uri if stdin else "",
            stdout=uri,
            stderr="" if self.terminal else uri,
            options=PbAny(type_url="containerd.runc.v1.Options", value=bytes(options)),
        )
        for name, value in more.items():
            setattr(request, name, value)
        return int((await self.call("Create", request, task.CreateTaskResponse)).pid)

    async def start(self, exec_id: str = "") -> int:
        reply = await self.call("Start", task.StartRequest(id=self.id, exec_id=exec_id), task.StartResponse)
        return int(reply.pid)

    async def wait(self, exec_id: str = "", timeout: float = 20.0) -> int:
        request = task.WaitRequest(id=self.id, exec_id=exec_id)
        return int((await self.call("Wait", request, task.WaitResponse, timeout=timeout)).exit_status)

    async def delete(self, exec_id: str = "") -> int:
        request = task.DeleteRequest(id=self.id, exec_id=exec_id)
        return int((await self.call("Delete", request, task.DeleteResponse)).exit_status)

    async def kill(self, number: int = signal.SIGKILL, exec_id: str = "", *, every: bool = False) -> None:
        await self.call("Kill", task.KillRequest(id=self.id, exec_id=exec_id, signal=number, all=every))

    async def state(self, exec_id: str = "") -> Any:
        return await self.call("State", task.StateRequest(id=self.id, exec_id=exec_id), task.StateResponse)

    async def exec(
        self, exec_id: str, args: Sequence[str], *, stdin: bool = False, terminal: bool = False
    ) -> None:
        process = make_spec(args, terminal=terminal)["process"]
        uri = f"attach://{self.attach_path}"
        await self.call(
            "Exec",
            task.ExecProcessRequest(
                id=self.id,
                exec_id=exec_id,
                terminal=terminal,
                stdin=uri if stdin else "",
                stdout=uri,
                stderr="" if terminal else uri,
                spec=PbAny(type_url="types.containerd.io/spec", value=json.dumps(process).encode()),
            ),
        )

    async def shutdown(self) -> None:
        await self.call("Shutdown", task.ShutdownRequest(id=self.id))

    async def facts(self, wait_ms: int = 0) -> list[Fact]:
        """The facts since the last call."""
        assert self.client is not None
        reply = await self.client.call(
            "buoy.facts.v1.Facts",
            "Next",
            NextRequest(epoch=self.epoch, after=self.facts_after, wait_ms=wait_ms),
            NextResponse,
        )
        self.epoch = reply.epoch
        if reply.facts:
            self.facts_after = reply.facts[-1].seq
        return list(reply.facts)

    def attach(self, **fields: Any) -> socket.socket:
        """Hand one end of a socket pair to the shim; returns the other."""
        ours, theirs = socket.socketpair()
        with theirs:
            reply = self.request(
                Request(
                    attach=Attach(
                        **{"stdout": True, "stderr": True, "stream": True, "multiplexed": True, **fields}
                    )
                ),
                [theirs],
            )
        if reply.error:
            ours.close()
            raise RuntimeError(f"{reply.kind}: {reply.error}")
        ours.settimeout(10.0)
        return ours

    def request(self, request: Request, sockets: Sequence[socket.socket]) -> Reply:
        """One request on the attach socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(10.0)
            sock.connect(self.attach_path)
            send_fds(sock, bytes(request), [one.fileno() for one in sockets])
            return Reply.parse(sock.recv(65536))

    def log_entries(self) -> list[tuple[str, str]]:
        """(stream, text) of every entry of the log."""
        entries = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [(entry["stream"], entry["log"]) for entry in entries]

    def rotated_entries(self) -> list[tuple[str, str]]:
        """As `log_entries`, with those of the files that have been rotated away."""
        runs, more = [], [self.log]
        for number in range(1, 100):
            plain = self.log.with_name(f"{self.log.name}.{number}")
            packed = plain.with_name(f"{plain.name}.gz")
            more += [path for path in (plain, packed) if path.exists()][:1]
        for path in reversed(more):
            text = path.read_bytes()
            if path.suffix == ".gz":
                text = gzip.decompress(text)
            runs += [json.loads(line) for line in text.splitlines()]
        return [(entry["stream"], entry["log"]) for entry in runs]

    def read_log(self, driver: str = "json-file") -> bytes:
        """All that the log's one reader finds."""
        reader = LogReader(self.log, LogOptions(multiplexed=False), "", driver)
        out = b""
        while True:
            data, end = reader.read()
            out += data
            if end:
                reader.close()
                return out

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "exit.json").read_text())
        return record

    async def run(self, args: Sequence[str], **more: Any) -> int:
        """Write, fork, create, start, wait; returns the exit status."""
        self.write(args, **more)
        await self.shim()
        await self.create()
        await self.start()
        return await self.wait()

    def command(self, *words: str, **more: Any) -> subprocess.CompletedProcess[bytes]:
        """`shim-svc -namespace … -id … words`, in the bundle."""
        head = [PYTHON, "-m", "shim_svc", "-namespace", "moby", "-id", self.id, "-address", "/none.sock"]
        places = ["-sockets", str(self.place.sockets), "-runtime-root", str(self.place.runtime_root)]
        return subprocess.run(
            [*head, *places, *words], capture_output=True, timeout=20, cwd=self.bundle, check=False, **more
        )

    def delete_command(self) -> task.DeleteResponse:
        done = self.command("-bundle", str(self.bundle), "delete")
        assert done.returncode == 0, done.stderr
        return task.DeleteResponse.parse(done.stdout)

    async def clean(self) -> None:
        """Remove whatever there is: by the shim where it answers, else by force."""
        gone = False
        if self.client is not None:
            with contextlib.suppress(errdefs.BuoyError):
                gone = await self._clean_kindly()
            await self.client.close()
        if not self.bundle.exists():
            return
        if not gone:
            self.delete_command()
        shutil.rmtree(self.bundle)

    async def _clean_kindly(self) -> bool:
        with contextlib.suppress(errdefs.NotFound):
            if (await self.state()).status == Status.PAUSED:
                await self.call("Resume", task.ResumeRequest(id=self.id))
            with contextlib.suppress(errdefs.NotFound):
                await self.kill(signal.SIGKILL)
            await self.wait()
            await self.delete()
        await self.shutdown()
        if self.shim_pid:
            await until(lambda: gone(self.shim_pid), 5.0)
        return True


def check_gap(texts: Sequence[str], last: int) -> None:
    """The texts are the numbers from 1 to `last`; where some are missing, their count is told."""
    told = [(at, int(text.split()[0])) for at, text in enumerate(texts) if "are missing here" in text]
    numbers = [int(text) for text in texts if "are missing here" not in text]
    assert numbers == sorted(set(numbers))
    assert (numbers[0], numbers[-1]) == (1, last)
    assert told, "no line is missing"
    assert len(numbers) + sum(lines for _, lines in told) == last
    for at, lines in told:
        assert int(texts[at + 1]) - int(texts[at - 1]) - 1 == lines


def writers(shim_pid: int) -> list[int]:
    """The processes with which a shim writes to the disk: one at most for the container."""
    children = Path(f"/proc/{shim_pid}/task/{shim_pid}/children").read_text().split()
    found = []
    for pid in children:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text() == "shim-writer\n":
                found.append(int(pid))
    return found


def task_mount(kind: str, source: str, options: list[str]) -> Any:
    return Mount(type=kind, source=source, options=options)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end of the stream."""
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def unframe(data: bytes) -> dict[int, bytes]:
    """The bytes of each stream out of Docker's frames."""
    streams = {1: b"", 2: b""}
    while data:
        number, size = data[0], int.from_bytes(data[4:8], "big")
        assert data[1:4] == b"\0\0\0"
        assert len(data) >= 8 + size
        streams[number] += data[8 : 8 + size]
        data = data[8 + size :]
    return streams


class Place:
    """A state folder with a nursery."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="shim-", dir="/tmp"))
        self.state = self.root / "run" / "containerd"
        self.sockets = self.root / "run" / "s"
        self.runtime_root = self.root / "run" / "runc"
        self.nursery_path = self.root / "run" / "shim.sock"
        self.cgroup = self.root.name
        self.sockets.mkdir(parents=True)
        self.rootfs = make_rootfs(self.root / "rootfs")
        self.nursery: subprocess.Popen[bytes] | None = None
        self.stderr = self.root / "nursery.log"

    def _spawn(self, environ: dict[str, str]) -> None:
        places = ["--sockets", str(self.sockets), "--runtime-root", str(self.runtime_root)]
        with self.stderr.open("ab") as log:
            self.nursery = subprocess.Popen(
                [PYTHON, "-m", "shim_svc", "nursery", "--address", str(self.nursery_path), *places],
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def spawn_with_listener(self, listener: socket.socket, environ: dict[str, str]) -> None:
        """Start the nursery as systemd does: the socket is descriptor 3, and LISTEN_PID its own number."""
        words = ["nursery", "--address", str(self.nursery_path), "--sockets", str(self.sockets)]
        more = ["--runtime-root", str(self.runtime_root)]
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid()); "
            "os.execv(sys.argv[2], sys.argv[2:])"
        )
        with self.stderr.open("ab") as log:
            self.nursery = subprocess.Popen(
                [PYTHON, "-c", script, str(listener.fileno()), PYTHON, "-m", "shim_svc", *words, *more],
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[listener.fileno()],
            )

    def start_nursery(self, **environ: str) -> None:
        self._spawn(environ)
        deadline = time.monotonic() + 20
        while not self._nursery_answers():
            assert time.monotonic() < deadline, self.stderr.read_text()
            time.sleep(0.01)

    def _nursery_answers(self) -> bool:
        assert self.nursery is not None
        assert self.nursery.poll() is None, self.stderr.read_text()
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.nursery_path))
            except OSError:
                return False
        return True

    def stop_nursery(self, number: int = signal.SIGTERM) -> None:
        if self.nursery is not None:
            self.nursery.send_signal(number)
            self.nursery.wait(10)
            self.nursery = None

    def close(self) -> None:
        """Stop the nursery and remove the folder; the boxes have been cleaned."""
        self.stop_nursery()
        remove_mounts(str(self.root / "run"))
        for folder in Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}"):
            with contextlib.suppress(OSError):
                folder.rmdir()
        shutil.rmtree(self.root)


@contextlib.contextmanager
def a_place() -> Iterator[Place]:
    """A place without a nursery yet, removed afterwards."""
    place = Place()
    try:
        yield place
    finally:
        place.close()
