"""Reads and encodes events for answers, and never more of them than the answers have room for."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection

from eventstore import reading
from eventstore.reading import Filters, Page
from eventstore.values import StoredEvent
from ingest.v1.event_pb2 import PAYLOAD_FORMAT_NONE, Event
from ingest_service.answers import MOST_BYTES, Answers, Context
from ingest_service.encode import encode_events, most_bytes
from ingest_service.offload import Offload
from ingest_service.reader import Reader

T = TypeVar("T")

#: Bytes of room for what is read, before its size is known: few events are larger, and those are
#: read twice.
_USUAL = 128 << 10
#: Bytes of room for a page, while there is enough: what clients take. A page is bounded where it is
#: read, so nothing more is asked for it than this.
_PAGE = 4 << 20
#: Most bytes of room for one event: half of what one user may hold.
_MOST = MOST_BYTES // 4
#: Bytes of an answer from which on encoding could stop the event loop for too long: the slowest
#: take some 50 ms for each 64 KiB of JSON.
_LARGE = 64 << 10


class _TooLarge(NamedTuple):
    """What was read would take this much room."""

    size: int


class ContentReader:
    """Reserves room, reads, and reads again with more room where it was too little.

    Without room nothing but what the few threads of the reader have in hand is in memory.
    """

    def __init__(self, reader: Reader, answers: Answers, encoder: Offload) -> None:
        """Take collaborators; room for answers also bounds what waits for the encoder."""
        self._reader = reader
        self._answers = answers
        self._encoder = encoder

    async def event(
        self, context: Context, user_id: str, event_id: str, payload_format: int
    ) -> Event | None:
        """Return one event of the user, or None; raises what Answers and Reader raise."""
        query = partial(
            reading.get_event,
            user_id=user_id,
            event_id=event_id,
            content=payload_format != PAYLOAD_FORMAT_NONE,
        )

        def size_of(stored: StoredEvent | None) -> int:
            return min(_MOST, _size([] if stored is None else [stored], payload_format))

        stored = await self._read(context, user_id, query, size_of, _USUAL)
        if stored is None:
            return None
        return (await self._encode(user_id, [stored], payload_format))[0]

    async def page(
        self,
        context: Context,
        user_id: str,
        filters: Filters,
        payload_format: int,
        *,
        limit: int,
        before: str,
    ) -> tuple[Sequence[Event], str | None]:
        """Return a page of the user's events, and where the next one starts or None.

        Raises what Answers and Reader raise.
        """
        query = partial(
            reading.list_events,
            user_id=user_id,
            filters=filters,
            limit=limit,
            before=before,
            content=payload_format != PAYLOAD_FORMAT_NONE,
        )

        def size_of(page: Page) -> int:
            return min(_PAGE, _size(page.events, payload_format))

        room = _PAGE if self._answers.has_room(user_id, _PAGE) else _USUAL
        page = await self._read(context, user_id, query, size_of, room)
        return await self._encode(user_id, page.events, payload_format), page.cursor

    async def _read(
        self,
        context: Context,
        user_id: str,
        query: Callable[[Connection], T],
        size_of: Callable[[T], int],
        room: int,
    ) -> T:
        def read(connection: Connection, most: int) -> T | _TooLarge:
            found = query(connection)
            size = size_of(found)
            return found if size <= most else _TooLarge(size)

        while True:
            await self._answers.reserve(context, user_id, room)
            found = await self._reader.read(user_id, read, room)
            if not isinstance(found, _TooLarge):
                return found
            room = found.size

    async def _encode(
        self, user_id: str, events: Sequence[StoredEvent], payload_format: int
    ) -> Sequence[Event]:
        """Encode an answer, in a thread when it is large: there it stops nobody."""
        encode = partial(encode_events, events, payload_format)
        if _size(events, payload_format) <= _LARGE:
            return encode()
        return await self._encoder.run(user_id, encode)


def _size(events: Iterable[StoredEvent], payload_format: int) -> int:
    return sum(most_bytes(stored, payload_format) for stored in events)
