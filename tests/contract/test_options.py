"""What `docker run` is asked for is what the process finds."""

from __future__ import annotations

import pytest

from tests.support.engine import Engine

pytestmark = [pytest.mark.root]


def shell(engine: Engine, *options: str, script: str) -> list[str]:
    """The lines that a shell in a fresh container prints on both streams."""
    done = engine.docker("run", "--rm", *options, "busybox", "sh", "-c", f"exec 2>&1; {script}")
    assert done.returncode == 0, done.stdout + done.stderr + engine.logs()
    return done.stdout.splitlines()


def test_identity(engine: Engine) -> None:
    options: tuple[str, ...] = (
        "-e",
        "A=b=c",
        "-e",
        "EMPTY=",
        "-u",
        "3:4",
        "--group-add",
        "77",
        "-w",
        "/made/here",
    )
    options += ("--hostname", "box", "--domainname", "dom.example")
    script = "id -u; id -g; id -G; pwd; echo $A+$EMPTY+$HOME+$PATH; hostname; cat /etc/hostname"
    script += "; cat /proc/sys/kernel/domainname; stat -c %u:%g:%a /made/here; tail -n 1 /etc/hosts"
    lines = shell(engine, *options, script=script)
    assert lines[:9] == [
        "3",
        "4",
        "4 77",
        "/made/here",
        "b=c++/+/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "box",
        "box",
        "dom.example",
        "0:0:755",
    ]
    assert lines[9].split()[1:] == ["box.dom.example", "box"]


def test_entrypoint_and_command(engine: Engine) -> None:
    assert engine.out("run", "--rm", "--entrypoint", "echo", "busybox", "a", "b c") == "a b c"
    assert engine.out("run", "--rm", "--entrypoint", "/bin/hostname", "-h", "x", "busybox") == "x"
    done = engine.docker("run", "--rm", "--entrypoint", "", "busybox")
    assert done.returncode == 125
    assert "no command specified" in done.stderr


def test_limits_are_in_the_cgroup(engine: Engine) -> None:
    options: tuple[str, ...] = (
        "--memory",
        "32m",
        "--memory-reservation",
        "16m",
        "--cpus",
        "0.5",
        "--cpu-shares",
        "512",
    )
    options += ("--cpuset-cpus", "0", "--pids-limit", "9", "--ulimit", "nofile=77:88")
    options += ("--oom-score-adj", "100", "--shm-size", "3m")
    if engine.docker("info", "--format", "{{.CgroupVersion}}").stdout.strip() == "2":
        files = "memory.max memory.low cpu.max cpuset.cpus pids.max"
        expected = ["33554432", "16777216", "50000 100000", "0", "9"]
    else:
        files = "memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes cpu/cpu.cfs_quota_us "
        files += "cpu/cpu.cfs_period_us cpu/cpu.shares cpuset/cpuset.cpus pids/pids.max"
        expected = ["33554432", "16777216", "50000", "100000", "512", "0", "9"]
    script = "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; df -k /dev/shm | tail -n 1; "
    script += f"cd /sys/fs/cgroup; cat {files}"
    lines = shell(engine, *options, script=script)
    assert lines[:3] == ["77", "88", "100"]
    assert lines[3].split()[:2] == ["shm", "3072"]
    assert lines[4:] == expected


def test_limits_hold(engine: Engine) -> None:
    command = ("sh", "-c", "head -c 60m /dev/zero | tail -c 1 | wc -c; exec tail -c 60m /dev/zero")
    done = engine.docker(
        "run", "--name", "big", "--memory", "16m", "--memory-swap", "16m", "busybox", *command
    )
    assert done.returncode == 137
    assert engine.inspect("big")["State"]["OOMKilled"]
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait"
    done = engine.docker("run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", script)
    assert "can't fork: Resource temporarily unavailable" in done.stderr


