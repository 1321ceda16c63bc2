"""The router that every feature uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter

from api.strict import StrictRoute


class Router(APIRouter):
    """Reads bodies strictly, and answers HEAD wherever it answers GET (RFC 9110, section 9.3.2).

    The server leaves the body out, so that the headers are those of the GET. HEAD is not in the OpenAPI
    document, which would say everything twice.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(route_class=StrictRoute, **options)

    def add_api_route(
        self, path: str, endpoint: Callable[..., Any], *, methods: Any = None, **options: Any
    ) -> None:
        super().add_api_route(path, endpoint, methods=methods, **options)
        if "GET" in (methods or ()):
            options["include_in_schema"] = False
            super().add_api_route(path, endpoint, methods=["HEAD"], **options)
