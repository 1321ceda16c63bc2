"""What the settings make of connections to PostgreSQL: their name, their password, and a pooler's needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

import api.database
from api.database import PasswordUnavailable, open_database, password_of
from api.settings import DatabaseSettings, Settings
from tests.support.backends import PostgresBackend

pytestmark = pytest.mark.backends("pg18", "pgsystem")


def settings_of(postgres: PostgresBackend, **more: object) -> Settings:
    return Settings.model_validate({"database": {"url": postgres.database_url, **more}})


async def asked(settings: Settings, sql: str) -> list[object]:
    async with open_database(settings) as database:
        found = []
        for read_only in (True, False):
            async with database.new_unit(read_only=read_only) as unit:
                found.append(await unit.session.scalar(text(sql)))
        return found


async def test_connections_have_the_name_of_the_application(postgres: PostgresBackend) -> None:
    sql = "SELECT current_setting('application_name')"
    assert await asked(settings_of(postgres), sql) == ["inventory"] * 2
    assert await asked(settings_of(postgres, application_name="shop & co"), sql) == ["shop & co"] * 2


async def test_a_pooler_gets_nothing_prepared(postgres: PostgresBackend) -> None:
    async with open_database(settings_of(postgres, pooler=True)) as database, database.new_unit() as unit:
        for number in range(35):  # psycopg prepares what it has seen five times
            await unit.session.execute(text(f"SELECT {number % 5}"))
        kept = await unit.session.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
    # The statement that asks may see itself, and no other.
    assert kept in (0, 1)


@pytest.mark.parametrize(
    ("more", "asks"), [({}, True), ({"pooler": True}, True), ({"ask_outcome": False}, False)]
)
async def test_what_became_of_a_commit_is_asked_unless_that_is_switched_off(
    postgres: PostgresBackend, more: dict[str, object], asks: bool
) -> None:
    async with open_database(settings_of(postgres, **more)) as database:
        async with database.new_unit() as unit:
            await unit.session.execute(text("CREATE TABLE asked (n INTEGER)"))
        assert unit.outcome == "committed"
        assert (database.outcome is not None) is asks


@pytest.mark.parametrize("kind", ["file", "command"])
async def test_the_password_is_asked_for_each_new_connection(
    postgres: PostgresBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What the driver is given is looked at: the servers of the tests trust everybody."""
    given: list[object] = []
    _record_passwords(monkeypatch, given)
    secret = tmp_path / "password"
    secret.write_text("first\n", encoding="utf-8")
    command = f"{sys.executable} -c \"print(open('{secret}').read())\""
    how: dict[str, object] = (
        {"password_file": str(secret)} if kind == "file" else {"password_command": command}
    )
    url = make_url(postgres.database_url).set(password=None).render_as_string(hide_password=False)
    settings = Settings.model_validate({"database": {"url": url, **how}})
    async with open_database(settings) as database:
        await database.ping()
        await database.ping()
        assert given == ["first"]
        secret.write_text("second\n", encoding="utf-8")
        async with database.new_unit() as unit:
            await unit.session.execute(text("SELECT 1"))
        assert given == ["first", "second"]
        secret.unlink()
        async with database.new_unit(read_only=True) as one:  # a connection that is there needs none
            await one.session.execute(text("SELECT 1"))
            with pytest.raises(PasswordUnavailable, match="password_"):
                async with database.new_unit(read_only=True) as other:
                    await other.session.execute(text("SELECT 1"))


def _record_passwords(monkeypatch: pytest.MonkeyPatch, given: list[object]) -> None:
    connect_of = api.database._connect_of

    def recording(*, psycopg: bool) -> api.database.Connect:
        connect = connect_of(psycopg=psycopg)

        async def record(*args: object, **options: object) -> object:
            given.append(options["password"])
            return await connect(*args, **options)

        return record

    monkeypatch.setattr(api.database, "_connect_of", recording)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"password_command": "false"}, "ended with status 1"),
        ({"password_file": "/missing"}, "No such file or directory"),
    ],
)
def test_what_cannot_be_had_is_said_without_what_was_printed(
    settings: dict[str, object], message: str
) -> None:
    made = DatabaseSettings.model_validate({"url": "postgresql://u@localhost/x", **settings})
    with pytest.raises(PasswordUnavailable, match=message):
        password_of(made)
