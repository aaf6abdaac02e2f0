"""An OCI runtime: `runc-bin`, a thin command line over `libcontainer`."""

from __future__ import annotations


def warm() -> None:
    """Import all that any command needs, so that a child forked from this process imports nothing."""
    from runc_bin import cli, dispatch
    from runc_bin.libcontainer import warmth

    for verb in cli.VERBS.values():
        dispatch.command(verb)
    warmth.warm()


def load_quick() -> None:
    """Import what the verbs that engines call for each container need, on any host, and nothing else."""
    for name in ("create", "delete", "exec_", "kill", "run", "start", "state"):
        __import__(f"runc_bin.commands.{name}")
    for name in (
        *("__main__", "dispatch"),
        *("libcontainer.cgroups.v1", "libcontainer.cgroups.v2", "libcontainer.seccomp"),
    ):
        __import__(f"runc_bin.{name}")
