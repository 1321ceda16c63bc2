"""A shelf of items, on `uow`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from uow import Database, UnitOfWorkMiddleware, current_session

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


database = Database("sqlite:///items.db")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with database.new_unit() as unit:
        connection = await unit.session.connection()
        await connection.run_sync(Base.metadata.create_all)
    yield
    await database.dispose()


app = FastAPI(lifespan=lifespan)
app.add_middleware(UnitOfWorkMiddleware, database=database)


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
    session = current_session()
    found = await session.scalars(select(Item).order_by(Item.id))
    return found.all()
