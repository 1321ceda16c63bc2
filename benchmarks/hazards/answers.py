"""Hazards of one request and its answer."""

from benchmarks.hazards.catalogue import BOTH, hazard
from benchmarks.hazards.findings import HELD, Finding, judge, judge_refusal, judge_wanted, succeeded
from benchmarks.hazards.stage import Stage


def outcome(stage: Stage, path: str) -> Finding:
    """What a request was told, and what is there when it is over."""
    status = stage.post(path)
    stage.wait_until_through()
    return judge(status, stage.rows())


@hazard(
    "201 after COMMIT",
    "A row is written and answered with 201. COMMIT is held open: has the answer arrived?",
    engines=BOTH,
)
def answer_after_commit(stage: Stage) -> Finding:
    with stage.held() as hold:
        client = stage.raw("POST", "/items")
        hold.wait_until_waiting()
        early = client.arrived(within=0.5)
        there = stage.rows()
    status = stage.status(client)
    stage.wait_until_through()
    if early:
        return Finding("early", f"{status} while COMMIT was held, {there} rows to read")
    return judge_wanted(status, stage.rows())


@hazard("returned 409", "A handler writes, and then returns a 409.", engines=BOTH)
def returned_error(stage: Stage) -> Finding:
    return outcome(stage, "/returned")


@hazard("raised 404", "A handler writes, and then raises HTTPException(404).", engines=BOTH)
def raised_http_exception(stage: Stage) -> Finding:
    return outcome(stage, "/raised")


@hazard(
    "mapped exception", "A handler writes, and raises what an exception handler of the app answers with 422."
)
def mapped_exception(stage: Stage) -> Finding:
    return outcome(stage, "/mapped")


@hazard("unhandled exception", "A handler writes, and raises what nobody handles.")
def unhandled_exception(stage: Stage) -> Finding:
    return outcome(stage, "/broken")


@hazard("invalid answer", "A handler writes, and its answer does not fit the response model.")
def invalid_answer(stage: Stage) -> Finding:
    return outcome(stage, "/invalid")


@hazard("303 after a POST", "A handler writes, and answers with a redirect, as forms do.")
def redirect_after_post(stage: Stage) -> Finding:
    status = stage.ask("POST", "/redirect", follow_redirects=False)
    stage.wait_until_through()
    return judge_wanted(status, stage.rows())


@hazard(
    "COMMIT refused",
    "A deferred foreign key refuses COMMIT; the handler had answered 201 and added a background task.",
)
def commit_refused(stage: Stage) -> Finding:
    status = stage.post("/orphans")
    stage.wait_until_through()
    seen = stage.seen()
    return judge_refusal(status, stage.rows(), answers=seen["answers"], ran="background ran" in seen["told"])


@hazard("refused by the last flush", "A handler adds a row that exists, flushes nothing, and answers 201.")
def refused_by_flush(stage: Stage) -> Finding:
    stage.backend.execute("INSERT INTO items (name) VALUES (?)", ("a",))
    status = stage.post("/unflushed")
    stage.wait_until_through()
    return judge(status, stage.rows() - 1)


@hazard(
    "the app's own answer to it",
    "The same, in an app whose exception handler answers IntegrityError with 409.",
    env={"HAZARDS_HANDLER": "1"},
)
def own_answer_to_refusal(stage: Stage) -> Finding:
    finding = refused_by_flush(stage)
    if finding.verdict != HELD or finding.seen.startswith("409"):
        return finding
    return Finding(finding.seen[:3], f"{finding.seen}, the handler was not asked")


@hazard(
    "swallowed error",
    "A statement fails, the handler catches it and answers 201: PostgreSQL answers COMMIT with ROLLBACK.",
)
def swallowed_statement(stage: Stage) -> Finding:
    return outcome(stage, "/swallowed-statement")


@hazard("swallowed flush error", "The same with an error of the session's flush.")
def swallowed_flush(stage: Stage) -> Finding:
    return outcome(stage, "/swallowed-flush")


@hazard("error in a savepoint", "A statement fails inside a savepoint, and the handler goes on.")
def error_in_savepoint(stage: Stage) -> Finding:
    status = stage.post("/savepoint")
    stage.wait_until_through()
    return judge_wanted(status, stage.rows())


@hazard("commit() in the handler", "A handler commits by itself, and then returns a 409.")
def commit_in_handler(stage: Stage) -> Finding:
    return outcome(stage, "/commits")


@hazard("GET that writes", "A handler of a GET writes a row and answers 200.")
def get_that_writes(stage: Stage) -> Finding:
    status = stage.ask("GET", "/touch")
    stage.wait_until_through()
    finding = judge(status, stage.rows())
    if succeeded(status) and finding.verdict == HELD:
        return Finding("written", finding.seen)
    return finding
