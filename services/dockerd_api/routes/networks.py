"""/networks: list and inspect. Networks of one's own are not built."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import errdefs
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from dockerd_api.network.manager import Networks

router = APIRouter(prefix="/networks")

_FILTERS = ("driver", "type", "name", "id", "label", "scope", "dangling")
_BUILT_IN = ("bridge", "host", "none")


def networks_of(request: Request) -> Networks:
    networks: Networks = request.app.state.networks
    return networks


@router.get("")
async def list_(request: Request) -> Response:
    wanted = _parse(request.query_params.get("filters", ""))
    return JSONResponse([network for network in networks_of(request).list() if _matches(network, wanted)])


@router.get("/{ref}")
async def inspect(ref: str, request: Request) -> Response:
    return JSONResponse(networks_of(request).inspect(ref))


@router.delete("/{ref}")
async def remove(ref: str, request: Request) -> Response:
    name = networks_of(request).inspect(ref)["Name"]
    raise errdefs.PermissionDenied(f"{name} is a pre-defined network and cannot be removed")


def _parse(text: str) -> dict[str, list[str]]:
    try:
        document = json.loads(text) if text else {}
    except ValueError:
        raise errdefs.InvalidArgument("invalid filter") from None
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument("invalid filter")
    for key in document:
        if key not in _FILTERS:
            raise errdefs.InvalidArgument(f"invalid filter '{key}'")
    return {key: list(values) for key, values in document.items()}


def _matches(network: dict[str, Any], wanted: dict[str, list[str]]) -> bool:
    kind = "builtin" if network["Name"] in _BUILT_IN else "custom"
    checks: dict[str, Callable[[str], bool]] = {
        "driver": lambda value: network["Driver"] == value,
        "type": lambda value: kind == value,
        "name": lambda value: value in network["Name"],
        "id": lambda value: network["Id"].startswith(value),
        "label": lambda value: value.partition("=")[0] in network["Labels"],
        "scope": lambda value: network["Scope"] == value,
        "dangling": lambda value: value.lower() in ("0", "false"),
    }
    return all(any(checks[key](value) for value in values) for key, values in wanted.items() if values)
