"""Device rules: what a list amounts to, the way from one state to another, and the eBPF program."""

from __future__ import annotations

import struct

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import bpf_devices
from runc_bin.libcontainer.cgroups.device_rules import (
    ALL,
    Device,
    DeviceState,
    Rule,
    parse_list,
    parse_spec,
    target_state,
)

DENY_ALL = {"allow": False, "access": "rwm"}
ALLOW_ALL = {"allow": True, "access": "rwm"}
FUSE = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rw"}


def lines(rules: list[Rule]) -> list[str]:
    return [f"{'allow' if rule.allow else 'deny'} {rule.line()}" for rule in rules]


def test_fresh_cgroup_is_closed_first_and_then_opened_by_name() -> None:
    got = lines(parse_list("a *:* rwm\n").transition(target_state([DENY_ALL, FUSE])))
    assert got[0] == "deny a *:* rwm"
    assert "allow c 10:229 rw" in got
    assert "allow c 1:3 rwm" in got
    assert "allow c *:* m" in got
    assert "allow b *:* m" in got
    assert len(got) == 13


def test_the_spec_s_rules_come_first_and_in_order() -> None:
    rules = [DENY_ALL, FUSE, {**FUSE, "type": "b", "major": 8}, {**FUSE, "major": 1, "minor": 5}]
    got = lines(parse_list("a *:* rwm\n").transition(target_state(rules)))
    assert got[:4] == ["deny a *:* rwm", "allow c 10:229 rw", "allow b 8:229 rw", "allow c 1:5 rwm"]


def test_change_of_a_live_container_touches_only_what_differs() -> None:
    before = target_state([DENY_ALL, FUSE])
    after = target_state([DENY_ALL, {**FUSE, "access": "r"}, {**FUSE, "minor": 1}])
    assert lines(before.transition(after)) == ["deny c 10:229 w", "allow c 10:1 rw"]
    assert before.transition(before) == []


def test_privileged_state_is_one_rule() -> None:
    state = target_state([ALLOW_ALL])
    assert state.default_allow
    assert state.exceptions == {}
    assert lines(parse_list("a *:* rwm\n").transition(state)) == ["allow a *:* rwm"]


def test_later_rules_override_earlier_ones() -> None:
    state = target_state([DENY_ALL, FUSE, {**FUSE, "allow": False, "access": "w"}])
    assert state.exceptions[Device("c", 10, 229)] == {"r"}
    state = target_state([DENY_ALL, FUSE, DENY_ALL])
    assert Device("c", 10, 229) not in state.exceptions


def test_hole_in_a_wildcard_is_refused() -> None:
    holes = [DENY_ALL, {"allow": True, "type": "c", "major": 10, "access": "rw"}, {**FUSE, "allow": False}]
    with pytest.raises(errdefs.InvalidArgument, match="punch a hole"):
        target_state(holes)


def test_devices_list_is_read_back() -> None:
    state = parse_list("c 1:3 rwm\nb *:* m\nc 136:* rw\n")
    assert state.exceptions == {
        Device("c", 1, 3): ALL,
        Device("b", -1, -1): {"m"},
        Device("c", 136, -1): {"r", "w"},
    }


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"allow": True, "type": "c"}, "access at 0"),
        ({"allow": True, "type": "c", "access": "x"}, "other letters"),
        ({"allow": "yes", "type": "c", "access": "r"}, "allow at 0"),
        ({"allow": True, "type": "p", "access": "r"}, "invalid cgroup device type"),
        ({"allow": True, "type": "c", "major": "1", "access": "r"}, "major"),
    ],
)
def test_malformed_rules_are_named(entry: dict[str, object], words: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=words):
        parse_spec([entry])


def run_program(program: bytes, kind: int, access: int, major: int, minor: int) -> int:
    """A tiny interpreter of the eBPF instructions that we emit."""
    context = struct.pack("=III", access << 16 | kind, major, minor)
    registers = {1: 0}
    counter = 0
    while True:
        code, pair, offset, immediate = struct.unpack_from("=BBhI", program, counter * 8)
        dst, src = pair & 0xF, pair >> 4
        counter += 1
        match code:
            case 0x61:
                registers[dst] = struct.unpack_from("=I", context, offset)[0]
            case 0x54:
                registers[dst] &= immediate
            case 0x74:
                registers[dst] >>= immediate
            case 0xBC:
                registers[dst] = registers[src]
            case 0xB4:
                registers[dst] = immediate
            case 0x55:
                counter += offset if registers[dst] != immediate else 0
            case 0x5D:
                counter += offset if registers[dst] != registers[src] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(hex(code))


def test_program_answers_as_the_state_says() -> None:
    program = bpf_devices.compile_program(target_state([DENY_ALL, {**FUSE, "access": "r"}]))
    block, char = 1, 2
    mknod, read, write = 1, 2, 4
    assert run_program(program, char, read | write, 1, 3) == 1
    assert run_program(program, char, read, 136, 77) == 1
    assert run_program(program, char, mknod, 99, 99) == 1
    assert run_program(program, block, mknod, 8, 0) == 1
    assert run_program(program, block, read, 8, 0) == 0
    assert run_program(program, char, read, 10, 229) == 1
    assert run_program(program, char, read | write, 10, 229) == 0
    assert run_program(program, char, write, 10, 229) == 0


def test_program_of_a_state_that_only_denies() -> None:
    state = DeviceState()
    state.apply(Rule(True, None, ALL))
    state.apply(Rule(False, Device("b", 8, -1), frozenset("w")))
    program = bpf_devices.compile_program(state)
    assert run_program(program, 1, 4, 8, 3) == 0
    assert run_program(program, 1, 2, 8, 3) == 1
    assert run_program(program, 2, 7, 8, 3) == 1
