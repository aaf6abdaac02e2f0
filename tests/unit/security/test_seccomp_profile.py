"""Docker's default seccomp profile, and profiles in Docker's JSON form."""

from __future__ import annotations

import json
from typing import Any

import errdefs
import pytest
from dockerd_api import security

KERNEL = (6, 1)
ADMIN = ["CAP_SYS_ADMIN"]


def allowed(profile: dict[str, Any]) -> set[str]:
    """Names that some rule lets through whatever their arguments."""
    calls = [
        call for call in profile["syscalls"] if call["action"] == "SCMP_ACT_ALLOW" and not call.get("args")
    ]
    return {name for call in calls for name in call["names"]}


def test_default_profile_refuses_what_leads_out_of_a_container() -> None:
    profile = security.seccomp_profile([], "amd64", KERNEL)
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    assert profile["defaultErrnoRet"] == 1
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    names = allowed(profile)
    assert len(names) > 350
    assert names.isdisjoint(
        {
            "mount",
            "unshare",
            "setns",
            "bpf",
            "clone",
            "clone3",
            "keyctl",
            "userfaultfd",
            "io_uring_setup",
            "socket",
        }
    )
    assert {"read", "execve", "ptrace", "arch_prctl", "landlock_create_ruleset"} <= names


def test_clone3_is_answered_with_enosys_so_that_libc_tries_clone() -> None:
    (call,) = [
        call
        for call in security.seccomp_profile([], "amd64", KERNEL)["syscalls"]
        if "clone3" in call["names"]
    ]
    assert (call["action"], call["errnoRet"]) == ("SCMP_ACT_ERRNO", 38)


def test_capabilities_open_their_calls() -> None:
    assert {"mount", "unshare", "clone3", "bpf"} <= allowed(security.seccomp_profile(ADMIN, "amd64", KERNEL))
    assert "chroot" in allowed(security.seccomp_profile(["CAP_SYS_CHROOT"], "amd64", KERNEL))
    assert "ptrace" not in allowed(security.seccomp_profile([], "amd64", (4, 4)))


@pytest.mark.parametrize(
    ("arch", "first", "special"),
    [
        ("x86_64", "SCMP_ARCH_X86_64", "modify_ldt"),
        ("aarch64", "SCMP_ARCH_AARCH64", "arm_fadvise64_64"),
        ("s390x", "SCMP_ARCH_S390X", "s390_pci_mmio_read"),
        ("riscv64", "SCMP_ARCH_RISCV64", "riscv_flush_icache"),
    ],
)
def test_architectures(arch: str, first: str, special: str) -> None:
    profile = security.seccomp_profile([], arch, KERNEL)
    assert profile["architectures"][0] == first
    assert special in allowed(profile)


def test_ppc_names_no_architecture_as_docker_has_it() -> None:
    profile = security.seccomp_profile([], "ppc64le", KERNEL)
    assert "architectures" not in profile
    assert "swapcontext" in allowed(profile)


@pytest.mark.parametrize(
    ("profile", "privileged", "daemon", "filtered"),
    [
        ("", False, "", True),
        ("", True, "", False),
        ("unconfined", False, "", False),
        ("builtin", False, "unconfined", True),
        ("", False, "unconfined", False),
        ("", False, '{"defaultAction":"SCMP_ACT_LOG","syscalls":[]}', True),
        ('{"defaultAction":"SCMP_ACT_LOG","syscalls":[]}', True, "", True),
        ("{}", False, "", False),
    ],
)
def test_whose_choice_counts(profile: str, privileged: bool, daemon: str, filtered: bool) -> None:
    got = security.container_seccomp(profile, capabilities=[], privileged=privileged, daemon_profile=daemon)
    assert (got is not None) is filtered
    if profile.startswith("{") or daemon.startswith("{"):
        assert got is None or got["defaultAction"] == "SCMP_ACT_LOG"


def test_conditions_of_a_user_s_profile() -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": None},
            ],
            "syscalls": [
                {"name": "read", "action": "SCMP_ACT_ALLOW", "args": None, "comment": "old form"},
                {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["c"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
                {"names": ["d"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.1"}},
                {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}},
                {
                    "names": ["f"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 2,
                    "includes": {"arches": ["amd64"]},
                },
            ],
        }
    )
    profile = security.user_profile(text, [], "amd64", KERNEL)
    assert profile == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["b"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["f"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2},
        ],
    }


@pytest.mark.parametrize(
    "text",
    [
        "/no/file.json",
        "[]",
        '{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"x"}]}',
        '{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}',
        '{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["b"],"includes":{"minKernel":"x"}}]}',
        '{"defaultAction":"SCMP_ACT_ERRNO","syscalls":["read"]}',
    ],
)
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        security.user_profile(text, [], "amd64", KERNEL)
