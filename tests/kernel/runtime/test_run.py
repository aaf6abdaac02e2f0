"""What a container's program finds around it."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.kernel.runtime.bundle import Bundle, is_gone, namespace

pytestmark = pytest.mark.root


def status_of(text: str) -> dict[str, str]:
    return {line.split(":")[0]: line.split(":", 1)[1].strip() for line in text.splitlines() if ":" in line}


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill $$", 0)]
)
def test_exit_codes(bundle: Bundle, script: str, code: int) -> None:
    # pid 1 is deaf to signals of its own namespace that it has no handler for
    if "kill" in script:
        bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != "pid"]
        code = code or 128 + signal.SIGTERM
    assert bundle.run("sh", "-c", script, check=False).returncode == code
    assert not any(p.name.startswith("t-") for p in bundle.root.iterdir())
    assert bundle.cgroups() == []


def test_new_namespaces(bundle: Bundle) -> None:
    names = ("pid", "net", "mnt", "ipc", "uts", "cgroup")
    script = "hostname; for i in " + " ".join(names) + "; do readlink /proc/self/ns/$i; done; echo $$"
    bundle.spec["hostname"] = "inside"
    lines = bundle.run("sh", "-c", script).stdout.splitlines()
    assert lines[0] == "inside"
    assert lines[-1] == "1"
    assert not {namespace("self", name) for name in names} & set(lines)


def test_namespaces_of_another_container(bundle: Bundle) -> None:
    _, pid = bundle.start("sleep", "60")
    for item in bundle.linux["namespaces"]:
        kind = {"network": "net", "mount": "mnt"}.get(item["type"], item["type"])
        if item["type"] not in ("mount", "cgroup"):
            item["path"] = f"/proc/{pid}/ns/{kind}"
    bundle.spec["hostname"] = ""
    bundle.linux["cgroupsPath"] += "2"
    done = bundle.run("sh", "-c", "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; ps")
    assert done.stdout.splitlines()[:2] == [namespace(pid, "net"), namespace(pid, "pid")]
    assert "sleep 60" in done.stdout


def test_a_missing_namespace(bundle: Bundle) -> None:
    bundle.linux["namespaces"][1]["path"] = "/nowhere/net"
    done = bundle.run("true", check=False)
    assert done.returncode == 1
    assert "lstat /nowhere/net: no such file or directory" in done.stderr
    assert bundle.cgroups() == []


def test_capabilities_and_privileges(bundle: Bundle) -> None:
    found = status_of(bundle.run("cat", "/proc/self/status").stdout)
    wanted = f"{1 << 29 | 1 << 5 | 1 << 10:016x}"
    assert (found["CapBnd"], found["CapEff"], found["CapPrm"]) == (wanted, wanted, wanted)
    assert int(found["CapInh"], 16) == int(found["CapAmb"], 16) == 0
    assert found["NoNewPrivs"] == "1"
    assert found["Seccomp"] == "0"


def test_a_user_with_groups_and_umask(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [7, 1001], "umask": 0o077}
    done = bundle.run(
        "sh", "-c", "cat /proc/self/status; umask; touch /dev/shm/x; stat -c '%a %u' /dev/shm/x"
    )
    found = status_of(done.stdout)
    assert found["Uid"].split() == ["1000"] * 4
    assert found["Gid"].split() == ["1001"] * 4
    assert found["Groups"].split() == ["7", "1001"]
    assert int(found["CapEff"], 16) == 0
    assert done.stdout.splitlines()[-2:] == ["0077", "600 1000"]


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_seccomp(bundle: Bundle, no_new_privileges: bool) -> None:
    bundle.process["noNewPrivileges"] = no_new_privileges
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    done = bundle.run("busybox", "sh", "-c", "cat /proc/self/status; busybox chmod 1 /dev/shm", check=False)
    assert status_of(done.stdout)["Seccomp"] == "2"
    assert done.returncode != 0
    assert "not supported" in done.stderr.lower()


def test_rlimits_and_environment(bundle: Bundle) -> None:
    bundle.process["rlimits"] = [
        {"type": "RLIMIT_NOFILE", "soft": 11, "hard": 12},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_FSIZE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    bundle.process["env"] = ["PATH=/bin", "A=1", "A=2"]
    (bundle.rootfs / "etc/passwd").write_text("root:x:0:0::/home/it:/bin/sh\n")
    done = bundle.run("sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c; ulimit -f; echo $A $HOME")
    assert done.stdout.split() == ["11", "12", "0", "unlimited", "2", "/home/it"]


def test_only_the_streams_are_open(bundle: Bundle) -> None:
    done = bundle.run("sh", "-c", "ls /proc/1/fd; true")
    assert done.stdout.split() == ["0", "1", "2"]


def test_preserved_descriptors(bundle: Bundle) -> None:
    bundle.process["args"] = ["sh", "-c", "ls /proc/1/fd; cat <&3"]
    words = ["sh", "-c", 'exec "$@" 3</etc/hostname', "sh"]
    words += bundle.command("run", "--preserve-fds", "1", bundle.new_id())
    done = subprocess.run(words, capture_output=True, text=True, cwd=bundle.folder)
    assert done.stdout.split() == ["0", "1", "2", "3", *Path("/etc/hostname").read_text().split()]


def test_masked_and_read_only_paths(bundle: Bundle) -> None:
    (bundle.rootfs / "secret").write_text("s")
    (bundle.rootfs / "hidden").mkdir()
    (bundle.rootfs / "hidden/x").write_text("s")
    bundle.spec["root"]["readonly"] = False
    bundle.linux["maskedPaths"] += ["/secret", "/hidden", "/hidden/", "/missing"]
    script = "cat /secret; ls /hidden; touch /hidden/y; echo 0 > /proc/sys/net/ipv4/ip_forward; echo yes"
    done = bundle.run("sh", "-c", script)
    assert done.stdout.split() == ["yes"]
    assert done.stderr.count("Read-only file system") + done.stderr.count("Permission denied") == 2


def test_a_read_only_root(bundle: Bundle) -> None:
    done = bundle.run("sh", "-c", "touch /x; touch /dev/shm/x && echo yes")
    assert done.stdout.split() == ["yes"]
    assert "Read-only file system" in done.stderr


def test_sysctl(bundle: Bundle) -> None:
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}
    done = bundle.run("cat", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/msgmax")
    assert done.stdout.split() == ["1", "9000"]


def test_the_working_directory(bundle: Bundle) -> None:
    bundle.spec["root"]["readonly"] = False
    bundle.process["cwd"] = "/new/place"
    assert bundle.run("pwd").stdout.strip() == "/new/place"
    bundle.process["cwd"] = "/bin/busybox"
    done = bundle.run("pwd", check=False)
    assert "not a directory" in done.stderr


@pytest.mark.parametrize("number", range(3, 12))
def test_a_descriptor_is_no_way_out(bundle: Bundle, number: int) -> None:
    """CVE-2024-21626."""
    bundle.process["cwd"] = f"/proc/self/fd/{number}"
    done = bundle.run("sh", "-c", "ls ..; pwd", check=False)
    assert done.returncode == 1
    assert not done.stdout


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH'),
        ("/bin/nosuch", 'exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory'),
        ("/etc/plain", 'exec: "/etc/plain": permission denied'),
        ("/bin", 'exec: "/bin": is a directory'),
    ],
)
def test_a_program_that_cannot_be_run(bundle: Bundle, program: str, message: str) -> None:
    (bundle.rootfs / "etc/plain").write_text("")
    done = bundle.run(program, check=False)
    assert done.returncode == 1
    assert f"runc run failed: unable to start container process: error during container init: {message}" in (
        json.loads(f'"{done.stderr.split("msg=")[1].strip()[1:-1]}"')
    )


def test_a_script_without_interpreter(bundle: Bundle) -> None:
    script = bundle.rootfs / "bin/script"
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    done = bundle.run("script", check=False)
    assert done.returncode == 255
    assert "exec /bin/script: no such file or directory" in done.stderr


def test_the_json_log(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    done = bundle.call("--log", str(log), "--log-format=json", "state", "nobody", check=False)
    assert done.stderr == "container does not exist\n"
    (line,) = log.read_text().splitlines()
    assert (json.loads(line)["level"], json.loads(line)["msg"]) == ("error", "container does not exist")


def test_signals_reach_the_program(bundle: Bundle) -> None:
    bundle.process["args"] = ["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"]
    words = bundle.command("run", bundle.new_id())
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=bundle.folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        assert process.wait(10) == 9


def test_a_killed_runtime_leaves_nothing_running(bundle: Bundle) -> None:
    """Foreground: init outlives the command only once it has been started."""
    container_id, pid = bundle.start("sleep", "60")
    bundle.call("delete", "--force", container_id)
    assert is_gone(pid)


def test_a_filter_that_knows_no_newer_calls(bundle: Bundle) -> None:
    """Without no_new_privs the filter is there while init still prepares itself."""
    newer = ["faccessat2", "openat2", "close_range", "clone3", "statx", "mount_setattr", "getcwd"]
    bundle.process["noNewPrivileges"] = False
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": newer, "action": "SCMP_ACT_ERRNO"}],
    }
    assert bundle.run("echo", "it runs").stdout == "it runs\n"
