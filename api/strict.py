"""What FastAPI would pass over is refused: parameters that are unknown or come twice, other types of body."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from api.problems import DomainError
from uow.problems import Problem


class UnsupportedMediaType(DomainError):
    """The body has to call itself JSON: `Content-Type: application/json`."""

    problem = Problem("unsupported-media-type", "The body has to be JSON", 415)

    def __init__(self) -> None:
        message = "Should be application/json"
        super().__init__(
            "The body has to be application/json.",
            errors=[{"field": "header.content-type", "message": message}],
        )


async def strict_request(request: Request) -> None:
    """A dependency of every route: raises for what would be ignored, and so for what was mistyped."""
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = {field.alias for field in route.dependant.query_params}
    counted = Counter(name for name, _ in request.query_params.multi_items())
    faults = [_fault(name, "Unknown parameter") for name in counted if name not in known]
    faults += [_fault(name, "Given more than once") for name in counted if counted[name] > 1]
    if faults:
        raise RequestValidationError(faults)
    if route.body_field is not None and not _is_json(request) and await request.body():
        raise UnsupportedMediaType


def _fault(name: str, message: str) -> dict[str, Any]:
    return {"type": "parameter", "loc": ("query", name), "msg": message, "input": None}


def _is_json(request: Request) -> bool:
    essence = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return essence == "application/json" or (essence.startswith("application/") and essence.endswith("+json"))
