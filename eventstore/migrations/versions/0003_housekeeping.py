"""Partitions are dropped only when they certainly hold no PENDING event, and made despite strays.

Between the look for a PENDING event and the drop, an insert could commit. And rows that had gone to
the default partition, because their day had none, were moved together with making all other days:
where they were too many for the time of a statement, no day was made, ever.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# While there are strays, rows in the default partition, one day is made by each call: attaching it
# looks through all of them. Days without strays come first, so that there are no more tomorrow.
# Today's are moved when they are few, or when the day is over: whoever writes to the default
# partition waits meanwhile.
_ENSURE = """
CREATE OR REPLACE FUNCTION ingest_ensure_partitions(days_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = {schema}, pg_temp SET enable_seqscan = on AS $$
DECLARE
  few constant integer := 100000;
  today date := (statement_timestamp() AT TIME ZONE 'UTC')::date;
  strays boolean := EXISTS (SELECT FROM events_default);
  day date;
  partition text;
  moved boolean;
  created integer := 0;
BEGIN
  IF days_ahead NOT BETWEEN 0 AND 366 THEN
    RAISE EXCEPTION 'days_ahead must be 0 to 366';
  END IF;
  FOR day, moved IN
    WITH strayed AS (
      SELECT date '1970-01-01' + (
               ('x' || translate(left(id::text, 13), '-', ''))::bit(48)::bigint / 86400000
             )::integer AS d, count(*) AS rows
      FROM events_default
      WHERE strays AND id >= ingest_first_id_of(today - 366)
        AND id < ingest_first_id_of(today + days_ahead + 1)
      GROUP BY d
    ), wanted AS (
      SELECT g::date AS d FROM generate_series(today - 1, today + days_ahead, '1 day') g
      UNION SELECT d FROM strayed
    )
    SELECT d, rows IS NOT NULL FROM wanted LEFT JOIN strayed USING (d)
    WHERE to_regclass('events_' || to_char(d, 'YYYYMMDD')) IS NULL
      AND (rows IS NULL OR rows <= few OR d < today)
    ORDER BY rows IS NOT NULL, d
  LOOP
    partition := 'events_' || to_char(day, 'YYYYMMDD');
    IF moved THEN
      LOCK TABLE ONLY events IN SHARE UPDATE EXCLUSIVE MODE;
      LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE;
    END IF;
    EXECUTE format(
      'CREATE TABLE %I (LIKE events INCLUDING ALL) WITH (fillfactor = 90)', partition);
    IF moved THEN
      EXECUTE format(
        'WITH moved AS (DELETE FROM events_default WHERE id >= %L AND id < %L RETURNING *)
         INSERT INTO %I SELECT * FROM moved',
        ingest_first_id_of(day), ingest_first_id_of(day + 1), partition);
    END IF;
    EXECUTE format(
      'ALTER TABLE events ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
      partition, ingest_first_id_of(day), ingest_first_id_of(day + 1));
    created := created + 1;
    EXIT WHEN strays;
  END LOOP;
  RETURN created;
END
$$
"""

# A partition that still holds a PENDING event stays until that is final. The first look spares the
# locks, which keep out whoever writes; the second one counts.
_DROP = """
CREATE OR REPLACE FUNCTION ingest_drop_partitions(days_kept integer) RETURNS integer
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
    -- In the order of those who write: else the two would wait for each other.
    LOCK TABLE ONLY events IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', partition);
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
    """Replace both functions; who may call them stays as it is."""
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        schema = connection.execute(sa.text("SELECT quote_ident(current_schema())")).scalar_one()
        op.execute(_ENSURE.format(schema=schema))
        op.execute(_DROP.format(schema=schema))
