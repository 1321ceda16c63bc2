"""Bodies that two readers could read differently are refused, and the field is named."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from api.strict import strict_json
from tests.api.service import assert_problem, new_item, on_one_engine

JSON = {"Content-Type": "application/json"}
TWICE = "Given more than once"


def sent(client: httpx.Client, content: bytes, path: str = "/items/") -> httpx.Response:
    return client.post(path, content=content, headers=JSON)


def faults(answer: httpx.Response) -> dict[str, str]:
    errors: list[dict[str, str]] = assert_problem(answer, 422, "invalid-request")["errors"]
    return {each["field"]: each["message"] for each in errors}


@on_one_engine
@pytest.mark.parametrize(
    ("path", "content", "field"),
    [
        ("/items/", b'{"name": "Mug", "price": 1, "price": 2}', "body.price"),
        ("/items/", b'{"name": "Mug", "name": "Mug", "price": 1}', "body.name"),
        ("/items/", b'{"name": "Mug", "price": 1, "sku": null, "sku": null}', "body.sku"),
        ("/items/", b'{"name": "Mug", "price": 1, "x": 1, "x": 1}', "body.x"),
        # Escaped, it is the same name.
        ("/items/", b'{"name": "Mug", "price": 1, "pric\\u0065": 2}', "body.price"),
        ("/orders/", b'{"lines": [], "lines": [{"item_id": 1, "quantity": 1}]}', "body.lines"),
        (
            "/orders/",
            b'{"lines": [{"item_id": 1, "quantity": 1, "quantity": 9}]}',
            "body.lines.0.quantity",
        ),
    ],
)
def test_a_name_that_comes_twice_is_refused(
    client: httpx.Client, path: str, content: bytes, field: str
) -> None:
    """RFC 8259, section 4: what a reader makes of it is unpredictable."""
    assert faults(sent(client, content, path)) == {field: TWICE}


@on_one_engine
def test_every_name_that_comes_twice_is_named(client: httpx.Client) -> None:
    content = b'{"name": "Mug", "name": "Cup", "price": 1, "price": 1, "stock": -1}'
    assert list(faults(sent(client, content))) == ["body.name", "body.price", "body.stock"]


MANY = b",".join(b'"%d": 0, "%d": 0' % (number, number) for number in range(30_000))


@on_one_engine
def test_an_object_of_thousands_of_names_is_one_fault(client: httpx.Client) -> None:
    """One fault for each would keep the event loop busy for a second, and all others waiting."""
    item = f"/items/{new_item(client)}"
    message = "Has 30000 fields; more than 32 are not looked at"
    answer = sent(client, b"{%s}" % MANY)
    assert set(faults(answer).values()) == {message}
    assert all(field == "body" or field.startswith("body.") for field in faults(answer))
    assert len(answer.json()["errors"]) < 10
    changed = client.patch(item, content=b"{%s}" % MANY, headers=JSON)
    assert set(faults(changed).values()) == {message}
    lines = faults(sent(client, b'{"lines": [{"item_id": 1, "quantity": 1}, {%s}]}' % MANY, "/orders/"))
    assert set(lines.values()) == {message}
    assert all(field.startswith("body.lines.1") for field in lines)


@on_one_engine
def test_faults_that_are_not_listed_are_counted(client: httpx.Client) -> None:
    unknown = [f"x{number}" for number in range(32)]
    problem = assert_problem(client.post("/items/", json=dict.fromkeys(unknown, 0)), 422, "invalid-request")
    assert len(problem["errors"]) == 20
    # Beside them the name and the price are missing.
    assert problem["detail"].endswith("body.x17. And 14 more, not listed.")
    fewer = client.post("/items/", json=dict.fromkeys(unknown[:18], 0)).json()
    assert len(fewer["errors"]) == 20
    assert fewer["detail"].endswith("body.x17.")
    query = "&".join(unknown)
    asked = assert_problem(client.get(f"/items/?{query}"), 422, "invalid-request")
    assert asked["detail"].endswith("query.x19. And 12 more, not listed.")


@on_one_engine
def test_a_change_with_a_name_that_comes_twice_changes_nothing(client: httpx.Client) -> None:
    path = f"/items/{new_item(client)}"
    answer = client.patch(path, content=b'{"price": 1, "price": 2}', headers=JSON)
    assert faults(answer) == {"body.price": TWICE}
    assert client.get(path).json()["price"] == 1250


@on_one_engine
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_refused(client: httpx.Client, number: str) -> None:
    content = f'{{"name": "Mug", "price": {number}}}'.encode()
    assert faults(sent(client, content)) == {"body.price": f"{number} is no number of JSON"}
    assert faults(sent(client, number.encode())) == {"body": f"{number} is no number of JSON"}


@on_one_engine
@pytest.mark.parametrize(
    "number", ["1e999", "-1e999", "1" * 400, "1e300", "9223372036854775808", "1.5", "-0.5"]
)
def test_numbers_that_are_too_large_or_no_integers_are_refused(client: httpx.Client, number: str) -> None:
    assert list(faults(sent(client, f'{{"name": "Mug", "price": {number}}}'.encode()))) == ["body.price"]
    line = f'{{"lines": [{{"item_id": {number}, "quantity": 1}}]}}'.encode()
    assert list(faults(sent(client, line, "/orders/"))) == ["body.lines.0.item_id"]


@on_one_engine
@pytest.mark.parametrize("number", ["12", "12.0", "1.2e1", "120e-1", "12.000"])
def test_an_integer_may_be_written_in_each_way_of_json(client: httpx.Client, number: str) -> None:
    """JSON Schema, core, section 4.2.3; a sender may have no integers."""
    answer = sent(client, f'{{"name": "Mug", "price": {number}}}'.encode())
    assert answer.status_code == 201
    assert '"price":12,' in answer.text


@on_one_engine
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_only_utf_8_is_read(client: httpx.Client, encoding: str) -> None:
    """RFC 8259, section 8.1."""
    assert_problem(sent(client, '{"name": "Mügß", "price": 1}'.encode(encoding)), 400, "bad-request")


@on_one_engine
@pytest.mark.parametrize("depth", [10, 100, 900, 1000, 1100, 5000, 100_000])
@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"x":', "}")])
def test_no_depth_is_a_fault_of_the_service(
    client: httpx.Client, depth: int, before: str, after: str
) -> None:
    content = f'{{"name": "Mug", "price": {before * depth}1{after * depth}}}'.encode()
    answer = sent(client, content)
    assert answer.status_code in {400, 422}
    assert_problem(
        answer, answer.status_code, {400: "bad-request", 422: "invalid-request"}[answer.status_code]
    )
    assert (answer.status_code == 400) or depth < 10_000  # newer Pythons can go deeper


@pytest.mark.parametrize(
    "text", ["\\u0000", "a\\u0000b", "\\ud800", "\\udfff\\ud800", "\\u001f"], ids=lambda text: text[1:]
)
def test_text_that_a_database_could_not_keep_is_refused(client: httpx.Client, text: str) -> None:
    assert "body.name" in faults(sent(client, f'{{"name": "{text}", "price": 1}}'.encode()))
    assert "body.sku" in faults(sent(client, f'{{"name": "Mug", "price": 1, "sku": "{text}"}}'.encode()))
    assert faults(sent(client, f'{{"name": "Mug", "price": 1, "{text}": 1}}'.encode()))


@pytest.mark.parametrize("name", ["\U0001f375", "\uffff\ufffe", "e\u0301", "\u202emug", "\x80", "\u2028"])
def test_text_of_every_plane_is_kept(client: httpx.Client, name: str) -> None:
    answer = client.post("/items/", json={"name": name, "price": 1})
    assert answer.status_code == 201
    assert client.get(answer.headers["location"]).json()["name"] == name


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'{"a": 1, "b": [1.5, 2.0, null]}', {"a": 1, "b": [1.5, 2, None]}),
        (b'"\xc3\xbc"', "ü"),
    ],
)
def test_the_value_of_a_body(content: bytes, value: Any) -> None:
    assert repr(strict_json(content)) == repr(value)


class Lenient(BaseModel):
    """Everything may be left out."""

    args: int = 0


@pytest.mark.parametrize("content", [b"NaN", b'{"a": 1, "a": 1}'])
def test_no_model_takes_what_is_refused(content: bytes) -> None:
    """FastAPI validates with `from_attributes`, which reads objects as if they were bodies."""
    value = strict_json(content)
    refused = value["a"] if isinstance(value, dict) else value
    with pytest.raises(ValidationError):
        TypeAdapter(Lenient).validate_python(refused, from_attributes=True)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b"{} {}", b"{'a': 1}", b"[1,]"])
def test_what_is_no_json_has_no_value(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        strict_json(content)
