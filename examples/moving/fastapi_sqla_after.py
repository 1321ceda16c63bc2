"""A shelf of items, on `uow`: its database is in the environment variable `SQLALCHEMY_URL`."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession as Session
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


database = Database(os.environ["SQLALCHEMY_URL"], hide_parameters=True)


async def give_session() -> Session:
    return current_session()


AsyncSession = Annotated[Session, Depends(give_session)]


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
async def create_item(name: str, session: AsyncSession) -> Item | JSONResponse:
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
