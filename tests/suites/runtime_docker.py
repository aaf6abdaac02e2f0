"""What the docker client is asked of a daemon's runtime, section by section."""

from __future__ import annotations

import json
import os
import shlex

from tests.suites.transcript import Transcript

IMAGE = "busybox:latest"


def runs(docker: Transcript) -> None:
    """Exit codes, streams, terminal, environment, users, folders."""
    docker(f"run --rm {IMAGE} echo hello")
    docker(f"run --rm {IMAGE} sh -c 'echo out; sleep 0.1; echo err >&2; exit 3'")
    docker(f"run --rm -i {IMAGE} sh -c 'read x; echo got $x; cat'", stdin=b"typed\nmore\n")
    docker(f"run --rm {IMAGE} sh -c 'kill -KILL $$'")
    docker(f"run --rm -e A=b -e C= --hostname h {IMAGE} sh -c 'hostname; env | sort'")
    docker(f"run --rm -w /made/up --user 33:10 {IMAGE} sh -c 'pwd; id; stat -c %u:%g /made/up'")
    docker(f"run --rm --user nobody --group-add 10 --group-add 77 {IMAGE} sh -c 'id; echo $HOME'")
    docker(f"run --rm --user 4000:4000 {IMAGE} sh -c 'id; echo $HOME; umask'")
    docker(f'run --rm --init {IMAGE} sh -c \'tr "\\0" " " </proc/1/cmdline; echo; cat /proc/1/comm\'')
    docker(f"run --rm {IMAGE} sh -c 'ls -l /proc/self/fd | wc -l; cat /proc/self/oom_score_adj; ulimit -c'")
    docker(f"run --rm {IMAGE} sh -c 'cat /etc/resolv.conf /etc/hosts | wc -l; cat /proc/self/cgroup'")
    docker.terminal(f"run --rm -it {IMAGE} sh -c 'tty; read x; echo got $x; stty size'", b"word\n", "/pts")
    docker.terminal(
        f"run --rm -it {IMAGE} sh -c 'ls -l /dev/console /proc/self/fd; echo end; read x; exit 4'",
        b"\n",
        "end",
    )


def failures(docker: Transcript) -> None:
    """What cannot start: the texts that the daemon reads, and the codes that the client makes of them."""
    docker(f"run --rm {IMAGE} nothing")
    docker(f"run --rm {IMAGE} /no/such")
    docker(f"run --rm {IMAGE} /etc")
    docker(f"run --rm {IMAGE} /etc/passwd")
    docker(f"run --rm {IMAGE} ''")
    docker(f"run --rm {IMAGE} /etc/passwd/x")
    docker(f"run --rm -w /etc/passwd {IMAGE} true")
    docker(f"run --rm -v {docker.work}/script:/script {IMAGE} /script")
    docker(f"run --rm -v {docker.work}/unexecutable:/lost {IMAGE} /lost")
    docker(f"run --rm --user nobody -w /root {IMAGE} true")
    docker(f"run --rm --user nobody {IMAGE} /root/x")
    docker(f"run --rm --user stranger {IMAGE} true")
    docker(f"run --rm --user root:strangers {IMAGE} true")
    docker(f"run --rm -v {docker.work}:/etc/passwd {IMAGE} true")
    docker(f"run --rm -v {docker.work}/script:/etc {IMAGE} true")
    docker(f"run --rm --sysctl kernel.hostname=x {IMAGE} true")
    docker(f"run --rm --sysctl net.ipv4.nothing=1 {IMAGE} true")
    docker(f"run --rm --sysctl vm.swappiness=1 {IMAGE} true")
    docker(f"run --rm --memory 6m --memory-swappiness 200 {IMAGE} true")
    docker(f"run --rm --cpuset-cpus 77 {IMAGE} true")
    docker(f"run --rm --device /no/such {IMAGE} true")
    docker(f"run --rm --cap-add nothing {IMAGE} true")
    docker(f"run --rm --ulimit nofile=99999999999 {IMAGE} true")
    docker(f"run --rm --security-opt apparmor=nothing {IMAGE} true")
    docker(f"run --rm --network container:nothing {IMAGE} true")
    docker(f"create --name fails {IMAGE} nothing")
    docker("start fails")
    docker("inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}' fails")
    docker("rm fails")
    docker("ps -a -q")


