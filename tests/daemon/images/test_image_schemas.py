"""Every reply below /images that is a document, against the shapes of API 1.50."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.archives import saved_image
from tests.support.engine import Engine
from tests.support.schemas import Shapes

pytestmark = pytest.mark.root

_SHAPES = Shapes(Path(__file__).parents[2] / "contract/schemas/images.json")
_CONFIG = {
    "Cmd": ["sh"],
    "Env": ["A=b"],
    "Labels": {"a": "b"},
    "ExposedPorts": {"80/tcp": {}},
    "Hostname": "x",
}


def test_replies(engine: Engine) -> None:
    _, archive = saved_image(["schema:1"], [{"f": b"1"}], config=_CONFIG, history=[{"created_by": "x"}])
    with engine.http() as http:
        assert http.post("/v1.50/images/load", content=archive).status_code == 200
        plain = http.get("/v1.50/images/json").json()
        _SHAPES.check(plain, "[#Summary]")
        assert all("Descriptor" in entry and "Manifests" not in entry for entry in plain)
        full = http.get("/v1.50/images/json?manifests=1&shared-size=1").json()
        _SHAPES.check(full, "[#Summary]")
        assert all(entry["Manifests"] and entry["SharedSize"] >= 0 for entry in full)
        for query in ("", "?manifests=1", '?platform={"os":"linux","architecture":"amd64"}'):
            _SHAPES.check(http.get(f"/v1.50/images/schema:1/json{query}").json(), "#Inspect")
        _SHAPES.check(http.get("/v1.50/images/schema:1/history").json(), "[#History]")
        for kind in ("", "?type=image", "?type=container&type=volume", "?type=build-cache"):
            _SHAPES.check(http.get(f"/v1.50/system/df{kind}").json(), "#Usage")
        assert http.get("/v1.50/system/df?type=x").status_code == 400
        filters = json.dumps({"label": ["nobody=has"]})
        _SHAPES.check(http.post("/v1.50/images/prune", params={"filters": filters}).json(), "#Pruned")
        _SHAPES.check(http.delete("/v1.50/images/schema:1").json(), "[#Removed]")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"Untagged": 1}, "#Removed"),
        ({"Moved": "a"}, "#Removed"),
        ({"SpaceReclaimed": 0}, "#Pruned"),
        ([None], "[string]"),
        ("sha256:1", "digest"),
    ],
)
def test_what_does_not_fit_is_noticed(value: object, kind: str) -> None:
    with pytest.raises(AssertionError):
        _SHAPES.check(value, kind)
