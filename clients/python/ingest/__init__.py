"""Client for the ingestion service."""
