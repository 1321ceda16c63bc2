"""The guard: no key, no answer; and each way to get around it that was thought of."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

import api.keys
from api.keys import Key, Keyring, hash_of
from tests.api.guarded import GuardedService, Keys, Made, made
from tests.api.service import assert_problem, new_item

ITEM = {"name": "Mug", "price": 1}


def assert_refused(guarded: GuardedService, answer: httpx.Response) -> dict[str, Any]:
    """401 with its challenge, before anything was asked of the database, and nobody's name in the log."""
    document = assert_problem(answer, 401, "key-required")
    (challenge,) = answer.headers.get_list("www-authenticate")
    assert re.fullmatch(r'Bearer realm="api"(, error="invalid_token")?', challenge)
    line = guarded.line_of(answer)
    assert (line["statements"], line["outcome"], line["route"]) == (0, None, None)
    assert "principal" not in line
    return document


# Wrong keys


def wrong_headers(keys: Keys) -> dict[str, list[str]]:
    """Values of Authorization that are nobody's, by what is wrong with them."""
    reader, other = keys.reader, made("stranger", "read", "write")
    return {
        "nothing": [],
        "no key": ["Bearer"],
        "an unknown key": [f"Bearer {other.key}"],
        "another secret": [f"Bearer inv_{reader.entry.id}_{other.secret}"],
        "the secret of another key": [f"Bearer inv_{reader.entry.id}_{keys.both.secret}"],
        "truncated": [f"Bearer {reader.key[:-1]}"],
        "one more digit": [f"Bearer {reader.key}0"],
        "the last digit changed": [f"Bearer {reader.key[:-1]}{'1' if reader.key[-1] == '0' else '0'}"],
        "capitals": [f"Bearer {reader.key.upper()}"],
        "the secret alone": [f"Bearer {reader.secret}"],
        "the id alone": [f"Bearer inv_{reader.entry.id}_"],
        "the kept hash": [f"Bearer {reader.entry.hash}"],
        "another scheme": [f"Basic {reader.key}"],
        "no scheme": [reader.key],
        "a tab": [f"Bearer\t{reader.key}"],
        "two keys": [f"Bearer {reader.key}, Bearer {reader.key}"],
        "two headers": [f"Bearer {reader.key}", f"Bearer {reader.key}"],
        "a good and a bad header": [f"Bearer {reader.key}", f"Bearer {other.key}"],
        "a bad and a good header": [f"Bearer {other.key}", f"Bearer {reader.key}"],
        "not ASCII": [f"Bearer {reader.key}\xff"],
        "a digit of another script": [f"Bearer {reader.key[:-1]}\xb2"],
        "ten thousand digits": [f"Bearer inv_{reader.entry.id}_{'0' * 10_000}"],
    }


@pytest.mark.parametrize("wrong", wrong_headers(Keys()))
def test_what_is_no_key_of_ours_is_refused(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys, wrong: str
) -> None:
    lines = [(b"Authorization", value.encode("latin-1")) for value in wrong_headers(keys)[wrong]]
    for method, path in (("GET", "/items/"), ("POST", "/items/"), ("DELETE", "/items/1"), ("GET", "/nope")):
        assert_refused(guarded, keyless.request(method, path, headers=lines))


def test_each_wrong_key_gets_the_same_words(keyless: httpx.Client, keys: Keys) -> None:
    """Nobody learns that an id exists, or how long a key is."""
    said = set()
    for values in list(wrong_headers(keys).values())[1:]:
        lines = [(b"Authorization", value.encode("latin-1")) for value in values]
        document = keyless.get("/items/", headers=lines).json()
        del document["request_id"]
        said.add(tuple(sorted(document.items())))
    assert len(said) == 1


def test_the_scheme_is_written_as_the_client_likes(keyless: httpx.Client, keys: Keys) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        answer = keyless.get("/items/", headers={"Authorization": f"{scheme} {keys.reader.key}"})
        assert answer.status_code == 200


@pytest.mark.parametrize("place", ["X-API-Key", "Proxy-Authorization", "Cookie", "X-Authorization"])
def test_a_key_in_another_header_is_none(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys, place: str
) -> None:
    for value in (keys.both.key, f"Bearer {keys.both.key}", f"Authorization={keys.both.key}"):
        assert_refused(guarded, keyless.get("/items/", headers={place: value}))


