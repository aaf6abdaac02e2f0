"""The messages of CRIU's protocol (images/rpc.proto of CRIU), as far as they are used: protobuf by hand.

A request is a tree of plain values, written by a table of field numbers; `criu swrk` takes one packet each.
The interpreter's own library has no protobuf, and the runtime loads nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from errdefs import DataLoss

from runc_bin.record import Record

DUMP, RESTORE, PRE_DUMP, NOTIFY, FEATURE_CHECK = 1, 2, 4, 6, 9
REQUEST_NAMES = {
    DUMP: "DUMP",
    RESTORE: "RESTORE",
    PRE_DUMP: "PRE_DUMP",
    NOTIFY: "NOTIFY",
    FEATURE_CHECK: "FEATURE_CHECK",
}
NETWORK_LOCK_NFTABLES, NETWORK_LOCK_SKIP = 2, 3
CGROUP_MODES = {"ignore": 0, "soft": 3, "full": 4, "strict": 5, "": 6}

_PAGE_SERVER = {"address": 1, "port": 2}
_KEY_VALUE = {"key": 1, "val": 2}
_OPTIONS: dict[str, Any] = {
    "images_dir_fd": 1,
    "pid": 2,
    "leave_running": 3,
    "ext_unix_sk": 4,
    "tcp_established": 5,
    "evasive_devices": 6,
    "shell_job": 7,
    "file_locks": 8,
    "log_level": 9,
    "log_file": 10,
    "ps": (11, _PAGE_SERVER),
    "notify_scripts": 12,
    "root": 13,
    "parent_img": 14,
    "track_mem": 15,
    "auto_dedup": 16,
    "work_dir_fd": 17,
    "link_remap": 18,
    "ext_mnt": (23, _KEY_VALUE),
    "manage_cgroups": 24,
    "cg_root": (25, {"ctrl": 1, "path": 2}),
    "rst_sibling": 26,
    "inherit_fd": (27, {"key": 1, "fd": 2}),
    "manage_cgroups_mode": 34,
    "external": 37,
    "empty_ns": 38,
    "join_ns": (39, {"ns": 1, "ns_file": 2}),
    "freeze_cgroup": 44,
    "tcp_skip_in_flight": 46,
    "lazy_pages": 48,
    "orphan_pts_master": 50,
    "config_file": 51,
    "lsm_profile": 53,
    "lsm_mount_context": 63,
    "network_lock": 64,
}
_FEATURES = {"mem_track": 1, "lazy_pages": 2}
_REQUEST: dict[str, Any] = {
    "type": 1,
    "opts": (2, _OPTIONS),
    "notify_success": 3,
    "features": (5, _FEATURES),
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Response(Record):
    """One answer: to a request of that `type`, or a notification (`script` and perhaps a `pid`) that is
    to be acknowledged. `features` are those of the kernel and CRIU that were asked for.
    """

    type: int
    success: bool
    error_number: int = 0
    message: str = ""
    script: str = ""
    pid: int = 0
    features: Mapping[str, bool] = {}


def request(kind: int, **fields: Any) -> bytes:
    """A request as one packet; `fields` are those of criu_req, nested ones as mappings and lists."""
    return _message({"type": kind, **fields}, _REQUEST)


def response(packet: bytes) -> Response:
    """What an answer says; DataLoss when it is none."""
    found = _last(packet)
    if not isinstance(found.get(1), int):
        raise DataLoss("CRIU answered with something that is no answer")
    notify = _nested(found, 5)
    features = _nested(found, 8)
    return Response(
        type=_number(found, 1),
        success=bool(_number(found, 2)),
        error_number=_number(found, 7),
        message=_text(found, 9),
        script=_text(notify, 1),
        # a dump has none, a restore's answer has the pid of the first process
        pid=_number(notify, 2) or _number(_nested(found, 4), 1),
        features={name: bool(_number(features, number)) for name, number in _FEATURES.items()},
    )


def _varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF  # a negative one takes ten bytes: encoding.md, "Signed Integers"
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bool | int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(int(value))
    raw = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return _varint(number << 3 | _BYTES) + _varint(len(raw)) + raw


def _message(fields: Mapping[str, Any], table: Mapping[str, Any]) -> bytes:
    out = b""
    for name, value in fields.items():
        number, nested = table[name] if isinstance(table[name], tuple) else (table[name], None)
        for item in value if isinstance(value, list) else [value]:
            out += _field(number, item if nested is None else _message(item, nested))
    return out


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field, in order; IndexError where the message is cut off."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise IndexError(f"wire type {kind}")
        if at + size > len(data):
            raise IndexError("cut off")
        yield tag >> 3, data[at : at + size]
        at += size


def _last(data: bytes) -> dict[int, int | bytes]:
    """The fields of a message by number; of one that is there twice, the last."""
    try:
        return dict(_fields(data))
    except IndexError as error:
        raise DataLoss(f"CRIU's answer is damaged: {error}") from None


def _nested(found: Mapping[int, int | bytes], number: int) -> dict[int, int | bytes]:
    value = found.get(number, b"")
    return _last(value) if isinstance(value, bytes) else {}


def _number(found: Mapping[int, int | bytes], number: int) -> int:
    value = found.get(number, 0)
    if not isinstance(value, int):
        return 0
    return value - (1 << 64) if value >> 63 else value


def _text(found: Mapping[int, int | bytes], number: int) -> str:
    value = found.get(number, b"")
    return value.decode(errors="replace") if isinstance(value, bytes) else ""
