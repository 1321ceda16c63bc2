"""A shelf of items, with fastapi-sqlalchemy."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi_sqlalchemy import DBSessionMiddleware, db
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
    with db(commit_on_exit=True):
        Base.metadata.create_all(db.session.connection())
    yield


app = FastAPI(lifespan=lifespan)
app.add_middleware(DBSessionMiddleware, db_url="sqlite:///items.db", commit_on_exit=True)


@app.post("/items/", status_code=201, response_model=ItemOut)
def create_item(name: str) -> Item | JSONResponse:
    item = Item(name=name)
    db.session.add(item)
    db.session.flush()
    if len(db.session.scalars(select(Item)).all()) > ROOM:
        return JSONResponse({"detail": "the shelf is full"}, 409)
    return item


@app.get("/items/", response_model=list[ItemOut])
def list_items() -> Sequence[Item]:
    return db.session.scalars(select(Item).order_by(Item.id)).all()
