"""Half moved: `POST /items/` is on `uow`, `GET /items/` has its session from `AdvancedAlchemy` as before."""

from collections.abc import Sequence
from typing import Annotated

from advanced_alchemy.extensions.fastapi import AdvancedAlchemy, AsyncSessionConfig, SQLAlchemyAsyncConfig
from advanced_alchemy.filters import OrderBy
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession

from examples.moving.advanced_alchemy_before import ROOM, Item, ItemOut, ItemRepository
from uow import Database, UnitOfWorkMiddleware, current_session

config = SQLAlchemyAsyncConfig(
    connection_string="sqlite+aiosqlite:///items.db",
    session_config=AsyncSessionConfig(expire_on_commit=False),
    create_all=True,
    commit_mode="autocommit",
)

app = FastAPI()
alchemy = AdvancedAlchemy(config=config, app=app)
database = Database.from_engines(writer=alchemy.get_async_engine(), handlers_settle="flush")
app.add_middleware(UnitOfWorkMiddleware, database=database)  # the last one, so it is outside

Db = Annotated[AsyncSession, Depends(alchemy.provide_session())]


@app.post("/items/", status_code=201, response_model=ItemOut)
async def create_item(name: str) -> Item | JSONResponse:
    items = ItemRepository(session=current_session())
    item = await items.add(Item(name=name))
    if await items.count() > ROOM:
        return JSONResponse({"detail": "the shelf is full"}, 409)
    return item


@app.get("/items/", response_model=list[ItemOut])
async def list_items(db: Db) -> Sequence[Item]:
    return await ItemRepository(session=db).list(OrderBy("id"))
