"""Calls to systemd's manager over D-Bus, by sd-bus of libsystemd: org.freedesktop.systemd1(5), sd-bus(3).

Imported for the systemd driver alone. A host with a systemd to talk to has the library, and a runtime that is
started without site-packages has no other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType
from typing import Any, NamedTuple

from errdefs import (
    AlreadyExists,
    BuoyError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)

from runc_bin import contexts

_SECONDS = 30.0
_DESTINATION = b"org.freedesktop.systemd1"
_PATH = b"/org/freedesktop/systemd1"
_MANAGER = b"org.freedesktop.systemd1.Manager"
_NUMBERS: dict[str, Callable[[int], Any]] = {
    "b": ctypes.c_int,
    "u": ctypes.c_uint32,
    "t": ctypes.c_uint64,
}
_ERRORS: dict[str, type[BuoyError]] = {
    "org.freedesktop.systemd1.UnitExists": AlreadyExists,
    "org.freedesktop.systemd1.NoSuchUnit": NotFound,
    "org.freedesktop.DBus.Error.InvalidArgs": InvalidArgument,
    "org.freedesktop.DBus.Error.PropertyReadOnly": InvalidArgument,
    "org.freedesktop.DBus.Error.AccessDenied": PermissionDenied,
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": PermissionDenied,
}


class Property(NamedTuple):
    """A property of a unit: its name, its D-Bus signature (one of s b u t au ay a(ss)), its value."""

    name: str
    signature: str
    value: Any


class _Error(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("message", ctypes.c_char_p), ("need_free", ctypes.c_int))


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libsystemd.so.0")
    except OSError as error:
        raise FailedPrecondition(f"the systemd cgroup driver needs libsystemd: {error}") from None
    pointer = ctypes.c_void_p
    library.sd_bus_message_append_basic.argtypes = (pointer, ctypes.c_char, pointer)
    library.sd_bus_message_append_array.argtypes = (pointer, ctypes.c_char, pointer, ctypes.c_size_t)
    library.sd_bus_message_open_container.argtypes = (pointer, ctypes.c_char, ctypes.c_char_p)
    library.sd_bus_message_enter_container.argtypes = (pointer, ctypes.c_char, ctypes.c_char_p)
    library.sd_bus_message_read_basic.argtypes = (pointer, ctypes.c_char, pointer)
    library.sd_bus_message_is_signal.argtypes = (pointer, ctypes.c_char_p, ctypes.c_char_p)
    library.sd_bus_call.argtypes = (pointer, pointer, ctypes.c_uint64, pointer, pointer)
    library.sd_bus_wait.argtypes = (pointer, ctypes.c_uint64)
    library.sd_bus_process.argtypes = (pointer, pointer)
    library.sd_bus_set_address.argtypes = (pointer, ctypes.c_char_p)
    library.sd_bus_message_new_method_call.argtypes = (pointer, pointer, *[ctypes.c_char_p] * 4)
    for name in ("sd_bus_message_close_container", "sd_bus_message_unref", "sd_bus_start"):
        getattr(library, name).argtypes = (pointer,)
    library.sd_bus_flush_close_unref.argtypes = (pointer,)
    library.sd_bus_flush_close_unref.restype = pointer
    library.sd_bus_message_unref.restype = pointer
    return library


def _done(result: int) -> int:
    """The result of a call that gives a negative errno on failure."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


