"""All cgroup v1 controllers in a mount namespace, for programs that want more of them than the host mounts.

crun, for one, refuses a hybrid host that has net_cls, net_prio or perf_event mounted nowhere.
"""

from __future__ import annotations

# `view` names a folder to be made and moved. A controller that the kernel gives to nobody stays away.
MOUNT_MISSING = """
if [ -d /sys/fs/cgroup/memory ]; then
    mkdir "$view"
    mount -t tmpfs -o mode=755 cgroups "$view"
    for path in /sys/fs/cgroup/*; do
        if [ -L "$path" ]; then cp -P "$path" "$view"
        else mkdir "$view/${path##*/}" && mount --bind "$path" "$view/${path##*/}"
        fi
    done
    for name in $(awk '!/^#/ { print $1 }' /proc/cgroups); do
        [ -e "/sys/fs/cgroup/$name" ] && continue
        mkdir "$view/$name"
        mount -t cgroup -o "$name" "$name" "$view/$name" 2>/dev/null || rmdir "$view/$name"
    done
    umount -l -R /sys/fs/cgroup
    mount --move "$view" /sys/fs/cgroup
fi
"""


def in_full_view(script: str, *words: str) -> list[str]:
    """The command that runs a shell script in such a namespace, root's.

    The first of its words, `$1`, is the path of `view`, which must not exist.
    """
    text = f"view=$1\n{MOUNT_MISSING}{script}"
    return ["unshare", "-m", "--propagation", "private", "sh", "-c", text, "sh", *words]
