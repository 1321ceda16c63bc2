"""The same service with a session from `Depends`, as projects write it that want one transaction a request.

`tests/test_examples.py` shows what this one does wrong. Run it with `uvicorn examples.depends:app`.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class ItemOut(BaseModel):
    id: int
    name: str


engine = create_async_engine("sqlite+aiosqlite:///items.db")
make_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_db() -> AsyncIterator[AsyncSession]:
    async with make_session() as session:
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise


Db = Annotated[AsyncSession, Depends(get_db)]


class ItemRepository:
    def __init__(self, db: Db) -> None:
        self.db = db

    async def add(self, item: Item) -> None:
        self.db.add(item)
        await self.db.flush()

    async def all(self) -> Sequence[Item]:
        result = await self.db.scalars(select(Item).order_by(Item.id))
        return result.all()


Items = Annotated[ItemRepository, Depends()]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/items/", response_model=ItemOut)
async def create_item(name: str, items: Items) -> Item:
    item = Item(name=name)
    await items.add(item)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items(items: Items) -> Sequence[Item]:
    return await items.all()
