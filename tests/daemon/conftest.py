"""One engine with a busybox image for the tests of this level that do not kill it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engine import Engine


@pytest.fixture(scope="session")
def shared_engine() -> Iterator[Engine]:
    made = Engine()
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
