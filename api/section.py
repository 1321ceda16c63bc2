"""What the sections of the configuration have in common."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

# As the environment spells them.
SWITCHES = ("true", "false")
CONFLICT: Final = "conflict"
EMPTY: Final = "empty"


def conflict(key: str | tuple[str | int, ...], reason: str, section: str = "") -> PydanticCustomError:
    """What is wrong is not one value but two: `key` is the one to name, the reason names the other.

    A tuple leads to a key in a list of tables: `("rules", 0, "match")`.
    """
    key = (key,) if isinstance(key, str) else key
    return PydanticCustomError(CONFLICT, "{reason}", {"key": key, "reason": reason, "section": section})


class Section(BaseModel):
    """A section, or a table of a list in one. A field with `repr=False` is secret, and never printed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_switch(cls, value: object, info: ValidationInfo) -> object:
        # The environment brings numbers as text, so text is read; true would be read as 1.
        wanted = cls.model_fields[info.field_name or ""].annotation
        if wanted in (bool, bool | None):
            if not isinstance(value, bool) and value not in SWITCHES:
                raise ValueError("is true or false")
        elif isinstance(value, bool):
            raise ValueError("true and false are no values of this setting")
        return value
