"""Write the message stubs below services/pb from the .proto files beside this script.

proto/generate.py            write them
proto/generate.py --check    write them elsewhere and fail when they differ from what is committed
"""

from __future__ import annotations

import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).parent.resolve()
STUBS = PROTO.parent / "services" / "pb"
TOOLS = Path(sys.executable).parent

# betterproto2's compiler imports protobuf wherever a message is called Descriptor; nothing uses it.
UNUSED_IMPORT = "from google.protobuf.descriptor import Descriptor\n"


def generate(target: Path) -> None:
    """Generate all stubs into the folder `target`, which exists."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            "-I.",
            f"--plugin=protoc-gen-python_betterproto2={TOOLS}/protoc-gen-python_betterproto2",
            f"--python_betterproto2_out={target}",
            "--python_betterproto2_opt=client_generation=async,server_generation=async",
            *sources,
        ],
        cwd=PROTO,
        check=True,
        stderr=subprocess.DEVNULL,
        env={"PATH": f"{TOOLS}:/usr/bin:/bin"},  # the plugin formats what it writes with the ruff it finds
    )
    for path in target.rglob("*.py"):
        text = path.read_text()
        if UNUSED_IMPORT in text:
            path.write_text(text.replace(UNUSED_IMPORT, ""))


def differences(left: Path, right: Path) -> list[str]:
    """Paths of .py files that exist on one side only or differ, relative to both."""
    names = {str(path.relative_to(side)) for side in (left, right) for path in side.rglob("*.py")}
    return sorted(
        name
        for name in names
        if not (left / name).exists()
        or not (right / name).exists()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    # Always elsewhere first: the plugin's formatter takes its settings from the folder that it writes to.
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        generate(made)
        drift = differences(made, STUBS)
        if "--check" in sys.argv[1:]:
            for name in drift:
                print(f"services/pb/{name} differs from proto/: run `make protos`", file=sys.stderr)
            return 1 if drift else 0
        for name in drift:
            target = STUBS / name
            if not (made / name).exists():
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(made / name, target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
