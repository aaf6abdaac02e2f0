from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from runc_bin.libcontainer.cgroups import hierarchy


@pytest.fixture
def hybrid_hugetlb() -> Iterator[None]:
    """A hybrid host with the hugetlb controller in its v2 tree. It is taken back from the root's children, so
    that it can be mounted as v1 again.
    """
    if "hugetlb" not in hierarchy.v2_controllers() or "hugetlb" in hierarchy.v1_mounts():
        pytest.skip("needs a hybrid host with the hugetlb controller in its v2 tree")
    control = Path(hierarchy.HYBRID_MOUNT, "cgroup.subtree_control")
    before = control.read_text()
    yield
    if "hugetlb" in control.read_text() and "hugetlb" not in before:
        control.write_text("-hugetlb")
