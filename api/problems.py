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

from uow.problems import Problem, problem_response

INVALID_REQUEST = Problem("invalid-request", "The request is not valid", 422)
INTERNAL_ERROR = Problem("internal-error", "The service failed", 500)

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
    app.add_exception_handler(Exception, _internal_error)


async def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DomainError)
    return _response_to(request, error.problem, detail=error.detail, **error.members)


async def _invalid_request(request: Request, error: Exception) -> Response:
    """Names each field, and keeps what was sent in it to itself: it may be a secret, or huge."""
    assert isinstance(error, RequestValidationError)
    faults = [_fault(fault) for fault in error.errors()[:MOST_FAULTS]]
    fields = ", ".join(dict.fromkeys(fault["field"] for fault in faults))
    return _response_to(request, INVALID_REQUEST, detail=f"Not valid: {fields}.", errors=faults)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses: an unknown path, a method that a path does not have."""
    assert isinstance(error, HTTPException)
    if error.status_code in {204, 205, 304}:
        return Response(status_code=error.status_code, headers=error.headers)
    phrase = HTTPStatus(error.status_code).phrase
    problem = Problem(phrase.lower().replace(" ", "-"), phrase, error.status_code)
    detail = error.detail if error.detail != phrase else None
    return _response_to(request, problem, detail=detail, headers=error.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    """Tells nothing of what happened but the name under which the log has it."""
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
    return {"field": _printable(path), "message": _printable(fault["msg"])}


def _printable(text: str) -> str:
    """A client names its fields as it likes: with a megabyte, or with what UTF-8 cannot repeat."""
    short = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


class ProblemDocument(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="Names the kind of problem.")
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The status of the answer.")
    detail: str = Field(default="", description="What is the matter this time.")
    instance: str = Field(default="", description="The path that was asked for.")


Responses = dict[int | str, dict[str, Any]]


def documented(*errors: type[DomainError], takes_input: bool = True) -> Responses:
    """The `responses` of a route in its OpenAPI: these refusals, and an invalid request."""
    by_status: defaultdict[int, list[Problem]] = defaultdict(list)
    if takes_input:
        by_status[INVALID_REQUEST.status].append(INVALID_REQUEST)
    for error in errors:
        by_status[error.problem.status].append(error.problem)
    return {status: _response(*by_status[status]) for status in sorted(by_status)}


def documented_everywhere() -> Responses:
    """What any route may answer, beside its own refusals."""
    return {"default": {**_response(), "description": "Any other problem"}}


def _response(*problems: Problem) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": ProblemDocument.model_json_schema()}
    if problems:
        content["examples"] = {each.name: {"value": _example(each)} for each in problems}
    return {
        "description": "; or: ".join(problem.title for problem in problems),
        "content": {"application/problem+json": content},
    }


def _example(problem: Problem) -> dict[str, Any]:
    return {"type": problem.type, "title": problem.title, "status": problem.status}
