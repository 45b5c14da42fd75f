"""One group of the intake, written by hand: what it decides about keys, on both databases."""

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, func, select

from eventstore.accept import Verdicts, accept
from eventstore.schema import events, idempotency_keys, users
from eventstore.values import Duplicate, EventStatus, KeyConflict, NewEvent, Submission, User
from ingest_service.ids import EventIds
from tests.kit.rows import new_user
from tests.kit.server import closing_engine

NOW = datetime.now(UTC)
ALICE = User(
    id="11111111-1111-5111-8111-111111111111", issuer="ingest", subject="alice", email="a@b"
)
BOB = ALICE._replace(id="22222222-2222-5222-8222-222222222222", subject="bob")
_IDS = EventIds()


def made(content: str, key: str = "", user: User = ALICE) -> NewEvent:
    (event_id,) = _IDS.take(int(NOW.timestamp() * 1000), 1)
    fingerprint = hashlib.sha256(content.encode()).digest() if key else b""
    return NewEvent(
        user.id, event_id, content, "", "", key, fingerprint, NOW, NOW, "", '{"a":1}'
    )  # fmt: skip


def submission(*rows: NewEvent, atomic: bool = True, user: User = ALICE) -> Submission:
    return Submission(user=user, events=rows, atomic=atomic, size=1)


#: Events that make a group too large for the statement of small ones.
MANY = 200


def write(
    store: Engine, *group: Submission, far: bool = False, unseen: Sequence[User] = (ALICE,)
) -> list[Verdicts]:
    due = NOW + timedelta(seconds=5)
    with store.begin() as connection:
        verdicts, _ = accept(connection, group, unseen=unseen, next_attempt=due, far=far)
    return verdicts


def stored(store: Engine) -> tuple[int, dict[str, str]]:
    """How many events there are, and which event holds which key."""
    with store.connect() as connection:
        count = connection.execute(select(func.count()).select_from(events)).scalar_one()
        keys = connection.execute(select(idempotency_keys.c.key, idempotency_keys.c.event_id))
        return count, {row.key: row.event_id for row in keys}


def test_a_refused_batch_leaves_its_keys_to_a_later_submission_of_the_group(store: Engine) -> None:
    first = made("first", "taken")
    write(store, submission(first))
    loser, winner = made("loser", "wanted"), made("winner", "wanted")

    verdicts = write(
        store,
        submission(loser, made("other", "taken")),
        submission(winner),
        submission(made("winner", "wanted")),
    )

    assert verdicts[0][1] == KeyConflict(first.id)
    assert verdicts[1] == {}
    assert verdicts[2] == {0: Duplicate(winner.id, NOW, EventStatus.PENDING)}
    assert stored(store) == (2, {"taken": first.id, "wanted": winner.id})


def test_a_refused_batch_leaves_keys_that_nobody_wants_free(store: Engine) -> None:
    first = made("first", "taken")
    write(store, submission(first))

    write(store, submission(made("loser", "wanted"), made("other", "taken")))

    assert stored(store) == (1, {"taken": first.id})


def test_a_batch_that_conflicts_with_an_earlier_one_of_the_group_is_refused(store: Engine) -> None:
    winner = made("one", "k")

    verdicts = write(store, submission(winner, made("x")), submission(made("y"), made("two", "k")))

    assert verdicts == [{}, {1: KeyConflict(winner.id)}]
    assert stored(store) == (2, {"k": winner.id})


def test_in_a_stream_only_the_conflicting_event_is_refused(store: Engine) -> None:
    winner = made("one", "k")

    verdicts = write(
        store, submission(winner), submission(made("y"), made("two", "k"), made("z"), atomic=False)
    )

    assert verdicts == [{}, {1: KeyConflict(winner.id)}]
    assert stored(store)[0] == 3


def test_keys_that_are_repeated_in_a_group_are_stored_once(store: Engine) -> None:
    rows = [made(f"content {number % 700}", f"key {number % 700}") for number in range(2_000)]

    verdicts = write(store, submission(*rows, atomic=False))

    assert len(verdicts[0]) == 1_300
    assert all(isinstance(verdict, Duplicate) for verdict in verdicts[0].values())
    assert stored(store) == (700, {row.idempotency_key: row.id for row in rows[:700]})


