"""Options of log drivers: what is refused with Docker's words, and what the shim is told."""

from __future__ import annotations

import json
from typing import Any

import errdefs
import pytest
from dockerd_api.engine import log_drivers
from dockerd_api.engine.model import Container


def record(driver: str, options: dict[str, str]) -> Container:
    config: dict[str, Any] = {
        "Env": ["X=y", "Yes=a=b", "Z=1"],
        "Labels": {"a": "1", "com.x": "2", "b": "3"},
    }
    host: dict[str, Any] = {"LogConfig": {"Type": driver, "Config": options}}
    return Container(
        "ab" * 32, "t", "", "echo", ("hi",), config, host, {}, "sha256:0123456789", "img", "/log"
    )


@pytest.mark.parametrize(
    ("driver", "options", "text"),
    [
        ("json-file", {"foo": "1"}, "unknown log opt 'foo' for json-file log driver"),
        ("local", {"labels": "1"}, "unknown log opt 'labels' for log driver local"),
        ("journald", {"max-size": "1m"}, "unknown log opt 'max-size' for journald log driver"),
        ("json-file", {"mode": "x"}, "logger: logging mode not supported: x"),
        (
            "journald",
            {"max-buffer-size": "1m"},
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        (
            "local",
            {"mode": "non-blocking", "max-buffer-size": "x"},
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        ("json-file", {"max-size": "x"}, "invalid size: 'x'"),
        ("json-file", {"max-size": "-1"}, "invalid size: '-1'"),
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "x"}, 'strconv.Atoi: parsing "x": invalid syntax'),
        ("json-file", {"compress": "x"}, 'strconv.ParseBool: parsing "x": invalid syntax'),
        (
            "json-file",
            {"compress": "true"},
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        ("json-file", {"tag": "{{"}, "template: log-tag:1: unclosed action"),
        (
            "json-file",
            {"tag": "{{.Foo}}"},
            'template: log-tag:1:2: executing "log-tag" at <.Foo>: '
            "can't evaluate field Foo in type *logger.Info",
        ),
        ("json-file", {"env-regex": "("}, "error parsing regexp: "),
        ("local", {"max-size": "x"}, "invalid value for max-size: x: invalid size: 'x'"),
        ("local", {"max-file": "-1"}, "max file count cannot be less than 0"),
        ("local", {"max-file": "1"}, "compression cannot be enabled when max file count is 1"),
        (
            "local",
            {"max-file": "x"},
            'invalid value for max-file: x: strconv.Atoi: parsing "x": invalid syntax',
        ),
        (
            "local",
            {"compress": "x"},
            'error reading compress log option: strconv.ParseBool: parsing "x": invalid syntax',
        ),
        ("nope", {}, 'error looking up logging plugin nope: plugin "nope" not found'),
    ],
)
def test_wrong_options_are_refused(driver: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        log_drivers.check({"Type": driver, "Config": options})
    assert caught.value.message.startswith(text)


def test_what_is_not_built_says_so() -> None:
    with pytest.raises(errdefs.NotImplementedHere, match="syslog"):
        log_drivers.check({"Type": "syslog"})
    with pytest.raises(errdefs.NotImplementedHere, match="tag"):
        log_drivers.check({"Config": {"tag": "{{json .ID}}"}})


@pytest.mark.parametrize(
    ("driver", "options", "wanted"),
    [
        ("json-file", {}, (0, 1, False)),
        ("json-file", {"max-size": "10m", "max-file": "3", "compress": "true"}, (10_000_000, 3, True)),
        ("json-file", {"max-size": "1.5k", "max-file": "3"}, (1500, 3, False)),
        ("json-file", {"max-file": "3"}, (0, 3, False)),
        ("local", {}, (20 << 20, 5, True)),
        ("local", {"max-size": "1m", "max-file": "1", "compress": "false"}, (1_000_000, 1, False)),
    ],
)
def test_rotation(driver: str, options: dict[str, str], wanted: tuple[int, int, bool]) -> None:
    log_drivers.check({"Type": driver, "Config": options})
    found = log_drivers.rotation(driver, options)
    assert (found.max_size, found.max_file, found.compress) == wanted


def test_what_every_entry_carries() -> None:
    options = {
        "labels": "a,none",
        "labels-regex": "^com",
        "env": "X",
        "env-regex": "^Ye",
        "tag": "{{.Name}}/{{ .ID }}/{{.ImageName}}/{{.Command}}",
    }
    chosen = {"a": "1", "com.x": "2", "X": "y", "Yes": "a=b"}
    tag = "t/abababababab/img/echo hi"
    assert log_drivers.attributes(record("json-file", options)) == {**chosen, "tag": tag}
    assert log_drivers.attributes(record("journald", options)) == {
        "CONTAINER_ID": "ab" * 6,
        "CONTAINER_ID_FULL": "ab" * 32,
        "CONTAINER_NAME": "t",
        "CONTAINER_TAG": tag,
        "IMAGE_NAME": "img",
        "SYSLOG_IDENTIFIER": tag,
        "A": "1",
        "COM_X": "2",
        "X": "y",
        "YES": "a=b",
    }
    assert log_drivers.attributes(record("journald", {}))["CONTAINER_TAG"] == "ab" * 6
    assert log_drivers.attributes(record("json-file", {})) == {}


def test_what_the_shim_is_told() -> None:
    options = {"max-size": "1m", "max-file": "2", "compress": "1", "mode": "non-blocking", "tag": "x"}
    told = log_drivers.shim_annotations(record("json-file", options))
    assert json.loads(told.pop("log.attrs")) == {"tag": "x"}
    assert told == {
        "log.driver": "json-file",
        "log.path": "/log",
        "log.max-size": "1000000",
        "log.max-file": "2",
        "log.compress": "true",
        "log.buffer": str(1 << 20),
    }
    assert log_drivers.shim_annotations(record("none", {})) == {"log.driver": "none"}
