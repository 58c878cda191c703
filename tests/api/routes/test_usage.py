"""Which questions may a key ask about its own usage, and what if nobody can answer?"""

from datetime import UTC, datetime

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.routes.usage import ANSWER, OWN_GROUPS, PARAMETERS, UsageLine, parse_question, report
from common.canonical.errors import ErrorKind, GatewayError
from common.database.lazy import LazyDatabase
from common.ledger.usage_report import TOKENS, Line, UsageQuestion

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def read(**sent: str) -> UsageQuestion:
    return parse_question(sent, "key_a", NOON)


def test_unsaid_it_is_the_last_thirty_days_by_day():
    asked = read()

    assert asked.by == ("day",)
    assert asked.until_ms - asked.since_ms == 30 * 86_400_000
    assert asked.until_ms == int(NOON.timestamp() * 1000)


def test_groups_combine_each_once():
    assert read(by="day, model,day").by == ("day", "model")


@given(st.dictionaries(st.sampled_from(["by", "since", "until", "limit", "key", "tenant", "x"]), st.text(max_size=30)))
def test_whatever_is_asked_only_ones_own_is_told_or_it_is_refused(sent: dict[str, str]):
    found = outcome(sent)

    if isinstance(found, GatewayError):
        assert found.failed.kind is ErrorKind.INVALID_REQUEST
        assert found.failed.param in sent
    else:
        assert found.only == {"key": "key_a"}
        assert set(found.by) <= set(OWN_GROUPS)
        assert 1 <= found.lines_max <= 1_000


def outcome(sent: dict[str, str]) -> UsageQuestion | GatewayError:
    try:
        return read(**sent)
    except GatewayError as error:
        return error


async def test_an_absent_database_is_503_and_when_to_come_back():
    database = LazyDatabase("sqlite:////nowhere/at/all.db")

    with pytest.raises(GatewayError) as refused:
        await report(read(), database)

    await database.close()
    failed = refused.value.failed
    assert (failed.http_status, failed.code) == (503, "database_unavailable")
    assert failed.retry_after_s


async def test_the_answer_is_as_the_schema_says(tmp_path):
    database = LazyDatabase(f"sqlite:///{tmp_path}/sluice.db")

    told = await report(read(), database)

    await database.close()
    jsonschema.validate(told, ANSWER)
    assert told["data"] == []


def test_each_field_of_an_answer_is_described():
    line = Line(dict.fromkeys(OWN_GROUPS, "x"), 1, dict.fromkeys(TOKENS, 1), 1, 1, 0, 0, 1)

    assert set(line.to_dict()) == set(UsageLine.model_fields)


@given(
    st.sampled_from([each for each in PARAMETERS if "pattern" in each["schema"]]).flatmap(
        lambda each: st.tuples(st.just(each["name"]), st.from_regex(each["schema"]["pattern"].replace("$", r"\Z")))
    )
)
def test_what_the_schema_allows_is_taken(sent: tuple[str, str]):
    name, value = sent

    read(**{name: value})