@pytest.mark.parametrize("far", [False, True])
def test_users_who_share_a_key_are_told_of_their_own_events(store: Engine, far: bool) -> None:
    """So many that their keys are looked up by several statements, cut within a user's keys."""
    users = [ALICE._replace(id=f"{n:08}-1111-5111-8111-111111111111") for n in range(40)]
    keys = [["created", *(f"order {n}-{i}" for i in range(30))] for n in range(len(users))]
    first, again = (
        [
            Submission(user, [made("a", key, user) for key in mine], atomic=False, size=1)
            for user, mine in zip(users, keys, strict=True)
        ]
        for _ in range(2)
    )
    write(store, *first, far=far, unseen=users)

    verdicts = write(store, *again, far=far, unseen=users)

    assert [
        [found[position].event_id for position in range(31)]  # type: ignore[union-attr]
        for found in verdicts
    ] == [[event.id for event in each.events] for each in first]


def test_two_users_who_hold_each_others_keys_are_told_of_their_own_events(store: Engine) -> None:
    """Each repeats another key: the look-up meets those of the other user, too."""
    hers, his = ([made("a", key, user) for key in ("x", "y")] for user in (ALICE, BOB))
    write(store, submission(*hers), submission(*his, user=BOB), unseen=(ALICE, BOB))

    verdicts = write(
        store,
        submission(made("a", "x", ALICE)),
        submission(made("a", "y", BOB), user=BOB),
        unseen=(ALICE, BOB),
    )

    pending = EventStatus.PENDING
    assert verdicts == [
        {0: Duplicate(hers[0].id, NOW, pending)},
        {0: Duplicate(his[1].id, NOW, pending)},
    ]


def test_refused_batches_leave_each_users_keys_to_the_events_that_hold_them(store: Engine) -> None:
    """Each gives a key back that the other one holds, of an event that is stored."""
    hers = [made("a", "taken", ALICE), made("a", "q", ALICE)]
    his = [made("b", "taken", BOB), made("b", "p", BOB)]
    write(store, submission(*hers), submission(*his, user=BOB), unseen=(ALICE, BOB))

    verdicts = write(
        store,
        submission(made("a", "p", ALICE), made("other", "taken", ALICE)),
        submission(made("b", "q", BOB), made("other", "taken", BOB), user=BOB),
        unseen=(ALICE, BOB),
    )

    assert verdicts == [{1: KeyConflict(hers[0].id)}, {1: KeyConflict(his[0].id)}]
    keys = select(idempotency_keys.c.event_id, idempotency_keys.c.key)
    with store.connect() as connection:
        held = {row.event_id: row.key for row in connection.execute(keys)}
    assert held == {event.id: event.idempotency_key for event in hers + his}


@pytest.mark.parametrize("beside, far", [(0, False), (MANY, False), (MANY, True)])
def test_a_group_of_calls_and_streams_is_decided_alike_whatever_its_size(
    store: Engine, beside: int, far: bool
) -> None:
    """New, known, repeated and conflicting keys, and none, in an order that is not that of keys."""
    first, known = made("first", "z"), made("known", "known")
    write(store, submission(first), submission(known))
    new, late, plain, third = made("new", "new"), made("late", "a"), made("plain"), made("3", "m")

    verdicts = write(
        store,
        submission(new),
        submission(made("first", "z")),
        submission(made("other", "known")),
        submission(plain, made("new", "new"), third, made("odd", "new"), late, atomic=False),
        submission(made("late", "a")),
        submission(*(made(f"more {number}") for number in range(beside)), atomic=False),
        far=far,
    )

    pending = EventStatus.PENDING
    assert verdicts == [
        {},
        {0: Duplicate(first.id, NOW, pending)},
        {0: KeyConflict(known.id)},
        {1: Duplicate(new.id, NOW, pending), 3: KeyConflict(new.id)},
        {0: Duplicate(late.id, NOW, pending)},
        {},
    ]
    holders = {"z": first, "known": known, "new": new, "m": third, "a": late}
    assert stored(store) == (6 + beside, {key: event.id for key, event in holders.items()})


