"""What the OpenAPI document says of parameters, bodies and answers, and that the service keeps to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest
import schemathesis

from api.app import create_app
from api.problems import ProblemDocument
from api.settings import Settings
from tests.api.service import new_item, on_one_engine

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    return create_app(Settings()).openapi()


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def parameters(document: Document) -> dict[tuple[str, str], Document]:
    return {
        (name, parameter["name"]): parameter
        for name, operation in operations(document)
        for parameter in operation.get("parameters", ())
    }


def test_the_bounds_of_parameters_are_told(document: Document) -> None:
    found = parameters(document)
    limit = found["GET /items/", "limit"]["schema"]
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, 100, 50)
    for (_, name), parameter in found.items():
        if name.endswith("_id"):
            assert parameter["schema"]["minimum"] == 1
            assert parameter["schema"]["maximum"] == 2**53 - 1
        assert not {"ge", "le"} & parameter["schema"].keys()


def test_preconditions_are_told_where_they_are_read(document: Document) -> None:
    found = parameters(document)
    for operation in (
        "GET /items/{item_id}",
        "PATCH /items/{item_id}",
        "DELETE /items/{item_id}",
        "GET /orders/{order_id}",
        "POST /orders/{order_id}/cancel",
    ):
        for field in ("If-Match", "If-None-Match"):
            parameter = found[operation, field]
            assert (parameter["in"], parameter["required"]) == ("header", False)
            assert parameter["schema"]["type"] == "string"
    assert sum(name in {"If-Match", "If-None-Match"} for _, name in found) == 10


def test_everything_that_is_sent_or_shown_has_an_example(document: Document) -> None:
    schemas: Mapping[str, Document] = document["components"]["schemas"]
    assert len(schemas) > 10
    for name, model in schemas.items():
        for field, schema in model["properties"].items():
            inner = [schema, *schema.get("anyOf", ()), schema.get("items", {})]
            assert any({"examples", "$ref"} & each.keys() for each in inner), f"{name}.{field}"
    for name in ("NewItem", "ItemChanges", "NewReceipt", "NewOrder", "NewLine"):
        assert schemas[name]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("operation", "status", "header"),
    [
        ("POST /items/", "201", "Location"),
        ("POST /items/", "201", "ETag"),
        ("POST /items/{item_id}/receipts", "201", "Location"),
        ("POST /orders/", "201", "Location"),
        ("GET /items/", "200", "Link"),
        ("GET /orders/", "200", "Link"),
        ("GET /items/{item_id}", "304", "ETag"),
        ("POST /orders/{order_id}/cancel", "200", "ETag"),
        ("GET /items/", "503", "Retry-After"),
    ],
)
def test_the_headers_of_answers_are_told(
    document: Document, operation: str, status: str, header: str
) -> None:
    assert header in dict(operations(document))[operation]["responses"][status]["headers"]


def test_every_refusal_has_examples_that_fit_its_schema(document: Document) -> None:
    for name, operation in operations(document):
        refusals = {status: each for status, each in operation["responses"].items() if status >= "4"}
        assert {"413", "500", "503"} <= refusals.keys()
        assert "default" not in refusals
        for status, response in refusals.items():
            assert response["description"], (name, status)
            content = response["content"]["application/problem+json"]
            for example in content["examples"].values():
                assert set(content["schema"]["required"]) <= example["value"].keys()
                ProblemDocument.model_validate(example["value"])
                assert example["value"]["status"] == int(status)


def test_the_document_is_an_openapi_document(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    schemathesis.openapi.from_dict(document).validate()
    with pytest.raises(Exception, match="paths"):
        schemathesis.openapi.from_dict({**document, "paths": {"/x": {"get": 1}}}).validate()


def test_operations_have_the_names_that_clients_are_made_with(document: Document) -> None:
    """A name that changes breaks the code of whoever has generated a client."""
    assert [operation["operationId"] for _, operation in operations(document)] == [
        "create_item",
        "list_items",
        "get_item",
        "change_item",
        "delete_item",
        "receive_stock",
        "get_receipt",
        "place_order",
        "list_orders",
        "get_order",
        "cancel_order",
        "explain_problem",
        "livez",
        "readyz",
    ]


def test_links_lead_to_operations_with_these_parameters(document: Document) -> None:
    known = {operation["operationId"]: operation for _, operation in operations(document)}
    found = []
    for operation in known.values():
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                target = known[link["operationId"]]
                there = {(each["in"], each["name"]) for each in target["parameters"]}
                for name, value in link["parameters"].items():
                    place, _, rest = name.rpartition(".")
                    assert (place or "path", rest) in there
                    assert value.startswith(("$response.", "$request."))
                found.append((operation["operationId"], link["operationId"]))
    assert set(found) == {
        *(("create_item", to) for to in ("get_item", "change_item", "delete_item", "receive_stock")),
        ("list_items", "get_item"),
        ("receive_stock", "get_receipt"),
        *(("place_order", to) for to in ("get_order", "cancel_order")),
        ("list_orders", "get_order"),
    }


def test_no_schema_refers_to_what_is_not_there(document: Document) -> None:
    def references(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                yield reference
            for each in node.values():
                yield from references(each)
        elif isinstance(node, list):
            for each in node:
                yield from references(each)

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


@on_one_engine
def test_each_refusal_that_a_client_meets_is_documented(document: Document, client: httpx.Client) -> None:
    known = dict(operations(document))
    item = f"/items/{new_item(client)}"
    text = {"content": b"x", "headers": {"Content-Type": "text/plain"}}
    asked: list[tuple[str, str, str, Document]] = [
        ("POST", "/items/", "/items/", {"json": {}}),
        ("POST", "/items/", "/items/", text),
        ("POST", "/orders/", "/orders/", {"content": b"x" * (1024 * 1024 + 1)}),
        ("PATCH", "/items/{item_id}", item, {"json": {}, "headers": {"If-Match": "x"}}),
        ("PATCH", "/items/{item_id}", item, {"json": {}, "headers": {"If-Match": '"x"'}}),
        ("PATCH", "/items/{item_id}", item, text),
        ("DELETE", "/items/{item_id}", item, {"params": {"x": "1"}}),
        ("GET", "/orders/{order_id}", f"/orders/{2**53 - 1}", {}),
        ("GET", "/orders/", "/orders/", {"params": {"cursor": "x"}}),
        ("GET", "/problems/{name}", "/problems/x", {}),
        ("GET", "/problems/{name}", "/problems/x", {"params": {"x": "1"}}),
    ]
    for method, route, path, options in asked:
        answer = client.request(method, path, **options)
        assert answer.status_code >= 400
        response = known[f"{method} {route}"]["responses"][str(answer.status_code)]
        examples = response["content"]["application/problem+json"]["examples"]
        assert answer.json()["type"].removeprefix("/problems/") in examples
