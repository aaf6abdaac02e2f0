"""What podman is asked with a runtime, section by section: the same words for root and an ordinary user."""

from __future__ import annotations

from tests.suites.transcript import Transcript

IMAGE = "busybox:latest"
_STATUS = "sh -c 'grep -E \"^(Cap|NoNew|Seccomp|Groups)\" /proc/self/status'"


def runs(podman: Transcript) -> None:
    """Exit codes, streams, terminal, environment, users, folders."""
    podman(f"run --rm {IMAGE} echo hello")
    podman(f"run --rm {IMAGE} sh -c 'echo out; sleep 0.1; echo err >&2; exit 3'")
    podman(f"run --rm -i {IMAGE} sh -c 'read x; echo got $x; cat'", stdin=b"typed\nmore\n")
    podman(f"run --rm {IMAGE} sh -c 'kill -KILL $$'")
    podman(f"run --rm -e A=b --hostname hh {IMAGE} sh -c 'hostname; env | sort'")
    podman(f"run --rm -w /tmp --user 33:10 {IMAGE} sh -c 'pwd; id; umask'")
    podman(f"run --rm --user nobody --group-add 10 --umask 0077 {IMAGE} sh -c 'id; umask; echo $HOME'")
    podman(f"run --rm --init {IMAGE} sh -c 'cut -c1-14 /proc/1/cmdline; ps | grep -c \"sh -c\"'")
    podman(
        f"run --rm --systemd always {IMAGE} sh -c 'mount | grep -E \" /(run|tmp|var/log/journal) \" | sort'"
    )
    podman(f"run --rm {IMAGE} sh -c 'ls -l /proc/self/fd | wc -l; cat /proc/self/oom_score_adj'")
    podman(f"run --rm {IMAGE} cat /proc/self/cgroup")
    podman(f"run --rm --timeout 1 {IMAGE} sleep 20")
    podman(f"run --rm --cgroups disabled {IMAGE} true")
    podman(f"run --rm --rootfs {podman.work}/rootfs ls /")
    podman(f"run --rm --personality LINUX32 {IMAGE} uname -m")
    podman.terminal(f"run --rm -it {IMAGE} sh -c 'tty; read x; echo got $x; stty size'", b"word\n", "/pts")
    podman.terminal(
        f"run --rm -it {IMAGE} sh -c 'ls -l /dev/console /proc/self/fd/; echo end; read x; exit 4'",
        b"\n",
        "end",
    )


def failures(podman: Transcript) -> None:
    """What cannot start: podman reads the runtime's words and makes codes of them."""
    podman(f"run --rm {IMAGE} nothing")
    podman(f"run --rm {IMAGE} /no/such")
    podman(f"run --rm {IMAGE} /etc")
    podman(f"run --rm {IMAGE} /etc/passwd")
    podman(f"run --rm {IMAGE} /etc/passwd/x")
    podman(f"run --rm -w /no/such {IMAGE} true")
    podman(f"run --rm -w /etc/passwd {IMAGE} true")
    podman(f"run --rm -v {podman.work}/script:/script {IMAGE} /script")
    podman(f"run --rm -v {podman.work}/unexecutable:/lost {IMAGE} /lost")
    podman(f"run --rm --user nobody -w /root {IMAGE} true")
    podman(f"run --rm --user stranger {IMAGE} true")
    podman(f"run --rm -v {podman.work}:/etc/passwd {IMAGE} true")
    podman(f"run --rm -v {podman.work}/script:/etc {IMAGE} true")
    podman(f"run --rm --sysctl net.ipv4.nothing=1 {IMAGE} true")
    podman(f"run --rm --cpuset-cpus 77 {IMAGE} true")
    podman(f"run --rm --cap-add nothing {IMAGE} true")
    podman(f"create --name fails {IMAGE} nothing")
    podman("start fails")
    podman("inspect -f '{{.State.Status}} {{.State.ExitCode}}' fails")
    podman("rm fails")
    podman("ps -a -q")


