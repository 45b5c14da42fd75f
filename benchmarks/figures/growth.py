"""What rows that are already stored cost: insert, process, get, list and sweep beside them."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing

from google.protobuf.message import Message

from benchmarks import fill
from benchmarks.corpus import corpus
from benchmarks.database import Database
from benchmarks.figures.accept import Shape
from benchmarks.figures.flow import drain
from benchmarks.figures.working import dispatch, rate
from benchmarks.frames import BATCH, GET, LIST, frame
from benchmarks.http2 import Connection
from benchmarks.sample import Sample, percentile
from benchmarks.stack import Bench, Server
from eventstore import processing
from eventstore.engine import build_engine
from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2 import (
    BatchSubmitEventsRequest,
    GetEventRequest,
    ListEventsRequest,
)
from tests.kit.waiting import eventually

_SHAPE = Shape(in_flight=4, per_message=100, events=100_000)
_READS = 200
#: Bytes that an event, and a hundred receipts, surely have in an answer.
_EVENT, _RECEIPTS = 100, 100 * 40
_SWEEPS = 20
_PROCESS_ROWS = 50_000
_PAGE = 50


def growth(bench: Bench, *, rows: int, pending: bool = False) -> Sample:
    """Return accepted events/s with `rows` events of the same user stored; the rest is detail."""
    # Nothing is processed here, and nothing shall become due for the sweeper.
    env = {"INGEST_DISPATCH_GRACE_SECONDS": "3600"}
    with bench.database() as database, bench.server(database, env=env) as server:
        _SHAPE.send(bench, server, 2_000)
        user = str(database.query("SELECT user_id::text FROM events LIMIT 1")[0][0])
        fill.fill(database, rows, pending=pending, user=user)
        fill.settle(database)
        stored = database.rows()
        load = _SHAPE.send(bench, server, _SHAPE.events)
        faults = database.faults(stored + _SHAPE.events, processed=False)
        some = database.query(
            "SELECT id::text FROM events WHERE random() < %s LIMIT %s",
            (4 * _READS / stored, _READS),
        )
        gets = [GetEventRequest(event_id=row[0]) for row in some]
        lists = [ListEventsRequest(page_size=_PAGE)] * _READS
        detail = {
            "get_p50_ms": _call_p50(server, GET, gets, least=_EVENT),
            "list_p50_ms": _call_p50(server, LIST, lists, least=_PAGE * _EVENT),
            "sweep_p50_ms": _sweep_p50(database),
            "process_per_s": _process(bench, database),
        }
        return Sample(value=_SHAPE.events / load.seconds, detail=detail, faults=faults)


def resend(bench: Bench, *, keys: int) -> Sample:
    """Return the median ms of a batch of a hundred events sent again, with `keys` keys stored."""
    events = [_keyed(event, f"resend {n}") for n, event in enumerate(corpus("small").cycle(100))]
    with bench.database() as database, bench.server(database) as server:
        batch = BatchSubmitEventsRequest(events=events)
        _call_p50(server, BATCH, [batch], least=_RECEIPTS)
        user = str(database.query("SELECT user_id::text FROM events LIMIT 1")[0][0])
        fill.fill_keys(database, keys, user=user)
        database.settle()
        return Sample(
            value=_call_p50(server, BATCH, [batch] * bench.size(_READS, 50), least=_RECEIPTS),
            faults=database.faults(len(events), processed=False),
        )


def recover(bench: Bench, *, rows: int) -> Sample:
    """Return events/s when every message was lost: the sweeper finds the rows, all of them due."""
    rows = bench.size(rows, rows // 4)
    with bench.database() as database:
        fill.fill(database, rows, pending=True, due_seconds=-1)
        fill.settle(database)
        with bench.workers(database):
            drain(database)
        return Sample(value=rate(database), faults=database.faults(rows, processed=True))


def _keyed(event: EventInput, key: str) -> EventInput:
    copy = EventInput()
    copy.CopyFrom(event)
    copy.idempotency_key = key
    return copy


def _call_p50(server: Server, path: str, requests: Sequence[Message], *, least: int) -> float:
    """Return the median milliseconds of unary calls, one at a time, each of `least` bytes or more.

    Raises ValueError for an answer with less in it, as that of a refused call.
    """
    bodies = [frame(request) for request in requests]
    with closing(Connection(server.address, path, server.headers)) as connection:

        def call(number: int) -> None:
            before = connection.answered_bytes
            stream = connection.post(bodies[number])
            while stream not in connection.receive():
                pass
            if connection.answered_bytes - before < least:
                raise ValueError(f"{path}: {connection.answered_bytes - before} bytes of answer")

        return _p50(call, len(bodies))


def _sweep_p50(database: Database) -> float:
    """Return the median milliseconds of one look of the sweeper, when nothing is due."""
    engine = build_engine(database.url, name="bench", pool_size=1, keyed=True)

    def sweep(_number: int) -> None:
        with engine.connect() as connection:
            processing.take_due(connection, limit=1_000, again_after=60, max_attempts=5)
            connection.rollback()

    try:
        return _p50(sweep, _SWEEPS)
    finally:
        engine.dispose()


def _process(bench: Bench, database: Database) -> float:
    """Return events/s of the worker, on the events just accepted and new rows of another user.

    Pending rows that were there before are due in an hour, so nothing but the index holds them.
    """
    since = database.now()
    fill.fill(database, _PROCESS_ROWS, pending=True)
    dispatch(bench, database, group=500)
    with bench.workers(database):
        done = "SELECT count(*) FROM events WHERE user_id = %s AND status = 2"
        eventually(
            lambda: database.query(done, (fill.USER,))[0][0] >= _PROCESS_ROWS,
            timeout=120,
            interval=0.5,
        )
    return rate(database, since=since)


def _p50(action: Callable[[int], None], times: int) -> float:
    seconds = []
    for number in range(times):
        before = time.perf_counter()
        action(number)
        seconds.append(time.perf_counter() - before)
    return round(percentile(seconds, 50) * 1e3, 3)
