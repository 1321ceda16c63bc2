"""`python -m api key`, and the `[security]` that it is made for."""

from __future__ import annotations

import json
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from api.cli import app
from api.keys import WHOLE, Keyring, Principal
from api.settings import ConfigurationError, Settings, load_settings
from tests.api.guarded import made
from tests.api.service import in_process


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["key", *arguments])


def key_in(said: str) -> str:
    """The one key that was printed."""
    (found,) = {match[0] for match in WHOLE.finditer(said)}
    return found


def test_a_key_is_shown_once_with_the_entry_that_is_to_be_pasted() -> None:
    ended = ran("--name", "shop", "--scope", "read", "--scope", "write")
    assert (ended.exit_code, ended.stderr) == (0, "")
    key = key_in(ended.stdout)
    block = ended.stdout[ended.stdout.index("[[security.keys]]") :]
    assert key not in block
    Path("config.toml").write_text(f'[security]\nauthentication = "api-keys"\n{block}', encoding="utf-8")
    security = load_settings().security
    (entry,) = security.keys
    assert (entry.name, entry.scopes) == ("shop", ("read", "write"))
    holder = Keyring(security.keys).holder_of(key)
    assert holder == Principal("shop", frozenset({"read", "write"}))


def test_a_key_may_only_read_unless_more_is_asked_for() -> None:
    ended = ran("--name", "shop", "--json")
    told = json.loads(ended.stdout)
    assert told["entry"]["scopes"] == ["read"]
    assert told["key"].startswith(f"inv_{told['entry']['id']}_")
    assert told["key"] not in json.dumps(told["entry"])


