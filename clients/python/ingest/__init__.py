"""Client for the ingestion service: stubs in `ingest.v1`, `IngestClient` in `ingest.client`."""
