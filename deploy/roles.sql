-- The role that servers and workers run as: no DDL, no more than they do.
--
-- Run it as the role that migrates, in the database and schema of the events, after
-- `ingest-service migrate`. Create the role first, as a superuser:
--   CREATE ROLE ingest_app LOGIN PASSWORD '...';
-- It may be run again at any time.

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO ingest_app;

GRANT SELECT ON alembic_version TO ingest_app;
GRANT SELECT, INSERT, UPDATE ON users TO ingest_app;
GRANT SELECT, INSERT, UPDATE ON events TO ingest_app;
GRANT SELECT, INSERT, DELETE ON idempotency_keys TO ingest_app;
-- For `ingest-service doctor`.
GRANT SELECT ON events_default TO ingest_app;

-- Partitions and retention, with the rights of the role that migrates.
GRANT EXECUTE ON FUNCTION ingest_ensure_partitions TO ingest_app;
GRANT EXECUTE ON FUNCTION ingest_drop_partitions TO ingest_app;
