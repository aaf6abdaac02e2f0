"""What the docker client is asked. The same words for every pair of dockerd and containerd."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.suites.docker_session import Session

_RUN = "run --rm --network none"
_STATE = "inspect -f '{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}} {{.RestartCount}}'"


def play(docker: Session) -> None:
    """All of it, in order."""
    runs(docker)
    life(docker)
    execs(docker)
    policies(docker)
    restarts(docker)


def runs(docker: Session) -> None:
    """One container a question: streams, exit codes, what it sees of its configuration."""
    docker(f"{_RUN} bb sh -c 'echo out; echo err >&2; exit 3'")
    docker(f"{_RUN} -i bb cat", stdin=b"some\nlines\n" * 10000)
    docker(f"{_RUN} -i bb sh -c 'read x; echo got $x'", stdin=b"one\ntwo\n")
    docker.terminal(f"{_RUN} -t bb sh -c 'test -t 0 && test -t 1 && echo a terminal'", b"", "")
    docker(f"{_RUN} -e A=b -w /tmp -h name -u 1000:1000 bb sh -c 'echo $A; pwd; hostname; id -u; id -g'")
    docker(f"{_RUN} --read-only bb touch /file")
    docker(f'{_RUN} --tmpfs /t:size=64k bb sh -c \'grep " /t " /proc/mounts | cut -d " " -f 1-3\'')
    docker(f"{_RUN} --ulimit nofile=123:456 bb sh -c 'ulimit -n; ulimit -Hn'")
    docker(f"{_RUN} --cap-drop ALL --cap-add CHOWN bb sh -c 'grep ^Cap /proc/self/status'")
    docker(f"{_RUN} bb sh -c 'grep -E \"^(Cap|Seccomp:|NoNew)\" /proc/self/status'")
    docker(f"{_RUN} --security-opt seccomp=unconfined bb grep ^Seccomp: /proc/self/status")
    docker(f"{_RUN} --security-opt no-new-privileges bb grep ^NoNew /proc/self/status")
    docker(f"{_RUN} -m 64m --memory-swap 64m --pids-limit 77 --cpu-shares 512 bb sh -c '{_LIMITS}'")
    docker(f"{_RUN} --sysctl net.ipv4.ip_forward=0 bb cat /proc/sys/net/ipv4/ip_forward")
    docker(f"{_RUN} --entrypoint /bin/echo bb an entrypoint")
    docker(f"{_RUN} bb nosuch")
    docker(f"{_RUN} bb /etc")
    docker(f"{_RUN} -w /bin/sh bb true")
    docker(f"{_RUN} -u nobody-here bb true")
    docker(f"{_RUN} bb sh -c 'kill -9 $$'")
    docker(f"run --name oom --network none -m 16m --memory-swap 16m bb sh -c '{_EAT}'")
    docker(f"{_STATE} oom")
    docker("rm oom")


_LIMITS = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.shares"
_WAITS = 'trap "exit 9" USR1; echo line; while :; do sleep 0.05; done'
_EAT = "x=a; while true; do x=$x$x; done"


def life(docker: Session) -> None:
    """Created, started, frozen, stopped, started again, removed."""
    docker.quietly(f"create --name cc --network none bb sh -c '{_WAITS}'")
    docker(f"{_STATE} cc")
    docker("start cc")
    docker("start cc")
    docker("pause cc")
    docker("pause cc")
    docker(f"{_STATE} cc")
    docker("exec cc true")
    docker("unpause cc")
    docker("unpause cc")
    docker("rm cc")
    docker("stop -t 0 cc")
    docker("stop cc")
    docker(f"{_STATE} cc")
    docker("exec cc true")
    docker("kill cc")
    docker("restart cc")
    docker("kill -s USR1 cc")
    docker("wait cc")
    docker(f"{_STATE} cc")
    docker("logs cc")
    docker("rm cc")
    docker("rm cc")


def execs(docker: Session) -> None:
    """Further processes of a container."""
    docker.quietly("run -d --name ee --network none bb sleep 1000")
    docker("top ee -o comm")
    docker("exec ee sh -c 'echo out; echo err >&2; exit 4'")
    docker("exec -i ee cat", stdin=b"words\n" * 1000)
    docker.terminal("exec -t ee sh -c 'test -t 1 && echo a terminal'", b"", "")
    docker("exec -u 1000 -w /tmp -e A=b ee sh -c 'id -u; pwd; echo $A'")
    docker("exec --privileged ee sh -c 'grep ^CapEff /proc/self/status'")
    docker("exec ee nosuch")
    docker("exec -w /nosuch ee true")
    docker("exec -d ee sh -c 'echo $$ > /left'")
    docker.until(lambda: docker.quietly("exec ee grep . /left"), "the detached one has written")
    docker("rm -f ee")


def policies(docker: Session) -> None:
    """What a policy does after a failure."""
    docker.quietly("run -d --name rr --restart on-failure:2 --network none bb sh -c 'exit 3'")
    seen = "inspect -f '{{.RestartCount}} {{.State.Status}}' rr"
    docker.until(lambda: docker.quietly(seen).strip() == "2 exited", "restarted twice")
    docker(f"{_STATE} rr")
    docker("rm rr")


def restarts(docker: Session) -> None:
    """containerd goes and comes back beside a container that prints."""
    prints = "i=0; while test $i -lt 30; do echo $i; i=$((i+1)); sleep 0.1; done; exit 7"
    docker.quietly(f"run -d --name pp --network none bb sh -c '{prints}'")
    docker.restart_containerd(down=1.0)
    docker("wait pp")
    docker("logs pp")
    docker("rm pp")
    docker("run --rm --network none bb echo afterwards")
