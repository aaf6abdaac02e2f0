"""Log drivers and their options, under Docker's names and with its messages; what of them the shim is told.

Sources: the real engine's answers to wrong options; the facts of moby's daemon/logger. Docker finds a wrong
value when the container starts, here it is found when the container is created.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api.engine import options
from dockerd_api.engine.model import Container

BUILT = ("journald", "json-file", "local", "none")
_OTHERS_OF_DOCKER = ("awslogs", "fluentd", "gcplogs", "gelf", "splunk", "syslog")
_ROTATION = ("compress", "max-file", "max-size")
_ATTRIBUTES = ("env", "env-regex", "labels", "labels-regex", "tag")
_COMMON = ("mode", "max-buffer-size")
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "json-file": _ROTATION + _ATTRIBUTES,
    "local": _ROTATION,
    "journald": _ATTRIBUTES,
}
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")
_LOCAL_SIZE, _LOCAL_FILES = 20 << 20, 5
_BUFFER = 1 << 20
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:([kmgtp])?i?b?)")
_ACTION = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)


def check(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """A LogConfig checked, its driver filled in; InvalidArgument, NotImplementedHere."""
    decoded = options.decode(document or {}, options.LOG_CONFIG, "HostConfig.LogConfig")
    driver = decoded["Type"] = decoded["Type"] or "json-file"
    config = decoded["Config"] = decoded["Config"] or {}
    if driver in _OTHERS_OF_DOCKER:
        raise errdefs.NotImplementedHere(f"log driver {driver} is not implemented")
    if driver not in BUILT:
        raise errdefs.InvalidArgument(
            f'error looking up logging plugin {driver}: plugin "{driver}" not found'
        )
    if driver == "none":
        return decoded
    for key in config:
        if key not in _OPTIONS[driver] and key not in _COMMON:
            where = f"for log driver {driver}" if driver == "local" else f"for {driver} log driver"
            raise errdefs.InvalidArgument(f"unknown log opt '{key}' {where}")
    buffer_size(config)
    if driver != "journald":
        rotation(driver, config)
    if driver != "local":
        _check_attributes(config)
    return decoded


def buffer_size(config: Mapping[str, str]) -> int:
    """The bytes that may wait in the mode non-blocking, 0 in the other one; InvalidArgument."""
    mode = config.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise errdefs.InvalidArgument(f"logger: logging mode not supported: {mode}")
    if mode != "non-blocking":
        if "max-buffer-size" in config:
            raise errdefs.InvalidArgument(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'"
            )
        return 0
    try:
        return _size(config.get("max-buffer-size", ""), 1024) or _BUFFER
    except errdefs.InvalidArgument as error:
        raise errdefs.InvalidArgument(f"error parsing option max-buffer-size: {error.message}") from None


def _size(text: str, unit: int) -> int:
    """Bytes; 0 for no text."""
    if not text:
        return 0
    matched = _SIZE.fullmatch(text.lower())
    if matched is None:
        raise errdefs.InvalidArgument(f"invalid size: '{text}'")
    return int(float(matched[1]) * unit ** (" kmgtp".index(matched[2]) if matched[2] else 0))


@dataclass(frozen=True)
class Rotation:
    """max_size: bytes after which a new file begins, 0 for never; max_file: how many there are at most."""

    max_size: int = 0
    max_file: int = 1
    compress: bool = False


def rotation(driver: str, config: Mapping[str, str]) -> Rotation:
    """What json-file and local are told of rotation; InvalidArgument."""
    return _rotation_of_local(config) if driver == "local" else _rotation_of_json_file(config)


def _rotation_of_json_file(config: Mapping[str, str]) -> Rotation:
    size = _size(config.get("max-size", ""), 1000)
    if config.get("max-size") and size <= 0:
        raise errdefs.InvalidArgument("max-size must be a positive number")
    count = _number(config.get("max-file", "1"))
    if count < 1:
        raise errdefs.InvalidArgument("max-file cannot be less than 1")
    compress = _bool(config.get("compress", "false"))
    if compress and (count == 1 or not size):
        raise errdefs.InvalidArgument(
            "compress cannot be true when max-file is less than 2 or max-size is not set"
        )
    return Rotation(size, count, compress)


def _rotation_of_local(config: Mapping[str, str]) -> Rotation:
    size, count = _LOCAL_SIZE, _LOCAL_FILES
    for key in ("max-size", "max-file"):
        if key not in config:
            continue
        try:
            if key == "max-size":
                size = _size(config[key], 1000)
            else:
                count = _number(config[key])
        except errdefs.InvalidArgument as error:
            raise errdefs.InvalidArgument(
                f"invalid value for {key}: {config[key]}: {error.message}"
            ) from None
    if size <= 0:
        raise errdefs.InvalidArgument("max size should be a positive number")
    if count < 0:
        raise errdefs.InvalidArgument("max file count cannot be less than 0")
    try:
        compress = _bool(config.get("compress", "true"))
    except errdefs.InvalidArgument as error:
        raise errdefs.InvalidArgument(f"error reading compress log option: {error.message}") from None
    if compress and count <= 1:
        raise errdefs.InvalidArgument("compression cannot be enabled when max file count is 1")
    return Rotation(size, max(1, count), compress)


def _number(text: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise errdefs.InvalidArgument(f'strconv.Atoi: parsing "{text}": invalid syntax')
    return int(text)


def _bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text not in _FALSE:
        raise errdefs.InvalidArgument(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return False


# What every entry carries


def _check_attributes(config: Mapping[str, str]) -> None:
    for key in ("env-regex", "labels-regex"):
        try:
            re.compile(config.get(key, ""))
        except re.error as error:
            raise errdefs.InvalidArgument(f"error parsing regexp: {error}") from None
    _render(config.get("tag", ""), _TAG_FIELDS)


_TAG_FIELDS = dict.fromkeys(
    (
        *("Command", "ContainerID", "ContainerImageID", "ContainerImageName", "ContainerName", "DaemonName"),
        *("FullID", "ID", "ImageFullID", "ImageID", "ImageName", "LogPath", "Name"),
    ),
    "",
)


def _render(template: str, fields: Mapping[str, str]) -> str:
    """A tag: Go's text/template, of which the fields by name are built. InvalidArgument for what is none."""
    if template.count("{{") > template.count("}}"):
        raise errdefs.InvalidArgument("template: log-tag:1: unclosed action")

    def value(found: re.Match[str]) -> str:
        name = found[1].removeprefix(".")
        if not re.fullmatch(r"\.[A-Za-z]\w*", found[1]):
            raise errdefs.NotImplementedHere(f"log opt tag: {found[0]}: only fields by name are implemented")
        if name not in fields:
            raise errdefs.InvalidArgument(
                f'template: log-tag:1:{found.start(1)}: executing "log-tag" at <.{name}>: '
                f"can't evaluate field {name} in type *logger.Info"
            )
        return fields[name]

    return _ACTION.sub(value, template)


