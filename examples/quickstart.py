"""A service that keeps items: run it with `uvicorn examples.quickstart:app`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from uow import Database, UnitOfWorkMiddleware, current_session


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


class ItemRepository:
    async def add(self, item: Item) -> None:
        current_session().add(item)
        await current_session().flush()  # gives the item its id

    async def all(self) -> Sequence[Item]:
        result = await current_session().scalars(select(Item).order_by(Item.id))
        return result.all()


database = Database("sqlite:///items.db")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with database:
        async with database.new_unit() as unit:
            connection = await unit.session.connection()
            await connection.run_sync(Base.metadata.create_all)
        yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(UnitOfWorkMiddleware, database=database)
items = ItemRepository()


@app.post("/items/", response_model=ItemOut)
async def create_item(name: str) -> Item:
    item = Item(name=name)
    await items.add(item)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items() -> Sequence[Item]:
    return await items.all()
