"""What `features` says is what the runtime does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from errdefs import BuoyError
from runc_bin import cli
from runc_bin.libcontainer import mount_options, seccomp, spec, spec_document

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root


@pytest.fixture
def features(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bundle.call("features").stdout)
    return found


def read(bundle: Bundle, **changes: Any) -> spec.Spec:
    return spec.read_spec({**spec_document.default(), **changes}, str(bundle.folder))


def test_versions_and_hooks(bundle: Bundle, features: dict[str, Any]) -> None:
    for key in ("ociVersionMin", "ociVersionMax"):
        assert read(bundle, ociVersion=features[key]).version == features[key]
    hooks = {kind: [{"path": "/bin/true"}] for kind in features["hooks"]}
    assert set(read(bundle, hooks=hooks).hooks) == set(features["hooks"])
    assert len(hooks) == 6


def test_mount_options(features: dict[str, Any]) -> None:
    assert {"ro", "rbind", "rslave", "rro", "nosymfollow", "tmpcopyup", "idmap"} <= set(
        features["mountOptions"]
    )
    for option in features["mountOptions"]:
        assert not mount_options.parse((option,)).data, f"{option} would be given to the file system"
    assert mount_options.parse(("size=1",)).data


def test_namespaces(bundle: Bundle, features: dict[str, Any]) -> None:
    kinds = features["linux"]["namespaces"]
    assert len(kinds) == 8
    linux = {
        "namespaces": [{"type": kind} for kind in kinds],
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
        "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}],
    }
    assert set(read(bundle, linux=linux).namespaces) == set(kinds)


def test_capabilities(bundle: Bundle, features: dict[str, Any]) -> None:
    names = features["linux"]["capabilities"]
    process = {**spec_document.default()["process"], "capabilities": {"bounding": names}}
    found = read(bundle, process=process).process
    assert found is not None
    assert (found.capabilities.bounding, found.capabilities.unknown) == (2 ** len(names) - 1, ())
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as last:
        assert len(names) > int(last.read()), "the kernel knows more than we do"


def test_seccomp(features: dict[str, Any]) -> None:
    section = features["linux"]["seccomp"]
    assert {key for key, value in section.items() if not value} == set()
    for action in section["actions"]:
        rule = {"names": ["getcwd"], "action": action}
        assert seccomp.compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    for operator in section["operators"]:
        rule = {
            "names": ["getcwd"],
            "action": "SCMP_ACT_LOG",
            "args": [{"index": 0, "value": 1, "op": operator}],
        }
        assert seccomp.compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]})
    for flags in (section["knownFlags"], section["supportedFlags"]):
        assert seccomp.check_flags(flags)
    assert set(section["supportedFlags"]) <= set(section["knownFlags"])
    assert "SECCOMP_FILTER_FLAG_LOG" in section["supportedFlags"]
    for architecture in section["archs"]:
        try:
            seccomp.compile_filter({"defaultAction": "SCMP_ACT_LOG", "architectures": [architecture]})
        except BuoyError as error:
            # an older libseccomp does not know it, and none takes another byte order than the host's
            assert re.search("not known to this libseccomp|adding architecture", error.message)  # noqa: PT017


def test_what_is_said_of_the_runtime(features: dict[str, Any]) -> None:
    known = features["annotations"]["org.opencontainers.runc.checkpoint.enabled"] == "true"
    assert known == ("checkpoint" in cli.VERBS)
    assert features["annotations"]["io.github.seccomp.libseccomp.version"].count(".") == 2
    assert features["linux"]["intelRdt"] == {"enabled": False}
    assert "netDevices" not in features["linux"]
