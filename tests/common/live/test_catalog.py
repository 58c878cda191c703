"""What is managed at run time, on both databases and a real Redis."""

import asyncio

import pytest
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis
from sqlalchemy import select, update

from common.config.setting_sources import Inputs
from common.database.engine import open_database
from common.database.migrate import migrate
from common.database.tables import StoredRow
from common.live import changes
from common.live.catalog import Catalog, Changed, StoredSync
from common.live.changes import NoSuchRecord, NotPossible, Rotation
from common.live.live_settings import build
from common.live.stored_copy import StoredCopy
from common.live.stored_records import FORMAT, Record, SealedRecord
from common.redis import keyspace
from common.redis.client import connect

SECRET, NEXT = SecretStr("a long random text that all processes share"), SecretStr("the next long random text of all of them")
LAB = {"base_url": "http://lab.example/v1"}
INPUTS = Inputs(read={})
NOW_MS = 4_000_000_000_000  # After every overlap.


def key(text: str = "first-key-of-the-lab") -> SecretStr:
    return SecretStr(text)


def keys_of(record: Record, now_ms: int = 0) -> list[str]:
    entry = record.entry(now_ms)
    return entry.values["providers"][record.name].get("api_keys", []) if entry else []


@pytest.fixture
async def engine(database_url: str):
    await migrate(database_url)
    found = open_database(database_url)
    yield found
    await found.dispose()


@pytest.fixture
def catalog(engine, redis: Redis) -> Catalog:
    return Catalog(engine, redis, [SECRET])


async def add_lab(catalog: Catalog) -> Changed:
    return await catalog.change("provider", "lab", changes.add_provider("lab", LAB, [key()]), INPUTS)


async def test_a_provider_is_served_from_redis_as_it_is_in_the_database_and_nowhere_in_clear(catalog, engine, redis):
    record = (await add_lab(catalog)).record

    document = await StoredCopy(redis).load()
    assert document == await catalog.document()
    assert document.records[0].open([SECRET]) == record
    async with engine.connect() as connection:
        stored = b"".join(row.sealed for row in await connection.execute(select(StoredRow.sealed)))
    stored += await redis.get(keyspace.STORED_CONFIG)
    assert b"first-key" not in stored
    assert b"lab.example" not in stored


async def test_a_rotation_puts_the_new_key_first_and_the_old_one_last_until_its_overlap_is_over(catalog):
    await add_lab(catalog)

    record = (await catalog.change("provider", "lab", changes.rotate_key(Rotation(key("second"))), INPUTS)).record

    assert keys_of(record) == ["second", "first-key-of-the-lab"]
    assert keys_of(record, NOW_MS) == ["second"]
    at_once = await catalog.change("provider", "lab", changes.rotate_key(Rotation(key("third"), overlap_s=0)), INPUTS)
    assert keys_of(at_once.record) == ["third", "first-key-of-the-lab"]


async def test_of_several_keys_a_rotation_must_name_one(catalog):
    two = changes.add_provider("lab", LAB, [key("one"), key("two")])
    record = (await catalog.change("provider", "lab", two, INPUTS)).record
    for id_ in (None, "none"):
        with pytest.raises(NotPossible):
            await catalog.change("provider", "lab", changes.rotate_key(Rotation(key(), id_)), INPUTS)

    chosen = changes.rotate_key(Rotation(key("new"), record.keys[1].id, overlap_s=0))
    assert keys_of((await catalog.change("provider", "lab", chosen, INPUTS)).record) == ["one", "new"]


async def test_what_is_not_there_cannot_be_changed_and_what_is_cannot_be_added(catalog):
    for change in (changes.disable(True), changes.update_provider(LAB), changes.rotate_key(Rotation(key()))):
        with pytest.raises(NoSuchRecord):
            await catalog.change("provider", "lab", change, INPUTS)
    with pytest.raises(NoSuchRecord):
        await catalog.remove("route", "fast")
    await add_lab(catalog)
    with pytest.raises(NotPossible):
        await add_lab(catalog)


