"""An OCI runtime: `runc-bin`, a thin command line over `libcontainer`."""

from __future__ import annotations


def warm() -> None:
    """Import all that any command needs, so that a child forked from this process imports nothing."""
    from runc_bin import cli, dispatch
    from runc_bin.libcontainer import warmth

    for verb in cli.VERBS.values():
        dispatch.command(verb)
    warmth.warm()


def load_verb(name: str) -> None:
    """Import what one command needs on this host for a container of the usual kind."""
    from runc_bin import __main__, cli, dispatch  # noqa: F401
    from runc_bin.libcontainer.cgroups import hierarchy

    dispatch.command(cli.VERBS[name])
    __import__(f"runc_bin.libcontainer.cgroups.{'v2' if hierarchy.unified() else 'v1'}")


def load_verbs(*names: str) -> None:
    """Import what these commands need, on any host."""
    for name in names:
        load_verb(name)
    for name in ("cgroups.v1", "cgroups.v2", "seccomp"):
        __import__(f"runc_bin.libcontainer.{name}")
