"""Users, events in daily partitions, idempotency keys."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from eventstore.schema import Id, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Written out here and not taken from the schema module: a migration stays as it was.
_json = JSONB().with_variant(sa.Text(), "sqlite")

# lz4 stores real payloads half again as fast as the default; a server built without it goes on
# with the default.
_LZ4 = """
DO $$
BEGIN
  ALTER TABLE events ALTER COLUMN payload SET COMPRESSION lz4,
                     ALTER COLUMN properties SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  RAISE NOTICE 'this PostgreSQL has no lz4: payloads are compressed with pglz';
END
$$
"""

# The id is a UUID version 7: its first 48 bits are the milliseconds since 1970.
_DAY_ID = """
CREATE FUNCTION ingest_first_id_of(day date) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT AS $$
  SELECT (lpad(to_hex((day - date '1970-01-01')::bigint * 86400000), 12, '0')
          || repeat('0', 20))::uuid
$$
"""

# Rows that went to the default partition because their day had none are moved into the new one.
# search_path is fixed because the functions run with the rights of their owner.
_ENSURE = """
CREATE FUNCTION ingest_ensure_partitions(days_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
DECLARE
  today date := (statement_timestamp() AT TIME ZONE 'UTC')::date;
  day date;
  partition text;
  created integer := 0;
BEGIN
  IF days_ahead NOT BETWEEN 0 AND 366 THEN
    RAISE EXCEPTION 'days_ahead must be 0 to 366';
  END IF;
  FOR day IN SELECT d::date FROM generate_series(today - 1, today + days_ahead, '1 day') d LOOP
    partition := 'events_' || to_char(day, 'YYYYMMDD');
    CONTINUE WHEN to_regclass(partition) IS NOT NULL;
    EXECUTE format('CREATE TABLE %I (LIKE events INCLUDING ALL)', partition);
    EXECUTE format(
      'WITH moved AS (DELETE FROM events_default WHERE id >= %L AND id < %L RETURNING *)
       INSERT INTO %I SELECT * FROM moved',
      ingest_first_id_of(day), ingest_first_id_of(day + 1), partition);
    EXECUTE format(
      'ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
      partition, ingest_first_id_of(day), ingest_first_id_of(day + 1));
    created := created + 1;
  END LOOP;
  RETURN created;
END
$$
"""

# A partition that still holds a PENDING event stays until that is final.
_DROP = """
CREATE FUNCTION ingest_drop_partitions(days_kept integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp AS $$
DECLARE
  first_kept date := (statement_timestamp() AT TIME ZONE 'UTC')::date - days_kept;
  partition regclass;
  pending boolean;
  dropped integer := 0;
BEGIN
  IF days_kept < 1 THEN
    RAISE EXCEPTION 'days_kept must be at least 1';
  END IF;
  FOR partition IN
    SELECT i.inhrelid FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'events'::regclass AND c.relname ~ '^events_[0-9]{{8}}$'
      AND substr(c.relname, 8) < to_char(first_kept, 'YYYYMMDD')
  LOOP
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE status = 1)', partition) INTO pending;
    CONTINUE WHEN pending;
    EXECUTE format('DROP TABLE %s', partition);
    dropped := dropped + 1;
  END LOOP;
  RETURN dropped;
END
$$
"""


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "users",
        sa.Column("id", Id, primary_key=True),
        sa.Column("issuer", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("first_seen_at", UtcDateTime, nullable=False),
        sa.Column("last_seen_at", UtcDateTime, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("user_id", Id, nullable=False),
        sa.Column("id", Id, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("attempts", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("received_at", UtcDateTime, nullable=False),
        sa.Column("occurred_at", UtcDateTime, nullable=False),
        sa.Column("next_attempt_at", UtcDateTime, nullable=False),
        sa.Column("processed_at", UtcDateTime),
        sa.Column("lease_token", Id),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("attributes", _json),
        sa.Column("payload", _json, nullable=False),
        sa.Column("properties", _json),
        sa.Column("processing_error", sa.String(255)),
        sa.PrimaryKeyConstraint("user_id", "id"),
        postgresql_partition_by="RANGE (id)",
    )
    for name, columns, condition in (
        ("events_pending", ["next_attempt_at"], sa.text("status = 1")),
        ("events_invalid_or_failed", ["user_id", "id"], sa.text("status >= 3")),
    ):
        op.create_index(name, "events", columns, postgresql_where=condition, sqlite_where=condition)
    op.create_table(
        "idempotency_keys",
        sa.Column("user_id", Id, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("event_id", Id, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("received_at", UtcDateTime, nullable=False),
        sa.PrimaryKeyConstraint("user_id", "key"),
    )
    op.create_index(
        "idempotency_keys_received_at",
        "idempotency_keys",
        ["received_at"],
        postgresql_using="brin",
    )
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        schema = connection.execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
        op.execute(_LZ4)
        op.execute("CREATE TABLE events_default PARTITION OF events DEFAULT")
        op.execute(_DAY_ID)
        op.execute(_ENSURE.format(schema=schema))
        op.execute(_DROP.format(schema=schema))
        # They act with their owner's rights, so they are for whom the owner names.
        op.execute("REVOKE ALL ON FUNCTION ingest_ensure_partitions FROM PUBLIC")
        op.execute("REVOKE ALL ON FUNCTION ingest_drop_partitions FROM PUBLIC")
        op.execute("SELECT ingest_ensure_partitions(7)")