def mounts(docker: Transcript) -> None:
    """Binds, volumes, tmpfs, read-only roots and what a container sees of them."""
    docker(f'run --rm {IMAGE} sh -c \'cut -d" " -f2-4 /proc/mounts | grep -vE "^/(etc.*)? " | sort\'')
    docker(f"run --rm {IMAGE} sh -c 'cut -d\" \" -f5- /proc/self/mountinfo | sed s/[0-9][0-9:]*//g | wc -l'")
    docker(f"run --rm {IMAGE} sh -c 'ls -ln /dev; ls -ld /dev/shm /dev/pts /dev/mqueue'")
    docker(
        f"run --rm --read-only {IMAGE} "
        "sh -c 'exec 2>&1; touch /x; touch /dev/shm/x && echo shm; touch /dev/x'"
    )
    docker(f"run --rm -v {docker.work}:/w {IMAGE} sh -c 'touch /w/y && ls /w/y && rm /w/y'")
    docker(f"run --rm -v {docker.work}:/w:ro {IMAGE} touch /w/y")
    docker(f"run --rm -v v1:/var/www {IMAGE} sh -c 'touch /var/www/a; ls /var/www'")
    docker(f"run --rm -v v1:/v --mount type=volume,dst=/u {IMAGE} sh -c 'ls /v; touch /u/x'")
    docker("volume rm v1")
    docker(
        f"run --rm --tmpfs /t:size=64k,mode=700,uid=33 --mount type=tmpfs,dst=/u,tmpfs-size=8192 {IMAGE} "
        'sh -c \'stat -c "%a %u" /t; grep -E "/[tu] " /proc/mounts; head -c 90000 /dev/zero >/t/x\''
    )
    for kind in ("rshared", "rslave", "shared", "slave", "rprivate", "private"):
        docker(
            f"run --rm -v {docker.work}:/w:{kind} {IMAGE} "
            'sh -c \'grep " /w " /proc/self/mountinfo | grep -o -E "shared|master"\''
        )
    docker(
        f"run --rm --mount type=bind,src={docker.work},dst=/w,bind-recursive=readonly,readonly,"
        f'bind-propagation=rprivate {IMAGE} sh -c \'grep " /w" /proc/mounts | cut -d" " -f2,4; touch /w/y\''
    )
    docker(
        f"run --rm --mount type=bind,src={docker.work},dst=/w,bind-recursive=disabled {IMAGE} "
        "sh -c 'grep -c \" /w\" /proc/mounts'"
    )
    docker(f"run --rm -v {docker.work}/script:/a/b/c {IMAGE} ls -l /a/b/c")
    docker(f"run --rm --shm-size 1m {IMAGE} sh -c 'df /dev/shm | tail -1'")
    docker(f"run --rm {IMAGE} sh -c 'echo x >/proc/sys/kernel/hostname; head -c1 /proc/kcore; ls /proc/acpi'")
    docker(f"run --rm {IMAGE} sh -c 'ls /sys/firmware /sys/fs/cgroup; mkdir /sys/fs/cgroup/memory/x'")


