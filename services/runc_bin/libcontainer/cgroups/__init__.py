"""A container's control group, on cgroup v1, v2 and hybrid hosts, with the rules of runc's cgroupfs driver.

`manager_for(spec["linux"], id)` gives a `Manager` whose `paths` can be recorded at once; then `create()`,
`add_pid(pid)`, `apply(resources)`; later `Manager.from_paths(recorded)` finds the same cgroup again.
"""

from __future__ import annotations

from .manager import Manager, manager_for
from .oom import OomEvents

__all__ = ["Manager", "OomEvents", "manager_for"]