@pytest.fixture
def appended() -> list[str]:
    """Two keys, whose entries are in config.toml."""
    path = Path("config.toml")
    text = '# Mine.\n[database]\nurl = "sqlite:///a.db"\n\n[security]\nauthentication = "api-keys"'
    path.write_text(text, encoding="utf-8")
    path.chmod(0o640)
    keys = [key_in(ran("--name", name, "--append", "config.toml").stdout) for name in ("one", "two")]
    assert path.read_text(encoding="utf-8").startswith(f"{text}\n\n[[security.keys]]\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    return keys


async def test_what_was_appended_opens_the_service(appended: list[str]) -> None:
    settings = load_settings()
    assert [key.name for key in settings.security.keys] == ["one", "two"]
    sections: dict[str, Any] = {"security": settings.security.model_dump(), "database": {"url": "sqlite://"}}
    async with in_process(**sections) as (_, client):
        for key in appended:
            answer = await client.get("/items/", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == 200


SWITCH = 'authentication = "api-keys"'


@pytest.mark.parametrize("before", ["nothing", "another section", "another key"])
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_file_that_says_nothing_of_authentication_is_given_it(before: str, form: list[str]) -> None:
    """Without it the next start would be refused, because nobody asks for the key."""
    path = Path("keys.toml")
    entry = ran("--name", "first").stdout.partition("entry:\n\n")[2]
    text = {"nothing": "", "another section": "# Mine.\n[server]\nport = 1", "another key": entry}[before]
    if text:
        path.write_text(text, encoding="utf-8")
    ended = ran("--name", "shop", "--append", "keys.toml", *form)
    assert ended.exit_code == 0, ended.stderr
    assert path.read_text(encoding="utf-8").startswith(text)
    assert path.read_text(encoding="utf-8").count(f"[security]\n{SWITCH}\n\n[[security.keys]]\n") == 1
    assert f"keys.toml was given [security] {SWITCH} as well: " in ended.stderr
    assert load_settings(path).security.authentication == "api-keys"
    again = ran("--name", "dashboard", "--append", "keys.toml", *form)
    assert (again.exit_code, again.stderr) == (0, "")
    assert {"shop", "dashboard"} <= {key.name for key in load_settings(path).security.keys}


def test_a_new_file_is_nobody_elses() -> None:
    assert ran("--name", "shop", "--append", "keys.toml").exit_code == 0
    assert stat.S_IMODE(Path("keys.toml").stat().st_mode) == 0o600
    assert list(tomllib.loads(Path("keys.toml").read_text())) == ["security"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('[server]\nport = 1\n[security]\nauthentication = "none"\n', "config.toml, line 4: [security] auth"),
        ("[server]\nport = 1\n[security]\npublic_docs = false\n", "config.toml, line 3: [security] auth"),
        ("[security]\n", "config.toml, line 1: [security] auth"),
        ('security.trusted_hosts = "x"\n', "config.toml, line 1: [security] auth"),
    ],
)
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_a_file_whose_section_leaves_it_open_is_told_the_line_to_write(
    text: str, place: str, form: list[str]
) -> None:
    path = Path("config.toml")
    path.write_text(text, encoding="utf-8")
    ended = ran("--name", "shop", "--append", "config.toml", *form)
    assert ended.exit_code == 0
    assert path.read_text(encoding="utf-8").startswith(f"{text}\n[[security.keys]]\n")
    assert ended.stderr.startswith(place)
    assert f"a start is refused until it is set: write {SWITCH}" in ended.stderr
    with pytest.raises(ConfigurationError, match="nobody asks for"):
        load_settings(path)


def test_what_the_environment_has_set_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("config.toml").write_text("[security]\npublic_docs = false\n", encoding="utf-8")
    monkeypatch.setenv("UOW_SECURITY__AUTHENTICATION", "api-keys")
    ended = ran("--name", "shop", "--append", "config.toml")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert [key.name for key in load_settings().security.keys] == ["shop"]


TAKEN = f"""[[security.keys]]
name = "shop"
id = "0123456789abcdef"
scopes = ["read"]
hash = "{made("x", "read").entry.hash}"
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            TAKEN,
            "config.toml, line 8: [[security.keys]] key 2, name: shop is that of key 1, too",
        ),
        ("[security]\nkeys = []\n", "config.toml: cannot be added to: it would not be TOML"),
        ("[security\n", "config.toml: cannot be added to: it would not be TOML"),
        ('[security]\ncors_origins = "x"\n', "config.toml, line 2: [security] cors_origins: x is no origin"),
    ],
    ids=["a name that is taken", "a list", "no TOML", "another fault"],
)
def test_a_file_that_would_not_be_in_order_is_left_alone(text: str, message: str) -> None:
    Path("config.toml").write_text(text, encoding="utf-8")
    ended = ran("--name", "shop", "--append", "config.toml")
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert message in ended.stderr
    assert Path("config.toml").read_text() == text


@pytest.mark.parametrize("target", ["missing/a.toml", "."])
def test_a_file_that_cannot_be_written_is_named(target: str) -> None:
    ended = ran("--name", "shop", "--append", target)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"{target}: cannot be added to: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "a b"], "Invalid value for --name: is 1 to 64 letters"),
        (["--name", ""], "Invalid value for --name"),
        (["--name", "x", "--scope", "admin"], "'admin' is not one of 'read', 'write'"),
        (
            ["--name", "x", "--scope", "read", "--scope", "read"],
            "Invalid value for --scope: names a scope twice",
        ),
        ([], "Missing option '--name'"),
    ],
)
def test_a_wrong_command_line_makes_no_key(arguments: list[str], message: str) -> None:
    ended = ran(*arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert message in " ".join(re.sub(r"[─│╭╮╰╯]", " ", ended.stderr).split())


# The section


# Its id is the same in every process, because it stands in the name of a test.
ENTRY = made("shop", "read").entry.model_dump(mode="json") | {"id": "0123456789abcdef"}
OTHER = made("other", "read").entry.model_dump(mode="json")


def written(*entries: dict[str, Any], authentication: str = "api-keys", **more: str) -> Path:
    values = {"authentication": authentication, **more}
    lines = ["[security]", *(f"{name} = {json.dumps(value)}" for name, value in values.items())]
    for entry in entries:
        lines += ["[[security.keys]]", *(f"{name} = {json.dumps(value)}" for name, value in entry.items())]
    path = Path("a.toml")
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in ENTRY.items() if key != name}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            [ENTRY, OTHER | {"name": "shop"}],
            "line 9: [[security.keys]] key 2, name: shop is that of key 1, too",
        ),
        (
            [ENTRY, OTHER | {"id": ENTRY["id"]}],
            "line 10: [[security.keys]] key 2, id: 0123456789abcdef is that of",
        ),
        (
            [ENTRY | {"hash": "sha256:x"}],
            "line 7: [[security.keys]] key 1, hash: is not a hash that `python -m",
        ),
        ([ENTRY | {"hash": ENTRY["hash"][:-1]}], "line 7: [[security.keys]] key 1, hash: is not a hash"),
        ([ENTRY | {"hash": ENTRY["hash"].upper()}], "line 7: [[security.keys]] key 1, hash: is not a hash"),
        ([ENTRY | {"id": "1"}], "line 5: [[security.keys]] key 1, id: is not the id of a key"),
        ([ENTRY | {"name": "a\nb"}], "line 4: [[security.keys]] key 1, name: is 1 to 64 letters"),
        ([ENTRY | {"scopes": ["read", "admin"]}], "line 6: [[security.keys]] key 1, scopes"),
        ([ENTRY | {"scopes": []}], "line 6: [[security.keys]] key 1, scopes: "),
        (
            [ENTRY | {"scopes": ["read", "read"]}],
            "line 6: [[security.keys]] key 1, scopes: names a scope twice",
        ),
        ([ENTRY | {"scopes": "read"}], "line 6: [[security.keys]] key 1, scopes: is a list"),
        ([without("hash")], "line 3: [[security.keys]] key 1, hash: is missing"),
        ([without("scopes")], "line 3: [[security.keys]] key 1, scopes: is missing"),
        (
            [ENTRY | {"scope": "read"}],
            "line 8: [[security.keys]] key 1, scope: unknown key; did you mean scopes?",
        ),
        (
            [],
            "line 2: [security] authentication: needs a [[security.keys]]: run `python -m api key",
        ),
    ],
)
def test_a_wrong_entry_is_one_message_that_names_it(entries: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(written(*entries))
    assert str(caught.value).startswith(f"a.toml, {message}")
    assert len(str(caught.value).splitlines()) == 1
    assert ENTRY["hash"] not in str(caught.value)


def test_keys_that_nobody_asks_for_stop_the_start() -> None:
    """Who writes them down believes that the service is closed."""
    with pytest.raises(ConfigurationError, match="authentication: is none, and there are"):
        load_settings(written(ENTRY, authentication="none"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("trusted_hosts", "", "names no host; * is any"),
        ("trusted_hosts", "a.example:80", "a.example:80 is no name of a host"),
        ("trusted_hosts", "https://a.example", "https://a.example is no name of a host"),
        ("trusted_hosts", "a.*.example", "is no name of a host"),
        ("trusted_hosts", "*example", "is no name of a host"),
        ("cors_origins", "a.example", "a.example is no origin such as https://shop.example.com"),
        ("cors_origins", "https://a.example/", "is no origin"),
        ("cors_origins", "https://*.example", "is no origin"),
        ("cors_origins", "null", "null is no origin"),
        ("cors_origins", "https://A.example", "is no origin"),
        ("cors_origins", "*, https://a.example", "* is any origin: name it alone"),
        ("authentication", "keys", "Input should be 'none' or 'api-keys'"),
        ("hsts_max_age", "-1", "is a time"),
    ],
)
def test_a_wrong_value_is_one_message_that_names_it(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(written(**({"authentication": "none"} | {key: value})))
    assert re.match(rf"a\.toml, line \d: \[security\] {key}: ", str(caught.value))
    assert message in str(caught.value)


def test_nothing_is_asked_for_by_default() -> None:
    security = Settings().security
    assert (security.authentication, security.keys) == ("none", ())
    assert (security.trusted_hosts, security.cors_origins, security.hsts_max_age) == ("*", "", 0)
