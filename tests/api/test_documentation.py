"""`/docs` works without the internet: all that the page needs comes from the service."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest

from tests.api.service import assert_problem, in_process, on_one_engine
from tests.support.backends import SqliteBackend

SCRIPT = "text/javascript; charset=utf-8"


@pytest.fixture
def page(client: httpx.Client) -> httpx.Response:
    answer = client.get("/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer


def parts(page: httpx.Response) -> list[str]:
    """The addresses that the page makes a browser load."""
    found = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    return [address for address in found if not address.startswith("data:")]


@on_one_engine
def test_the_page_names_no_other_host(client: httpx.Client, page: httpx.Response) -> None:
    start = client.get("/docs/start.js")
    for text in (page.text, start.text):
        assert "//" not in text
    assert "validatorUrl: null" in start.text
    assert len(parts(page)) == 3


@on_one_engine
def test_all_that_the_page_needs_is_there(client: httpx.Client, page: httpx.Response) -> None:
    kinds = []
    for address in parts(page):
        answer = client.get(urljoin("/docs", address))
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) == len(answer.content) > 100
        kinds.append((answer.headers["content-type"], answer.headers["cache-control"]))
    for_good = "public, max-age=31536000, immutable"
    assert kinds == [("text/css; charset=utf-8", for_good), (SCRIPT, for_good), (SCRIPT, "no-cache")]
    start = client.get("/docs/start.js").text
    (document,) = re.findall(r'url: "(.*)"', start)
    assert client.get(urljoin("/docs", document)).json()["openapi"].startswith("3.1")
    # What the script looks for.
    (element,) = re.findall(r'dom_id: "#(.*)"', start)
    assert f'id="{element}"' in page.text
    assert "SwaggerUIBundle" in client.get(urljoin("/docs", parts(page)[1])).text


@on_one_engine
def test_the_policy_of_the_page_allows_what_it_does_and_no_more(page: httpx.Response) -> None:
    (policy,) = page.headers.get_list("content-security-policy")
    allowed = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert allowed["default-src"] == "'none'"
    assert {allowed[kind] for kind in ("script-src", "style-src", "connect-src")} == {"'self'"}
    assert "unsafe" not in policy
    assert re.search(r"<script>|<style| style=| on\w+=", page.text) is None


@on_one_engine
@pytest.mark.parametrize(
    "path", ["0/swagger-ui.css", "{version}/redoc.standalone.js", "{version}/..%2F..%2Fcore.py", "{version}/"]
)
def test_nothing_else_of_the_package_is_served(client: httpx.Client, page: httpx.Response, path: str) -> None:
    (version,) = set(re.findall(r"docs/assets/([^/]+)/", page.text))
    assert_problem(client.get(f"/docs/assets/{path.format(version=version)}"), 404, "not-found")
    assert_problem(client.get("/redoc"), 404, "not-found")


async def test_the_title_is_text(tmp_path: Path) -> None:
    database = {"url": SqliteBackend(tmp_path).database_url}
    async with in_process(service={"title": "<b>Mugs</b>"}, database=database) as (_, client):
        assert "<title>&lt;b&gt;Mugs&lt;/b&gt;</title>" in (await client.get("/docs")).text
