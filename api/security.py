"""Who may ask what: API keys with scopes, hosts, foreign origins, and what answers tell browsers.

The guard is a middleware and not a dependency of routes. It stands before the router and lets nothing
pass but the paths that it names: a route that is added is guarded before anybody thinks of it, and a path
that is written in an unusual way is one of no name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.keys import Keyring, Principal
from api.problems import DomainError, Responses, documented
from api.sections import listed
from api.settings import SecuritySettings
from uow.problems import Problem, problem_response

# Probes have no keys, and whoever is refused may read why.
OPEN = re.compile(r"/livez|/readyz|/problems/[^/]+")
OPEN_WITH_DOCS = re.compile(rf"{OPEN.pattern}|/openapi\.json|/docs|/docs/start\.js|/docs/assets/[^/]+/[^/]+")

# RFC 9110, section 9.2.1. All others, those that nobody knows included, need `write`.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# What a page of another origin may send and read.
_METHODS = ("GET", "HEAD", "POST", "PATCH", "DELETE")
_READ_HEADERS = (
    "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "X-Request-ID",
)  # fmt: skip
_TOLD_HEADERS = (
    "Allow", "ETag", "Idempotency-Replayed", "Link", "Location", "Retry-After", "WWW-Authenticate",
    "X-Request-ID",
)  # fmt: skip


class KeyRequired(DomainError):
    """The request has no key, or one that this service does not know.

    Send the whole key, `inv_..._...`, in one header: `Authorization: Bearer inv_..._...`.
    """

    problem = Problem("key-required", "A valid key is needed", 401)


class ScopeMissing(DomainError):
    """The key is valid, and may not do this: `scope` is what it lacks.

    `GET`, `HEAD` and `OPTIONS` need `read`, all other methods `write`; neither includes the other.
    """

    problem = Problem("scope-missing", "The key may not do this", 403)


class GuardMiddleware:
    """Lets nothing pass without a key that may do it, but the open paths."""

    def __init__(self, app: ASGIApp, *, keys: Keyring, is_open: re.Pattern[str] = OPEN) -> None:
        self.app = app
        self.keys = keys
        self.is_open = is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self.is_open.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": "a valid key is needed"})

    def _refusal(self, scope: Scope) -> Response | None:
        given = Headers(scope=scope).getlist("authorization")
        holder = self._holder(given)
        if holder is None and not given:
            detail = "Send a key as Authorization: Bearer inv_..._..."
            return _refused(scope, KeyRequired, detail, "")
        if holder is None:
            # The same for each way to be wrong: nobody learns which part of a guess was right.
            detail = "Authorization does not have a key of this service."
            return _refused(scope, KeyRequired, detail, ', error="invalid_token"')
        scope.setdefault("state", {})["principal"] = holder.name
        needed = "read" if scope.get("method") in SAFE_METHODS else "write"
        if needed not in holder.scopes:
            challenge = f', error="insufficient_scope", scope="{needed}"'
            return _refused(
                scope, ScopeMissing, f"It needs a key with the scope {needed}.", challenge, scope=needed
            )
        return None

    def _holder(self, given: list[str]) -> Principal | None:
        # Of two headers a proxy may have read the other one.
        if len(given) != 1:
            return None
        scheme, _, key = given[0].partition(" ")
        return self.keys.holder_of(key.strip(" ")) if scheme.lower() == "bearer" else None


def _refused(asked: Scope, error: type[DomainError], detail: str, challenge: str, **members: Any) -> Response:
    headers = {"WWW-Authenticate": f'Bearer realm="api"{challenge}'}
    path = asked["path"]
    return problem_response(error.problem, detail=detail, instance=path, headers=headers, **members)


class SecurityHeadersMiddleware:
    """Tells browsers and caches what they may do with an answer, where the answer does not say so itself."""

    def __init__(self, app: ASGIApp, *, hsts_max_age: int = 0) -> None:
        self.app = app
        self.hsts_max_age = hsts_max_age

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        secure = scope.get("scheme") == "https" and self.hsts_max_age > 0

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=[*message.get("headers", ())])
                complete(headers)
                if secure:
                    headers["Strict-Transport-Security"] = f"max-age={self.hsts_max_age}"
                message = {**message, "headers": headers.raw}
            await send(message)

        await self.app(scope, receive, with_headers)


_ORIGIN = re.compile(r"https?://[^/]*/*")


def complete(headers: MutableHeaders) -> None:
    """Add what browsers and caches are told with each answer."""
    headers["X-Content-Type-Options"] = "nosniff"
    headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    # What has a tag may be kept by its client, if it asks each time; nothing may be kept by others.
    headers.setdefault("Cache-Control", "private, no-cache" if "etag" in headers else "no-store")
    if "location" in headers:
        # The router would send a client on to the Host that it has named itself.
        headers["Location"] = _ORIGIN.sub("/", headers["location"], count=1)


def protect(app: FastAPI, settings: SecuritySettings) -> None:
    """Add the guard, the origins and the hosts, the last of them outermost.

    A page of another origin may read why it was refused; a Host that is not ours is told nothing more.
    """
    if settings.authentication == "api-keys":
        is_open = OPEN_WITH_DOCS if settings.public_docs else OPEN
        app.add_middleware(GuardMiddleware, keys=Keyring(settings.keys), is_open=is_open)
    if origins := listed(settings.cors_origins):
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=_READ_HEADERS,
            expose_headers=_TOLD_HEADERS,
            # Never cookies: "any origin" then gives a page nothing but what it could ask for itself.
            allow_credentials=False,
        )
    if "*" not in (hosts := listed(settings.trusted_hosts)):
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)


_SCHEME = HTTPBearer(
    scheme_name="API key",
    bearerFormat="inv_..._...",
    description="A key of this service. Its scope `read` is for GET, HEAD and OPTIONS, `write` for all else.",
    auto_error=False,
)


class Described(NamedTuple):
    """What a router is included with."""

    dependencies: Sequence[Any]
    responses: Responses


def described(settings: SecuritySettings) -> Described:
    """What tells in the OpenAPI document of the guarded routes what the guard does."""
    if settings.authentication == "none":
        return Described([], {})
    return Described([Depends(_SCHEME)], documented(KeyRequired, ScopeMissing, takes_input=False))
