"""Which events there are, what of them leaves, and in which form."""

from __future__ import annotations

import enum
import json
from dataclasses import InitVar, dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import ClassVar
from uuid import UUID

import pytest
from pydantic import BaseModel

from tests.support.backends import Backend
from tests.uow.migrated import assert_table_is_that_of_the_metadata
from uow import Database, outbox
from uow.outbox import CloudEvent, Outbox, Stdout, event
from uow.outbox._declare import declared


class Colour(enum.Enum):
    RED = "red"


@event("paint.mixed", subject="paints/{paint.name}/{number:03d}")
@dataclass(frozen=True, slots=True)
class Mixed:
    number: int
    paint: Colour
    when: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    day: date = date(2026, 1, 2)
    price: Decimal = Decimal("1.50")
    id: UUID = field(default_factory=lambda: UUID(int=1))
    parts: list[dict[str, int]] = field(default_factory=lambda: [{"white": 1}])


@event("paint.sold", subject="{where}")
class Sold(BaseModel):
    price: Decimal
    when: datetime

    @property
    def where(self) -> str:
        return f"shops/{self.price}"


def test_a_dataclass_leaves_as_json() -> None:
    mixed = Mixed(7, Colour.RED)
    assert json.loads(declared(mixed).dump(mixed)) == {
        "number": 7,
        "paint": "red",
        "when": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "price": "1.50",
        "id": "00000000-0000-0000-0000-000000000001",
        "parts": [{"white": 1}],
    }


@dataclass
class Line:
    quantity: int
    unit: ClassVar[str] = "litre"


@event("paint.ordered", subject="orders/{order}")
@dataclass
class Ordered:
    shop: ClassVar[str] = "not told to anybody"
    order: int
    lines: list[Line] = field(default_factory=list[Line])
    what: object = None
    seed: InitVar[int] = 0


def test_the_fields_of_a_dataclass_leave_and_those_of_dataclasses_in_it() -> None:
    ordered = Ordered(7, [Line(1), Line(2)], seed=5)
    dumped = declared(ordered).dump(ordered)
    assert dumped == '{"order":7,"lines":[{"quantity":1},{"quantity":2}],"what":null}'


def test_the_fields_are_those_that_the_class_has_in_the_end() -> None:
    """`dataclass` adds its own after a decorator that stands below it has seen those of its base."""

    @dataclass
    class Base:
        order: int

    @dataclass
    @event("order.split", subject="orders/{order}")
    class Split(Base):
        parts: int

    assert declared(Split(7, 2)).dump(Split(7, 2)) == '{"order":7,"parts":2}'


def test_a_class_is_no_value() -> None:
    ordered = Ordered(7, what=Line)
    with pytest.raises(TypeError, match="a type cannot be written"):
        declared(ordered).dump(ordered)


def test_a_model_leaves_as_pydantic_writes_it() -> None:
    sold = Sold(price=Decimal("2.00"), when=datetime(2026, 1, 1, tzinfo=UTC))
    assert declared(sold).dump(sold) == '{"price":"2.00","when":"2026-01-01T00:00:00Z"}'


def test_a_subject_is_made_of_fields_and_what_leads_on_from_them() -> None:
    assert declared(Mixed(7, Colour.RED)).subject_of(Mixed(7, Colour.RED)) == "paints/RED/007"
    sold = Sold(price=Decimal(2), when=datetime(2026, 1, 1, tzinfo=UTC))
    assert declared(sold).subject_of(sold) == "shops/2"


@pytest.mark.parametrize("wrong", ["", "a b", "ä", ".a", "a.", "x" * 256, "a\nb"])
def test_a_type_is_a_name(wrong: str) -> None:
    with pytest.raises(ValueError, match="no type of events"):
        event(wrong, subject="x")


@pytest.mark.parametrize(
    ("subject", "missing"), [("a/{b}", "b"), ("{}", "{}"), ("{a.b}", "a"), ("{c[0]}", "c")]
)
def test_a_subject_names_fields_that_are_there(subject: str, missing: str) -> None:
    @dataclass
    class Thing:
        number: int

    with pytest.raises(TypeError, match=f"Thing has no {missing}"):
        event("a.b", subject=subject)(Thing)


def test_an_event_is_a_dataclass_or_a_model() -> None:
    class Plain:
        a = 1

    with pytest.raises(TypeError, match="neither a dataclass nor a pydantic model"):
        event("a.b", subject="{a}")(Plain)


@event("text.said", subject="{text}")
@dataclass
class Said:
    text: str
    more: object = None


@pytest.mark.parametrize("text", ["", "x" * 256, "a\x00b", "a\nb"])
def test_a_subject_is_text_that_can_be_printed(text: str) -> None:
    with pytest.raises(ValueError, match="no subject"):
        declared(Said("")).subject_of(Said(text))


@pytest.mark.parametrize(
    ("more", "error"), [(object(), TypeError), (float("nan"), ValueError), ({1}, TypeError)]
)
def test_what_json_cannot_say_is_refused(more: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        declared(Said("a")).dump(Said("a", more))


def one(**changed: str) -> CloudEvent:
    given = {
        "id": "1-2",
        "source": "/tests",
        "type": "paint.mixed",
        "subject": "paints/1",
        "time": "2026-01-01T00:00:00.000000Z",
        "data": '{"a": "ä"}',
    }
    return CloudEvent(**given | changed)


def test_the_structured_form_is_one_document_with_the_data_as_they_were() -> None:
    text = one(subject='say "hi"').structured()
    assert json.loads(text) == {
        "specversion": "1.0",
        "id": "1-2",
        "source": "/tests",
        "type": "paint.mixed",
        "subject": 'say "hi"',
        "time": "2026-01-01T00:00:00.000000Z",
        "datacontenttype": "application/json",
        "data": {"a": "ä"},
    }
    assert text.endswith('"data":{"a": "ä"}}')


def test_the_binary_form_has_the_attributes_as_headers() -> None:
    headers = one(subject='50 % "Ä" \N{EURO SIGN}').headers()
    assert headers == {
        "content-type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "1-2",
        "ce-source": "/tests",
        "ce-type": "paint.mixed",
        "ce-subject": "50%20%25%20%22%C3%84%22%20%E2%82%AC",
        "ce-time": "2026-01-01T00:00:00.000000Z",
    }
    assert all(value.isascii() for value in headers.values())


@pytest.mark.parametrize("names", [["a", "a"], [""], ["x" * 65], ["a\nb"]])
def test_destinations_have_names_of_their_own(names: list[str]) -> None:
    with pytest.raises(ValueError, match="the name of two, or none"):
        Outbox(Database("sqlite://"), [Stdout(name) for name in names], source="/tests")


def test_somebody_speaks() -> None:
    with pytest.raises(ValueError, match="source is empty"):
        Outbox(Database("sqlite://"), [], source="")


def test_a_database_has_one_outbox() -> None:
    database = Database("sqlite:///never-opened.db")
    Outbox(database, [], source="/one")
    with pytest.raises(ValueError, match="has an outbox"):
        Outbox(database, [], source="/two")


@pytest.mark.backends("sqlite", "pg18")
def test_the_table_of_a_migration_is_that_of_the_metadata(backend: Backend) -> None:
    assert_table_is_that_of_the_metadata(backend, outbox)
