"""`kill`."""

from __future__ import annotations

from errdefs import FailedPrecondition, InvalidArgument
from linux import signals

from runc_bin import contexts
from runc_bin.cli import Context
from runc_bin.libcontainer import container, state
from runc_bin.log import Log


def parse_signal(text: str) -> int:
    """The number of `9`, `KILL`, `sigkill` or `SIGRTMIN+3`; InvalidArgument for anything else."""
    if text.isdecimal() and 0 <= int(text) <= signals.SIGRTMAX:
        return int(text)
    name = text.upper()
    name = name if name.startswith("SIG") else f"SIG{name}"
    base, sign, offset = name.partition("+") if "+" in name else name.partition("-")
    number = getattr(signals, base, None) if base[3:].isalnum() else None
    if isinstance(number, int) and not sign:
        return int(number)
    if isinstance(number, int) and base in ("SIGRTMIN", "SIGRTMAX") and offset.isdecimal():
        shifted = number + int(offset) if sign == "+" else number - int(offset)
        if signals.SIGRTMIN <= shifted <= signals.SIGRTMAX:
            return shifted
    raise InvalidArgument(f'unknown signal "{text}"')


def run(context: Context, _log: Log) -> int:
    number = parse_signal(context.args[1] if len(context.args) > 1 else "SIGTERM")
    record = state.load_state(context.root, context.args[0])
    everyone = context.given("all")
    with contexts.suppress(*((FailedPrecondition,) if everyone else ())):
        container.kill(record, number, everyone=everyone)
    return 0
