"""`python -m ingest_service` is `ingest-service`."""

from ingest_service.cli import main

main()
