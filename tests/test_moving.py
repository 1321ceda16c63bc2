"""The pages of docs/moving: their programs run, before and after and half way, over the same requests.

Each program is a uvicorn process on an SQLite file, with the interpreter of the environment that has its
peer (`make test` makes them). What it keeps is looked at through a second connection.
"""

import asyncio
import contextlib
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.hazards.report import load_results
from tests.moving import (
    PAGES,
    PAIRS,
    PURE_ASGI,
    Pair,
    Seen,
    changed_lines,
    counted,
    current,
    diff,
    differences,
)
from tests.served_examples import Example
from tests.support.hold import hold_commits
from tests.support.pages import QUICKSTART, ROOT, blocks, files, programs, run
from tests.support.server import Serve

STAGES = ("before", "both", "after")
SCRIPT = (
    ("POST", "/items/?name=pen"),
    ("GET", "/items/"),
    ("POST", "/items/?name=cup"),
    ("POST", "/items/"),
    ("DELETE", "/items/"),
    ("GET", "/nothing"),
    ("POST", "/items/?name=jar"),
    ("GET", "/items/"),
)
Served = Callable[[Pair, str], Example]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A stage of a pair, served, and without items."""
    folder = tmp_path_factory.mktemp("moving")
    serve = Serve(folder)
    running: dict[tuple[str, str], Example] = {}

    def example(pair: Pair, stage: str) -> Example:
        key = (pair.measured, stage)
        if key not in running:
            running[key] = serve_stage(pair, stage, folder, serve)
        running[key].empty()
        return running[key]

    yield example
    serve.close()


def serve_stage(pair: Pair, stage: str, folder: Path, serve: Serve) -> Example:
    python = pair.python(stage)
    if not python.exists():
        pytest.fail(f"{python} is missing: `make test` makes the environments of the peers")
    module = pair.program(stage).relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    env = {"TESTS_PROGRAM": module, "SQLALCHEMY_URL": "sqlite+aiosqlite:///items.db"}
    return Example(pair.factory, folder / f"{pair.measured}-{stage}", serve, env=env, python=python)


def answers(example: Example) -> list[tuple[int, Any]]:
    """Those of the script. The next request waits until what this one wrote is kept."""
    found = []
    for method, path in SCRIPT:
        answer = example.client.request(method, path)
        found.append((answer.status_code, answer.json()))
        example.backend.wait_until_at_rest()
    return found


def see(example: Example) -> Seen:
    """What goes wrong with a program, if anything does. Some leave the file locked by what COMMIT refused."""
    with hold_commits(example.backend, "items") as hold:
        client = example.server.raw().request("POST", "/items/?name=held")
        hold.wait_until_waiting()
        early = client.arrived(within=0.5)
    answer = client.answer()
    assert answer is not None
    assert answer.status in (200, 201)
    assert example.names() == ["held"]

    for name in ("second", "third", "fourth"):
        example.post("/items/", name)
    full = len(example.names())
    example.empty()

    refused = example.post("/items/", "refused at commit").status_code
    assert example.backend.query("SELECT name FROM items") == []
    return Seen(early, full, refused)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_same_requests_have_the_same_answers(pair: Pair, served: Served) -> None:
    before, both, after = (answers(served(pair, stage)) for stage in STAGES)
    assert before == after
    assert both == after
    made = 200 if pair.name == "depends" else 201
    assert [status for status, _ in after] == [made, 200, made, 422, 405, 404, made, 200]
    assert [item["name"] for item in after[-1][1]] == ["pen", "cup", "jar"]


@pytest.mark.parametrize("pair", [*PAIRS, PURE_ASGI], ids=lambda pair: pair.measured)
def test_before_does_what_its_page_says(pair: Pair, served: Served) -> None:
    assert see(served(pair, "before")) == pair.before


@pytest.mark.parametrize("stage", ["both", "after"])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_what_was_moved_does_it_no_more(pair: Pair, stage: str, served: Served) -> None:
    """L1, L2 and L5: what is left of `POST /items/` is the same on every page."""
    assert see(served(pair, stage)) == Seen(full=4 if pair.name == "depends" else 3)


def test_advanced_alchemy_loses_what_follows_a_refused_commit(tmp_path: Path) -> None:
    """On SQLite the connection is in its pool again, in the middle of the refused transaction."""
    (pair,) = (pair for pair in PAIRS if pair.name == "advanced_alchemy")
    serve = Serve(tmp_path)
    with contextlib.closing(serve):
        example = serve_stage(pair, "before", tmp_path, serve)
        told = [example.post("/items/", name).status_code for name in ("refused at commit", "a", "b")]
        assert told[0] == 201
        example.server.terminate()  # what is under way is ended first
        assert example.names() == []


def test_fastapi_sqla_sends_two_answers(served: Served) -> None:
    (pair,) = (pair for pair in PAIRS if pair.name == "fastapi_sqla")
    example = served(pair, "before")
    assert example.post("/items/", "refused at commit").text == "Internal Server Error"
    example.wait_until_logged("'http.response.body' sent, after response already completed")


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_a_page_is_current(pair: Pair) -> None:
    """Both programs in full, a part of the one half way, and what was measured; `python -m tests.moving`."""
    text = pair.page.read_text(encoding="utf-8")
    assert current(pair, text, load_results()) == text
    assert differences(pair.measured, load_results()) in text
    shown = files(pair.page)
    parts = {pair.program(stage).relative_to(ROOT).as_posix(): stage for stage in STAGES}
    assert shown.keys() == parts.keys()
    for title, part in shown.items():
        program = (ROOT / title).read_text(encoding="utf-8")
        assert part in program if parts[title] == "both" else part == program


def test_the_index_counts_the_lines() -> None:
    """Added and removed ones, so a line that is written otherwise counts twice; `python -m tests.moving`."""
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    assert counted(text) == text
    for pair in PAIRS:
        assert re.search(rf"\]\({pair.page.name}\) \| .+ \| {pair.changed_lines()} \|\n", text)


def test_the_classic_app_moves_in_thirty_lines() -> None:
    """And its page shows every one of them."""
    (pair,) = (pair for pair in PAIRS if pair.name == "depends")
    assert 0 < pair.changed_lines() <= 30
    (block,) = [block for block in blocks(pair.page) if block.language == "diff"]
    assert block.text == pair.diff()
    text = pair.page.read_text(encoding="utf-8")
    assert f"{pair.changed_lines()} changed lines, taken out and put in" in text
    further = changed_lines(diff(pair.program("before"), QUICKSTART))
    assert f"{further} changed lines from the first" in text


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
def test_the_name_that_a_page_keeps_gives_the_session_of_the_unit(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that says how modules may go on with their old import: the block goes on from the program."""
    added = [block for block in programs(pair.page) if not block.title]
    if not added:
        assert pair.name in ("depends", "fastapi_sqla", "advanced_alchemy")
        return
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("moved")
    monkeypatch.setitem(sys.modules, "moved", module)  # FastAPI looks annotations up there
    names = module.__dict__
    exec(compile(pair.program("after").read_text(encoding="utf-8"), "after", "exec"), names)
    for block in added:
        run(block, names)
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(gives_the_session(pair, names))


async def gives_the_session(pair: Pair, names: dict[str, Any]) -> None:
    async with names["database"] as database:
        if pair.name == "fastapi_sqlalchemy":
            with database.new_unit() as unit:
                assert names["db"].session is unit.sync_session
            return
        async with database.new_unit() as unit:
            given = await names["db_session"](database) if "db_session" in names else names["db"].session
            assert given is unit.session


def test_every_page_is_tested() -> None:
    assert {page.name for page in PAGES.glob("*.md")} == {"index.md", *(pair.page.name for pair in PAIRS)}
