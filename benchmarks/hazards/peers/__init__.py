"""The peers: which there are, and what each needs."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """One way to give an app its sessions; `module` says in its docstring where the wiring is from.

    `environment` names the environment that has its packages. Each peer has one app, `create_app()`.
    """

    name: str
    title: str
    package: str | None = None
    environment: str = "peers"
    sync: bool = False

    @property
    def module(self) -> str:
        return f"{__name__}.{self.name}"

    @property
    def file(self) -> Path:
        return Path(__file__).with_name(f"{self.name}.py")


PEERS = (
    Peer("depends", "Depends + yield"),
    Peer("depends_function", 'Depends(scope="function")'),
    Peer("fastapi_sqlalchemy", "fastapi-sqlalchemy", "fastapi-sqlalchemy", sync=True),
    Peer("fastapi_async_sqlalchemy", "fastapi-async-sqlalchemy", "fastapi-async-sqlalchemy"),
    Peer("fastapi_sqla", "fastapi-sqla", "fastapi-sqla", environment="fastapi-sqla"),
    Peer("context_async", "context-async-sqlalchemy", "context-async-sqlalchemy"),
    Peer("context_async_asgi", "context-async-sqlalchemy (ASGI)", "context-async-sqlalchemy"),
    Peer("asgi_sqlalchemy", "asgi-sqlalchemy", "asgi-sqlalchemy"),
    Peer("advanced_alchemy", "advanced-alchemy", "advanced-alchemy"),
    Peer("uow", "uow", "uow"),
)
