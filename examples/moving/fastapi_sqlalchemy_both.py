"""Half moved: `POST /items/` is on `uow`, `GET /items/` uses `db` as before."""

from collections.abc import Sequence

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi_sqlalchemy import DBSessionMiddleware, db
from sqlalchemy import create_engine, select

from examples.moving.fastapi_sqlalchemy_before import ROOM, Item, ItemOut, lifespan
from uow import Database, UnitOfWorkMiddleware, current_sync_session

engine = create_engine("sqlite:///items.db")
database = Database.from_engines(sync_writer=engine, handlers_settle="flush")

app = FastAPI(lifespan=lifespan)
app.add_middleware(DBSessionMiddleware, custom_engine=engine, commit_on_exit=True)
app.add_middleware(UnitOfWorkMiddleware, database=database)  # the last one, so it is outside


@app.post("/items/", status_code=201, response_model=ItemOut)
def create_item(name: str) -> Item | JSONResponse:
    item = Item(name=name)
    current_sync_session().add(item)
    current_sync_session().flush()
    if len(current_sync_session().scalars(select(Item)).all()) > ROOM:
        return JSONResponse({"detail": "the shelf is full"}, 409)
    return item


@app.get("/items/", response_model=list[ItemOut])
def list_items() -> Sequence[Item]:
    return db.session.scalars(select(Item).order_by(Item.id)).all()
