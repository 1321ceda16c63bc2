"""How the handlers reach a session, whoever gives it."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

AsyncGetter = Callable[[], Awaitable[AsyncSession]]
SyncGetter = Callable[[], Session]


@dataclass(frozen=True)
class Wiring:
    """How code gets its session with a peer.

    `give` is a FastAPI dependency that gives a getter. Where the peer hands a session to the handler, the
    getter returns that session; where code looks the session up in its context, the getter does so at
    each call. `own` is the peer's way to a session outside any request, which commits at its end.
    """

    give: Callable[..., Any]
    own: Callable[[], AbstractAsyncContextManager[AsyncSession]]


@dataclass(frozen=True)
class SyncWiring:
    """The same for sync sessions and `def` endpoints."""

    give: Callable[..., Any]
    own: Callable[[], AbstractContextManager[Session]]


class OutOfStock(Exception):
    """An error of the app's own, which its handler answers with 422."""


class Numbered(BaseModel):
    """An answer that must have a number."""

    number: int