class _Message:
    """A method call in the making, or a message that came."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self.handle = handle

    def append(self, signature: str, value: Any) -> None:
        """Add an argument of one of the signatures of `Property`, `a(sv)` or `a(sa(sv))`."""
        library = _library()
        if signature in ("s", "o"):
            data = ctypes.c_char_p(value.encode())
            _done(library.sd_bus_message_append_basic(self.handle, signature.encode(), data))
        elif signature in _NUMBERS:
            number = ctypes.byref(_NUMBERS[signature](value))
            _done(library.sd_bus_message_append_basic(self.handle, signature.encode(), number))
        elif signature in ("au", "ay"):
            raw = bytes(value) if signature == "ay" else bytes((ctypes.c_uint32 * len(value))(*value))
            kind = signature[1:].encode()
            _done(library.sd_bus_message_append_array(self.handle, kind, raw or None, len(raw)))
        else:
            self._append_list(signature[1:], value)

    def _append_list(self, item: str, values: Sequence[Any]) -> None:
        library = _library()
        _done(library.sd_bus_message_open_container(self.handle, b"a", item.encode()))
        for value in values:
            _done(library.sd_bus_message_open_container(self.handle, b"r", item[1:-1].encode()))
            if item == "(sv)":
                self.append("s", value.name)
                _done(library.sd_bus_message_open_container(self.handle, b"v", value.signature.encode()))
                self.append(value.signature, value.value)
                _done(library.sd_bus_message_close_container(self.handle))
            else:  # (ss)
                for word in value:
                    self.append("s", word)
            _done(library.sd_bus_message_close_container(self.handle))
        _done(library.sd_bus_message_close_container(self.handle))

    def read(self, kind: str) -> str:
        """The next argument, of kind `s`, `o` or `u`, as text."""
        if kind == "u":
            number = ctypes.c_uint32()
            _done(_library().sd_bus_message_read_basic(self.handle, b"u", ctypes.byref(number)))
            return str(number.value)
        text = ctypes.c_char_p()
        _done(_library().sd_bus_message_read_basic(self.handle, kind.encode(), ctypes.byref(text)))
        return (text.value or b"").decode(errors="replace")

    def read_variant(self) -> str:
        """The next argument, a variant that holds a string."""
        _done(_library().sd_bus_message_enter_container(self.handle, b"v", b"s"))
        return self.read("s")

    def close(self) -> None:
        _library().sd_bus_message_unref(self.handle)

    def __enter__(self) -> _Message:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Bus:
    """A connection to systemd: the system's, or with `user` the caller's own manager.

    FailedPrecondition when there is none. Each call has a deadline of half a minute (DeadlineExceeded);
    systemd's refusals come as AlreadyExists (a unit of that name), NotFound (no such unit), InvalidArgument,
    PermissionDenied or Internal, with its words.
    """

    def __init__(self, *, user: bool) -> None:
        if not os.path.isdir("/run/systemd/system"):
            raise FailedPrecondition("systemd not running on this host, cannot use systemd cgroups manager")
        self._bus = _connect(user=user)

    def start_transient(self, unit: str, properties: Sequence[Property]) -> None:
        """Start a transient unit and wait until it is there."""
        arguments = (("s", unit), ("s", "fail"), ("a(sv)", properties), ("a(sa(sv))", ()))
        result = self._job("StartTransientUnit", arguments)
        if result != "done":
            raise Internal(f"error creating systemd unit {unit}: got {result!r}")

    def stop(self, unit: str) -> None:
        """Stop a unit and wait until it is gone."""
        self._job("StopUnit", (("s", unit), ("s", "replace")))

    def reset_failed(self, unit: str) -> None:
        """Let systemd forget a unit that has failed."""
        self._call("ResetFailedUnit", (("s", unit),)).close()

    def set_properties(self, unit: str, properties: Sequence[Property]) -> None:
        """Change properties of a unit until the next boot."""
        self._call("SetUnitProperties", (("s", unit), ("b", True), ("a(sv)", properties))).close()

    def attach(self, unit: str, pid: int, below: str = "/") -> None:
        """Move a process into a unit's cgroup, or into the cgroup `below` it."""
        self._call("AttachProcessesToUnit", (("s", unit), ("s", below), ("au", [pid]))).close()

    def manager_property(self, name: str) -> str:
        """A property of the manager that is a string, as `Version` or `ControlGroup`."""
        interface = b"org.freedesktop.DBus.Properties"
        arguments = (("s", _MANAGER.decode()), ("s", name))
        with self._call("Get", arguments, interface=interface) as reply:
            return reply.read_variant()

    def close(self) -> None:
        """End the connection."""
        _library().sd_bus_flush_close_unref(self._bus)

    def __enter__(self) -> Bus:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _job(self, member: str, arguments: Sequence[tuple[str, Any]]) -> str:
        """Make a call that answers with a job, and wait for its end: systemd's word for the result."""
        self._listen()
        with self._call(member, arguments) as reply:
            job = reply.read("o")
        deadline = time.monotonic() + _SECONDS
        while True:
            if (result := self._next_end(job)) is not None:
                return result
            left = deadline - time.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"timeout waiting for systemd: {member} of {arguments[0][1]}")
            _done(_library().sd_bus_wait(self._bus, int(left * 1e6)))

    def _listen(self) -> None:
        rule = "type='signal',interface='org.freedesktop.systemd1.Manager',member='JobRemoved'"
        # a connection without a bus between refuses: all signals come over it anyway
        with contexts.suppress(BuoyError):
            self._call(
                "AddMatch",
                (("s", rule),),
                destination=b"org.freedesktop.DBus",
                path=b"/org/freedesktop/DBus",
                interface=b"org.freedesktop.DBus",
            ).close()
        self._call("Subscribe", ()).close()

    def _next_end(self, job: str) -> str | None:
        """Take what has come; the result of `job` when its end is among it."""
        library = _library()
        while True:
            handle = ctypes.c_void_p()
            if not _done(library.sd_bus_process(self._bus, ctypes.byref(handle))):
                return None
            if not handle:
                continue
            with _Message(handle) as message:
                if library.sd_bus_message_is_signal(handle, _MANAGER, b"JobRemoved") > 0:
                    message.read("u")
                    if message.read("o") == job:
                        message.read("s")
                        return message.read("s")

    def _call(
        self,
        member: str,
        arguments: Sequence[tuple[str, Any]],
        *,
        destination: bytes = _DESTINATION,
        path: bytes = _PATH,
        interface: bytes = _MANAGER,
    ) -> _Message:
        library = _library()
        handle = ctypes.c_void_p()
        _done(
            library.sd_bus_message_new_method_call(
                self._bus, ctypes.byref(handle), destination, path, interface, member.encode()
            )
        )
        with _Message(handle) as message:
            for signature, value in arguments:
                message.append(signature, value)
            error, reply = _Error(), ctypes.c_void_p()
            result = library.sd_bus_call(
                self._bus, handle, int(_SECONDS * 1e6), ctypes.byref(error), ctypes.byref(reply)
            )
            if result < 0:
                name, words = (error.name or b"").decode(), (error.message or b"").decode(errors="replace")
                library.sd_bus_error_free(ctypes.byref(error))
                if -result == errno.ETIMEDOUT:
                    raise DeadlineExceeded(f"systemd does not answer: {member}")
                raise _ERRORS.get(name, Internal)(f"systemd: {words or os.strerror(-result)}")
        return _Message(reply)


def _connect(*, user: bool) -> ctypes.c_void_p:
    """Over the bus, or where none runs straight to the manager, as systemctl does."""
    library = _library()
    bus = ctypes.c_void_p()
    opener = library.sd_bus_open_user if user else library.sd_bus_open_system
    opened = opener(ctypes.byref(bus))
    if opened >= 0:
        return bus
    folder = os.environ.get("XDG_RUNTIME_DIR", "") if user else "/run"
    private = f"{folder}/systemd/private"
    if folder and os.path.exists(private):
        _done(library.sd_bus_new(ctypes.byref(bus)))
        _done(library.sd_bus_set_address(bus, f"unix:path={private}".encode()))
        started = library.sd_bus_start(bus)
        if started >= 0:
            return bus
        library.sd_bus_flush_close_unref(bus)
    which = "the user's systemd" if user else "systemd"
    raise FailedPrecondition(f"cannot connect to {which} over D-Bus: {os.strerror(-opened).lower()}")