def settings(podman: Transcript) -> None:
    """Mounts, devices, capabilities, seccomp, namespaces."""
    podman(
        f'run --rm {IMAGE} sh -c \'cut -d" " -f2-4 /proc/mounts | grep -vE "^/(etc|run|sys/fs)|^/ " | sort\''
    )
    podman(f"run --rm {IMAGE} sh -c 'ls -ln /dev; ls -ld /dev/shm /dev/pts /dev/mqueue'")
    podman(
        f"run --rm --read-only {IMAGE} sh -c 'exec 2>&1; touch /x; touch /tmp/x && echo tmp; touch /dev/x'"
    )
    podman(f"run --rm --read-only --read-only-tmpfs=false {IMAGE} sh -c 'touch /tmp/x'")
    podman(f"run --rm -v {podman.work}:/w:ro {IMAGE} touch /w/y")
    podman(f"run --rm -v {podman.work}/sub:/w:U,nodev,noexec {IMAGE} sh -c 'touch /w/y && stat -c %u /w/y'")
    podman(f"run --rm -v v1:/var/www:copy {IMAGE} sh -c 'touch /var/www/a; ls /var/www'")
    podman("volume rm v1")
    podman(
        f"run --rm --tmpfs /t:size=64k,mode=700 --mount type=tmpfs,dst=/etc,tmpcopyup {IMAGE} sh -c "
        "'stat -c \"%a %u\" /t; ls /etc/passwd; head -c 90000 /dev/zero >/t/x'"
    )
    podman(f"run --rm --mount type=image,src={IMAGE},dst=/i {IMAGE} ls /i")
    podman(f"run --rm --mount type=devpts,dst=/pp {IMAGE} ls /pp")
    for kind in ("rshared", "rslave", "rprivate"):
        podman(
            f"run --rm -v {podman.work}/sub:/w:{kind} {IMAGE} "
            'sh -c \'grep " /w " /proc/self/mountinfo | grep -o -E "shared|master"\''
        )
    podman(f"run --rm --shm-size 1m {IMAGE} sh -c 'df /dev/shm | tail -1'")
    podman(f"run --rm {IMAGE} {_STATUS}")
    podman(f"run --rm --user 33 {IMAGE} {_STATUS}")
    podman(f"run --rm --user 33 --cap-add chown {IMAGE} {_STATUS}")
    podman(f"run --rm --cap-drop all {IMAGE} {_STATUS}")
    podman(f"run --rm --privileged {IMAGE} {_STATUS}")
    podman(f"run --rm --security-opt no-new-privileges {IMAGE} {_STATUS}")
    podman(f"run --rm --security-opt seccomp=unconfined {IMAGE} {_STATUS}")
    podman(f"run --rm --security-opt seccomp={podman.work}/seccomp.json {IMAGE} mkdir /x")
    podman(f"run --rm --security-opt mask=/etc/group {IMAGE} cat /etc/group")
    podman(f"run --rm --security-opt unmask=ALL {IMAGE} sh -c 'ls /sys/firmware | wc -l'")
    podman(f"run --rm {IMAGE} sh -c 'mount -t tmpfs x /tmp; unshare -r true; reboot -f'")
    podman(f"run --rm --device /dev/zero:/dev/x:r {IMAGE} sh -c 'ls -ln /dev/x; head -c1 /dev/x'")
    podman(f"run --rm --sysctl net.ipv4.ip_forward=0 {IMAGE} cat /proc/sys/net/ipv4/ip_forward")
    podman(f"run --rm --ulimit nofile=100:200 {IMAGE} sh -c 'ulimit -n; ulimit -Hn'")
    podman(
        f"run --rm --uidmap 0:1:5000 --gidmap 0:1:5000 {IMAGE} "
        "sh -c 'cat /proc/self/uid_map; ls -ln /etc/passwd'"
    )
    podman(f"run --rm --network none {IMAGE} ls /sys/class/net")
    podman(f"run --rm --network host {IMAGE} ls /sys/class/net")
    podman(f"run --rm --pid host {IMAGE} sh -c 'readlink /proc/1/exe | wc -l'")
    podman(f"run --rm --ipc host --uts host {IMAGE} sh -c 'hostname | wc -l'")
    podman(f"run --rm --cgroupns host {IMAGE} true")
    podman(f"run --rm --preserve-fds 1 {IMAGE} sh -c 'ls -l /proc/self/fd | wc -l'")


def limits(podman: Transcript) -> None:
    """Limits as the container reads them, then changed while it runs."""
    files = (
        "memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.shares pids/pids.max cpuset/cpuset.cpus"
    )
    files += " memory.max cpu.max cpu.weight pids.max cpuset.cpus"
    read = f"sh -c 'cd /sys/fs/cgroup; for f in {files}; do [ -e $f ] && echo $f $(cat $f); done'"
    flags = "--memory 32m --cpus 0.5 --cpu-shares 200 --pids-limit 20 --cpuset-cpus 0"
    podman(f"run --rm {flags} {IMAGE} {read}")
    podman(f"run -d --name upd {IMAGE} sleep 100")
    podman("update --memory 40m --cpus 0.25 --pids-limit 30 --cpuset-cpus 1 upd")
    podman(f"exec upd {read}")
    podman("update --cpuset-cpus 99 upd")
    podman("stats --no-stream --format '{{.Name}} {{.PIDs}}' upd")
    podman("rm -f -t 0 upd")
    podman(f"run --name big --memory 16m --memory-swap 16m {IMAGE} tail /dev/zero")
    state = "inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}' big"
    # An ordinary user's, whose limit is refused, may not be there at all.
    podman.until(lambda: not podman.quietly(state).startswith(("running", "stopp")), "cleaned up")
    podman(state)
    podman("rm big")


