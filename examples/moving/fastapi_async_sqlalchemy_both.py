"""Half moved: `POST /items/` is on `uow`, `GET /items/` uses `db` as before."""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi_async_sqlalchemy import SQLAlchemyMiddleware, db
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from examples.moving.fastapi_async_sqlalchemy_before import ROOM, Item, ItemOut, lifespan
from uow import Database, UnitOfWorkMiddleware, current_session

engine = create_async_engine("sqlite+aiosqlite:///items.db", pool_pre_ping=True)
database = Database.from_engines(writer=engine, handlers_settle="flush")

app = FastAPI(lifespan=lifespan)
app.add_middleware(SQLAlchemyMiddleware, custom_engine=engine, commit_on_exit=True)
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
async def list_items() -> Sequence[Item]:
    found = await db.session.scalars(select(Item).order_by(Item.id))
    return found.all()
