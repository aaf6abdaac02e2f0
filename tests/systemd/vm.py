"""A QEMU machine with Debian's kernel and cgroup v2, in software where no KVM works.

Its root is a folder of this host, read-only over 9p below a tmpfs, so nothing that it does is left behind.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.support.debian import building

# Loaded before the root can be mounted; the rest comes from the root's /lib/modules.
EARLY_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /ro /rw /new
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for m in MODULES; do /bin/busybox modprobe $m; done
/bin/busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /ro
/bin/busybox mount -t tmpfs tmpfs /rw
/bin/busybox mkdir /rw/upper /rw/work
/bin/busybox mount -t overlay -o lowerdir=/ro,upperdir=/rw/upper,workdir=/rw/work overlay /new
/bin/busybox mkdir -p /new/var/lib/buoy
/bin/busybox mount -t tmpfs tmpfs /new/var/lib/buoy
/bin/busybox cp -a /added/. /new/
exec /bin/busybox switch_root /new /sbin/init
"""

UNIT = """[Unit]
After=shim-svc.service containerd-svc.service dockerd-api.service
[Service]
Type=oneshot
Environment=HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
ExecStart=/bin/sh /run-in-vm
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
TimeoutStartSec=infinity
ExecStopPost=/bin/sh -c 'echo o >/proc/sysrq-trigger'
"""

SLOW_SERVICES = ("shim-svc", "containerd-svc", "dockerd-api")
# Everything is some forty times slower where no KVM works.
PATIENCE = """[Service]
TimeoutStartSec=600
TimeoutStopSec=100
WatchdogSec=0
"""

# There is no udev in the root to announce the console, for which the login prompt would wait 90 s.
SYSTEMD = "systemd.unified_cgroup_hierarchy=1 " + " ".join(
    f"systemd.mask={unit}"
    for unit in (
        "serial-getty@ttyS0.service",
        "getty.target",
        "systemd-logind.service",
        "systemd-update-utmp.service",
        "systemd-update-utmp-runlevel.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "systemd-journal-flush.service",
        "cgroups-writable.service",
    )
)

BEGIN, END = "=== begin ===", "=== end ==="


def kernel() -> Path:
    """A folder with `vmlinuz`, `initramfs` and `modules/` of the kernel that Debian has for this release."""
    if platform.freedesktop_os_release().get("ID") != "debian":
        pytest.skip("the machine's kernel is taken from Debian's archive")
    listed = subprocess.run(
        ["apt-cache", "depends", "linux-image-amd64"], check=True, capture_output=True, text=True
    ).stdout
    package = next(line.split()[-1] for line in listed.splitlines() if "Depends:" in line)
    key = hashlib.sha256((INIT + repr(EARLY_MODULES)).encode()).hexdigest()[:8]
    with building(f"{package}-{key}") as folder:
        if (folder / ".built").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with tempfile.TemporaryDirectory() as work:
            os.chmod(work, 0o755)
            subprocess.run(["apt-get", "download", "-qq", package], cwd=work, check=True, capture_output=True)
            subprocess.run(["dpkg", "-x", *Path(work).glob("*.deb"), work], check=True)
            (folder / "modules").mkdir()
            shutil.copytree(Path(work) / "lib/modules", folder / "modules/lib/modules", symlinks=True)
            shutil.copy(next(Path(work).glob("boot/vmlinuz-*")), folder / "vmlinuz")
        version = next((folder / "modules/lib/modules").iterdir()).name
        subprocess.run(["depmod", "-b", folder / "modules", version], check=True)
        _initramfs(folder, version)
        (folder / ".built").touch()
        return folder


