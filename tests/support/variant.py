"""The same tests in other surroundings, named by the variable TESTS_WITH, with commas between them.

`TESTS_WITH=replay`: each request of the tests' apps may be run again. `TESTS_WITH=pgbouncer`: between an
app and its PostgreSQL stands PgBouncer in transaction mode.
"""

from __future__ import annotations

import os
from typing import Literal, get_args

from uow.retry import Retry

VARIABLE = "TESTS_WITH"
Variant = Literal["replay", "pgbouncer"]


def runs_with(variant: Variant) -> bool:
    """Whether this run, or the run that has started this server, was asked for it.

    Raises ValueError if the variable names something else: a word that is misspelt would prove nothing.
    """
    named = {name for name in os.environ.get(VARIABLE, "").split(",") if name}
    if unknown := named - set(get_args(Variant)):
        raise ValueError(f"{VARIABLE} may name {', '.join(get_args(Variant))}, and not {sorted(unknown)}")
    return variant in named


def retry_of_this_run() -> Retry | None:
    """What an app of the tests gives to its middleware."""
    return Retry() if runs_with("replay") else None
