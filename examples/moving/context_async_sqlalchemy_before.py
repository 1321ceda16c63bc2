"""A shelf of items, with context-async-sqlalchemy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from context_async_sqlalchemy import DBConnect, db_session, new_non_ctx_atomic_session
from context_async_sqlalchemy.fastapi_utils import add_fastapi_http_db_session_middleware
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
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


def create_engine(host: str) -> AsyncEngine:
    return create_async_engine(f"sqlite+aiosqlite:///{host}", pool_pre_ping=True)


def create_session_maker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)


connection = DBConnect(create_engine, create_session_maker, host="items.db")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with new_non_ctx_atomic_session(connection) as session:
        own = await session.connection()
        await own.run_sync(Base.metadata.create_all)
    yield
    await connection.close()


app = FastAPI(lifespan=lifespan)
add_fastapi_http_db_session_middleware(app)


@app.post("/items/", status_code=201, response_model=ItemOut)
async def create_item(name: str) -> Item | JSONResponse:
    session = await db_session(connection)
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
