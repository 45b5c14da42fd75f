"""Client for the ingestion service.

`IngestClient` and `new_event` are loaded when they are asked for, so that whoever only wants the
stubs in `ingest.v1` loads nothing else.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.client import IngestClient
    from ingest.events import new_event

__all__ = ["IngestClient", "new_event"]


def __getattr__(name: str) -> Any:
    if name == "IngestClient":
        from ingest.client import IngestClient  # noqa: PLC0415  # see above

        return IngestClient
    if name == "new_event":
        from ingest.events import new_event  # noqa: PLC0415  # see above

        return new_event
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
