"""docs/security.md names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def test_each_row_has_tests_that_exist() -> None:
    rows = [line for line in (REPO / "docs/security.md").read_text().splitlines() if line.startswith("| ")]
    named = 0
    for row in rows:
        if row.startswith("| CVE |"):
            continue
        assert re.match(r"\| (CVE-\d{4}-\d+|GO-\d{4}-\d+)(, CVE-\d{4}-\d+)* \|", row), row
        tests = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", row)
        assert tests, f"no test: {row}"
        for file, name in tests:
            tree = ast.parse((REPO / file).read_text())
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
            found = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
            assert name in found if name else any(item.startswith("test_") for item in found), (file, name)
            named += 1
    assert named > 30
