"""The benchmark compares like with like, and its table says what was measured."""

import json

import pytest

from benchmarks.__main__ import arguments
from benchmarks.cases import CASES, variants_of
from benchmarks.drive import call, measure
from benchmarks.report import rows_of, table
from tests.support.backends import Backend

WRITES = {
    "W3": "items",
    "W4": "receipts",
    "K3": "items",
    "K4": "receipts",
    "E3": "items",
    "E4": "receipts",
    "U3": "items",
}


@pytest.mark.anyio
@pytest.mark.backends("sqlite", "pg18")
@pytest.mark.parametrize("case", CASES)
async def test_the_variants_of_a_case_answer_and_keep_the_same(backend: Backend, case: str) -> None:
    async with variants_of(case, backend.database_url) as variants:
        answers = []
        kept = []
        for variant in variants:
            answers.append(json.loads(await call(variant.app, *next(variant.requests))))
            if case in WRITES:
                kept.append(backend.count(WRITES[case]))
        assert kept == [] or kept[1] == kept[0] + 1
        if case in WRITES:  # the second variant writes one more of the same
            for answer in answers:
                answer.pop("id")
                answer.pop("stock")
        assert all(answer == answers[0] for answer in answers)


@pytest.mark.anyio
async def test_a_ratio_is_taken_for_every_round() -> None:
    async with variants_of("N0", "sqlite://") as variants:
        await measure(variants, 0, lambda text: None)
    assert len({len(variant.cpu) for variant in variants}) == 1
    rows = rows_of("N0", "none", variants)
    assert [row.variant for row in rows] == ["bare FastAPI", "empty middleware", "uow"]
    assert rows[0].ratio == 1
    assert all(row.spread[0] <= row.ratio <= row.spread[1] for row in rows)
    assert len(table(rows).splitlines()) == 5


def test_a_case_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SystemExit):
        arguments(["--case", "W9"])


@pytest.mark.anyio
async def test_an_error_is_not_measured() -> None:
    async with variants_of("N0", "sqlite://") as variants:
        with pytest.raises(RuntimeError, match="404"):
            await call(variants[0].app, "GET", "/nothing", "")
