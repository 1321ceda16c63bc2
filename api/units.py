"""Times and sizes in the configuration: numbers, or texts with a unit such as "500ms" and "1MiB"."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ByteSize, PlainSerializer, TypeAdapter, ValidationError

_TIME = re.compile(r"(\d+(?:\.\d+)?) *(ms|s|m|h|)")
_SECONDS = {"h": 3600, "m": 60, "s": 1, "": 1}
_SIZE = TypeAdapter(ByteSize)
_BYTES = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1}


def seconds_of(value: object) -> object:
    """The seconds of a text; what is no text stays, for the validation to judge."""
    if not isinstance(value, str):
        return value
    found = _TIME.fullmatch(value.strip())
    if found is None:
        raise ValueError('is a time: seconds, or a text such as "500ms", "3s", "5m" or "1h"')
    number, unit = float(found[1]), found[2]
    return number / 1000 if unit == "ms" else number * _SECONDS[unit]


def spelt_seconds(seconds: float) -> str:
    """In the largest unit that needs no fraction."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g}ms"
    unit = next((unit for unit, length in _SECONDS.items() if seconds and seconds % length == 0), "s")
    return f"{seconds / _SECONDS[unit]:.15g}{unit}"


def spelt_bytes(size: int) -> str:
    unit, length = next((unit, length) for unit, length in _BYTES.items() if size % length == 0)
    return f"{size // length}{unit}"


def bytes_of(value: object) -> object:
    """The bytes of a text; what is no text stays, for the validation to judge."""
    if not isinstance(value, str):
        return value
    try:
        return int(_SIZE.validate_python(value))
    except ValidationError:
        raise ValueError('is a size: bytes, or a text such as "64KiB" or "1MiB"') from None


def _at_most(limit: int) -> AfterValidator:
    def bounded(seconds: float) -> float:
        if seconds > limit:
            raise ValueError(f"is at most {spelt_seconds(limit)}, which is {limit // _DAY} days")
        return seconds

    return AfterValidator(bounded)


_DAY = 24 * 3600
_WEEK = _at_most(7 * _DAY)  # far from what timers take no more, and longer than anybody means to wait
_YEARS = _at_most(3650 * _DAY)
_SPELT_SECONDS = PlainSerializer(spelt_seconds, return_type=str, when_used="json")

Seconds = Annotated[float, BeforeValidator(seconds_of), _WEEK, _SPELT_SECONDS]
WholeSeconds = Annotated[int, BeforeValidator(seconds_of), _WEEK, _SPELT_SECONDS]
# What others are to remember, and nobody here waits for.
Age = Annotated[int, BeforeValidator(seconds_of), _YEARS, _SPELT_SECONDS]
Bytes = Annotated[
    int, BeforeValidator(bytes_of), PlainSerializer(spelt_bytes, return_type=str, when_used="json")
]
