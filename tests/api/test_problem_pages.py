"""`/problems/{name}`: each type of problem is explained by the service itself."""

from __future__ import annotations

import re

import httpx
import pytest

from api.problem_pages import catalogue
from tests.api.service import Service, assert_problem, on_one_engine
from tests.support.server import ROOT
from uow.problems import MISUSES, PROBLEMS


@on_one_engine
def test_every_problem_has_a_page_and_a_document(service: Service, client: httpx.Client) -> None:
    known = catalogue()
    assert {each.name for each in (*PROBLEMS.values(), *MISUSES.values())} < known.keys()
    for name, explanation in known.items():
        answer = client.get(f"/problems/{name}")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json() == {
            "type": f"/problems/{name}",
            "title": explanation.problem.title,
            "status": explanation.problem.status,
            "description": explanation.text,
        }
        assert len(explanation.text) > 20
        page = client.get(f"/problems/{name}", headers={"Accept": "text/html"})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert f"<h1>{explanation.problem.title.replace(chr(39), '&#x27;')}</h1>" in page.text
        assert page.headers["vary"] == "Accept"
        assert service.line_of(page)["statements"] == 0


BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@on_one_engine
@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (BROWSER, "text/html"),
        ("text/*", "text/html"),
        ("TEXT/HTML; q=0.5, application/json;q=0.4", "text/html"),
        ("text/html;q=0.5, application/json", "application/json"),
        ("text/html;q=0, */*", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "application/json"),
        ("text/html;q=nan", "application/json"),
        ("text/html;q=x", "application/json"),
        (";;,,q=", "application/json"),
    ],
)
def test_the_client_chooses_the_form(client: httpx.Client, accept: str, kind: str) -> None:
    answer = client.get("/problems/out-of-stock", headers={"Accept": accept})
    assert answer.headers["content-type"].partition(";")[0] == kind


@on_one_engine
@pytest.mark.parametrize("name", ["nope", "Out-Of-Stock", "%3Cscript%3E", "%00", "x" * 5000, ".."])
def test_an_unknown_problem_is_not_found(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/problems/{name}", headers={"Accept": "text/html"})
    expected = "not-found" if name == ".." else "unknown-problem"
    problem = assert_problem(answer, 404, expected)
    assert len(problem.get("detail", "")) < 100


def test_the_page_for_clients_names_every_problem_with_its_status() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([a-z-]+)` \| (\d{3}) \|", text, re.MULTILINE))
    databases = {each.name for each in (*PROBLEMS.values(), *MISUSES.values())}
    expected = {name: str(each.problem.status) for name, each in catalogue().items() if name not in databases}
    assert listed == expected
