"""What schemathesis does not ask of an answer by itself; `schemathesis.toml` names this file."""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.core.transport import Response


@schemathesis.check
def each_problem_is_documented(ctx: Any, response: Response, case: schemathesis.Case[Any]) -> None:
    """An error is a problem document, and of a type that the operation says it may answer with."""
    if response.status_code < 400 or response.status_code == 405:  # a method that is no operation
        return
    document = response.json()
    assert document["status"] == response.status_code
    assert document["request_id"] == response.headers["x-request-id"][0]
    told = case.operation.definition.raw["responses"][str(response.status_code)]
    names = told["content"]["application/problem+json"]["examples"]
    assert document["type"].removeprefix("/problems/") in names


@schemathesis.check
def what_the_document_allows_is_never_called_invalid(
    ctx: Any, response: Response, case: schemathesis.Case[Any]
) -> None:
    """Other reasons of a 422, such as a cursor that was made up, cannot be told in a schema."""
    if response.status_code == 422 and case.meta is not None and case.meta.generation.mode.is_positive:
        assert response.json()["type"] != "/problems/invalid-request"
