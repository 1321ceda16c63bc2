"""The hazards of `benchmarks/hazards`: how a verdict follows, that a run finds what is there, and that the
documents say what the last full run has found.
"""

import ast
import re
from pathlib import Path

import pytest

from benchmarks.hazards import findings
from benchmarks.hazards.__main__ import arguments, merged
from benchmarks.hazards.every import HAZARDS
from benchmarks.hazards.findings import VERDICTS, Finding
from benchmarks.hazards.peers import PEERS, Peer
from benchmarks.hazards.report import DOCUMENT, cell, load_results, report, table, title, with_part
from benchmarks.hazards.run import PeerResult, Runner

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "hazards"
RESULTS = load_results()
HELD, LOST = Finding("held", ""), Finding("lost", "")
LOCKS = ("requirements.lock", "requirements-fastapi-sqla.lock")


@pytest.mark.parametrize(
    ("status", "rows", "verdict", "wanted_verdict"),
    [
        (201, 1, "held", "held"),
        (303, 1, "held", "held"),
        (201, 0, "lost", "lost"),
        (409, 1, "kept", "kept"),
        (409, 0, "held", "409"),
        (500, 0, "held", "500"),
        (None, 0, "held", "cut"),
        (None, 1, "held", "cut"),
    ],
)
def test_what_was_told_is_held_against_what_is_there(
    status: int | None, rows: int, verdict: str, wanted_verdict: str
) -> None:
    assert findings.judge(status, rows).verdict == verdict
    assert findings.judge_wanted(status, rows).verdict == wanted_verdict


def test_some_of_the_rows_are_not_enough() -> None:
    assert findings.judge_wanted(201, 4, wanted=5) == Finding("lost", "201, 4 of 5 rows")
    assert findings.judge_wanted(500, 4, wanted=5).verdict == "kept"


@pytest.mark.parametrize(
    ("status", "rows", "answers", "ran", "verdict"),
    [
        (409, 0, 1, False, "held"),
        (201, 0, 1, True, "lost"),
        (500, 1, 1, False, "kept"),
        (500, 0, 2, False, "two answers"),
        (500, 0, 1, True, "task ran"),
    ],
)
def test_a_refused_commit_has_one_answer_and_no_aftermath(
    status: int, rows: int, answers: int, ran: bool, verdict: str
) -> None:
    assert findings.judge_refusal(status, rows, answers=answers, ran=ran).verdict == verdict


def test_work_after_the_answer_is_done_or_refused_aloud() -> None:
    assert findings.judge_afterwards(200, 1, ["written"]).verdict == "held"
    assert findings.judge_afterwards(200, 0, ["written"]).verdict == "lost"
    refused = findings.judge_afterwards(200, 0, ["waiting", "refused: NoUnitOfWork"])
    assert refused == Finding("refused", "200, not saved, NoUnitOfWork")


def test_a_stream_that_writes_is_whole_and_saved_or_neither() -> None:
    told = {
        (whole, rows): findings.judge_stream(whole, rows, "").verdict
        for whole in (True, False)
        for rows in (0, 1)
    }
    assert told == {(True, 1): "held", (True, 0): "lost", (False, 0): "refused", (False, 1): "kept"}


def test_the_worst_of_many_requests_counts() -> None:
    assert findings.judge_many(400, 400, {}).verdict == "held"
    assert findings.judge_many(400, 18, {"500": 1}) == Finding(
        "lost", "400 acknowledged, 382 of them lost; 1 got 500"
    )
    assert findings.judge_many(3, 3, {"503": 4, "500": 1, "hang": 1}).verdict == "hang"
    assert findings.judge_many(3, 3, {"503": 4, "500": 1}).verdict == "500"
    assert findings.judge_many(3, 4, {"cut": 4}).verdict == "cut"


def test_a_leak_is_told_beside_the_rest() -> None:
    assert Finding("held", "201").with_leak().verdict == "leak"
    assert Finding("lost", "201").with_leak().verdict == "lost, leak"
    assert cell(Finding("500", "").with_leak()) == "**500, leak**"
    assert cell(Finding("500", "")) == "500"


def test_a_run_finds_what_uow_holds_and_depends_does_not() -> None:
    """Two hazards on SQLite, on real servers, with the interpreter of the tests."""
    hazards = [
        each for each in HAZARDS if each.name in ("answer-after-commit-sqlite", "returned-error-sqlite")
    ]
    expected = {"uow": ["held", "held"], "depends": ["early", "kept"]}
    with Runner({}) as runner:
        found = {
            peer.name: [finding.verdict for _, finding in runner.findings(peer, hazards)]
            for peer in PEERS
            if peer.name in expected
        }
    assert found == expected


