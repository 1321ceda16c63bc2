"""`/problems/{name}`: what each `type` of a problem document means, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from inspect import cleandoc
from typing import Annotated

from fastapi import Path, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from api import problems
from api.problems import DomainError, documented
from api.routing import Router
from uow.problems import MISUSES, PROBLEMS, Condition, Problem

router = Router(prefix="/problems", tags=["problems"])

# The unit of work's own problems, by status: what they have in common for a client.
_OF_DATABASE = {
    409: "The database found that the request contradicts what is stored. Nothing was changed.",
    422: "The database found a value that is not allowed. Nothing was changed.",
    500: "A fault of the service. If `outcome` is `rolled_back`, nothing was changed.",
    503: "The database could not do it now. Nothing was changed: try again after `Retry-After` seconds.",
}
_UNKNOWN = (
    "The connection to the database was lost while the change was confirmed. It may have been made or not: "
    "look before you try again."
)


class UnknownProblem(DomainError):
    """No problem document of this service has a `type` with this name."""

    problem = Problem("unknown-problem", "There is no such problem", 404)

    def __init__(self) -> None:
        super().__init__("No problem document has a type of this name.")


@dataclass(frozen=True, slots=True)
class Explanation:
    """A kind of problem, and what it means in words."""

    problem: Problem
    text: str


def catalogue() -> dict[str, Explanation]:
    """Every problem that the service can answer with, by its name."""
    found = {each.problem.name: each for each in _all()}
    return dict(sorted(found.items()))


def _all() -> Iterator[Explanation]:
    for problem in (*MISUSES.values(), *PROBLEMS.values()):
        yield Explanation(problem, _OF_DATABASE[problem.status])
    yield Explanation(PROBLEMS[Condition.COMMIT_UNKNOWN], _UNKNOWN)
    for problem, text in problems.GENERAL.items():
        yield Explanation(problem, text)
    for error in _refusals(DomainError):
        yield Explanation(error.problem, cleandoc(error.__doc__ or error.problem.title))


def _refusals(cls: type[DomainError]) -> Iterator[type[DomainError]]:
    for each in cls.__subclasses__():
        if hasattr(each, "problem"):
            yield each
        yield from _refusals(each)


@router.get(
    "/{name}",
    responses=documented(UnknownProblem)
    | {
        200: {
            "description": "The explanation, as JSON or as a page",
            "content": {
                "application/json": {
                    "example": {
                        "type": "/problems/out-of-stock",
                        "title": "Out of stock",
                        "status": 409,
                        "description": "An order asks for more than is on hand.",
                    }
                },
                "text/html": {"schema": {"type": "string"}},
            },
        }
    },
    response_class=Response,
    summary="What a type of problem means",
)
async def explain_problem(
    name: Annotated[str, Path(examples=["out-of-stock"])], request: Request
) -> Response:
    """A page for browsers (`Accept: text/html`), JSON for everybody else."""
    found = catalogue().get(name)
    if found is None:
        raise UnknownProblem
    headers = {"Vary": "Accept", "Cache-Control": "max-age=3600"}
    accept = ",".join(request.headers.getlist("accept"))
    if _quality(accept, "text/html") > _quality(accept, "application/json"):
        return HTMLResponse(_page(found), headers=headers)
    return JSONResponse(
        {
            "type": found.problem.type,
            "title": found.problem.title,
            "status": found.problem.status,
            "description": found.text,
        },
        headers=headers,
    )


def _quality(accept: str, media_type: str) -> float:
    """How much an Accept header wants a type (RFC 9110, section 12.5.1); the most specific range decides."""
    main = media_type.partition("/")[0]
    qualities: dict[str, float] = {}
    for element in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in element.split(";"))
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        qualities[media_range] = _number(quality)
    ranges = (media_type, f"{main}/*", "*/*")
    return next((qualities[each] for each in ranges if each in qualities), 0.0)


def _number(text: str) -> float:
    try:
        return min(max(float(text), 0.0), 1.0)
    except ValueError:
        return 0.0


def _page(found: Explanation) -> str:
    title = escape(found.problem.title)
    paragraphs = "".join(f"<p>{escape(each)}</p>" for each in found.text.split("\n\n"))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<h1>{title}</h1><p>Status {found.problem.status}, type <code>{found.problem.type}</code></p>"
        f"{paragraphs}</html>"
    )
