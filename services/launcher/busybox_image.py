"""A small image made from the host's static busybox, the same bytes every time: for the demo and for the
tests.

`python -m launcher.busybox_image OUT.tar [--rootfs]` writes an image as `docker save` would, named
busybox:latest, or with --rootfs the bare file tree for `docker import`. Standard library only.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import struct
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

_PLACES = ("/usr/bin/busybox", "/bin/busybox", "/usr/lib/initramfs-tools/bin/busybox")
_CREATED = "2024-01-01T00:00:00Z"
_FOLDERS = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "proc": 0o755,
    "root": 0o700,
    "sys": 0o755,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
    "var/spool": 0o755,
    "var/www": 0o755,
}
_FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/sh\n"
        "daemon:x:1:1:daemon:/usr/sbin:/bin/false\n"
        "www-data:x:33:33:www-data:/var/www:/bin/false\n"
        "nobody:x:65534:65534:nobody:/home:/bin/false\n"
    ),
    "etc/group": "root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nwww-data:x:33:\nnogroup:x:65534:\n",
}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def find_busybox() -> Path:
    """The host's static busybox. Raises FileNotFoundError, saying which package brings it."""
    for place in _PLACES:
        if os.path.exists(place) and _is_static(Path(place)):
            return Path(place)
    raise FileNotFoundError("no static busybox on this host: install the package busybox-static")


def busybox_rootfs_tar(path: Path, extra: Mapping[str, bytes] | None = None) -> None:
    """Write the file tree to `path`: busybox, a link for each applet, passwd and group, and `extra` files by
    name.
    """
    busybox = find_busybox()
    listed = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True).stdout
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, mode in _FOLDERS.items():
            _add(archive, name, mode, kind=tarfile.DIRTYPE)
        _add(archive, "bin/busybox", 0o755, busybox.read_bytes())
        for applet in sorted(set(listed.split()) - {"busybox"}):
            _add(archive, f"bin/{applet}", 0o777, kind=tarfile.SYMTYPE, link="/bin/busybox")
        for name, text in _FILES.items():
            _add(archive, name, 0o644, text.encode())
        for name, data in (extra or {}).items():
            _add(archive, name, 0o644, data)


def busybox_image_tar(
    path: Path, tag: str = "busybox:latest", extra: Mapping[str, bytes] | None = None
) -> str:
    """Write the image to `path` as `docker save` would (manifest.json, config, one layer); its id,
    `sha256:…`.
    """
    layer = Path(f"{path}.layer")
    try:
        busybox_rootfs_tar(layer, extra)
        diff_id = hashlib.sha256(layer.read_bytes()).hexdigest()
        config = json.dumps(_config(diff_id), sort_keys=True).encode()
        image_id = hashlib.sha256(config).hexdigest()
        manifest = [{"Config": f"{image_id}.json", "RepoTags": [tag], "Layers": [f"{diff_id}/layer.tar"]}]
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, f"{image_id}.json", 0o644, config)
            _add(archive, diff_id, 0o755, kind=tarfile.DIRTYPE)
            _add(archive, f"{diff_id}/layer.tar", 0o644, layer.read_bytes())
            _add(archive, "manifest.json", 0o644, json.dumps(manifest).encode())
    finally:
        layer.unlink(missing_ok=True)
    return f"sha256:{image_id}"


def _config(diff_id: str) -> dict[str, object]:
    return {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": _CREATED,
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": _CREATED, "created_by": "busybox of the host"}],
    }


def _add(
    archive: tarfile.TarFile,
    name: str,
    mode: int,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    link: str = "",
) -> None:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = mode
    member.size = len(data)
    member.linkname = link
    member.mtime = 1704067200
    member.uname = member.gname = "root"
    archive.addfile(member, io.BytesIO(data))


def _is_static(path: Path) -> bool:
    """Whether an ELF file names no program interpreter (elf(5), PT_INTERP)."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:4] != b"\x7fELF":
            return False
        wide = head[4] == 2
        offset = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)[0]
        size, count = struct.unpack_from("<HH", head, 54 if wide else 42)
        file.seek(offset)
        table = file.read(size * count)
    return all(struct.unpack_from("<I", table, size * index)[0] != 3 for index in range(count))


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    bare = "--rootfs" in arguments
    names = [argument for argument in arguments if argument != "--rootfs"]
    if len(names) != 1 or names[0].startswith("-"):
        print("usage: python -m launcher.busybox_image OUT.tar [--rootfs]", file=sys.stderr)
        return 2
    try:
        if bare:
            busybox_rootfs_tar(Path(names[0]))
        else:
            print(busybox_image_tar(Path(names[0])))
    except OSError as error:
        print(f"busybox_image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
