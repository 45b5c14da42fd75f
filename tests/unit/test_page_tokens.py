"""Page tokens: opaque, bound to their filters, and refused when anything about them is off."""

import base64
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.reading import Filters
from eventstore.values import EventStatus
from ingest_service.errors import FieldInvalid
from ingest_service.pagetokens import make_page_token, read_page_token

CURSOR = "01980000-0000-7000-8000-000000000001"
ALL = Filters()
MOMENT = datetime(2026, 1, 31, tzinfo=UTC)


@given(st.uuids())
def test_a_token_leads_back_to_its_place(cursor: object) -> None:
    assert read_page_token(make_page_token(str(cursor), ALL), ALL) == str(cursor)


@pytest.mark.parametrize(
    "other",
    [
        Filters(status=EventStatus.PENDING),
        Filters(type="a"),
        Filters(source="a"),
        Filters(received_after=MOMENT),
        Filters(received_before=MOMENT),
    ],
)
def test_a_token_of_other_filters_is_refused(other: Filters) -> None:
    for made_for, read_with in ((ALL, other), (other, ALL)):
        with pytest.raises(FieldInvalid) as caught:
            read_page_token(make_page_token(CURSOR, made_for), read_with)
        assert [violation.field for violation in caught.value.violations] == ["page_token"]


def test_type_and_source_are_not_mixed_up() -> None:
    with pytest.raises(FieldInvalid):
        read_page_token(make_page_token(CURSOR, Filters(type="a")), Filters(source="a"))


GOOD = make_page_token(CURSOR, ALL)


@pytest.mark.parametrize(
    "token",
    [
        *("x", "=", "====", "AAAA", GOOD[:-1], GOOD + "A", GOOD + "AAAA", " " + GOOD),
        *(GOOD[:-2] + "é", GOOD + "\0", GOOD.swapcase(), CURSOR, "../../etc/passwd", "' OR 1=1 --"),
        base64.urlsafe_b64encode(bytes(24)).decode(),
        "A" * 100_000,
    ],
)
def test_a_token_that_was_not_made_here_is_refused(token: str) -> None:
    with pytest.raises(FieldInvalid):
        read_page_token(token, ALL)


@given(st.text(max_size=40))
def test_no_text_upsets_the_reader(token: str) -> None:
    with pytest.raises(FieldInvalid):
        read_page_token(token, ALL)


def test_a_token_can_stand_in_a_url() -> None:
    assert GOOD.replace("-", "").replace("_", "").isalnum()
