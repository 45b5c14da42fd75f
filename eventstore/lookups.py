"""Keys cut into what one statement of PostgreSQL looks up quickly: users, and ids or texts."""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from eventstore.values import EventKey, IdempotencyKey

#: The primary key is searched for each pair of a user and an id, of which most do not exist when
#: the users are many; so a statement gets no more pairs than it can search in about 2 ms.
_MOST_PAIRS = 4_096
#: Milliseconds between two ids from which on they are looked up apart, so that the range of the ids
#: of a statement is never much more than they are.
_GAP_MS = 50
#: Between two texts while they are escaped; no text can hold it.
_BETWEEN = "\0"


class Lookup:
    """Some users and some of their ids, close together in time: what one statement looks up."""

    def __init__(self, users: Iterable[str], ids: Sequence[str]) -> None:
        """Take what belongs together; the ids are in order."""
        self.ids = ids
        #: The users, the ids, the smallest and the largest id.
        self.arguments = (array(users), array(ids), ids[0], ids[-1])


def lookups(keys: Sequence[EventKey]) -> Iterator[Lookup]:
    """Split keys into statements; mostly it is one."""
    if not keys:
        return
    ordered = sorted(keys, key=itemgetter(1))
    users = dict.fromkeys(key[0] for key in ordered)
    took = _unix_ms(ordered[-1][1]) - _unix_ms(ordered[0][1])
    if took <= _GAP_MS and len(users) * len(ordered) < _MOST_PAIRS:
        # One commit's keys, as most messages have them.
        yield Lookup(users, [key[1] for key in ordered])
        return
    users = {}
    ids: list[str] = []
    last = 0
    for user_id, event_id in ordered:
        at = _unix_ms(event_id)
        if ids and (at - last > _GAP_MS or len(users) * len(ids) >= _MOST_PAIRS > len(ids)):
            yield Lookup(users, ids)
            users, ids = {}, []
        last = at
        users[user_id] = None
        ids.append(event_id)
    yield Lookup(users, ids)


def key_lookups(keys: Iterable[IdempotencyKey]) -> Iterator[tuple[list[str], list[str]]]:
    """Split idempotency keys into users and keys of statements; mostly it is one."""
    users: dict[str, None] = {}
    texts: dict[str, None] = {}
    for user_id, key in sorted(keys):
        if texts and (len(users) + (user_id not in users)) * (len(texts) + 1) > _MOST_PAIRS:
            yield list(users), list(texts)
            users, texts = {}, {}
        users[user_id] = texts[key] = None
    if texts:
        yield list(users), list(texts)


def _unix_ms(event_id: str) -> int:
    """Return the time in the first 48 bits of a UUID version 7."""
    return int(event_id[:8] + event_id[9:13], 16)


def array(values: Iterable[str]) -> str:
    """Return the literal of an array; the values need no quotes, or have them."""
    return "{" + ",".join(values) + "}"


def text_array(texts: Iterable[str]) -> str:
    """Return texts as the literal of an array; they hold no control characters."""
    escaped = _BETWEEN.join(texts).replace("\\", "\\\\").replace('"', '\\"')
    return '{"' + escaped.replace(_BETWEEN, '","') + '"}'
