"""Half moved: `POST /items/` is on `uow`, `GET /items/` uses `db_session` as before."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from context_async_sqlalchemy import DBConnect, db_session
from context_async_sqlalchemy.fastapi_utils import add_fastapi_http_db_session_middleware
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from examples.moving.context_async_sqlalchemy_before import ROOM, Base, Item, ItemOut, create_session_maker
from uow import Database, UnitOfWorkMiddleware, current_session

engine = create_async_engine("sqlite+aiosqlite:///items.db", pool_pre_ping=True)
connection = DBConnect(lambda host: engine, create_session_maker, host="items.db")
database = Database.from_engines(writer=engine, handlers_settle="flush")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as own:
        await own.run_sync(Base.metadata.create_all)
    yield
    await connection.close()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
add_fastapi_http_db_session_middleware(app)
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
    session = await db_session(connection)
    found = await session.scalars(select(Item).order_by(Item.id))
    return found.all()
