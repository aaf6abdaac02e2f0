"""A nursery for all tests of a module, and one box for each."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.kernel.shim.harness import BUSYBOX, Box, Place, a_place


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """A state folder with a running nursery."""
    if BUSYBOX is None:
        pytest.fail("busybox-static is missing: run make setup")
    with a_place() as place:
        place.start_nursery()
        yield place


@pytest.fixture
async def boxes(place: Place) -> AsyncIterator[Callable[[], Box]]:
    """Makes containers that are not there yet; removed after the test."""
    made: list[Box] = []

    def make() -> Box:
        made.append(Box(place, uuid.uuid4().hex + uuid.uuid4().hex))
        return made[-1]

    yield make
    for one in made:
        await one.clean()


@pytest.fixture
def box(boxes: Callable[[], Box]) -> Box:
    """One container that is not there yet."""
    return boxes()
