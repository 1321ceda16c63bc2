"""What FastAPI would pass over is refused: parameters that are unknown or come twice, bodies in doubt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from api.problems import DomainError
from uow.problems import Problem

# No object of this service has so many. Each name that is one too many costs the event loop some 20 us
# until it is refused, and all of them together would let nobody else in meanwhile.
MOST_NAMES = 32


class UnsupportedMediaType(DomainError):
    """The body has to call itself JSON: `Content-Type: application/json`."""

    problem = Problem("unsupported-media-type", "The body has to be JSON", 415)

    def __init__(self) -> None:
        message = "Should be application/json"
        super().__init__(
            "The body has to be application/json.",
            errors=[{"field": "header.content-type", "message": message}],
        )


class StrictRoute(APIRoute):
    """A route that reads its body with `strict_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_StrictRequest(request.scope, request.receive))

        return handle


class _StrictRequest(Request):
    async def json(self) -> Any:
        return strict_json(await self.body())


def strict_json(content: bytes) -> Any:
    """The value of a body, in which all readers see the same; ValueError if it is no JSON in UTF-8.

    In the place of a value that comes twice, of a number that JSON does not have, or of an object with
    more than MOST_NAMES names stands an error: no field takes one (pydantic reads attributes of most
    other objects), and its words are the message.
    A number without a fraction is an integer, however it is written (JSON Schema, core, 4.2.3).
    """
    return json.loads(
        content.decode(),
        object_pairs_hook=_members,
        parse_constant=lambda name: ValueError(f"{name} is no number of JSON"),
        parse_float=_number,
    )


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any] | ValueError:
    members = dict(pairs)
    if len(members) > MOST_NAMES:
        return ValueError(f"Has {len(members)} fields; more than {MOST_NAMES} are not looked at")
    if len(members) < len(pairs):
        counted = Counter(name for name, _ in pairs)
        members |= {name: ValueError("Given more than once") for name in counted if counted[name] > 1}
    return members


def _number(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number


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
