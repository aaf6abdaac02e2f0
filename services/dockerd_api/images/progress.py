"""What a pull or push says while it goes on: the messages that Docker's client draws its bars from.

(API 1.50: CreateImageInfo, PushImageInfo; moby pkg/jsonmessage, daemon/containerd/progress.go) What
containerd tells is gathered into the state of each blob, and only what has changed since the last look is
said, so that a client that does not read costs no memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from pb.containerd.types.transfer import Progress

from dockerd_api.images.documents import CONFIGS, INDEXES, MANIFESTS, Descriptor
from dockerd_api.images.reference import Reference

_SHORT = 12  # hexadecimal digits of a blob's name
_WIDTH = 50  # characters of a bar
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_SOURCE = "containerd.io/distribution.source."  # and a host: repositories of it that have a blob
# By which containerd names what it moves (core/remotes/handlers.go, MakeRefKey).
_KINDS = {"manifest": "manifest", "index": "index", "layer": "layer", "config": "config"}


class Step(IntEnum):
    """How far a blob is; the later, the further."""

    WAITING = 0
    MOVING = 1
    MOVED = 2
    EXTRACTING = 3
    DONE = 4
    EXISTS = 5
    MOUNTED = 6


# What containerd's words mean.
_PULL_STEPS = {
    "waiting": Step.WAITING,
    "downloading": Step.MOVING,
    "complete": Step.MOVED,
    "already exists": Step.EXISTS,
    "extracting": Step.EXTRACTING,
    "extracted": Step.DONE,
}
_PUSH_STEPS = {
    "waiting": Step.WAITING,
    "uploading": Step.MOVING,
    "complete": Step.DONE,
    "already exists": Step.EXISTS,
    "mounted": Step.MOUNTED,
}


@dataclass
class _Blob:
    digest: str
    kind: str
    step: Step = Step.WAITING
    current: int = 0
    total: int = 0
    source: str = ""  # the repository that it was mounted from
    told: set[Step] = field(default_factory=set)
    told_at: tuple[Step, int] | None = None

    @property
    def id(self) -> str:
        return self.digest.partition(":")[2][:_SHORT]


class _Progress:
    """The states of what is moved."""

    def __init__(self, steps: Mapping[str, Step]) -> None:
        self._steps = steps
        self._blobs: dict[str, _Blob] = {}

    def take_in(self, progress: Progress) -> None:
        """Note what containerd tells."""
        step = self._steps.get(progress.event)
        kind, digest = _named(progress)
        if step is None or not digest:
            return
        blob = self._blobs.setdefault(digest, _Blob(digest, kind))
        if step < blob.step:
            return
        blob.step, blob.current, blob.total = step, progress.progress, progress.total
        if step is Step.MOUNTED:
            annotations = progress.desc.annotations if progress.desc is not None else {}
            sources = [value for key, value in annotations.items() if key.startswith(_SOURCE)]
            blob.source = next(iter(sources), "another repository")

    def _shown(self) -> list[_Blob]:
        return [blob for blob in self._blobs.values() if blob.kind not in ("manifest", "index", "config")]


class PullProgress(_Progress):
    """What is said of one pull."""

    def __init__(self, name: Reference) -> None:
        super().__init__(_PULL_STEPS)
        self._name = name
        self._begun = False

    def messages(self) -> Iterator[bytes]:
        """What is new. Nothing before a manifest was found: until then the reply can have another status."""
        if not self._begun:
            if not any(blob.kind == "manifest" for blob in self._blobs.values()):
                return
            yield self._begin()
        for blob in self._moving():
            yield from _pulled(blob)

    def end(self, digest: str, *, newer: bool) -> Iterator[bytes]:
        """What is said of a pull that went well: the image's digest, and whether it was not here before."""
        if not self._begun:
            yield self._begin()
        for blob in self._moving():
            if blob.step < Step.DONE:
                blob.step = Step.DONE
            yield from _pulled(blob)
        yield status(f"Digest: {digest}")
        said = "Downloaded newer image" if newer else "Image is up to date"
        yield status(f"Status: {said} for {self._name.familiar}")

    def _moving(self) -> list[_Blob]:
        """What is shown; nothing as long as the manifest was here and so, it seems, is all of its image."""
        manifests = [blob for blob in self._blobs.values() if blob.kind == "manifest"]
        shown = self._shown()
        if all(blob.step is Step.EXISTS for blob in manifests) and all(
            blob.step in (Step.WAITING, Step.EXISTS) for blob in shown
        ):
            return []
        return shown

    def _begin(self) -> bytes:
        self._begun = True
        return status(f"Pulling from {self._name.path}", id=self._name.tag or str(self._name))


