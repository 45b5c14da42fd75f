"""The `ingest` command; it needs the extra `cli` of this distribution."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from ingest.cli.app import app  # noqa: PLC0415  # so that a missing extra can be named
    except ModuleNotFoundError as error:
        sys.exit(f"ingest: {error}; install ingest-client[cli]")
    app()
