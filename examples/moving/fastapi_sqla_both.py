"""Half moved: `POST /items/` is on `uow`, `GET /items/` takes its `AsyncSession` as before."""

import os
from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi_sqla import AsyncSession, setup_middlewares
from sqlalchemy import select

from examples.moving.fastapi_sqla_before import ROOM, Item, ItemOut, lifespan
from uow import Database, UnitOfWorkMiddleware, current_session

database = Database(os.environ["SQLALCHEMY_URL"], hide_parameters=True, handlers_settle="flush")

app = FastAPI(lifespan=lifespan)
setup_middlewares(app)
app.add_middleware(UnitOfWorkMiddleware, database=database)  # the last one, so it is outside


@app.post("/items/", status_code=201, response_model=ItemOut)
async def create_item(name: str) -> Item | JSONResponse:
    session = current_session()
    item = Item(name=name)
    session.add(item)
    await session.flush()
    if len((await session.scalars(select(Item))).all()) > ROOM:
        return JSONResponse({"detail": "the shelf is full"}, 409)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items(session: AsyncSession) -> Sequence[Item]:
    found = await session.scalars(select(Item).order_by(Item.id))
    return found.all()