async def test_a_route_leads_to_providers_of_the_settings_and_to_stored_ones_also_disabled_but_to_no_others(catalog):
    def route(*models: str) -> changes.Change:
        fallback = {"model": models[-1], "when": ["exhausted"]}
        fields = {"targets": list(models[:-1]), "fallbacks": [fallback]} if models[1:] else {"targets": list(models)}
        return changes.put_route("fast", fields, may_replace=True)

    await add_lab(catalog)
    await catalog.change("provider", "lab", changes.disable(True), INPUTS)
    mine = Inputs(read={"providers": {"mine": {"base_url": "http://mine.example/v1"}}})

    for known in (["openai/gpt-5"], ["gpt-5"], ["lab/x"], ["x#lab"], ["mine/x"], ["lab/x", "openai/gpt-5"]):
        assert (await catalog.change("route", "fast", route(*known), mine)).is_served
    for unknown in (["mine/x"], ["openai/gpt-5", "mine/x"], ["lab/x", "x#mine"]):
        with pytest.raises(NotPossible, match="There is no provider 'mine'"):
            await catalog.change("route", "fast", route(*unknown), INPUTS)
    for never in ("lab/*", "openai/", "a-model"):
        with pytest.raises(NotPossible, match="It cannot be used"):
            await catalog.change("route", "fast", route(never), mine)


async def test_changes_at_the_same_time_are_all_made_and_redis_has_the_last_state(catalog, redis):
    routes = [changes.put_route(f"r{number}", {"targets": ["openai/gpt-5"]}, may_replace=True) for number in range(8)]

    await asyncio.gather(*(catalog.change("route", f"r{number}", route, INPUTS) for number, route in enumerate(routes)))

    document = await catalog.document()
    assert [record.name for record in document.records] == [f"r{number}" for number in range(8)]
    copied = await StoredCopy(redis).load()
    assert (copied.revision, set(copied.records)) == (document.revision, set(document.records))


async def test_a_writer_that_is_late_does_not_bring_a_removed_provider_back(catalog, redis):
    await add_lab(catalog)
    late = await catalog.document()
    await catalog.remove("provider", "lab")

    assert await StoredCopy(redis).publish(late) is False
    assert (await StoredCopy(redis).load()).records == ()


async def test_the_bookkeeper_copies_what_redis_did_not_get_and_what_it_has_lost(engine, redis):
    nowhere = connect("redis://127.0.0.1:9")
    changed = await Catalog(engine, nowhere, [SECRET]).change(
        "provider", "lab", changes.add_provider("lab", LAB, [key()]), INPUTS
    )
    await nowhere.aclose()
    sync = StoredSync(redis, [SECRET])

    assert changed.is_served is False
    assert [await sync.run(engine, 0) for _ in range(2)] == [True, False]
    await redis.delete(keyspace.STORED_CONFIG, keyspace.STORED_REVISION)
    assert [await sync.run(engine, 0) for _ in range(2)] == [True, False]


async def test_the_bookkeeper_writes_nothing_where_nothing_was_ever_stored(engine, redis):
    assert await StoredSync(redis, []).run(engine, 0) is False
    assert await redis.exists(keyspace.STORED_CONFIG, keyspace.STORED_REVISION) == 0


async def test_a_key_whose_overlap_is_over_is_deleted_from_the_database(catalog, engine, redis):
    await add_lab(catalog)
    await catalog.change("provider", "lab", changes.rotate_key(Rotation(key("second"))), INPUTS)
    sync = StoredSync(redis, [SECRET])
    await sync.run(engine, 0)

    assert await sync.run(engine, NOW_MS) is True

    (record,) = [sealed.open([SECRET]) for sealed in (await StoredCopy(redis).load()).records]
    assert [stored.text.get_secret_value() for stored in record.keys] == ["second"]


async def test_after_a_change_of_the_secret_everything_is_encrypted_anew(catalog, engine, redis):
    record = (await add_lab(catalog)).record

    assert await StoredSync(redis, [NEXT, SECRET]).run(engine, 0) is True

    (sealed,) = (await catalog.document()).records
    assert (sealed.open([NEXT]), sealed.open([SECRET])) == (record, None)


