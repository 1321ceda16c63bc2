"""The headers of successful answers, for the `responses` of a route in its OpenAPI."""

from __future__ import annotations

from typing import Any

from api.problems import Responses

EXAMPLE_TAG = '"9f2d6c0a41b7e85d33f0c6a1b2d4e7"'

_ETAG: dict[str, Any] = {
    "ETag": {
        "description": "The entity tag of what the answer shows.",
        "schema": {"type": "string", "examples": [EXAMPLE_TAG]},
    }
}
_LOCATION: dict[str, Any] = {
    "Location": {"description": "The path of what was made.", "schema": {"type": "string"}}
}
_NEXT: dict[str, Any] = {
    "Link": {
        "description": 'Where the next page is, `<...>; rel="next"`; none with the last.',
        "schema": {"type": "string"},
    }
}


# What an answer holds that another request needs: the id of what was made, its tag, the first of a page.
ID = "$response.body#/id"
FIRST_ID = "$response.body#/items/0/id"
TAG = "$response.header.ETag"

Links = dict[str, dict[str, Any]]


def leads_to(*operations: str, **parameters: str) -> Links:
    """The `links` of an answer: these operations take these parameters from it."""
    return {name: {"operationId": name, "parameters": parameters} for name in operations}


def tagged(status: int, links: Links | None = None) -> Responses:
    """The `responses` of a route whose answer has an `ETag`, and with 201 a `Location`."""
    headers = _ETAG | (_LOCATION if status == 201 else {})
    return {status: {"description": "Successful Response", "headers": headers, "links": links or {}}}


def tagged_or_304() -> Responses:
    return tagged(200) | {304: {"description": "The client has it already", "headers": _ETAG}}


def located(links: Links) -> Responses:
    return {201: {"description": "Successful Response", "headers": _LOCATION, "links": links}}


def paged(links: Links) -> Responses:
    return {200: {"description": "Successful Response", "headers": _NEXT, "links": links}}