def _initramfs(folder: Path, version: str) -> None:
    """Static busybox, the early modules and `INIT`, as the kernel unpacks it (Documentation/…/initramfs)."""
    tree = folder / "tree"
    (tree / "bin").mkdir(parents=True)
    busybox = "/usr/bin/busybox" if Path("/usr/bin/busybox").exists() else "/bin/busybox"
    shutil.copy(busybox, tree / "bin/busybox")
    source = folder / "modules/lib/modules" / version
    target = tree / "lib/modules" / version
    target.mkdir(parents=True)
    for name in ("modules.dep", "modules.alias", "modules.symbols"):
        shutil.copy(source / name, target / name)
    needed = subprocess.run(
        ["modprobe", "-d", folder / "modules", "-S", version, "--show-depends", "-a", *EARLY_MODULES],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for line in needed.splitlines():
        if line.startswith("insmod "):
            path = Path(line.split()[1]).relative_to(folder / "modules")
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "modules" / path, tree / path)
    (tree / "init").write_text(INIT.replace("MODULES", " ".join(EARLY_MODULES)))
    (tree / "init").chmod(0o755)
    (folder / "initramfs").write_bytes(_packed(tree))
    shutil.rmtree(tree)


def _packed(tree: Path) -> bytes:
    """A folder's files in the form that the kernel unpacks."""
    names = subprocess.run(["find", "."], cwd=tree, check=True, capture_output=True).stdout
    command = ["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0"]
    return subprocess.run(command, cwd=tree, check=True, input=names, capture_output=True).stdout


def _added(tree: Path, script: str) -> bytes:
    """What the machine has beside the root's files: the script, its unit, patience with the services."""
    added = tree / "added"
    units = added / "etc/systemd/system"
    (units / "multi-user.target.wants").mkdir(parents=True)
    (added / "run-in-vm").write_text(f"echo; echo '{BEGIN}'\n{script}\necho '{END}'\n")
    (units / "run-in-vm.service").write_text(UNIT)
    (units / "multi-user.target.wants/run-in-vm.service").symlink_to("../run-in-vm.service")
    for name in SLOW_SERVICES:
        (units / f"{name}.service.d").mkdir()
        (units / f"{name}.service.d/patience.conf").write_text(PATIENCE)
    return _packed(tree)


def run(root: Path, script: str, *, timeout: float) -> str:
    """Boot the folder `root` with cgroup v2, run a shell script in it when its services are up, power off.

    Returns what the script printed. The folder stays as it is, but for the kernel's modules meanwhile.
    """
    built = kernel()
    modules = root / "lib/modules"
    modules.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", built / "modules/lib/modules", modules], check=True)
    try:
        with tempfile.TemporaryDirectory() as work:
            initrd = Path(work) / "initrd"
            # The kernel unpacks archives that follow one another (Documentation/…/initramfs-buffer-format).
            initrd.write_bytes((built / "initramfs").read_bytes() + _added(Path(work), script))
            # A host may offer /dev/kvm and still be unable to run a machine on it: QEMU then aborts at once.
            done = _qemu(built, initrd, root, "kvm", timeout) if os.access("/dev/kvm", os.W_OK) else None
            if done is None or done.returncode != 0:
                done = _qemu(built, initrd, root, "tcg,thread=multi", timeout)
    except subprocess.TimeoutExpired as late:
        tail = (late.stdout or b"").decode(errors="replace")[-3000:]
        raise AssertionError(f"no end within {timeout} s:\n{tail}") from None
    finally:
        subprocess.run(["umount", "-l", modules], check=False)
    console = done.stdout.decode(errors="replace").replace("\r", "")
    if BEGIN not in console or END not in console:
        raise AssertionError(
            f"the script did not come to its end:\n{console[-3000:]}\n{done.stderr.decode()[-500:]}"
        )
    return console.split(BEGIN, 1)[1].split(END, 1)[0]


def _qemu(
    built: Path, initrd: Path, root: Path, accelerator: str, timeout: float
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [
            "qemu-system-x86_64",
            *("-accel", accelerator, "-cpu", "max", "-m", "2048", "-smp", "2", "-nographic", "-no-reboot"),
            *("-kernel", str(built / "vmlinuz"), "-initrd", str(initrd)),
            *("-append", f"console=ttyS0 mitigations=off quiet loglevel=3 panic=-1 {SYSTEMD}"),
            "-virtfs",
            f"local,path={root},mount_tag=root,security_model=none,readonly=on,multidevs=remap",
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=timeout,
    )