async def test_what_nobody_can_decrypt_is_told_and_can_be_removed_but_not_changed(catalog, engine, redis):
    await add_lab(catalog)
    other = Catalog(engine, redis, [NEXT])

    with pytest.raises(NotPossible, match="another SLUICE_SECRET"):
        await other.change("provider", "lab", changes.disable(True), INPUTS)
    assert await other.remove("provider", "lab") is True
    with pytest.raises(NotPossible, match="needs SLUICE_SECRET"):
        await Catalog(engine, redis, []).change("provider", "lab", changes.add_provider("lab", LAB, []), INPUTS)


async def test_a_record_in_another_ones_place_or_of_a_later_version_is_not_read(catalog, engine):
    await add_lab(catalog)
    async with engine.begin() as connection:
        await connection.execute(update(StoredRow).where(StoredRow.kind == "provider").values(name="openai"))
    (moved,) = (await catalog.document()).records
    assert moved.open([SECRET]) is None

    later = SealedRecord("provider", "lab", FORMAT + 1, moved.sealed)
    assert (later.open([SECRET]), "later version" in later.why_unreadable([SECRET])) == (None, True)


async def test_what_cannot_be_decrypted_says_whether_the_secret_is_missing_or_another(catalog):
    await add_lab(catalog)
    (sealed,) = (await catalog.document()).records

    assert "has no SLUICE_SECRET" in sealed.why_unreadable([])
    assert "has another SLUICE_SECRET" in sealed.why_unreadable([NEXT])


def test_what_other_sources_set_is_told():
    record = changes.add_provider("google-ai-studio", {"limits": {"requests": 5}}, [key()])(None)
    route = changes.put_route("fast", {"targets": ["openai/gpt-5"]}, may_replace=True)(None)

    assert record.overridden({"providers": {"gemini": {"api_keys": "k"}}}) == ["api_keys"]  # By any of its names.
    assert record.overridden({"providers": {"openai": {"api_keys": "k"}}}) == []
    assert route.overridden({"aliases": {"fast": ["x/y"]}}) == route.overridden({"routes": {"fast": {}}}) == ["all of it"]


def test_what_is_only_in_the_settings_is_told_where_to_change():
    read = {"providers": {"gemini": {}}, "aliases": {"fast": ["x/y"]}}
    for kind, name, is_there in [
        ("provider", "google-ai-studio", True),
        ("route", "fast", True),
        ("provider", "fast", False),
        ("route", "slow", False),
    ]:
        text = changes.why_not_managed(kind, name, read)
        assert (name in text, "It is in the settings" in text) == (True, is_there)


@pytest.mark.parametrize(
    "fields",
    [{"wire": "none"}, {"base_url": "ftp://x"}, {"base_url": "http://u:p@x"}, {"limits": {"requests": -1}}, {"keys": "k"}],
)
def test_settings_that_a_provider_cannot_have_are_refused(fields):
    with pytest.raises(ValidationError):
        changes.add_provider("lab", fields, [])


def test_the_login_of_an_address_from_an_earlier_version_is_not_shown():
    lab = changes.add_provider("lab", LAB | {"wire": "openai-chat"}, [])(None)
    old = lab.model_copy(update={"values": {**lab.values, "base_url": "http://user:a-password@lab.example/v1"}})

    assert changes.shown(lab)["settings"] == lab.values
    assert changes.shown(old)["settings"] == {"base_url": "http://…@lab.example/v1", "wire": "openai-chat"}


def test_an_update_changes_what_it_names_and_none_removes():
    lab = changes.add_provider("lab", LAB | {"limits": {"requests": 5}, "wire": "openai-chat"}, [key()])(None)

    updated = changes.update_provider({"limits": None, "base_url": "http://other.example"})(lab)

    assert updated.values == {"base_url": "http://other.example", "wire": "openai-chat"}
    assert updated.keys == lab.keys


def test_a_disabled_provider_says_nothing_to_the_settings():
    lab = changes.add_provider("lab", LAB, [key()])(None)
    on, off = lab.entry(0), changes.disable(True)(lab).entry(0)

    settings, problems = build(Inputs(read={}), [on])

    assert (off, problems, settings.provider("lab").base_url) == (None, [], "http://lab.example/v1")
    assert "first-key" not in repr(lab)
    assert changes.shown(lab)["keys"][0]["label"] == "…-lab"
