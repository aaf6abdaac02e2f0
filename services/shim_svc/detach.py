"""The keys by which a client leaves a terminal ("ctrl-p,ctrl-q"), found in its input also across reads."""

from __future__ import annotations

import errdefs

_CONTROL = "@abcdefghijklmnopqrstuvwxyz[\\]^_"


def parse_keys(text: str) -> bytes:
    """The bytes of a key sequence as Docker writes it: `ctrl-<key>` or one character, comma between them.

    Empty text is no sequence. InvalidArgument for anything else.
    """
    keys = bytearray()
    for word in text.split(",") if text else []:
        if len(word) == 1 and word.isascii():
            keys += word.encode()
        elif word.startswith("ctrl-") and len(word) == 6 and word[5] in _CONTROL:
            keys.append(_CONTROL.index(word[5]))
        else:
            raise errdefs.InvalidArgument(f"Unknown character: '{word}' in detach keys")
    return bytes(keys)


class DetachKeys:
    """Holds input back while it may be the beginning of the sequence."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """(input to pass on, whether the sequence is complete). Behind a complete one nothing is passed
        on.
        """
        keys = self._keys
        if not keys:
            return data, False
        if not self._matched and keys[0] not in data:
            return data, False
        out = bytearray()
        for byte in data:
            while self._matched and byte != keys[self._matched]:
                out += self._back_off()
            if byte == keys[self._matched]:
                self._matched += 1
                if self._matched == len(keys):
                    self._matched = 0
                    return bytes(out), True
            else:
                out.append(byte)
        return bytes(out), False

    def _back_off(self) -> bytes:
        """What was held is not the sequence: release it up to where the sequence may begin again."""
        held = self._keys[: self._matched]
        for length in range(self._matched - 1, -1, -1):
            if held.endswith(self._keys[:length]):
                self._matched = length
                return held[: len(held) - length]
        raise AssertionError("length 0 always matches")

    def rest(self) -> bytes:
        """What is still held when the input ends."""
        held, self._matched = self._keys[: self._matched], 0
        return held
