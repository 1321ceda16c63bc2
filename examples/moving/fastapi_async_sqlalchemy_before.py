"""A shelf of items, with fastapi-async-sqlalchemy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi_async_sqlalchemy import SQLAlchemyMiddleware, db
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ROOM = 3  # so many items fit on the shelf


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with db(commit_on_exit=True):
        connection = await db.session.connection()
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(
    SQLAlchemyMiddleware,
    db_url="sqlite+aiosqlite:///items.db",
    engine_args={"pool_pre_ping": True},
    commit_on_exit=True,
)


@app.post("/items/", status_code=201, response_model=ItemOut)
async def create_item(name: str) -> Item | JSONResponse:
    item = Item(name=name)
    db.session.add(item)
    await db.session.flush()
    if len((await db.session.scalars(select(Item))).all()) > ROOM:
        return JSONResponse({"detail": "the shelf is full"}, 409)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items() -> Sequence[Item]:
    found = await db.session.scalars(select(Item).order_by(Item.id))
    return found.all()