def _tag_fields(record: Container) -> dict[str, str]:
    return {
        "Command": " ".join((record.path, *record.args)),
        "ContainerID": record.id,
        "ContainerImageID": record.image_id,
        "ContainerImageName": record.image_ref,
        "ContainerName": f"/{record.name}",
        "DaemonName": "docker",
        "FullID": record.id,
        "ID": record.id[:12],
        "ImageFullID": record.image_id,
        "ImageID": record.image_id[:12],
        "ImageName": record.image_ref,
        "LogPath": record.log_path,
        "Name": record.name,
    }


def _chosen(config: Mapping[str, str], record: Container) -> dict[str, str]:
    """The labels and variables that the options name."""
    environment = dict(entry.split("=", 1) for entry in record.config.get("Env") or () if "=" in entry)
    found: dict[str, str] = {}
    for key, values in (("labels", record.labels), ("env", environment)):
        names = [name for name in config.get(key, "").split(",") if name in values]
        pattern = config.get(f"{key}-regex", "")
        if pattern:
            names += [name for name in values if re.search(pattern, name)]
        found.update({name: values[name] for name in names})
    return found


def attributes(record: Container) -> dict[str, str]:
    """What every entry of a container's log carries: attributes for json-file, fields for journald."""
    config = record.log_options
    if record.log_driver == "json-file":
        tag = _render(config.get("tag", ""), _tag_fields(record))
        return _chosen(config, record) | ({"tag": tag} if tag else {})
    if record.log_driver != "journald":
        return {}
    tag = _render(config.get("tag") or "{{.ID}}", _tag_fields(record))
    return {
        "CONTAINER_ID": record.id[:12],
        "CONTAINER_ID_FULL": record.id,
        "CONTAINER_NAME": record.name,
        "CONTAINER_TAG": tag,
        "IMAGE_NAME": record.image_ref,
        "SYSLOG_IDENTIFIER": tag,
        **{_field_name(name): value for name, value in _chosen(config, record).items() if _field_name(name)},
    }


def _field_name(name: str) -> str:
    """The name as journald takes it."""
    return re.sub(r"[^A-Z0-9_]", "_", name.upper()).lstrip("_")


def shim_annotations(record: Container) -> dict[str, str]:
    """What the shim is told, without the prefix of its annotations."""
    found = {"log.driver": record.log_driver}
    if record.log_driver == "none":
        return found
    if record.log_driver != "journald":
        rotated = rotation(record.log_driver, record.log_options)
        found |= {
            "log.path": record.log_path,
            "log.max-size": str(rotated.max_size),
            "log.max-file": str(rotated.max_file),
        }
        if rotated.compress:
            found["log.compress"] = "true"
    buffer = buffer_size(record.log_options)
    if buffer:
        found["log.buffer"] = str(buffer)
    carried = attributes(record)
    if carried:
        found["log.attrs"] = json.dumps(carried)
    return found
