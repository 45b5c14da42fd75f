"""Driver errors become ours by SQLSTATE, and none of their words gets through."""

import sqlite3

import psycopg2
import pytest
from psycopg2 import errorcodes, errors
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from eventstore.errors import (
    ContentionError,
    LockedError,
    PermanentStorageError,
    StorageError,
    TransientStorageError,
    storage_errors,
)


class _WithState(psycopg2.Error):
    """An error whose state can be chosen; the drivers' own cannot."""

    pgcode: str | None = None


def pg_error(state: str | None) -> psycopg2.Error:
    error = _WithState("canary value of a column")
    error.pgcode = state
    return error


def translated(error: BaseException) -> StorageError:
    with pytest.raises(StorageError) as caught, storage_errors():
        raise error
    return caught.value


@pytest.mark.parametrize(
    "state, kind",
    [
        (errorcodes.DEADLOCK_DETECTED, ContentionError),
        (errorcodes.SERIALIZATION_FAILURE, ContentionError),
        (errorcodes.UNTRANSLATABLE_CHARACTER, PermanentStorageError),
        (errorcodes.INVALID_TEXT_REPRESENTATION, PermanentStorageError),
        (errorcodes.NUMERIC_VALUE_OUT_OF_RANGE, PermanentStorageError),
        (errorcodes.UNIQUE_VIOLATION, PermanentStorageError),
        (errorcodes.NOT_NULL_VIOLATION, PermanentStorageError),
        (errorcodes.STATEMENT_TOO_COMPLEX, PermanentStorageError),
        (errorcodes.DISK_FULL, TransientStorageError),
        (errorcodes.OUT_OF_MEMORY, TransientStorageError),
        (errorcodes.TOO_MANY_CONNECTIONS, TransientStorageError),
        (errorcodes.LOCK_NOT_AVAILABLE, LockedError),
        (errorcodes.QUERY_CANCELED, TransientStorageError),
        (errorcodes.ADMIN_SHUTDOWN, TransientStorageError),
        (errorcodes.CANNOT_CONNECT_NOW, TransientStorageError),
        (errorcodes.READ_ONLY_SQL_TRANSACTION, TransientStorageError),
        (errorcodes.INSUFFICIENT_PRIVILEGE, TransientStorageError),
        (errorcodes.UNDEFINED_TABLE, TransientStorageError),
        (None, TransientStorageError),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_state_decides_and_not_the_class(
    state: str | None, kind: type[StorageError], wrapped: bool
) -> None:
    error: Exception = pg_error(state)
    if wrapped:
        error = OperationalError("INSERT INTO canary", {"secret": "canary"}, error)

    found = translated(error)

    assert type(found) is kind
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    "error, kind",
    [
        (errors.DeadlockDetected(), TransientStorageError),
        (sqlite3.OperationalError("database is locked"), TransientStorageError),
        (sqlite3.OperationalError("database or disk is full"), TransientStorageError),
        (sqlite3.IntegrityError("UNIQUE constraint failed: canary"), PermanentStorageError),
        (sqlite3.DataError("string or blob too big"), PermanentStorageError),
        (ValueError("A string literal cannot contain NUL: canary"), PermanentStorageError),
        ("\ud800".encode, PermanentStorageError),
        (PoolTimeoutError("canary"), TransientStorageError),
        (ConnectionResetError("canary"), TransientStorageError),
        (DBAPIError("canary", None, psycopg2.InterfaceError("canary")), TransientStorageError),
    ],
)
def test_errors_without_a_state_are_told_apart_as_well(
    error: object, kind: type[StorageError]
) -> None:
    if callable(error):
        with pytest.raises(kind) as caught, storage_errors():
            error()
        found: StorageError = caught.value
    else:
        assert isinstance(error, Exception)
        found = translated(error)

    assert type(found) is kind
    assert "canary" not in str(found)


def test_our_own_errors_pass_as_they_are() -> None:
    error = ContentionError("an idempotency key expired meanwhile")

    assert translated(error) is error


def test_a_programming_error_is_not_taken_for_a_fault_of_the_database() -> None:
    with pytest.raises(ZeroDivisionError), storage_errors():
        raise ZeroDivisionError
