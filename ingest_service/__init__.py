"""The server: gRPC in, rows out; the composition root is `ingest_service.app`."""