@pytest.mark.parametrize("name", ["api_key", "access_token", "key", "authorization"])
def test_a_key_in_the_query_is_refused(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys, name: str
) -> None:
    """There it would be in every log on the way; so it helps nobody, and is refused beside a good header."""
    assert_refused(guarded, keyless.get("/items/", params={name: keys.both.key}))
    answer = keyless.get("/items/", params={name: keys.both.key}, headers=keys.both.header)
    assert_problem(answer, 422, "invalid-request")
    assert keys.both.secret not in answer.text
    assert keys.both.secret not in guarded.log()


# Comparing


def test_every_key_is_compared_once_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its id is known, unknown or malformed; and always as many bytes."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    known, stranger = made("known", "read"), made("stranger", "read")
    keyring = Keyring([known.entry])
    monkeypatch.setattr(api.keys, "compare_digest", compare)
    wrong = [stranger.key, f"inv_{known.entry.id}_{stranger.secret}", known.key[:-1], "", "x" * 10_000]
    for number, key in enumerate(wrong, start=1):
        assert keyring.holder_of(key) is None
        assert len(compared) == number
    holder = keyring.holder_of(known.key)
    assert holder is not None
    assert (holder.name, len(compared)) == ("known", len(wrong) + 1)
    assert {len(side) for pair in compared for side in pair} == {32}


def test_nothing_of_a_key_is_kept_but_a_salted_hash() -> None:
    one = made("one", "read")
    assert len(bytes.fromhex(one.secret)) * 8 >= 256
    assert one.secret not in repr(one.entry) + one.entry.model_dump_json()
    assert hash_of(one.key) != hash_of(one.key)
    assert len({made("x", "read").key for _ in range(100)}) == 100


def test_the_hash_of_one_id_opens_no_other() -> None:
    """An entry whose id was exchanged is of no key, not even of the one that its hash is of."""
    one, other = made("one", "read"), made("other", "read")
    moved = Key.model_validate({**one.entry.model_dump(), "id": other.entry.id})
    for key in (one.key, other.key, f"inv_{other.entry.id}_{one.secret}"):
        assert Keyring([moved]).holder_of(key) is None


# Scopes


def assert_out_of_scope(answer: httpx.Response, scope: str) -> None:
    assert assert_problem(answer, 403, "scope-missing")["scope"] == scope
    expected = f'Bearer realm="api", error="insufficient_scope", scope="{scope}"'
    assert answer.headers["www-authenticate"] == expected


def test_reading_and_writing_are_two_scopes(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys
) -> None:
    answer = keyless.post("/items/", json=ITEM, headers=keys.writer.header)
    assert answer.status_code == 201
    path = answer.headers["location"]
    for method in ("GET", "HEAD"):
        assert keyless.request(method, path, headers=keys.reader.header).status_code == 200
        assert keyless.request(method, path, headers=keys.writer.header).status_code == 403
    assert_out_of_scope(keyless.get(path, headers=keys.writer.header), "read")
    for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "QUERY"):
        assert_out_of_scope(keyless.request(method, path, headers=keys.reader.header), "write")
    assert keyless.delete(path, headers=keys.both.header).status_code == 204


OVERRIDES = ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Method"]


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_method_is_what_the_request_line_says(keyless: httpx.Client, keys: Keys, name: str) -> None:
    with httpx.Client(base_url=keyless.base_url, headers=keys.both.header, trust_env=False) as owner:
        item = f"/items/{new_item(owner)}"
    answer = keyless.get(item, headers={**keys.reader.header, name: "DELETE"})
    assert answer.status_code == 200
    assert_out_of_scope(
        keyless.post("/items/", json=ITEM, headers={**keys.reader.header, name: "GET"}), "write"
    )
    for path in (f"{item}?_method=DELETE", f"{item}?_method=GET"):
        assert keyless.get(path, headers=keys.reader.header).status_code == 422
    assert keyless.get(item, headers=keys.reader.header).status_code == 200


# Who it was


def test_the_line_of_a_request_names_the_principal(
    guarded: GuardedService, keyless: httpx.Client, keys: Keys
) -> None:
    for holder, status in ((keys.reader, 403), (keys.writer, 201)):
        answer = keyless.post("/items/", json=ITEM, headers=holder.header)
        line = guarded.line_of(answer)
        assert (line["status"], line["principal"]) == (status, holder.entry.name)
    line = guarded.line_of(keyless.get("/livez", headers=keys.reader.header))
    assert "principal" not in line


def test_names_are_found_by_their_keys() -> None:
    several = [made(f"name-{number}", "read") for number in range(20)]
    keyring = Keyring(each.entry for each in several)

    def name_of(each: Made) -> str | None:
        holder = keyring.holder_of(each.key)
        return holder.name if holder else None

    assert [name_of(each) for each in several] == [each.entry.name for each in several]
