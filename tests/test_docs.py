"""The documents and the code say the same: programs run, tables are complete, links lead somewhere."""

import inspect
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import tests.uow.testing.clients  # noqa: F401 - before the pages import TestClient, which warns at first
import uow
from api.commands import common
from api.origin import keys_at
from api.settings import Settings
from tests.support.pages import DOCS, PAGES, ROOT, blocks, name_of, programs, quickstart, run
from uow import errors
from uow.problems import MISUSES, PROBLEMS, Condition

LINK = re.compile(r"\]\(([^)\s]+)\)")
# Their programs are pairs, before and after, which have tests of their own.
MOVING = DOCS / "moving"


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "quickstart.md"], ids=name_of)
def test_the_program_of_the_readme_is_the_quickstart(page: Path) -> None:
    assert quickstart() in [block.text for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent != MOVING and programs(page)], ids=name_of
)
def test_every_program_runs(page: Path, readme: dict[str, Any]) -> None:
    """One after the other, each page from where the quickstart's program ends."""
    for block in programs(page):
        run(block, readme)


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


def test_what_repeats_a_fault_names_a_test_of_it() -> None:
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    there = "\n".join(
        path.name + path.read_text(encoding="utf-8") for path in ROOT.glob("tests/faults/test_*.py")
    )
    named = re.findall(r'-k (?:"([^"]+)"|(\w+))', page)
    words = {word for pair in named for word in "".join(pair).split(" or ")}
    assert len(words) > 15
    assert sorted(word for word in words if word not in there) == []
    for path in re.findall(r"`pytest (\S+)`", page):
        assert (ROOT / path).is_file(), path


def anchors(page: Path) -> set[str]:
    """Where a link into a page may lead: its headings, as GitHub names them, and its own anchors."""
    text = page.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([\w-]+)">', text))


def test_every_page_is_linked_from_the_readme() -> None:
    """Or from a page that is, and that stands for its folder."""
    links = {}
    for page in (ROOT / "README.md", DOCS / "recipes.md", MOVING / "index.md"):
        found = LINK.findall(page.read_text(encoding="utf-8"))
        links[page] = {(page.parent / link.partition("#")[0]).resolve() for link in found}
    of_readme = links.pop(ROOT / "README.md")
    assert set(links) <= of_readme
    assert set(PAGES) - {ROOT / "README.md"} <= of_readme.union(*links.values())


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    project = tomllib.loads((DOCS / "zensical.toml").read_text(encoding="utf-8"))["project"]
    places = {"index.md": ROOT / "README.md", "changelog.md": ROOT / "CHANGELOG.md"}
    named = [places.get(each, DOCS / each) for each in leaves(project["nav"])]
    assert sorted(named) == sorted(PAGES)


def leaves(entries: list[dict[str, Any]]) -> list[str]:
    """The pages of a navigation, of the sections in it too."""
    found = []
    for (value,) in (entry.values() for entry in entries):
        found += [value] if isinstance(value, str) else leaves(value)
    return found


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
    assert problem.status == (503 if name == "DeadlineExceeded" else 500)
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
        values = info.default.model_dump(mode="json")
        expected[section] = {key: literal(value) for key, value in values.items()}
    assert configured() == expected


def lists_of_tables() -> dict[str, list[str]]:
    """The keys of the tables that there may be any number of, such as `unit_of_work.rules`."""
    return {
        f"{section}.{key}": keys_at(Settings, (section, key))
        for section in Settings.model_fields
        for key in keys_at(Settings, (section,))
        if keys_at(Settings, (section, key))
    }


def test_every_key_of_a_list_of_tables_is_documented_and_in_the_file_of_the_project() -> None:
    assert set(lists_of_tables()) == {"unit_of_work.rules", "security.keys", "outbox.destinations"}
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    file = (ROOT / "config.toml").read_text(encoding="utf-8")
    for name, keys in lists_of_tables().items():
        section = page.partition(f"## [{name.partition('.')[0]}]")[2].partition("\n## [")[0]
        example = file.partition(f"# [[{name}]]\n")[2].partition("\n\n")[0]
        assert f"[[{name}]]" in section
        for key in keys:
            assert f"`{key}`" in section, (name, key)
            assert f"\n# {key} = " in f"\n{example}", (name, key)


@pytest.mark.parametrize("code", [each for each in dir(common) if isinstance(getattr(common, each), int)])
def test_every_exit_code_is_documented(code: str) -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert f"\n| {getattr(common, code)} | " in page


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
