"""Where an engine's client sees another answer with runc-bin than with runc 1.1, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """For the questions that `question` matches, of one `engine` or of all: answers are alike once what
    `ours` and `theirs` match in them is taken out; `codes` are the two exit codes where they differ.
    """

    question: str
    why: str
    ours: str = ""
    theirs: str = ""
    codes: tuple[int, int] | None = None
    engine: str = ""

    def concerns(self, engine: str, question: str) -> bool:
        return self.engine in ("", engine) and re.search(self.question, question) is not None


KNOWN = (
    Difference(
        "",
        "current runc says so of every error of the container's init",
        ours=r"error during container init: (?=exec: )",
    ),
    Difference(
        r"/script$|/lost$",
        "a program that the kernel refuses at the last step ends with 255, as with current runc",
        codes=(255, 1),
    ),
    Difference(
        r"-v \S+:/etc/passwd |-v \S+/script:/etc |src=/no/such|--cwd /etc/passwd",
        "other words before the kernel's, which engines do not read",
        ours=r'"/etc/passwd": /etc/passwd: (?=not)|"/etc": (?=not)|"/y": /no/such: (?=no)'
        r"|: /etc/passwd(?=: not a)",
        theirs=r'"/etc/passwd": create mount .*/etc/passwd: (?=not)|"/etc": mount .* flags: \w+: (?=not)'
        r'|"/y": create mount .* stat /no/such: (?=no)|: mkdir /etc/passwd(?=: not a)',
    ),
    Difference(
        "net.ipv4.nothing|--domainname",
        "names the parameter",
        ours=r"failed to write sysctl [\w.]+: sys/[\w/]+: ",
        theirs=r"open /proc/sys/[\w/]+: ",
    ),
    Difference(
        "nofile=9",
        "another step of the same name finds it",
        ours="error during container init: (?=error setting rlimit)",
        theirs="error during container init: (error setting rlimits for ready process: )?",
    ),
    Difference(
        "/proc/mounts",
        "masked folders have a bound, as with current runc",
        ours="(?<=ro,relatime),size=4k,nr_inodes=2",
    ),
    Difference(
        r"^(?!.*privileged).*/proc/mounts",
        "a read-only mount of the control groups is so as a whole",
        ours=r"(?<=/sys/fs/cgroup tmpfs )ro(?=[^\n]*\n/sys/fs/cgroup/\w+ cgroup ro)",
        theirs=r"(?<=/sys/fs/cgroup tmpfs )rw(?=[^\n]*\n/sys/fs/cgroup/\w+ cgroup ro)",
    ),
    Difference(
        "type=tmpfs,dst=/x", "a mount without a source is named by its kind", ours="^tmpfs", theirs="^(?= )"
    ),
    Difference("LINUX32", "runc 1.1 sets no personality", ours="i686", theirs="x86_64"),
    Difference(
        "v1:/var/www:copy", "a word that no bind takes is told of", ours=r"(?m)^.*option copy of the bind.*\n"
    ),
    Difference(
        "^update ",
        "nothing is set back, since nothing was set",
        theirs=r"(?m)^.*Setting back cgroup configs failed.*\n",
    ),
    Difference(
        "^update ",
        "the first limit that cannot be set is named",
        ours="memory(?= limit: container could not)",
        theirs="cpuset(?= limit: container could not)",
        engine="podman-rootless",
    ),
    Difference(
        "memory.limit_in_bytes",
        "a container without control groups, an ordinary user's, sees none of the host's",
        theirs=r"(?m)^(memory/memory.limit_in_bytes 9223372036854771712|cpu/cpu.cfs_quota_us -1"
        r"|cpu/cpu.shares 1024|cpuset/cpuset.cpus [0-9-]+)(\n|\Z)",
        engine="podman-rootless",
    ),
    Difference(
        "/dev/mqueue",
        "the container's root owns it with its group, too",
        ours=r"(?m)^.* (/dev/)?mqueue\n",
        theirs=r"(?m)^.* (/dev/)?mqueue\n",
        engine="docker-remapped",
    ),
    Difference(
        "bind-recursive=disabled",
        "the kernel refuses it in a user namespace; other words",
        ours=r'at "/w": \S+: (?=invalid)',
        theirs=r'at "/w": mount .* flags: \w+: (?=invalid)',
        engine="docker-remapped",
    ),
    Difference(
        "--device /dev/zero:/dev/x",
        "runc 1.1 looks for the device under its new name on the host",
        ours="(?s).*",
        theirs="(?s).*",
        codes=(0, 127),
        engine="docker-remapped",
    ),
    Difference(
        "--pid host",
        "runc 1.1 warns of the control groups that there are none of",
        theirs=r"(?m)^.*(cannot toggle freezer|lstat : no such file).*\n",
        engine="podman-rootless",
    ),
)