def execs(podman: Transcript) -> None:
    """Further processes in a container that runs."""
    podman(f"run -d --name ex -e A=b -w /tmp {IMAGE} sleep 100")
    podman("exec ex sh -c 'echo out; sleep 0.1; echo err >&2; exit 4'")
    podman("exec -i ex sh -c 'read x; echo got $x; cat'", stdin=b"typed\nmore\n")
    podman("exec ex sh -c 'pwd; id; env | sort; cat /proc/self/cgroup'")
    podman("exec -u 33:10 -w /var -e C=d ex sh -c 'pwd; id; echo $C; umask'")
    podman(f"exec ex {_STATUS}")
    podman(f"exec -u nobody ex {_STATUS}")
    podman(f"exec --privileged ex {_STATUS}")
    podman("exec ex nothing")
    podman("exec ex /no/such")
    podman("exec ex /etc")
    podman("exec ex /etc/passwd")
    podman("exec -w /no/such ex true")
    podman("exec -w /etc/passwd ex true")
    podman("exec -u stranger ex true")
    podman("exec ex sh -c 'kill -KILL $$'")
    podman.quietly("exec -d ex sh -c 'echo detached >/tmp/d'")
    podman.until(lambda: podman.quietly("exec ex cat /tmp/d") == "detached\n", "the detached one has written")
    podman.terminal("exec -it ex sh -c 'tty; read x; echo got $x; stty size; exit 5'", b"word\n", "/pts")
    podman("kill ex")
    podman("wait ex")
    podman("exec ex true")
    podman("exec nothing true")
    podman("rm ex")


def life(podman: Transcript) -> None:
    """States, freezing, signals, files, health, ends."""
    traps = 'trap "echo usr1" USR1; trap "echo term; exit 8" TERM; echo ready; while :; do sleep 0.05; done'
    podman(f"run -d --name life --stop-timeout 2 {IMAGE} sh -c '{traps}'")
    state = "inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} [{{.State.Error}}]' life"
    podman.until(lambda: "ready" in podman.quietly("logs life"), "it waits for signals")
    podman(state)
    podman("top life args")
    podman("pause life")
    podman(state)
    podman("pause life")
    podman("exec life true")
    podman("unpause life")
    podman("unpause life")
    podman("kill -s USR1 life")
    podman.until(lambda: "usr1" in podman.quietly("logs life"), "the signal came")
    podman(f"cp {podman.work}/script life:/tmp/s")
    podman("exec life cat /tmp/s")
    podman("diff life", sort=True)
    podman("stop life")
    podman(state)
    podman("logs life")
    podman("kill life")
    podman("start life")
    podman(state)
    podman("restart -t 0 life")
    podman(state)
    podman("rm -f -t 0 life")
    podman(f"run -d --name life --restart on-failure:2 {IMAGE} sh -c 'echo again; exit 7'")
    podman.until(lambda: podman.quietly("logs life").count("again") == 3, "the last start")
    podman.until(
        lambda: podman.quietly("inspect -f '{{.RestartCount}} {{.State.Status}}' life") == "2 exited\n",
        "ends",
    )
    podman("logs life")
    podman("rm life")
    podman(f"run -d --name life --health-cmd 'test -e /ok' --health-interval disable {IMAGE} sleep 100")
    podman("healthcheck run life")
    podman("exec life touch /ok")
    podman("healthcheck run life")
    podman("rm -f -t 0 life")
    podman(f"create --name life {IMAGE} sh -c 'exit 6'")
    podman("init life")
    podman(state)
    podman("start -a life")
    podman("rm life")
    podman("ps -a -q")


def pods(podman: Transcript) -> None:
    """Containers that share their namespaces."""
    podman("pod create --name pod --hostname podhost --network none")
    podman(f"run -d --pod pod --name a1 {IMAGE} sleep 100")
    podman(f"run --rm --pod pod {IMAGE} sh -c 'hostname; ls /sys/class/net'")
    for name in ("net", "ipc", "uts"):
        links = [
            podman.quietly(f"run --rm --pod pod {IMAGE} readlink /proc/self/ns/{name}"),
            podman.quietly(f"exec a1 readlink /proc/self/ns/{name}"),
        ]
        podman.note(f"one {name} namespace", 0, str(links[0] == links[1] != ""))
    podman("pod ps --format '{{.Name}} {{.Status}} {{.NumberOfContainers}}'")
    podman("pod pause pod")
    podman("pod ps --format '{{.Name}} {{.Status}}'")
    podman("pod unpause pod")
    podman("pod stop -t 0 pod")
    podman("pod ps --format '{{.Name}} {{.Status}}'")
    podman("pod start pod")
    podman("pod kill pod")
    podman("pod rm -f pod")
    podman("ps -a -q")


SECTIONS = (runs, failures, settings, limits, execs, life, pods)