@pytest.mark.parametrize("beside, far", [(0, False), (MANY, False), (MANY, True)])
def test_every_column_is_what_was_given_whatever_the_size_of_the_group(
    store: Engine, beside: int, far: bool
) -> None:
    """Attributes or none, JSON's null, texts that would mean something to an array or to COPY."""
    odd = ['"', "\\", "{a,b}", "NULL", "null", "%s", "İ🎈", ""]
    rows = [
        made(f"type {text}", f"key {number}" if number % 2 else "")._replace(
            source=text,
            subject=text * 2,
            occurred_at=NOW - timedelta(seconds=number),
            attributes='{"k":"' + "v" * number + '"}' if number % 3 else "",
            payload=("null", "[]", '"\\\\ \\" null"', "1.5", '{"a":{"b":null}}')[number % 5],
        )
        for number, text in enumerate(odd)
    ]

    write(
        store,
        submission(*rows, atomic=False),
        submission(*(made("more") for _ in range(beside)), atomic=False),
        far=far,
    )

    with store.connect() as connection:
        found = {row.id: row for row in connection.execute(select(events))}
    for row in rows:
        got = found[row.id]
        assert (got.type, got.source, got.subject) == (row.type, row.source, row.subject)
        assert (got.idempotency_key or "") == row.idempotency_key
        assert (got.received_at, got.occurred_at) == (row.received_at, row.occurred_at)
        assert json.loads(got.attributes or "null") == json.loads(row.attributes or "null")
        assert (got.attributes is None) is (row.attributes == "")
        assert json.loads(got.payload) == json.loads(row.payload)


def test_a_group_that_was_written_before_is_new_when_it_is_tried_again(database_url: str) -> None:
    """Its keys are its own: a statement that commits itself may be followed by a failed look-up."""
    group = [submission(made("one", "k")), submission(made("two", "l")), submission(made("none"))]
    with closing_engine(database_url) as postgres:
        write(postgres, *group)

        assert write(postgres, *group) == [{}, {}, {}]
        assert stored(postgres)[0] == 3


def test_keys_of_any_text_are_kept_as_they_are(store: Engine) -> None:
    """In one group, and again in another: each of them is known by then."""
    odd = [
        '"',
        "\\",
        '\\"',
        "{",
        "}",
        ",",
        "NULL",
        "null",
        " a ",
        "%s",
        "'",
        "$1",
        "İ",
        "🎈",
        '{"a"}',
    ]
    rows = [made(f"content {number}", key) for number, key in enumerate(odd)]
    expected = {row.idempotency_key: row.id for row in rows}

    assert write(store, submission(*rows)) == [{}]
    assert stored(store) == (len(odd), expected)
    again = [made(f"content {number}", key) for number, key in enumerate(odd)]
    (verdicts,) = write(store, submission(*again))
    assert {at: v.event_id for at, v in verdicts.items() if isinstance(v, Duplicate)} == {
        at: row.id for at, row in enumerate(rows)
    }
    assert stored(store) == (len(odd), expected)


def test_a_key_outlives_its_event_and_does_not_guess_how_that_ended(store: Engine) -> None:
    """Retention may drop the event before the key."""
    first = made("one", "k")
    write(store, submission(first))
    with store.begin() as connection:
        connection.execute(events.delete().where(events.c.user_id == ALICE.id))

    (verdicts,) = write(store, submission(made("one", "k")))

    assert verdicts == {0: Duplicate(first.id, NOW, None)}


@pytest.mark.parametrize("emails", [("", "a@b.example"), ("a@b.example", "")])
def test_an_address_wins_over_none_in_one_group_too(store: Engine, emails: tuple[str, str]) -> None:
    user = new_user()
    odd = new_user()._replace(subject='it\'s "odd" \\ %s {é}', email="'%@\\x.example")
    same = [user._replace(email=email) for email in emails]
    with store.begin() as connection:
        accept(connection, [], unseen=[*same, odd], next_attempt=NOW)
        found = connection.execute(select(users.c.id, users.c.subject, users.c.email)).all()

        assert {row[0]: tuple(row[1:]) for row in found} == {
            user.id: (user.subject, "a@b.example"),
            odd.id: (odd.subject, odd.email),
        }
