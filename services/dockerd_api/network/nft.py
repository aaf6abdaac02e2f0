"""libnftables by ctypes: one context, text in, text or JSON out (libnftables(3), libnftables-json(5)).

A command buffer is one transaction: all of it or none. A call takes about 0.2 ms and releases the
interpreter's lock, so that it belongs into a thread; not two threads at once on one object.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any

import errdefs

_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON
_library: ctypes.CDLL | None = None


def _load() -> ctypes.CDLL:
    global _library
    if _library is None:
        try:
            library = ctypes.CDLL("libnftables.so.1", use_errno=True)
        except OSError as error:
            raise errdefs.Unavailable(f"libnftables.so.1 is needed (package libnftables1): {error}") from None
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, arguments in (
            ("nft_ctx_new", pointer, [ctypes.c_uint32]),
            ("nft_ctx_free", None, [pointer]),
            ("nft_ctx_buffer_output", ctypes.c_int, [pointer]),
            ("nft_ctx_buffer_error", ctypes.c_int, [pointer]),
            ("nft_ctx_get_output_buffer", text, [pointer]),
            ("nft_ctx_get_error_buffer", text, [pointer]),
            ("nft_ctx_output_set_flags", None, [pointer, ctypes.c_uint]),
            ("nft_run_cmd_from_buffer", ctypes.c_int, [pointer, text]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        _library = library
    return _library


class Nft:
    """One libnftables context, bound to the network namespace of the process."""

    def __init__(self) -> None:
        self._lib = _load()
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise errdefs.Internal("libnftables gave no context")
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        """Free the context."""
        context, self._context = self._context, None
        if context:
            self._lib.nft_ctx_free(context)

    def run(self, commands: str) -> str:
        """Run commands as one transaction; returns what they print. Internal with nft's words on failure."""
        failed = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        said: bytes = self._lib.nft_ctx_get_error_buffer(self._context) or b""
        printed: bytes = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        if failed:
            raise errdefs.Internal(f"nftables: {said.decode(errors='replace').strip()}")
        return printed.decode(errors="replace")

    def list(self, what: str) -> list[dict[str, Any]]:
        """The objects that `list <what>` prints as JSON, without the first one, which describes nft."""
        self._lib.nft_ctx_output_set_flags(self._context, _JSON)
        try:
            printed = self.run(f"list {what}")
        finally:
            self._lib.nft_ctx_output_set_flags(self._context, 0)
        objects: list[dict[str, Any]] = json.loads(printed)["nftables"] if printed.strip() else []
        return [one for one in objects if "metainfo" not in one]

    def tables(self) -> set[tuple[str, str]]:
        """(family, name) of every table."""
        return {(o["table"]["family"], o["table"]["name"]) for o in self.list("tables") if "table" in o}