def test_init(engine: Engine) -> None:
    script = "cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline | cut -c 1-26; "
    script += "touch /sbin/docker-init; (sleep 0 &); sleep 0.1; ps -o stat | grep -c Z"
    lines = engine.docker("run", "--rm", "--init", "busybox", "sh", "-c", script)
    assert lines.stdout.splitlines() == ["docker-init", "/sbin/docker-init -- sh -c", "0"]
    assert "Read-only file system" in lines.stderr
    assert engine.docker("run", "--rm", "--init", "busybox", "sh", "-c", "exit 5").returncode == 5


def test_read_only(engine: Engine) -> None:
    script = "touch /x; touch /etc/hosts; touch /t/x /dev/shm/x && stat -c %a /t; df -k /t | tail -n 1"
    lines = shell(engine, "--read-only", "--tmpfs", "/t:size=1m,mode=700", script=script)
    assert lines[:3] == [
        "touch: /x: Read-only file system",
        "touch: /etc/hosts: Read-only file system",
        "700",
    ]
    assert lines[3].split()[:2] == ["tmpfs", "1024"]
    script = "grep ' /t ' /proc/mounts"
    options: tuple[str, ...] = ("noexec", "nosuid", "nodev")
    assert set(options) <= set(shell(engine, "--tmpfs", "/t", script=script)[0].split()[3].split(","))
    executable = shell(engine, "--tmpfs", "/t:exec", script=script)[0].split()[3].split(",")
    assert "noexec" not in executable


@pytest.mark.parametrize(
    ("options", "effective"),
    [
        ((), 0xA80425FB),
        (("--cap-drop", "ALL"), 0),
        (("--cap-drop", "ALL", "--cap-add", "NET_ADMIN"), 1 << 12),
        (("--cap-add", "CAP_SYS_ADMIN"), 0xA80425FB | 1 << 21),
        (("--cap-drop", "chown"), 0xA80425FA),
    ],
)
def test_capabilities(engine: Engine, options: tuple[str, ...], effective: int) -> None:
    found = dict(line.split() for line in shell(engine, *options, script="grep ^Cap /proc/self/status"))
    assert int(found["CapEff:"], 16) == effective
    assert found["CapPrm:"] == found["CapBnd:"] == found["CapEff:"]
    assert int(found["CapInh:"], 16) == int(found["CapAmb:"], 16) == 0


def test_privileged(engine: Engine) -> None:
    script = "grep -E 'CapEff|Seccomp:' /proc/self/status; mkdir /m; mount -t tmpfs x /m && echo mounted; "
    script += "grep -c ' /proc/[a-z]' /proc/mounts; grep ' /sys ' /proc/mounts"
    lines = shell(engine, "--privileged", script=script)
    assert int(lines[0].split()[1], 16) & 1 << 21
    assert lines[1:4] == ["Seccomp:\t0", "mounted", "0"]
    assert "rw" in lines[4].split()[3].split(",")
    plain = shell(engine, script=f"{script}; :")
    assert plain[1] == "Seccomp:\t2"
    assert "mounted" not in plain


def test_binds(engine: Engine) -> None:
    place = "/var/tmp/contract-bind"
    try:
        shell(engine, "-v", f"{place}:/data", script="echo hello > /data/file; chmod 640 /data/file")
        script = "cat /data/file; touch /data/new"
        assert shell(engine, "-v", f"{place}:/data:ro", script=f"{script} || true") == [
            "hello",
            "touch: /data/new: Read-only file system",
        ]
        mount = f"type=bind,source={place}/file,target=/one,readonly"
        assert shell(engine, "--mount", mount, script="cat /one; stat -c %a /one") == ["hello", "640"]
        assert shell(
            engine, "-v", f"{place}:/a/b/c", "-v", f"{place}/file:/a/b/c/d", script="cat /a/b/c/d"
        ) == ["hello"]
        engine.out("create", "--name", "bound", "-v", f"{place}:/data:ro", "busybox", "true")
        assert engine.inspect("bound")["Mounts"] == [
            {
                "Type": "bind",
                "Source": place,
                "Destination": "/data",
                "Mode": "ro",
                "RW": False,
                "Propagation": "rprivate",
            }
        ]
        assert engine.inspect("bound")["HostConfig"]["Binds"] == [f"{place}:/data:ro"]
    finally:
        engine.out("run", "--rm", "-v", "/var/tmp:/up", "busybox", "rm", "-rf", "/up/contract-bind")