def test_every_hazard_was_run_against_every_peer() -> None:
    assert {name: list(result.findings) for name, result in RESULTS.items()} == {
        peer.name: [hazard.name for hazard in HAZARDS] for peer in PEERS
    }
    words = {
        word
        for result in RESULTS.values()
        for each in result.findings.values()
        for word in each.verdict.split(", ")
    }
    assert words <= VERDICTS.keys()


def test_the_report_is_that_of_the_results() -> None:
    assert (FOLDER / "results.md").read_text(encoding="utf-8") == report(RESULTS)


def test_the_document_has_the_table_and_its_versions() -> None:
    """docs/why.md says what was measured, with what, and when."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert table(RESULTS) in text
    assert with_part(text, RESULTS) == text
    for name, result in RESULTS.items():
        (peer,) = (each for each in PEERS if each.name == name)
        assert title(peer, result) in text
        for package in ("fastapi", "sqlalchemy"):
            assert result.versions[package] in text
        assert result.date in text


def verdict(peer: str, hazard: str) -> str:
    return RESULTS[peer].findings[hazard].verdict


def test_the_document_says_who_answers_before_commit() -> None:
    early = {peer for peer in RESULTS if verdict(peer, "answer-after-commit") == "early"}
    assert early == {"depends", "context_async_asgi", "asgi_sqlalchemy", "advanced_alchemy"}
    for after_the_answer in ("commit-refused", "timeout-during-commit", "postgres-dies-in-commit"):
        assert {peer for peer in RESULTS if verdict(peer, after_the_answer) == "lost"} == early


def test_the_document_says_what_no_other_one_survives() -> None:
    failed_by_all = [
        hazard.name
        for hazard in HAZARDS
        if all(
            verdict(peer, hazard.name) not in ("held", "refused", "503") for peer in RESULTS if peer != "uow"
        )
    ]
    assert failed_by_all == [
        "swallowed-statement",
        "commit-in-handler",
        "get-that-writes",
        "gather",
        "no-connection-in-time",
        "lost-updates-sqlite",
        "lost-updates-read-committed",
        "serializable-contention",
    ]


def test_the_document_says_what_uow_does_not_do() -> None:
    not_held = {
        name: verdict("uow", name) for name in RESULTS["uow"].findings if verdict("uow", name) != "held"
    }
    assert not_held == {
        "write-while-streaming": "refused",
        "write-in-background": "refused",
        "task-outlives-request": "refused",
        "gather": "500",
        "no-connection-in-time": "503",
        "lost-updates-read-committed": "lost",
        "serializable-contention": "503",
    }
    pinging = {"fastapi_async_sqlalchemy", "context_async", "context_async_asgi"}
    assert {peer for peer in RESULTS if verdict(peer, "after-a-restart") == "held"} == pinging | {"uow"}
    gathering = {peer for peer in RESULTS if verdict(peer, "gather-statements") == "held"}
    assert gathering == RESULTS.keys() - pinging - {"fastapi_sqlalchemy"}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_says_where_its_wiring_is_from(peer: Peer) -> None:
    docstring = ast.get_docstring(ast.parse(peer.file.read_text(encoding="utf-8")))
    assert docstring is not None
    assert re.search(r"https://\S+|README\.md", docstring)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_of_the_peers_has_versions_and_hashes_and_no_index(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host|file:", text)
    packages = [line for line in text.replace("\\\n", " ").splitlines() if re.match("[A-Za-z]", line)]
    assert packages
    for package in packages:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", package)
        assert "--hash=sha256:" in package


def test_the_peers_run_with_what_uow_runs_with() -> None:
    pin = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", re.MULTILINE)
    ours = dict(pin.findall((ROOT / "requirements.lock").read_text(encoding="utf-8")))
    theirs = dict(pin.findall((FOLDER / LOCKS[0]).read_text(encoding="utf-8")))
    assert {name: theirs[name] for name in ours if name in theirs} == {
        name: version for name, version in ours.items() if name in theirs
    }
    assert {"fastapi", "starlette", "sqlalchemy"} <= theirs.keys()


def test_a_hazard_that_is_run_again_is_put_among_the_others() -> None:
    old = PeerResult("2026-01-01", {"python": "3"}, {HAZARDS[0].name: HELD, HAZARDS[1].name: HELD})
    again = PeerResult("2026-01-02", {"python": "3"}, {HAZARDS[0].name: LOST})
    assert merged(old, again) == PeerResult(
        "2026-01-02", {"python": "3"}, {HAZARDS[0].name: LOST, HAZARDS[1].name: HELD}
    )
    assert merged(None, again) is again
    with pytest.raises(SystemExit, match="other versions"):
        merged(old, PeerResult("2026-01-02", {"python": "4"}, {}))


def test_what_does_not_exist_is_refused() -> None:
    for wrong in (["--peer", "nobody"], ["--hazard", "nothing"]):
        with pytest.raises(SystemExit):
            arguments(wrong)
