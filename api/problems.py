"""Errors as answers: every refusal of the service is a problem document (RFC 9457)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from uow.problems import PROBLEMS, Problem, problem_response

INVALID_REQUEST = Problem("invalid-request", "The request is not valid", 422)
INTERNAL_ERROR = Problem("internal-error", "The service failed", 500)
BAD_REQUEST = Problem("bad-request", "The request cannot be read", 400)
NOT_FOUND = Problem("not-found", "There is nothing at this path", 404)
METHOD_NOT_ALLOWED = Problem("method-not-allowed", "The path does not have this method", 405)
UNTRUSTED_HOST = Problem("untrusted-host", "The service does not answer to this Host", 400)
PREFLIGHT_REFUSED = Problem("preflight-refused", "Pages of this origin may not send this request", 400)
CONTENT_TOO_LARGE = Problem("content-too-large", "The body is too large", 413)
HEADERS_TOO_LARGE = Problem("headers-too-large", "The request line and its headers are too large", 431)
TOO_MANY_CONNECTIONS = Problem("too-many-connections", "There are too many connections", 503, retry_after=1)

# What no use case is asked for, each with what it means.
GENERAL = {
    INVALID_REQUEST: "Something in the request is missing, unknown, of another type or out of bounds; "
    "`errors` names each field and what is the matter with it.",
    INTERNAL_ERROR: "A fault of the service. Its log has the reason under the `request_id`.",
    BAD_REQUEST: "The body is not JSON in UTF-8, or nested so deeply or with numbers so long that nobody "
    "reads it; or it broke off; or this is no HTTP/1.1 at all, and the connection is closed. Nothing was "
    "changed.",
    NOT_FOUND: "No route of the service has this path.",
    METHOD_NOT_ALLOWED: "The `Allow` header names the methods that the path has.",
    CONTENT_TOO_LARGE: "The body is longer than the service reads. Nothing of it was looked at.",
    UNTRUSTED_HOST: "The `Host` header is missing, malformed, or none of those that the service is set up "
    "for (`[security] trusted_hosts`).",
    PREFLIGHT_REFUSED: "A browser has asked for a page of another origin whether it may send a request. The "
    "origin is none of `[security] cors_origins`, or no route of the service takes the method or "
    "the headers.",
    HEADERS_TOO_LARGE: "The path with its parameters, the headers, or all of them together are longer than "
    "the service reads. Nothing was looked at, and the connection is closed.",
    TOO_MANY_CONNECTIONS: "The service holds as many connections as it may (`[server] max_connections`). "
    "Nothing was read of this one: try again after `Retry-After` seconds.",
}
_BY_STATUS = {each.status: each for each in (BAD_REQUEST, NOT_FOUND, METHOD_NOT_ALLOWED, CONTENT_TOO_LARGE)}
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

# The answer to a request that is wrong in thousands of ways stays short.
MOST_FAULTS = 20
LONGEST_TEXT = 200


class DomainError(Exception):
    """A use case refuses: each class has its problem, each instance its words and members."""

    problem: ClassVar[Problem]

    def __init__(self, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


def register(app: FastAPI) -> None:
    """Make every error that the app answers by itself a problem document."""
    app.add_exception_handler(DomainError, _domain_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, internal_error)


async def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DomainError)
    return _response_to(request, error.problem, detail=error.detail, **error.members)


async def _invalid_request(request: Request, error: Exception) -> Response:
    """Names each field, and keeps what was sent in it to itself: it may be a secret, or huge."""
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    faults = [_fault(fault) for fault in found[:MOST_FAULTS]]
    fields = ", ".join(dict.fromkeys(fault["field"] for fault in faults))
    more = f" And {len(found) - MOST_FAULTS} more, not listed." if len(found) > MOST_FAULTS else ""
    return _response_to(request, INVALID_REQUEST, detail=f"Not valid: {fields}.{more}", errors=faults)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code in {204, 205, 304}:
        return Response(status_code=error.status_code, headers=error.headers)
    problem = _BY_STATUS.get(error.status_code)
    if problem is None:
        phrase = HTTPStatus(error.status_code).phrase
        return _response_to(
            request,
            Problem(phrase.lower().replace(" ", "-"), phrase, error.status_code),
            detail=error.detail if error.detail != phrase else None,
            headers=error.headers,
        )
    headers = dict(error.headers or {})
    members: dict[str, Any] = {}
    if problem is METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    elif problem is BAD_REQUEST:
        members["errors"] = [{"field": "body", "message": "Cannot be read as JSON"}]
    detail = None if problem in {NOT_FOUND, METHOD_NOT_ALLOWED, CONTENT_TOO_LARGE} else error.detail
    return _response_to(request, problem, detail=detail, headers=headers, **members)


def _allowed(request: Request) -> list[str]:
    """Every method of the path; the framework names only those of the first route that has it."""
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]


async def internal_error(request: Request, error: Exception) -> Response:
    """Tells nothing of what happened but the name under which the log has it."""
    # Outside of the middleware that writes it into all others.
    request_id = getattr(request.state, "request_id", None)
    if request_id is None:
        return _response_to(request, INTERNAL_ERROR)
    return _response_to(
        request,
        INTERNAL_ERROR,
        detail="The log has the reason under this request id.",
        headers={"X-Request-ID": request_id},
        request_id=request_id,
    )


def _response_to(request: Request, problem: Problem, **members: Any) -> Response:
    # Not request.url, in which the client's Host header has a say.
    return problem_response(problem, instance=request.scope["path"], **members)


def _fault(fault: Mapping[str, Any]) -> dict[str, str]:
    if fault["type"] == "json_invalid":
        reason, position = fault["ctx"]["error"], fault["loc"][-1]
        return {"field": "body", "message": f"Not JSON: {reason} (character {position})"}
    path = ".".join(str(part) for part in fault["loc"])
    given = fault.get("input")  # of a body: `strict_json` puts errors in the place of values
    message = str(given) if isinstance(given, ValueError) else fault["msg"]
    return {"field": _printable(path), "message": _printable(message)}


def _printable(text: str) -> str:
    """A client names its fields as it likes: with a megabyte, or with what UTF-8 cannot repeat."""
    short = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where it is.", examples=["body.price"])
    message: str = Field(
        description="What is wrong with it.", examples=["Input should be greater than or equal to 0"]
    )


class ProblemDocument(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(
        description="Names the kind of problem; its page is at this path.",
        examples=["/problems/out-of-stock"],
    )
    title: str = Field(description="The kind of problem in words.", examples=["Out of stock"])
    status: int = Field(description="The status of the answer.", examples=[409])
    detail: str = Field(
        default="",
        description="What is the matter this time.",
        examples=["Not enough on hand of item 1."],
    )
    instance: str = Field(default="", description="The path that was asked for.", examples=["/orders/"])
    request_id: str = Field(
        default="",
        description="The request's name in the log.",
        examples=["6c1f1f2f2b5c4b2e8f3a0b9d7d1c5e4a"],
    )


class InvalidRequestDocument(ProblemDocument):
    """A problem document that names the fields that are not valid."""

    errors: list[Fault]


Responses = dict[int | str, dict[str, Any]]


def documented(*errors: type[DomainError], takes_input: bool = True, body: bool = False) -> Responses:
    """The `responses` of a route in its OpenAPI: these refusals, and those of its input."""
    by_status: defaultdict[int, list[Problem]] = defaultdict(list)
    general = [INVALID_REQUEST] if takes_input else []
    general += [BAD_REQUEST] if body else []
    for problem in (*general, *(error.problem for error in errors)):
        by_status[problem.status].append(problem)
    return {status: _response(*by_status[status]) for status in sorted(by_status)}


def documented_everywhere() -> Responses:
    """What any route may answer, beside its own refusals."""
    by_status: defaultdict[int, dict[str, Problem]] = defaultdict(dict)
    everywhere = [each for each in PROBLEMS.values() if each.status >= 500]
    general = (CONTENT_TOO_LARGE, HEADERS_TOO_LARGE, INTERNAL_ERROR, TOO_MANY_CONNECTIONS)
    for problem in (*general, *everywhere):
        by_status[problem.status][problem.name] = problem
    return {status: _response(*by_status[status].values()) for status in sorted(by_status)}


def _response(*problems: Problem) -> dict[str, Any]:
    only_faults = all(each is INVALID_REQUEST for each in problems)
    content: dict[str, Any] = {
        "schema": _schema(InvalidRequestDocument if only_faults else ProblemDocument),
        "examples": {each.name: {"value": _example(each)} for each in problems},
    }
    response: dict[str, Any] = {
        "description": "; or: ".join(problem.title for problem in problems),
        "content": {"application/problem+json": content},
    }
    if all(each.retry_after is not None for each in problems):
        schema = {"type": "integer", "minimum": 1}
        response["headers"] = {"Retry-After": {"description": "Seconds.", "schema": schema}}
    return response


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema in one piece: what is referred to from inside a response would be found nowhere."""
    schema = model.model_json_schema()
    for definition in schema.pop("$defs", {}).values():
        schema["properties"]["errors"]["items"] = definition
    return schema


def _example(problem: Problem) -> dict[str, Any]:
    example: dict[str, Any] = {"type": problem.type, "title": problem.title, "status": problem.status}
    if problem is INVALID_REQUEST:
        message = "Input should be greater than or equal to 0"
        example["errors"] = [{"field": "body.price", "message": message}]
    return example
