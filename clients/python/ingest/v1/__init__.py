"""Generated stubs of package ingest.v1."""
