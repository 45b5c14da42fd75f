"""The tables and their column types; the migrations create exactly these."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Dialect,
    Index,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

#: The migration that makes these tables. A constant, so that who serves goes without Alembic.
REVISION = "0003"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(moment: datetime) -> int:
    """Return an aware datetime as microseconds since 1970, as SQLite has it."""
    return (moment - _EPOCH) // _MICROSECOND


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime: timestamptz in PostgreSQL, microseconds since 1970 in SQLite.

    SQLite has no type that keeps the zone, and integers compare and add without surprises.
    """

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type of the database."""
        sqlite = dialect.name == "sqlite"
        return dialect.type_descriptor(BigInteger() if sqlite else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Refuse a naive datetime and store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        return microseconds(value) if dialect.name == "sqlite" else value

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return an aware datetime in UTC."""
        if value is None:
            return None
        if dialect.name == "sqlite":
            return _EPOCH + timedelta(microseconds=value)
        return value.astimezone(UTC)  # type: ignore[no-any-return]


#: JSON as text on our side: the engine's own (de)serialiser is switched off (see engine.py).
JsonText = JSONB().with_variant(Text(), "sqlite")
Id = Uuid(as_uuid=False)

metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("issuer", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("first_seen_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("user_id", Id, nullable=False),
    Column("id", Id, nullable=False),
    Column("status", SmallInteger, nullable=False, server_default=text("1")),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("received_at", UtcDateTime, nullable=False),
    Column("occurred_at", UtcDateTime, nullable=False),
    #: When the sweeper may take the row: first the dispatch grace, then the back-off, and the end
    #: of the lease while lease_token is set.
    Column("next_attempt_at", UtcDateTime, nullable=False),
    Column("processed_at", UtcDateTime),
    #: Names the recovery attempt that holds the row; whoever comes later with another is refused.
    #: OFFERED while the row is on its way to one.
    Column("lease_token", Id),
    Column("type", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("idempotency_key", Text),
    Column("attributes", JsonText),
    Column("payload", JsonText, nullable=False),
    Column("properties", JsonText),
    Column("processing_error", String(255)),
    PrimaryKeyConstraint("user_id", "id"),
    postgresql_partition_by="RANGE (id)",
)

Index(
    "events_pending",
    events.c.next_attempt_at,
    postgresql_where=events.c.status == text("1"),
    sqlite_where=events.c.status == text("1"),
)
# Few rows end so, hence it costs next to nothing and finds them at once.
Index(
    "events_invalid_or_failed",
    events.c.user_id,
    events.c.id,
    postgresql_where=events.c.status >= text("3"),
    sqlite_where=events.c.status >= text("3"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Id, nullable=False),
    Column("key", Text, nullable=False),
    Column("event_id", Id, nullable=False),
    Column("fingerprint", LargeBinary, nullable=False),
    Column("received_at", UtcDateTime, nullable=False),
    PrimaryKeyConstraint("user_id", "key"),
)

# For retention only; a BRIN index is a few pages whatever the table's size.
Index("idempotency_keys_received_at", idempotency_keys.c.received_at, postgresql_using="brin")
