"""Structured logs: one line a request, and everything else in the same form."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import EventDict, Processor, WrappedLogger

from api.keys import hide_keys
from api.request_id import request_id_of
from api.settings import LoggingSettings
from uow import UnitOfWork
from uow.observe import Settlement, UnitObserver

log = structlog.stdlib.get_logger("api.request")


def configure_logging(settings: LoggingSettings, **always: object) -> None:
    """Send the logs of the service and of its libraries to standard error, in one form.

    Every line has what `always` names.
    """

    def add_always(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        event.update(always)
        return event

    shared: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        add_always,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(settings),
                _without_keys,
            ],
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.level.upper())
    logging.captureWarnings(True)


def _renderers(settings: LoggingSettings) -> list[Processor]:
    # Tracebacks stay plain: those with local variables would write what requests contain.
    if settings.format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    colours = sys.stderr.isatty()
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain)]


@dataclass(slots=True)
class RequestRecord:
    """What the log line of one request will say; filled in while the request runs."""

    scope: Scope
    request_id: str
    began: float = field(default_factory=perf_counter)
    ended: float | None = None
    status: int | None = None
    outcome: str | None = None
    statements: int = 0
    database_seconds: float = 0.0
    waited: float = 0.0
    client_gone: bool = False
    attempts: int = 1
    reasons: dict[int, str] = field(default_factory=dict)
    """Why an attempt was not kept, by its number."""

    @property
    def retried(self) -> dict[str, object]:
        """How often the request was run, and why more than once; nothing of one that was run once."""
        if self.attempts == 1:
            return {}
        reasons = [reason for number, reason in self.reasons.items() if number < self.attempts]
        return {"attempts": self.attempts, "retried": ",".join(dict.fromkeys(reasons)) or None}

    @property
    def undone(self) -> dict[str, object]:
        """Why nothing was kept; nothing of what was kept, and of an answer that says it itself."""
        reason = self.reasons.get(self.attempts)
        return {} if reason in (None, "answer") else {"reason": reason}

    @property
    def route(self) -> str | None:
        """The path as the route declares it; None where there is none, or none was found yet."""
        return getattr(self.scope.get("route"), "path", None)

    @property
    def principal(self) -> str | None:
        """Whose key came with the request; None where none was asked for, and where it was nobody's."""
        name: str | None = self.scope["state"].get("principal")
        return name

    def write(self, failure: Exception | None) -> None:
        """One line; of a request that failed in the service, as an error."""
        duration = (self.ended or perf_counter()) - self.began
        level = logging.ERROR if (self.status or 0) >= 500 else logging.INFO
        log.log(
            level,
            "request",
            method=self.scope["method"],
            route=self.route,
            path=self.scope["path"],
            status=self.status,
            # None where nothing was asked of the database.
            outcome=self.outcome,
            pool_wait_ms=round(self.waited * 1000, 3),
            database_ms=round(self.database_seconds * 1000, 3),
            statements=self.statements,
            duration_ms=round(duration * 1000, 3),
            request_id=self.request_id,
            **self.undone,
            **self.retried,
            **({"principal": self.principal} if self.principal else {}),
            **({"client_gone": True} if self.client_gone else {}),
            **({"exc_info": failure} if failure else {}),
        )


# Set once a request, to a record that is then only changed: what a thread, or the task that settles
# a unit, would set here could not be seen from the request.
_record: ContextVar[RequestRecord] = ContextVar("api_request_record")


def current_record() -> RequestRecord | None:
    """That of the request in which the running code is, if it is in one."""
    return _record.get(None)


class RequestLogMiddleware:
    """Names each request, answers its name as X-Request-ID, and logs one line when it is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = RequestRecord(scope, request_id_of(scope))
        # The handler of unexpected errors runs outside of this middleware, and reads it there.
        scope.setdefault("state", {})["request_id"] = record.request_id
        token = _record.set(record)
        failure: Exception | None = None
        try:
            await self.app(scope, receive, _watched(send, record))
        except Exception as error:
            failure = error
            record.status = record.status or 500
            raise
        finally:
            record.write(failure)
            _record.reset(token)


class RequestObserver(UnitObserver):
    """A `uow.observe.UnitObserver` that counts for the log line what the units of a request do."""

    def watching(self) -> AbstractContextManager[None]:
        """To be entered while the service serves."""
        return nullcontext()

    def statement(self, unit: UnitOfWork, seconds: float) -> None:
        if record := _record.get(None):
            record.statements += 1
            record.database_seconds += seconds

    def settled(self, unit: UnitOfWork, how: Settlement) -> None:
        record = _record.get(None)
        if record and unit.is_request:
            # Once for each attempt: the line says how the last one ended.
            record.outcome = unit.outcome
            record.attempts = how.attempt
            record.waited = how.waited
            if how.reason is not None:
                record.reasons[how.attempt] = how.reason

    def client_gone(self, unit: UnitOfWork) -> None:
        if record := _record.get(None):
            record.client_gone = True


def _watched(send: Send, record: RequestRecord) -> Send:
    """`send`, noting the status and the end of the answer, and adding the request's name to it."""

    async def watched(message: Message) -> None:
        if message["type"] == "http.response.start":
            record.status = message["status"]
            headers = MutableHeaders(raw=[*message.get("headers", ())])
            headers["X-Request-ID"] = record.request_id
            message = {**message, "headers": headers.raw}
        await send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            record.ended = perf_counter()

    return watched


def _add_request_id(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Every line that is written during a request names it."""
    if record := _record.get(None):
        event.setdefault("request_id", record.request_id)
    return event


def _without_keys(logger: WrappedLogger, method: str, line: Any) -> str:
    """A client may write its key where it does not belong, such as in the path."""
    return hide_keys(line)
