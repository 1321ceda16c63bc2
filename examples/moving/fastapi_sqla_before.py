"""A shelf of items, with fastapi-sqla: its database is in the environment variable `SQLALCHEMY_URL`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi_sqla import AsyncSession, open_async_session, setup_middlewares, startup
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
    await startup()
    async with open_async_session() as session:
        connection = await session.connection()
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=lifespan)
setup_middlewares(app)


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
