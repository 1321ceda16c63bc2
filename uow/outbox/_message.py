"""What is handed to a destination: an event with the attributes of CloudEvents 1.0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol
from urllib.parse import quote

# What the HTTP binding leaves as it is: printable ASCII but for the blank, the quote and the percent sign.
_PLAIN = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """An event on its way, with the attributes of CloudEvents 1.0 and its data as JSON.

    It may come more than once, each time with the same `id`.
    """

    specversion: ClassVar[str] = "1.0"
    datacontenttype: ClassVar[str] = "application/json"

    id: str
    source: str
    type: str
    subject: str
    time: str
    """When it was published, in UTC, as of RFC 3339."""
    data: str
    """JSON, as it was when the event was published."""

    @property
    def attributes(self) -> dict[str, str]:
        """All but the data, by their names."""
        names = ("specversion", "id", "source", "type", "subject", "time", "datacontenttype")
        return {name: getattr(self, name) for name in names}

    def structured(self) -> str:
        """The event as one JSON document, `application/cloudevents+json`.

        As of the JSON event format of CloudEvents 1.0.2; the data stand in it as they were published.
        """
        head = json.dumps(self.attributes, ensure_ascii=False, separators=(",", ":"))
        return f'{head[:-1]},"data":{self.data}}}'

    def headers(self) -> Mapping[str, str]:
        """The attributes as HTTP headers for a body that is the data: the binary mode of the HTTP binding.

        Its section 3.1.3.2 says what is percent-encoded.
        """
        named = {f"ce-{name}": quote(value, safe=_PLAIN) for name, value in self.attributes.items()}
        return {"content-type": named.pop("ce-datacontenttype"), **named}


class Destination(Protocol):
    """Where events go. `name` is written down with each event that is owed, so it stays as it is."""

    @property
    def name(self) -> str:
        """What it is called in the table, in the log and by the operator: at most 64 characters."""
        ...

    async def send(self, event: CloudEvent) -> Any:
        """Return when the other side has taken the event for good; raise what kept it from that.

        `TryLater` says when to come back, and `GiveUp` that there is no use in it. It is called from several
        tasks at once, for different subjects, and is cancelled when its time is over.
        """
        ...


class TryLater(Exception):
    """A destination is not to be asked again for `seconds`, for this event or another one."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class GiveUp(Exception):
    """A destination will never take this event: it is dead at once, until an operator retries it."""
