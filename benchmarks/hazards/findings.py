"""What became of a hazard, in a word, and how the word follows from what was seen."""

from dataclasses import dataclass, replace

HELD = "held"

VERDICTS = {
    HELD: "what the client was told is what the database has, and nothing is left behind",
    "early": "the client has its success before COMMIT is acknowledged",
    "lost": "the client was told of a success, and what it asked for is not there",
    "kept": "the client was told of a failure, and what it asked for is there all the same",
    "refused": "the code gets an error that it can see, nothing is written, and no client was told otherwise",
    "written": "a request that only reads has written, and nobody objects",
    "two answers": "parts of a second answer were sent on top of the first",
    "task ran": "the client was told of a failure, and the background task of the success ran",
    "cut": "the answer breaks off; the client can tell",
    "starved": "a request got no connection, because others kept theirs without need",
    "500": "an error answer that a working request gets, or one that does not say to come back",
    "503": "an error answer that says when to come back",
    "leak": "a connection was not given back",
    "hang": "no answer within the limit",
    "-": "does not apply: there are no sync sessions to gather",
}


@dataclass(frozen=True)
class Finding:
    """A verdict, and what was seen."""

    verdict: str
    seen: str

    def with_leak(self) -> "Finding":
        """The same, where a connection was not given back as well."""
        verdict = "leak" if self.verdict == HELD else f"{self.verdict}, leak"
        return replace(self, verdict=verdict, seen=f"{self.seen}; a connection was not given back")


def succeeded(status: int | None) -> bool:
    """The client was told of a success."""
    return status is not None and status < 400


def judge(status: int | None, rows: int, wanted: int = 1) -> Finding:
    """Success and every row, or no success and no row. A client that was told nothing may find either."""
    told = "no answer" if status is None else str(status)
    seen = f"{told}, {rows} of {wanted} rows" if wanted > 1 else f"{told}, {'saved' if rows else 'not saved'}"
    if succeeded(status):
        return Finding(HELD if rows == wanted else "lost", seen)
    if status is not None and rows:
        return Finding("kept", seen)
    return Finding(HELD, seen)


def judge_wanted(status: int | None, rows: int, wanted: int = 1) -> Finding:
    """The same where the request has every right to succeed: an error is not held then."""
    finding = judge(status, rows, wanted)
    if finding.verdict == HELD and not succeeded(status):
        return replace(finding, verdict=error_word(status))
    return finding


def judge_refusal(status: int | None, rows: int, *, answers: int, ran: bool) -> Finding:
    """COMMIT was refused: one error answer, no row, and nothing that follows a success."""
    finding = judge(status, rows)
    seen = f"{finding.seen}, background task {'ran' if ran else 'did not run'}"
    if finding.verdict != HELD:
        return Finding(finding.verdict, seen)
    if answers > 1:
        return Finding("two answers", f"{seen}, {answers} answers begun")
    return Finding("task ran" if ran else HELD, seen)


def judge_afterwards(status: int | None, rows: int, told: list[str]) -> Finding:
    """Work after the answer: it is done, or the code is told that it cannot be."""
    seen = f"{status}, {'saved' if rows else 'not saved'}"
    if rows:
        return Finding(HELD, seen)
    refusals = [each.removeprefix("refused: ") for each in told if each.startswith("refused: ")]
    if refusals:
        return Finding("refused", f"{seen}, {refusals[0]}")
    return Finding("lost", f"{seen}, no error where it was written")


def judge_stream(complete: bool, rows: int, error: str) -> Finding:
    """A body that writes: whole and saved, or cut and not saved."""
    seen = f"{'whole' if complete else 'cut'} body, {'saved' if rows else 'not saved'}{error}"
    if complete:
        return Finding(HELD if rows else "lost", seen)
    return Finding("kept" if rows else "refused", seen)


def judge_many(acknowledged: int, kept: int, failed: dict[str, int]) -> Finding:
    """Many requests that all could succeed: what was acknowledged is there, and none is turned away."""
    turned_away = ", ".join(f"{count} got {what}" for what, count in sorted(failed.items()))
    seen = f"{acknowledged} acknowledged, {max(0, acknowledged - kept)} of them lost"
    seen = f"{seen}; {turned_away}" if turned_away else seen
    if kept < acknowledged:
        return Finding("lost", seen)
    if failed:
        worst = next((word for word in ("hang", "500", "503") if word in failed), min(failed))
        return Finding(worst, seen)
    return Finding(HELD, seen)


def error_word(status: int | None) -> str:
    """The verdict for an error answer."""
    return "cut" if status is None else str(status)
