"""The name of a request: given by the client or made here, and a member of each problem document."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import CONTENT_TOO_LARGE, PREFLIGHT_REFUSED, UNTRUSTED_HOST
from uow.problems import Problem, problem_response

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_PROBLEM = "application/problem+json"


def request_id_of(scope: Scope) -> str:
    """What the client or a proxy named the request, if it is 1 to 128 visible characters; or a new name.

    A name that comes twice is none: two sides would look for different ones.
    """
    given = Headers(scope=scope).getlist("x-request-id")
    if len(given) == 1 and _REQUEST_ID.fullmatch(given[0]):
        return given[0]
    return uuid4().hex


class ProblemDocumentMiddleware:
    """Writes the name of the request into each problem document, whoever of the layers below made it.

    It also says as documents what Starlette's middlewares for the size of the body, hosts and origins
    say as plain text.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self.app(scope, receive, _Rewriter(scope, receive, send))


class _Rewriter:
    """`send`, which holds a problem document back until it is complete."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._held: Message | None = None
        self._content = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._is_ours(message):
            self._held = message
        elif self._held is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._content += message.get("body", b"")
            if not message.get("more_body", False):
                await self._finish(self._held)

    def _is_ours(self, start: Message) -> bool:
        content_type = Headers(raw=list(start.get("headers", ()))).get("content-type", "")
        return content_type == _PROBLEM or (
            start["status"] in {400, 413} and content_type.startswith("text/plain")
        )

    async def _finish(self, start: Message) -> None:
        request_id = self._scope["state"]["request_id"]
        headers = MutableHeaders(raw=list(start.get("headers", ())))
        content = self._content
        if headers.get("content-type") != _PROBLEM:
            problem, detail = _refusal(start["status"], content.decode())
            content = bytes(problem_response(problem, detail=detail, instance=self._scope["path"]).body)
            headers["content-type"] = _PROBLEM
        if content:  # none to HEAD
            document: dict[str, Any] = json.loads(content)
            document.setdefault("request_id", request_id)
            content = json.dumps(document, ensure_ascii=False).encode()
            headers["content-length"] = str(len(content))
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content, "more_body": False})


def _refusal(status: int, text: str) -> tuple[Problem, str | None]:
    """Which problem a middleware of Starlette means."""
    if status == 413:
        return CONTENT_TOO_LARGE, None
    cors, _, what = text.partition("Disallowed CORS ")
    if what and not cors:
        return PREFLIGHT_REFUSED, f"Not allowed to pages of this origin: {what}."
    return UNTRUSTED_HOST, None
