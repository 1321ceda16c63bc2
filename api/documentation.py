"""`/docs`: the OpenAPI document as a page for people, all of it served from here: no other host is asked."""

from __future__ import annotations

from html import escape
from importlib.metadata import version
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, Response

from api.routing import Router

OPTIONS: dict[str, Any] = {
    "summary": "Items with stock, and orders that reserve it.",
    "description": "HEAD is answered wherever GET is, with the same headers.",
    # Names for the clients that are made from the document; they stay when a path changes.
    "generate_unique_id_function": attrgetter("name"),
    # The framework's own pages load their scripts from other hosts.
    "docs_url": None,
    "redoc_url": None,
}

router = Router(prefix="/docs", include_in_schema=False)

_VERSION = version("fastapi-offline")
_FOLDER = Path(str(files("fastapi_offline"))) / "static"
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}

# An asset is named with its version, so nobody has to ask again for what is there for good.
_FOR_GOOD = {"Cache-Control": "public, max-age=31536000, immutable"}
_ASK_AGAIN = {"Cache-Control": "no-cache"}
# Scripts are files, so the page needs no inline ones; Swagger UI has its icons in its style sheet.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Paths are relative, so that they hold behind a proxy that adds a prefix.
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/assets/{version}/swagger-ui.css">
<div id="documentation"></div>
<script src="docs/assets/{version}/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</html>
"""
# Without a validator: the one that it has by default is somebody else's.
_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#documentation",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


@router.get("")
async def show_documentation(request: Request) -> Response:
    page = _PAGE.format(title=escape(request.app.title), version=_VERSION)
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY, **_ASK_AGAIN})


@router.get("/start.js")
async def start_documentation() -> Response:
    return Response(_START, media_type="text/javascript", headers=_ASK_AGAIN)


@router.get("/assets/{version}/{name}")
async def show_asset(version: str, name: str) -> Response:
    if version != _VERSION or name not in _ASSETS:
        raise HTTPException(404)
    return FileResponse(_FOLDER / name, media_type=_ASSETS[name], headers=_FOR_GOOD)
