"""The line of a setting, however TOML lets it be written."""

from __future__ import annotations

import pytest

from api.origin import Place, lines_of
from tests.support.server import ROOT

TEXT = '''\
# A comment, and [no] section.
top = 1

[ server ]  # spaces
port = 1
"host" = """
[not.a.section]
port = 9
"""
unix_socket = "\u2028 is no end of a line"
many = [
  "[x]",
  { port = 2 },
]

[[unit_of_work.rules]]
match = "GET *"

[[unit_of_work.rules]]

match = "POST *"
[unit_of_work.rules.deep]
key = 1
[unit_of_work]
settle_timeout = 1
[logging]
format.deep = 1\
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("top",), 2),
        (("no",), None),
        (("server",), 4),
        (("server", "port"), 5),
        (("server", "host"), 6),
        (("not",), None),
        (("server", "unix_socket"), 10),
        (("server", "many", 1, "port"), 11),
        (("unit_of_work",), 16),
        (("unit_of_work", "rules", 0), 16),
        (("unit_of_work", "rules", 0, "match"), 17),
        (("unit_of_work", "rules", 1), 19),
        (("unit_of_work", "rules", 1, "match"), 21),
        (("unit_of_work", "rules", 1, "deep", "key"), 23),
        (("unit_of_work", "settle_timeout"), 25),
        (("logging", "format", "deep"), 27),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "dos"])
def test_each_key_has_its_line(place: Place, line: int | None, end: str) -> None:
    assert lines_of(TEXT.replace("\n", end)).get(place) == line


def test_every_key_of_the_projects_file_stands_in_its_line() -> None:
    text = (ROOT / "config.toml").read_text(encoding="utf-8")
    lines = text.splitlines()
    found = {place: line for place, line in lines_of(text).items() if len(place) == 2}
    assert len(found) > 30
    assert all(lines[line - 1].startswith(f"{key} = ") for (_, key), line in found.items())
