"""Half moved: `POST /items/` is on `uow`, `GET /items/` has its session from `Depends` as before."""

from collections.abc import Sequence

from fastapi import FastAPI

from examples.depends import Item, ItemOut, Items, engine, lifespan
from uow import Database, UnitOfWorkMiddleware, current_session

database = Database.from_engines(writer=engine, handlers_settle="flush")

app = FastAPI(lifespan=lifespan)
app.add_middleware(UnitOfWorkMiddleware, database=database)


@app.post("/items/", response_model=ItemOut)
async def create_item(name: str) -> Item:
    item = Item(name=name)
    current_session().add(item)
    await current_session().flush()
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items(items: Items) -> Sequence[Item]:
    return await items.all()
