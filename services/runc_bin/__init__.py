"""An OCI runtime: `runc-bin`, a thin command line over `libcontainer`."""

from __future__ import annotations


def warm() -> None:
    """Import all that any command needs, so that a child forked from this process imports nothing."""
    from runc_bin import cli, dispatch
    from runc_bin.libcontainer import warmth

    for verb in cli.VERBS.values():
        dispatch.command(verb)
    warmth.warm()
