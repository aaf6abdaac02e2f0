"""Signal names as Docker takes them: "KILL", "SIGKILL", "9", "RTMIN+3" (moby/sys/signal)."""

from __future__ import annotations

import re
import signal

import errdefs

# glibc keeps 32 and 33 for itself; Docker counts from 34 (signal(7)).
_RTMIN, _RTMAX = 34, 64
_NUMBERS = {s.name.removeprefix("SIG"): s.value for s in signal.Signals if not s.name.startswith("SIGRT")}
_NUMBERS |= {"CLD": 17, "IOT": 6, "POLL": 29, "STKFLT": 16, "RTMIN": _RTMIN, "RTMAX": _RTMAX}
_NUMBERS |= {f"RTMIN+{n}": _RTMIN + n for n in range(1, 16)} | {
    f"RTMAX-{n}": _RTMAX - n for n in range(1, 15)
}
_KNOWN = set(_NUMBERS.values()) | set(range(_RTMIN, _RTMAX + 1))


def parse(text: str) -> int:
    """The number of a signal named or numbered; InvalidArgument "invalid signal: X"."""
    if re.fullmatch(r"[0-9]+", text):
        number = int(text)
        if number == 0:
            raise errdefs.InvalidArgument(f"invalid signal: {text}")
        if number not in _KNOWN:
            raise errdefs.InvalidArgument(f"the linux daemon does not support signal {number}")
        return number
    found = _NUMBERS.get(text.upper().removeprefix("SIG"))
    if found is None:
        raise errdefs.InvalidArgument(f"invalid signal: {text}")
    return found


def stop_signal(config: dict[str, object]) -> int:
    """The signal that asks a container to stop: its own, else SIGTERM."""
    text = config.get("StopSignal")
    return parse(str(text)) if text else int(signal.SIGTERM)
