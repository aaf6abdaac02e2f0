"""Mount options of the runtime spec (config.md, "Linux mount options") as kernel flags.

An option is one of five things: a flag that is set or cleared, a propagation, an attribute for the whole
tree (`rro`, …), an extension of the runtimes (`tmpcopyup`, `idmap`, `ridmap`), or else a word for the file
system itself.

Flags of the super block (`sync`, `dirsync`, `lazytime`, `mand`, `iversion`, `silent`) belong to a file system
that is mounted anew or remounted; a bind shares one that exists and cannot change it: mount(8), "bind mount
operation".
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import linux.mounts as m

from runc_bin.record import Record

FLAGS: dict[str, tuple[int, int]] = {  # option: (flags to set, flags to clear)
    "async": (0, m.MS_SYNCHRONOUS),
    "atime": (0, m.MS_NOATIME),
    "bind": (m.MS_BIND, 0),
    "defaults": (0, 0),
    "dev": (0, m.MS_NODEV),
    "diratime": (0, m.MS_NODIRATIME),
    "dirsync": (m.MS_DIRSYNC, 0),
    "exec": (0, m.MS_NOEXEC),
    "iversion": (m.MS_I_VERSION, 0),
    "lazytime": (m.MS_LAZYTIME, 0),
    "loud": (0, m.MS_SILENT),
    "mand": (m.MS_MANDLOCK, 0),
    "noatime": (m.MS_NOATIME, 0),
    "nodev": (m.MS_NODEV, 0),
    "nodiratime": (m.MS_NODIRATIME, 0),
    "noexec": (m.MS_NOEXEC, 0),
    "noiversion": (0, m.MS_I_VERSION),
    "nolazytime": (0, m.MS_LAZYTIME),
    "nomand": (0, m.MS_MANDLOCK),
    "norelatime": (0, m.MS_RELATIME),
    "nostrictatime": (0, m.MS_STRICTATIME),
    "nosuid": (m.MS_NOSUID, 0),
    "nosymfollow": (m.MS_NOSYMFOLLOW, 0),
    "rbind": (m.MS_BIND | m.MS_REC, 0),
    "relatime": (m.MS_RELATIME, 0),
    "remount": (m.MS_REMOUNT, 0),
    "ro": (m.MS_RDONLY, 0),
    "rw": (0, m.MS_RDONLY),
    "silent": (m.MS_SILENT, 0),
    "strictatime": (m.MS_STRICTATIME, 0),
    "suid": (0, m.MS_NOSUID),
    "sync": (m.MS_SYNCHRONOUS, 0),
    "symfollow": (0, m.MS_NOSYMFOLLOW),
}
PROPAGATION: dict[str, int] = {
    "private": m.MS_PRIVATE,
    "rprivate": m.MS_PRIVATE | m.MS_REC,
    "shared": m.MS_SHARED,
    "rshared": m.MS_SHARED | m.MS_REC,
    "slave": m.MS_SLAVE,
    "rslave": m.MS_SLAVE | m.MS_REC,
    "unbindable": m.MS_UNBINDABLE,
    "runbindable": m.MS_UNBINDABLE | m.MS_REC,
}
_ATIME = m.MOUNT_ATTR_ATIME
RECURSIVE: dict[str, tuple[int, int]] = {  # option: (attributes to set, attributes to clear)
    "rro": (m.MOUNT_ATTR_RDONLY, 0),
    "rrw": (0, m.MOUNT_ATTR_RDONLY),
    "rnosuid": (m.MOUNT_ATTR_NOSUID, 0),
    "rsuid": (0, m.MOUNT_ATTR_NOSUID),
    "rnodev": (m.MOUNT_ATTR_NODEV, 0),
    "rdev": (0, m.MOUNT_ATTR_NODEV),
    "rnoexec": (m.MOUNT_ATTR_NOEXEC, 0),
    "rexec": (0, m.MOUNT_ATTR_NOEXEC),
    "rnodiratime": (m.MOUNT_ATTR_NODIRATIME, 0),
    "rdiratime": (0, m.MOUNT_ATTR_NODIRATIME),
    "rnosymfollow": (m.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "rsymfollow": (0, m.MOUNT_ATTR_NOSYMFOLLOW),
    # The kernel takes an access time only together with clearing all of them: mount_setattr(2).
    "rrelatime": (m.MOUNT_ATTR_RELATIME, _ATIME),
    "rnorelatime": (m.MOUNT_ATTR_RELATIME, _ATIME),  # the kernel's default, as for mount(8)
    "rnoatime": (m.MOUNT_ATTR_NOATIME, _ATIME),
    "ratime": (m.MOUNT_ATTR_RELATIME, _ATIME),
    "rstrictatime": (m.MOUNT_ATTR_STRICTATIME, _ATIME),
    "rnostrictatime": (m.MOUNT_ATTR_RELATIME, _ATIME),
}
EXTENSIONS = ("tmpcopyup", "idmap", "ridmap")

_ATTRIBUTE_OF: tuple[tuple[int, int], ...] = (
    (m.MS_RDONLY, m.MOUNT_ATTR_RDONLY),
    (m.MS_NOSUID, m.MOUNT_ATTR_NOSUID),
    (m.MS_NODEV, m.MOUNT_ATTR_NODEV),
    (m.MS_NOEXEC, m.MOUNT_ATTR_NOEXEC),
    (m.MS_NODIRATIME, m.MOUNT_ATTR_NODIRATIME),
    (m.MS_NOSYMFOLLOW, m.MOUNT_ATTR_NOSYMFOLLOW),
)
# Flags of the super block: words for the file system in the new mount calls (fs/fs_context.c).
_SUPER_WORDS: tuple[tuple[int, str], ...] = (
    (m.MS_RDONLY, "ro"),
    (m.MS_SYNCHRONOUS, "sync"),
    (m.MS_DIRSYNC, "dirsync"),
    (m.MS_MANDLOCK, "mand"),
    (m.MS_LAZYTIME, "lazytime"),
)
# What only mount(2) can say: these flags have no word, and fsconfig(2) takes values of 255 bytes at most.
_CLASSIC_FLAGS = m.MS_SILENT | m.MS_I_VERSION
_LONGEST_VALUE = 255


class MountOptions(Record):
    """What the options of one mount ask for.

    `id_map` is empty, `idmap` or `ridmap`; `data` are words for the file system, in order.
    """

    flags: int = 0
    cleared: int = 0
    propagation: tuple[int, ...] = ()
    recursive_set: int = 0
    recursive_clear: int = 0
    copy_up: bool = False
    id_map: str = ""
    data: tuple[tuple[str, str | None], ...] = ()

    @property
    def bind(self) -> bool:
        return bool(self.flags & m.MS_BIND)

    @property
    def remount(self) -> bool:
        return bool(self.flags & m.MS_REMOUNT)

    @property
    def read_only(self) -> bool:
        return bool(self.flags & m.MS_RDONLY)

    def attributes(self) -> tuple[int, int]:
        """(attributes to set, attributes to clear) of the mount itself, as mount_setattr(2) takes them."""
        set_ = clear = 0
        for flag, attribute in _ATTRIBUTE_OF:
            if self.flags & flag:
                set_ |= attribute
            if self.cleared & flag:
                clear |= attribute
        if self.flags & (m.MS_NOATIME | m.MS_RELATIME | m.MS_STRICTATIME):
            clear |= m.MOUNT_ATTR_ATIME
            if self.flags & m.MS_STRICTATIME:
                set_ |= m.MOUNT_ATTR_STRICTATIME
            elif self.flags & m.MS_NOATIME:
                set_ |= m.MOUNT_ATTR_NOATIME
        elif self.cleared & (m.MS_NOATIME | m.MS_STRICTATIME):
            clear |= m.MOUNT_ATTR_ATIME
        return set_, clear

    def super_words(self) -> list[tuple[str, str | None]]:
        """The flags that a new file system takes as words of its own."""
        return [(word, None) for flag, word in _SUPER_WORDS if self.flags & flag]

    def needs_classic_mount(self) -> bool:
        """Whether a new file system can be had by mount(2) only."""
        return bool(self.flags & _CLASSIC_FLAGS) or any(
            len(os.fsencode(word)) > _LONGEST_VALUE for pair in self.data for word in pair if word
        )


def parse(options: Sequence[str]) -> MountOptions:
    """Sort the options of one mount. An unknown word is the file system's, which will refuse what it does
    not know.
    """
    flags = cleared = recursive_set = recursive_clear = 0
    propagation: list[int] = []
    data: list[tuple[str, str | None]] = []
    copy_up = False
    id_map = ""
    for option in options:
        if option in FLAGS:
            set_, clear = FLAGS[option]
            flags = (flags | set_) & ~clear
            cleared = (cleared | clear) & ~set_
        elif option in PROPAGATION:
            propagation.append(PROPAGATION[option])
        elif option in RECURSIVE:
            set_, clear = RECURSIVE[option]
            recursive_set = (recursive_set & ~clear) | set_
            recursive_clear = (recursive_clear & ~set_) | clear
        elif option == "tmpcopyup":
            copy_up = True
        elif option in ("idmap", "ridmap"):
            id_map = option
        else:
            data.extend(_words(option))
    return MountOptions(
        flags, cleared, tuple(propagation), recursive_set, recursive_clear, copy_up, id_map, tuple(data)
    )


def _words(text: str) -> list[tuple[str, str | None]]:
    """(key, value) of each word of a mount(2) data string.

    A comma separates words unless it is quoted (a security label has commas) or follows a backslash (a
    folder of an overlay).
    """
    words: list[str] = [""]
    quoted = escaped = False
    for char in text:
        if char == "," and not quoted and not escaped:
            words.append("")
            continue
        quoted ^= char == '"' and not escaped
        escaped = char == "\\" and not escaped
        words[-1] += char
    found: list[tuple[str, str | None]] = []
    for word in words:
        key, equals, value = word.partition("=")
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if key:
            found.append((key, value if equals else None))
    return found


def data_text(words: Sequence[tuple[str, str | None]]) -> str:
    """The data string of mount(2) for (key, value) words."""
    texts: list[str] = []
    for key, value in words:
        if value is None:
            texts.append(key)
        elif "," in value.replace("\\,", ""):
            texts.append(f'{key}="{value}"')
        else:
            texts.append(f"{key}={value}")
    return ",".join(texts)
