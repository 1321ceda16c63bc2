"""The documents and the code say the same: programs run, tables are complete, links lead somewhere."""

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import tests.uow.testing.clients  # noqa: F401 - before the pages import TestClient, which warns at first
import uow
from api.settings import Settings
from uow import Database, errors
from uow.problems import MISUSES, PROBLEMS, Condition

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
QUICKSTART = ROOT / "examples" / "quickstart.py"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield Block(page, text[: match.start(2)].count("\n"), match[1], match[2])


def programs(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def run(block: Block, namespace: dict[str, Any]) -> None:
    """Execute a block as if it stood in its page at this line, so that a traceback points there."""
    source = "\n" * block.line + block.text
    exec(compile(source, str(block.page), "exec"), namespace)


@pytest.fixture
def readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the README's program defines; its database file is in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")
    monkeypatch.setitem(__import__("sys").modules, "readme", module)  # FastAPI looks annotations up there
    run(programs(ROOT / "README.md")[0], module.__dict__)
    return module.__dict__


def test_the_readmes_program_is_the_quickstart() -> None:
    (program,) = programs(ROOT / "README.md")
    assert program.text == QUICKSTART.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [page for page in PAGES if programs(page)], ids=name_of)
def test_every_program_runs(page: Path, readme: dict[str, Any]) -> None:
    """One after the other, each page from where the README's program ends."""
    if page.name == "README.md":
        return  # the fixture has run it
    for block in programs(page):
        run(block, readme)


@pytest.fixture
async def recipes(readme: dict[str, Any]) -> Any:
    """A client of the app that has all the recipes, and what they define."""
    for block in programs(DOCS / "recipes.md"):
        if "asyncio.run" not in block.text:
            run(block, readme)
    app: FastAPI = readme["app"]
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client, readme


async def rows(namespace: dict[str, Any], model: str) -> list[Any]:
    database: Database = namespace["database"]
    async with database.new_unit(read_only=True) as unit:
        return list(await unit.session.scalars(namespace["select"](namespace[model])))


@pytest.mark.anyio
async def test_the_recipes_do_what_they_say(recipes: tuple[httpx.AsyncClient, dict[str, Any]]) -> None:
    client, names = recipes
    added = [(await client.post("/tags/", params={"id": 1, "name": "a"})).json() for _ in range(2)]
    assert added == [{"added": True}, {"added": False}]

    async with names["database"].new_unit() as unit:
        unit.session.add(names["Account"](name="me", password="right"))
    assert (await client.post("/login", params={"name": "me", "password": "wrong"})).status_code == 401
    assert [account.failures for account in await rows(names, "Account")] == [1]
    assert (await client.get("/unsubscribe", params={"name": "me"})).status_code == 200
    assert [account.failures for account in await rows(names, "Account")] == [0]

    assert (await client.post("/transfers/", params={"amount": 2000})).status_code == 403
    assert [attempt.what for attempt in await rows(names, "Attempt")] == ["transfer of 2000"]

    names["cache"][1] = "a"
    assert (await client.delete("/items/1")).status_code == 204
    assert names["cache"] == {}
    assert (await client.post("/indexed-items/", params={"name": " pen "})).status_code == 200
    assert [item.name for item in await rows(names, "Item")] == ["pen"]

    dry = await client.post("/imports/", params={"dry_run": True}, json=["x", "y"])
    assert dry.json() == {"items": 2}
    assert (await client.get("/count")).json() == {"items": 1}


@pytest.mark.anyio
async def test_the_test_in_the_recipes_passes(readme: dict[str, Any]) -> None:
    for block in programs(DOCS / "recipes.md"):
        if "def test_" in block.text:
            run(block, readme)
    await readme["test_an_item_is_kept"]()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_between_files_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)}: {target}"
        assert found.is_relative_to(ROOT), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """Where a link into a page may lead: its headings, as GitHub names them, and its own anchors."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', text))


def test_every_page_is_linked_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {name_of(page) for page in PAGES} - {"README.md"} <= {link.partition("#")[0] for link in linked}


@pytest.mark.parametrize("name", [*uow.__all__])
def test_every_public_name_is_documented(name: str) -> None:
    """In the contract's table of names; a function with all of its keywords somewhere in the docs."""
    assert re.search(
        rf"^\| `{name}(\(\))?` \|", (DOCS / "lifecycle.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    everything = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    thing = getattr(uow, name)
    if callable(thing) and name != "UnitOfWork":
        for parameter in inspect.signature(thing).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert f"`{parameter.name}" in everything or f"{parameter.name}=" in everything, (
                    parameter.name
                )


def test_the_contract_names_no_attribute_of_a_unit_that_does_not_exist() -> None:
    (row,) = table(DOCS / "lifecycle.md")["UnitOfWork"]
    named = re.findall(r"\.(\w+)", row)
    assert len(named) > 4
    assert all(hasattr(uow.UnitOfWork, name) for name in named)


def table(page: Path) -> dict[str, list[str]]:
    """The rows of a page's tables by the name in their first cell."""
    found = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| `"):
            found[cells[0].strip("` ")] = [cell.strip("`| ") for cell in cells[1:]]
    return found


@pytest.mark.parametrize("condition", Condition)
def test_every_condition_of_the_error_table_is_documented(condition: Condition) -> None:
    problem = PROBLEMS[condition]
    assert table(DOCS / "errors.md")[condition.name][-2:] == [problem.type, str(problem.status)]


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_ours_is_documented(name: str) -> None:
    problem = MISUSES[getattr(errors, name)]
    assert problem.status == 500
    assert table(DOCS / "errors.md")[name][-1] == problem.type


def test_the_error_page_names_nothing_that_does_not_exist() -> None:
    known = {problem.type for problem in [*PROBLEMS.values(), *MISUSES.values()]}
    text = (DOCS / "errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"/problems/[a-z-]+", text)) == known
    assert set(table(DOCS / "errors.md")) == {condition.name for condition in Condition} | {*errors.__all__}


def test_every_503_says_when_to_try_again() -> None:
    """The error page promises it."""
    assert all((problem.status == 503) == (problem.retry_after is not None) for problem in PROBLEMS.values())


def configured() -> dict[str, dict[str, str]]:
    """The keys that the configuration page explains, by section, with their defaults."""
    text = (DOCS / "configuration.md").read_text(encoding="utf-8")
    parts = re.split(r"^## \[(\w+)\]$", text, flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    row = re.compile(r"^\| `(\w+)` \| `(.*?)` \| .+ \|$", re.MULTILINE)
    return {name: dict(row.findall(part)) for name, part in sections.items()}


def test_every_setting_is_documented_with_its_default() -> None:
    expected = {}
    for section, info in Settings.model_fields.items():
        values = info.default.model_dump()
        expected[section] = {key: literal(value) for key, value in values.items()}
    assert configured() == expected


def literal(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def test_the_changelog_knows_this_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert declared is not None
    newest = re.search(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert newest is not None
    assert newest[1] == declared[1]


def test_what_is_said_of_fastapi_was_seen_on_this_one() -> None:
    """README and docs/why.md name the FastAPI whose behaviour tests/test_examples.py shows."""
    series = ".".join(version("fastapi").split(".")[:2])
    for page in (ROOT / "README.md", DOCS / "why.md"):
        assert f"FastAPI {series}" in page.read_text(encoding="utf-8")