def security(docker: Transcript) -> None:
    """Capabilities, seccomp, privileged, devices, masked paths."""
    status = "sh -c 'grep -E \"^(Cap|NoNew|Seccomp|Groups)\" /proc/self/status'"
    docker(f"run --rm {IMAGE} {status}")
    docker(f"run --rm --user 33 {IMAGE} {status}")
    docker(f"run --rm --user 33 --cap-add NET_ADMIN {IMAGE} {status}")
    docker(f"run --rm --cap-drop ALL --cap-add chown {IMAGE} {status}")
    docker(f"run --rm --cap-drop CHOWN {IMAGE} chown 1 /etc/passwd")
    docker(f"run --rm --cap-add ALL {IMAGE} {status}")
    docker(f"run --rm --privileged {IMAGE} {status}")
    docker(
        f"run --rm --privileged {IMAGE} sh -c 'ls /dev | sort; mount -t tmpfs x /tmp && umount /tmp; "
        'cut -d" " -f2-4 /proc/mounts | grep -E "^/(proc|sys|dev)" | sort\''
    )
    docker(f"run --rm --security-opt no-new-privileges {IMAGE} {status}")
    docker(f"run --rm --security-opt seccomp=unconfined {IMAGE} {status}")
    docker(f"run --rm --security-opt seccomp=unconfined {IMAGE} unshare -r true")
    docker(
        f"run --rm --security-opt seccomp={docker.work}/seccomp.json {IMAGE} sh -c 'mkdir /x 2>&1; echo $?'"
    )
    docker(f"run --rm --security-opt seccomp={docker.work}/trap.json {IMAGE} mkdir /x")
    docker(
        f"run --rm {IMAGE} "
        "sh -c 'exec 2>&1; mount -t tmpfs x /tmp; unshare -r true; unshare -U true; reboot -f'"
    )
    docker(f"run --rm --security-opt systempaths=unconfined {IMAGE} sh -c 'ls /proc/acpi | wc -l'")
    docker(
        f"run --rm --device /dev/zero:/dev/x:r {IMAGE} sh -c 'ls -l /dev/x; head -c1 /dev/x; echo >/dev/x'"
    )
    docker(
        f"run --rm --device-cgroup-rule 'c 1:11 r' {IMAGE} sh -c 'mknod /k c 1 11; mknod /l b 7 0; cat /l'"
    )
    docker(f"run --rm {IMAGE} sh -c 'mknod /x c 1 5; head -c1 /x | wc -c; mknod /y c 1 1; cat /y'")
    docker(f"run --rm --oom-score-adj 500 {IMAGE} cat /proc/self/oom_score_adj")
    docker(f"run --rm --sysctl net.ipv4.ip_forward=0 {IMAGE} cat /proc/sys/net/ipv4/ip_forward")
    docker(f"run --rm --sysctl kernel.msgmax=9000 {IMAGE} cat /proc/sys/kernel/msgmax")


_GROUP = "/sys/fs/cgroup"


def limits(docker: Transcript) -> None:
    """Limits as the container reads them, then changed while it runs."""
    docker(f"run --rm --ulimit nofile=100:200 --ulimit core=0 {IMAGE} sh -c 'cat /proc/self/limits'")
    read = _read("memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes", "memory.max")
    docker(f"run --rm --memory 32m {IMAGE} sh -c '{read}'")
    docker(f"run --rm --memory 32m --memory-swap -1 --memory-reservation 20m {IMAGE} sh -c '{read}'")
    docker(f"run --rm --memory 6m {IMAGE} true")
    read = _read("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us", "cpu/cpu.shares", "cpu.max", "cpu.weight")
    docker(f"run --rm --cpus 0.5 {IMAGE} sh -c '{read}'")
    docker(f"run --rm --cpu-shares 200 --cpu-period 50000 --cpu-quota 20000 {IMAGE} sh -c '{read}'")
    read = _read("cpuset/cpuset.cpus", "cpuset/cpuset.mems", "cpuset.cpus", "cpuset.mems")
    docker(f"run --rm --cpuset-cpus 0 --cpuset-mems 0 {IMAGE} sh -c '{read}; grep Cpus_a /proc/self/status'")
    docker(f"run --rm --pids-limit 20 {IMAGE} sh -c '{_read('pids/pids.max', 'pids.max')}'")
    docker(f"run --rm --pids-limit 5 {IMAGE} sh -c 'for i in 1 2 3 4 5 6 7; do sleep 1 & done; wait'")
    docker(f"run --rm --blkio-weight 300 {IMAGE} sh -c '{_read('blkio/blkio.bfq.weight', 'io.bfq.weight')}'")
    docker(f"run --rm --device-read-bps /dev/vda:1mb {IMAGE} true")
    docker(f"run --rm --oom-kill-disable --memory 32m {IMAGE} sh -c '{_read('memory/memory.oom_control')}'")
    docker(f"run --rm --cgroup-parent /engines {IMAGE} sh -c 'cut -d: -f2- /proc/self/cgroup'")
    for kind in ("host", "private"):
        docker(f"run --rm --cgroupns {kind} {IMAGE} sh -c 'cut -d: -f2- /proc/self/cgroup; ls {_GROUP}'")
    docker(f"run -d --name upd {IMAGE} sleep 100")
    docker(
        "update --memory 40m --memory-swap 80m --cpus 0.25 --cpu-shares 300 "
        "--pids-limit 30 --cpuset-cpus 1 upd"
    )
    names = ["memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes", "cpu/cpu.cfs_quota_us"]
    names += ["cpu/cpu.shares", "pids/pids.max", "cpuset/cpuset.cpus"]
    docker(f"exec upd sh -c '{_read(*names)}'")
    docker("update --cpuset-cpus 99 upd")
    docker("update --memory 1m upd")
    docker("update --pids-limit -1 --memory-swap -1 upd")
    docker(f"exec upd sh -c '{_read(*names)}'")
    docker("update --restart always upd")
    docker("rm -f upd")


