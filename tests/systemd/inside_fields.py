"""What a booted machine runs to set each field of the spec's "Control groups" on cgroup v2.

Called with the folder of the services and a JSON file: objects with the `resources` at first and `later`, and
the `file` to read. Prints one line, `fields=` and a list of what the file held both times, or of the errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from errdefs import BuoyError
from runc_bin.libcontainer.cgroups import manager_for


def tried(resources: dict[str, Any], later: dict[str, Any], file: str) -> list[str]:
    try:
        manager = manager_for({"cgroupsPath": "/fields", "resources": resources}, "id")
        manager.create()
    except BuoyError as error:
        return [error.message]
    found = []
    try:
        manager.apply()
        found.append(Path(manager.directory, file).read_text())
        manager.update(later)
        found.append(Path(manager.directory, file).read_text())
    except (BuoyError, OSError) as error:
        found.append(str(error))
    finally:
        manager.destroy()
    return found


if __name__ == "__main__":
    cases = json.loads(Path(sys.argv[2]).read_text())
    print("fields=" + json.dumps([tried(case["resources"], case["later"], case["file"]) for case in cases]))
    sys.stdout.flush()