def test_bind_that_cannot_be_shared(engine: Engine) -> None:
    shared = shell(engine, "--pid", "host", script="grep -c ' /dev/shm .* shared:' /proc/1/mountinfo || true")
    done = engine.docker("run", "--rm", "-v", "/dev/shm:/x:rshared", "busybox", "true")
    if shared == ["0"]:
        assert done.returncode == 125
        assert "is mounted on /dev/shm but it is not a shared mount" in done.stderr
    else:
        assert done.returncode == 0


def test_shared_memory(engine: Engine) -> None:
    engine.out(
        "run", "-d", "--name", "donor", "--ipc", "shareable", "--shm-size", "1m", "busybox", "sleep", "60"
    )
    script = "echo said > /dev/shm/f; readlink /proc/self/ns/ipc; df -k /dev/shm | tail -n 1"
    ipc, size = shell(engine, "--ipc", "container:donor", script=script)
    assert size.split()[:2] == ["shm", "1024"]
    assert engine.out("exec", "donor", "cat", "/dev/shm/f") == "said"
    assert engine.out("exec", "donor", "readlink", "/proc/self/ns/ipc") == ipc
    engine.out("restart", "-t", "0", "donor")
    assert engine.out("exec", "donor", "ls", "/dev/shm") == ""
    engine.out("run", "-d", "--name", "private", "busybox", "sleep", "60")
    for ref, text in (("private", "non-shareable IPC"), ("nosuch", "No such container: nosuch")):
        done = engine.docker("run", "--rm", "--ipc", f"container:{ref}", "busybox", "true")
        assert done.returncode == 125
        assert text in done.stderr
    engine.out("rm", "-f", "donor")
    assert shell(engine, "--ipc", "none", script="grep -c /dev/shm /proc/mounts || true") == ["0"]


def test_namespaces_of_others(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "donor", "busybox", "sleep", "61")
    lines = shell(engine, "--pid", "container:donor", "--network", "container:donor",
                  script="ps | grep -c '[s]leep 61'; hostname; readlink /proc/self/ns/net")  # fmt: skip
    assert lines[0] == "1"
    assert lines[1] == engine.inspect("donor")["Id"][:12]
    assert lines[2] == engine.out("exec", "donor", "readlink", "/proc/self/ns/net")


def test_names_and_addresses(engine: Engine) -> None:
    options: tuple[str, ...] = (
        "--add-host",
        "there:1.2.3.4",
        "--dns",
        "9.9.9.9",
        "--dns-search",
        "s.example",
    )
    options += ("--dns-option", "ndots:2", "--mac-address", "02:42:aa:bb:cc:dd")
    script = "grep there /etc/hosts; grep -v ^# /etc/resolv.conf | grep .; cat /sys/class/net/eth0/address"
    assert shell(engine, *options, script=script) == [
        "1.2.3.4\tthere",
        "nameserver 9.9.9.9",
        "search s.example",
        "options ndots:2",
        "02:42:aa:bb:cc:dd",
    ]
    assert shell(engine, "--network", "none", script="ls /sys/class/net; cat /etc/hosts | wc -l")[0] == "lo"
    host = shell(engine, "--network", "host", script="readlink /proc/self/ns/net; hostname")
    assert host[1] == engine.out("info", "--format", "{{.Name}}")


def test_sysctls_and_devices(engine: Engine) -> None:
    options: tuple[str, ...] = ("--sysctl", "net.ipv4.ip_forward=0", "--sysctl", "kernel.msgmax=9000")
    options += ("--device", "/dev/null:/dev/other", "--security-opt", "no-new-privileges")
    script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; stat -c %t:%T /dev/other; "
    script += "grep NoNewPrivs /proc/self/status"
    assert shell(engine, *options, script=script) == ["0", "9000", "1:3", "NoNewPrivs:\t1"]