def _read(*names: str) -> str:
    return f"cd {_GROUP}; for f in {' '.join(names)}; do [ -e $f ] && echo $f $(cat $f); done"


def namespaces(docker: Transcript) -> None:
    """Those of the host, of another container, and of none."""
    docker(f"run -d --name other --ipc shareable --hostname other {IMAGE} sleep 100")
    same = "for n in cgroup ipc mnt net pid user uts; do echo $n $(readlink /proc/self/ns/$n); done"
    other = _namespaces(docker.quietly(f"exec other sh -c '{same}'"))
    host = {name: os.readlink(f"/proc/self/ns/{name}") for name in other}
    for flags in (
        "",
        "--pid host",
        "--pid container:other",
        "--ipc container:other",
        "--ipc host",
        "--ipc none",
        "--uts host",
        "--network none",
        "--network host",
        "--network container:other",
        "--cgroupns host",
        "--userns host",
        "--pid host --ipc host --uts host --network host --privileged",
    ):
        found = _namespaces(docker.quietly(f"run --rm {flags} {IMAGE} sh -c '{same}'"))
        whose = {name: _whose(link, other.get(name), host.get(name)) for name, link in found.items()}
        docker.note(f"run {flags}", 0, json.dumps(whose))
    docker(f"run --rm --pid container:other {IMAGE} ps -o args")
    docker(f"run --rm --network none {IMAGE} sh -c 'ls /sys/class/net; ip addr show lo | grep -c inet'")
    docker(
        f"run --rm {IMAGE} sh -c 'ls /sys/class/net; ip route | wc -l; ping -c1 -W1 127.0.0.1 | grep loss'"
    )
    docker(f"run --rm --uts host {IMAGE} sh -c 'hostname x'")
    docker(f"run --rm --domainname d.example --hostname h {IMAGE} cat /proc/sys/kernel/domainname")
    docker("rm -f other")


def _whose(link: str, other: str | None, host: str | None) -> str:
    return "the other container's" if link == other else "the host's" if link == host else "its own"


def _namespaces(text: str) -> dict[str, str]:
    return dict(line.split() for line in text.splitlines() if line.count(" ") == 1)


def execs(docker: Transcript) -> None:
    """Further processes in a container that runs."""
    docker(f"run -d --name ex -e A=b -w /tmp --label l=1 {IMAGE} sleep 100")
    docker("exec ex sh -c 'echo out; sleep 0.1; echo err >&2; exit 4'")
    docker("exec -i ex sh -c 'read x; echo got $x; cat'", stdin=b"typed\nmore\n")
    docker("exec ex sh -c 'pwd; id; env | sort; cat /proc/self/cgroup'")
    docker("exec -u 33:10 -w /var -e C=d ex sh -c 'pwd; id; echo $C; umask'")
    docker("exec -u nobody ex sh -c 'id; grep Cap /proc/self/status'")
    docker("exec ex sh -c 'grep -E \"Cap|Seccomp|NoNew\" /proc/self/status'")
    docker("exec --privileged ex sh -c 'grep -E \"Cap|Seccomp\" /proc/self/status'")
    docker("exec -u nobody --privileged ex sh -c 'grep -E \"Cap|Seccomp\" /proc/self/status'")
    docker("exec ex nothing")
    docker("exec ex /no/such")
    docker("exec ex /etc")
    docker("exec ex /etc/passwd")
    docker("exec ex ''")
    docker("exec -w /no/such ex true")
    docker("exec -w /etc/passwd ex true")
    docker("exec -u nobody -w /root ex true")
    docker("exec -u stranger ex true")
    docker("exec -u root:strangers ex true")
    docker("exec ex sh -c 'kill -KILL $$'")
    docker("exec -d ex sh -c 'echo detached >/tmp/d'")
    docker.until(lambda: docker.quietly("exec ex cat /tmp/d") == "detached\n", "the detached one has written")
    docker("exec -d ex nothing")
    docker("exec --env-file /dev/null ex true")
    docker.terminal("exec -it ex sh -c 'tty; read x; echo got $x; stty size; exit 5'", b"word\n", "/pts")
    docker.terminal("exec -it ex sh -c 'ls /proc/self/fd | wc -l; id; echo end; read x'", b"\n", "end")
    docker("pause ex")
    docker("exec ex true")
    docker("unpause ex")
    docker("kill ex")
    docker("exec ex true")
    docker("exec nothing true")
    docker("rm ex")


