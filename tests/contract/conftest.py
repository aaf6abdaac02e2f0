"""The engine that the contract suites run against: Buoy's, or any other that CONTRACT_DOCKER_HOST names.

A suite is proven on the real engine first: CONTRACT_DOCKER_HOST=unix:///path.sock pytest tests/contract
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.engine import Engine, ForeignEngine


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    foreign = os.environ.get("CONTRACT_DOCKER_HOST", "")
    made = ForeignEngine(foreign) if foreign else Engine()
    try:
        made.up()
        made.import_busybox()
        yield made
    finally:
        made.purge()


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The shared engine; containers that the test leaves are removed behind it."""
    before = set(shared_engine.out("ps", "-aq").split())
    yield shared_engine
    left = set(shared_engine.out("ps", "-aq").split()) - before
    if left:
        shared_engine.out("rm", "-f", *left)
