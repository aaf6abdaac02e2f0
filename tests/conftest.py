"""Rules for every level: what needs root says so, and the session ends as the host was when it began."""

from __future__ import annotations

import os
import time

import pytest

from tests.support.leaks import Holdings

_before = pytest.StashKey[Holdings]()


def pytest_sessionstart(session: pytest.Session) -> None:
    if os.geteuid() == 0:
        session.config.stash[_before] = Holdings.now()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """The leak check. What the kernel frees with a delay gets ten seconds to go."""
    before = session.config.stash.get(_before, None)
    if before is None or session.config.option.collectonly:
        return
    deadline = time.monotonic() + 10
    while (added := Holdings.now().added_since(before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    if added:
        lines = [f"  {kind}: {name}" for kind, names in added.items() for name in names]
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("\nleft on the host by this session:\n" + "\n".join(lines), red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