def life(docker: Transcript) -> None:
    """States, freezing, signals, measures, files, ends."""
    docker(f"run -d --name life --stop-timeout 2 {IMAGE} {_TRAPS}")
    state = "inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} [{{.State.Error}}]' life"
    docker.until(lambda: "ready" in docker.quietly("logs life"), "it waits for signals")
    docker(state)
    docker("top life -o args")
    docker("pause life")
    docker(state)
    docker("pause life")
    docker("unpause life")
    docker("unpause life")
    docker("kill -s USR1 life")
    docker.until(lambda: "usr1" in docker.quietly("logs life"), "the signal came")
    docker("kill -s NOPE life")
    docker("kill -s 99 life")
    docker("stats --no-stream --format '{{.Name}} {{.PIDs}}' life")
    docker("cp life:/etc/passwd -", sort=True)
    docker(f"cp {docker.work}/script life:/tmp/s")
    docker("exec life cat /tmp/s")
    docker("exec life sh -c 'echo x >/new; rm /etc/group; mkdir /d; chmod 600 /etc/passwd'")
    docker("diff life", sort=True)
    docker("stop life")
    docker(state)
    docker("logs life")
    docker("kill life")
    docker("pause life")
    docker("start life")
    docker(state)
    docker("restart -t 0 life")
    docker(state)
    docker("rename life mm")
    docker("rm mm")
    docker("rm -f mm")
    docker(f"run -d --name life {IMAGE} sh -c 'sleep 0.3; exit 9'")
    docker("wait life")
    docker(state)
    docker("start -a life")
    docker("rm life")
    docker(f"run -d --name life --restart on-failure:2 {IMAGE} sh -c 'echo again; exit 7'")
    docker.until(lambda: docker.quietly("logs life").count("again") == 3, "the last start")
    docker.until(
        lambda: docker.quietly("inspect -f '{{.RestartCount}} {{.State.Status}}' life") == "2 exited\n",
        "ends",
    )
    docker(state)
    docker("logs life")
    docker("rm life")
    docker(f"run --name life --memory 16m --memory-swap 16m {IMAGE} tail /dev/zero")
    docker(state)
    docker("rm life")
    docker(
        "run -d --name life --health-cmd 'test -e /ok' --health-interval 100ms --health-retries 1 "
        f"{IMAGE} sleep 100"
    )
    health = "inspect -f '{{.State.Health.Status}}' life"
    docker.until(lambda: "unhealthy" in docker.quietly(health), "unhealthy")
    docker("exec life touch /ok")
    docker.until(lambda: docker.quietly(health) == "healthy\n", "healthy")
    docker("stop -t 0 life")
    docker(state)
    docker("rm -f life")
    with docker.piped(
        f"run -i --rm --name life {IMAGE} sh -c 'while read x; do echo got $x; done; sleep 0.1; exit 6'"
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"word\n")
        client.stdin.flush()
        docker.note("attached", 0, client.stdout.readline().decode())
    docker(f"create --name life {IMAGE} sleep 100")
    docker(state)
    docker("rm life")
    docker("ps -a -q")


_TRAPS = shlex.quote(
    'trap "echo usr1" USR1; trap "echo term; exit 8" TERM; echo ready; while :; do sleep 0.05; done'
)
_TRAPS = f"sh -c {_TRAPS}"

SECTIONS = (runs, failures, mounts, security, limits, namespaces, execs, life)

# A profile that gives a number of its own for one call, and one that ends the process.
PROFILES = {
    "seccomp.json": json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
        }
    ),
    "trap.json": json.dumps(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}],
        }
    ),
}
