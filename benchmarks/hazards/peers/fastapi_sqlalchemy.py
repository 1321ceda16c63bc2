"""`DBSessionMiddleware` with `commit_on_exit`, and the global `db` in `def` endpoints: its sessions are sync.

The wiring is that of its README: https://github.com/mfreeborn/fastapi-sqlalchemy#examples
"""

from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI
from fastapi_sqlalchemy import (
    DBSessionMiddleware,
    db,
)
from sqlalchemy.orm import Session
from starlette.types import ASGIApp

from benchmarks.hazards.app.build import build
from benchmarks.hazards.app.settings import engine_options, sync_url
from benchmarks.hazards.app.wiring import SyncGetter, SyncWiring


def create_app() -> ASGIApp:
    app = FastAPI()
    app.add_middleware(
        DBSessionMiddleware, db_url=sync_url(), engine_args=engine_options(), commit_on_exit=True
    )

    def session() -> Session:
        return db.session

    async def give() -> SyncGetter:
        return session

    @contextmanager
    def own() -> Iterator[Session]:
        with db():
            yield db.session
            db.session.commit()

    return build(app, SyncWiring(give, own))
