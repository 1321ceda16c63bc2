"""The outbox: where the events of the service go, and the relay that takes them there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator
from sqlalchemy.ext.asyncio import AsyncSession

from api.models import Base
from api.section import Section, conflict
from api.units import Bytes, Seconds
from uow import Database
from uow.outbox import (
    Backoff,
    Destination,
    Outbox,
    Relay,
    Stdout,
    Webhook,
    Which,
    owed_elsewhere,
    secret_of,
    table,
)

# For Alembic, which compares the metadata with the database.
EVENTS = table(Base.metadata)


class DestinationSettings(Section):
    """A table `[[outbox.destinations]]`."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="What the table and the log call it; it stays so."
    )
    kind: Literal["webhook", "stdout"] = Field(
        default="webhook", description="An address, or lines on standard output."
    )
    url: str = Field(default="", description="The address that gets each event as a POST.")
    mode: Literal["structured", "binary"] = Field(
        default="structured", description="Whether the body is the whole event, or its data alone."
    )
    secrets: tuple[str, ...] = Field(
        default=(), repr=False, description="What signs the events, each whsec_ and Base64; the newest first."
    )
    secret_file: str = Field(default="", description="A file with the secrets, one in each line.")

    @field_validator("secrets")
    @classmethod
    def _are_secrets(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        for each in secrets:
            secret_of(each)  # its message is without the secret
        return secrets

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.kind == "stdout":
            for key in ("url", "secrets", "secret_file"):
                if getattr(self, key):
                    raise conflict(key, "is for a webhook, and kind is stdout")
            return self
        if self.secrets and self.secret_file:
            raise conflict("secret_file", "cannot be set beside secrets; take one away")
        if "@" in self.url:
            raise conflict("url", "may hold no user and no password: sign the events, with secrets")
        try:
            Webhook(self.name, self.url)
        except ValueError:
            raise conflict("url", "is no address of http:// or https://") from None
        if self.secret_file:
            self._read_secrets()
        return self

    def _read_secrets(self) -> tuple[str, ...]:
        try:
            lines = Path(self.secret_file).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise conflict("secret_file", f"{self.secret_file} cannot be read: {reason}") from None
        try:
            for each in lines:
                secret_of(each)
        except ValueError as error:
            raise conflict("secret_file", f"{self.secret_file}: {error}") from None
        if not lines:
            raise conflict("secret_file", f"{self.secret_file} is empty")
        return tuple(lines)

    def opened(self) -> Destination:
        """The destination; nothing is connected yet."""
        if self.kind == "stdout":
            return Stdout(self.name)
        secrets = self._read_secrets() if self.secret_file else self.secrets
        return Webhook(self.name, self.url, secrets=secrets, mode=self.mode)


class OutboxSettings(Section):
    source: str = Field(
        default="/inventory", min_length=1, max_length=255, description="The source of the events: a URI."
    )
    destinations: tuple[DestinationSettings, ...] = Field(
        default=(), description="Where the events go; without one, none is recorded."
    )
    relay: bool = Field(default=False, description="Whether serve sends them, in each worker.")
    concurrency: int = Field(
        default=16, ge=1, le=1000, description="How many are on their way to a destination, of each relay."
    )
    max_attempts: int = Field(default=20, ge=1, description="The attempts after which an event is dead.")
    timeout: Seconds = Field(default=10.0, gt=0, description="The time that one attempt may take.")
    first_delay: Seconds = Field(
        default=1.0, gt=0, description="The time until the second attempt, at most; it doubles each time."
    )
    longest_delay: Seconds = Field(
        default=3600.0, gt=0, description="The time between two attempts, at most."
    )
    poll: Seconds = Field(default=1.0, gt=0, description="The time between two looks, if nobody tells.")
    max_event_size: Bytes = Field(default=64 * 1024, ge=1, description="The size of an event's data.")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        seen: set[str] = set()
        for number, each in enumerate(self.destinations):
            if each.name in seen:
                raise conflict(("destinations", number, "name"), f"{each.name} is that of another, too")
            seen.add(each.name)
        if self.relay and not self.destinations:
            raise conflict("relay", "is true, and there are no [[outbox.destinations]]")
        if self.first_delay > self.longest_delay:
            raise conflict("first_delay", "is longer than [outbox] longest_delay")
        return self

    def opened(self, database: Database) -> Outbox:
        """The outbox of the units of this database."""
        destinations = [each.opened() for each in self.destinations]
        return Outbox(database, destinations, source=self.source, max_size=self.max_event_size)

    async def not_for_us(self, session: AsyncSession, which: Which) -> list[str]:
        """What is owed to destinations that are not configured, each with what to do about it."""
        names = [each.name for each in self.destinations]
        counted = await owed_elsewhere(session, names, which)
        return [
            f"{name}, to which {count} of the events are owed, is no destination of the configuration, so"
            f" nobody sends them: add [[outbox.destinations]] of this name, or give them up with"
            f" `python -m api outbox discard --all --state all --destination {name}`"
            for name, count in counted.items()
        ]

    def relay_of(self, outbox: Outbox, *, listens: bool) -> Relay:
        """What sends; not started yet."""
        return Relay(
            outbox,
            concurrency=self.concurrency,
            max_attempts=self.max_attempts,
            timeout=self.timeout,
            poll=self.poll,
            backoff=Backoff(first=self.first_delay, longest=self.longest_delay),
            listens=listens,
        )


@asynccontextmanager
async def relaying(settings: OutboxSettings, outbox: Outbox, *, listens: bool) -> AsyncIterator[None]:
    """The relay beside the service, if it is to be there."""
    if not settings.relay:
        yield
        return
    async with settings.relay_of(outbox, listens=listens):
        yield
