"""An OCI runtime: `runc-bin`, a thin command line over `libcontainer`."""

from __future__ import annotations


def warm() -> None:
    """Import all that any command needs, so that a child forked from this process imports nothing."""
    import runc_bin.__main__
    from runc_bin import cli
    from runc_bin.libcontainer import warmth

    for verb in cli.VERBS.values():
        runc_bin.__main__.command(verb)
    warmth.warm()
