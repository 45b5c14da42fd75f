"""What can go wrong in the store, in two kinds, and the one door where driver errors become them.

StorageError
|-- TransientStorageError    the same work may succeed later
|   |-- ContentionError      a deadlock or serialisation failure: again at once
|   `-- LockedError          somebody else holds a row or key for too long
`-- PermanentStorageError    the content itself is refused
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

#: SQLSTATE classes that blame the content: data exception, integrity violation, program limit
#: exceeded (54001 is nesting too deep, which psycopg2 reports as an OperationalError).
_CONTENT_CLASSES = frozenset({"22", "23", "54"})
_CONTENTION_STATES = frozenset({"40001", "40P01"})
_LOCKED_STATE = "55P03"


class StorageError(Exception):
    """The store could not do what was asked."""


class TransientStorageError(StorageError):
    """The database is away, full, locked or too slow; the same work may succeed later."""


class ContentionError(TransientStorageError):
    """Two transactions were in each other's way; this one was rolled back and may run again."""


class LockedError(TransientStorageError):
    """Somebody else holds a row, a key or a table for longer than is waited for it."""


class PermanentStorageError(StorageError):
    """The database refuses the content; repeating it cannot help."""


@contextmanager
def storage_errors() -> Iterator[None]:
    """Translate what SQLAlchemy and the drivers raise; the texts carry no values and no SQL."""
    try:
        yield
    except StorageError:
        raise
    except DBAPIError as error:
        raise _translated(error.orig or error) from error
    except (SQLAlchemyError, OSError, UnicodeDecodeError) as error:
        # The last: why the database refuses to be connected to, told in another encoding than ours.
        raise TransientStorageError(type(error).__name__) from error
    except (psycopg2.Error, sqlite3.Error, ValueError) as error:
        raise _translated(error) from error


def _translated(error: BaseException) -> StorageError:
    name = type(error).__name__
    if isinstance(error, ValueError):
        # The drivers refuse NUL and lone surrogates before they reach the database.
        return PermanentStorageError(name)
    state = getattr(error, "pgcode", None)
    if state in _CONTENTION_STATES:
        return ContentionError(f"{name} {state}")
    if state == _LOCKED_STATE:
        return LockedError(f"{name} {state}")
    if state is not None and state[:2] in _CONTENT_CLASSES:
        return PermanentStorageError(f"{name} {state}")
    if isinstance(error, sqlite3.IntegrityError | sqlite3.DataError):
        return PermanentStorageError(name)
    return TransientStorageError(f"{name} {state}" if state else name)