class PushProgress(_Progress):
    """What is said of the push of one name."""

    def __init__(self) -> None:
        super().__init__(_PUSH_STEPS)

    def messages(self) -> Iterator[bytes]:
        """What is new."""
        for blob in self._shown():
            if blob.told_at == (blob.step, blob.current) and blob.step is Step.MOVING:
                continue
            if blob.step is not Step.MOVING and blob.step in blob.told:
                continue
            blob.told.add(blob.step)
            blob.told_at = blob.step, blob.current
            yield _pushed(blob)


def status(text: str, *, id: str = "") -> bytes:
    """A message without a bar."""
    return line({"status": text} | ({"id": id} if id else {}))


def bar(action: str, id: str, *, current: int = 0, total: int = 0, units: str = "") -> bytes:
    """A message with how far something is, in bytes or in `units`."""
    detail: dict[str, Any] = {}
    if current:
        detail["current"] = current
    if total:
        detail["total"] = total
    if units:
        detail["units"] = units
    message: dict[str, Any] = {"status": action, "progressDetail": detail}
    if drawn := _drawn(current, total, units):
        message["progress"] = drawn
    return line(message | {"id": id})


def milestone(action: str, id: str) -> bytes:
    """A message in whose place no bar is drawn any more."""
    return line({"status": action, "progressDetail": {"hidecounts": True}, "id": id})


def auxiliary(document: Any) -> bytes:
    """A message for programs."""
    return line({"progressDetail": {}, "aux": document})


def failure(text: str) -> bytes:
    """How a reply that has begun tells an error."""
    return line({"errorDetail": {"message": text}, "error": text})


def line(message: dict[str, Any]) -> bytes:
    """One message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\r\n"


def _pulled(blob: _Blob) -> Iterator[bytes]:
    """Every step that was not said yet, since a quick one may be over before the next look."""

    def first(step: Step) -> bool:
        if step in blob.told:
            return False
        blob.told.add(step)
        return True

    if blob.kind == "layer" and first(Step.WAITING):
        yield bar("Pulling fs layer", blob.id)
    if blob.step is Step.MOVING and blob.current and blob.told_at != (blob.step, blob.current):
        blob.told_at = blob.step, blob.current
        yield bar("Downloading", blob.id, current=blob.current, total=blob.total)
    if blob.step is Step.EXISTS:
        if first(Step.EXISTS):
            yield milestone("Already exists", blob.id)
        return
    if blob.step >= Step.MOVED and first(Step.MOVED):
        yield milestone("Download complete", blob.id)
    if blob.kind != "layer":
        return
    if blob.step is Step.EXTRACTING and blob.told_at != (blob.step, blob.current):
        blob.told_at = blob.step, blob.current
        yield bar("Extracting", blob.id, current=blob.current, total=blob.total)
    if blob.step is Step.DONE and first(Step.DONE):
        yield milestone("Pull complete", blob.id)


def _pushed(blob: _Blob) -> bytes:
    match blob.step:
        case Step.WAITING:
            return bar("Waiting", blob.id)
        case Step.MOVING:
            return bar("Pushing", blob.id, current=blob.current, total=blob.total)
        case Step.EXISTS:
            return bar("Layer already exists" if blob.kind == "layer" else "Already exists", blob.id)
        case Step.MOUNTED:
            return bar(f"Mounted from {blob.source}", blob.id)
    return bar("Pushed", blob.id)


def _named(progress: Progress) -> tuple[str, str]:
    """The kind of blob and its digest. Older containerds tell both by a name alone."""
    if progress.desc is not None and progress.desc.digest:
        described = Descriptor(progress.desc.media_type, progress.desc.digest, 0)
        if described.media_type in INDEXES:
            return "index", described.digest
        if described.media_type in MANIFESTS:
            return "manifest", described.digest
        if described.media_type in CONFIGS:
            return "config", described.digest
        return ("layer" if described.is_layer else "other"), described.digest
    kind, _, digest = progress.name.partition("-")
    if not digest.startswith("sha"):
        return "", ""
    return _KINDS.get(kind, "other"), digest


def _drawn(current: int, total: int, units: str) -> str:
    """The bar as text, for clients that draw none themselves."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0:
        return f"{current} {units}" if units else f"{_size(current):>8}"
    filled = min(int(current / total * 100) // 2, _WIDTH)
    box = f"[{'=' * filled}>{' ' * (_WIDTH - filled)}] "
    if units:
        return box + (f"{current} {units}" if current > total else f"{current}/{total} {units}")
    shown = f"{_size(current):>8}"
    return box + (shown if current > total else f"{shown}/{_size(total)}")


def _size(number: int) -> str:
    """Four digits and a unit of a thousand (go-units, HumanSize)."""
    value, unit = float(number), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    return f"{value:.4g}{_UNITS[unit]}"
