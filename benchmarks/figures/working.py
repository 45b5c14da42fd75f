"""The worker alone: pending rows and their messages lie ready, then it starts."""

from datetime import UTC, datetime

from benchmarks import fill
from benchmarks.database import Database
from benchmarks.sample import Sample, cpu_detail
from benchmarks.stack import Bench
from benchmarks.usage import peak_rss_mb
from tests.kit.waiting import eventually
from worker.broker import build_broker
from worker.dispatch import Dispatcher

#: The share of the rows after whose end the clock starts: by then every thread is at work.
_WARM = 0.1
_EVER = datetime(1970, 1, 1, tzinfo=UTC)


def work(bench: Bench, *, rows: int, group: int, processes: int | None) -> Sample:
    """Return processed events/s of so many worker processes, by the rows' own times.

    None leaves their number to the product.
    """
    rows = bench.size(rows, rows // 2)
    with bench.database() as database:
        fill.fill(database, rows, pending=True)
        fill.settle(database)
        dispatch(bench, database, group=group)
        before = database.counters().wal_bytes
        with bench.workers(database, processes=processes) as worker:
            meter, metered = bench.cpu(worker=worker), database.pending()
            eventually(lambda: not database.any_pending(), timeout=120, interval=0.5)
            cpu = meter.stop()
            rss = peak_rss_mb(worker.pid)
        return Sample(
            value=rate(database),
            detail={
                **cpu_detail(cpu, metered),
                "worker_rss_mb": round(rss, 1),
                "wal_bytes_per_event": round((database.counters().wal_bytes - before) / rows),
            },
            faults=database.faults(rows, processed=True),
        )


def dispatch(bench: Bench, database: Database, *, group: int) -> None:
    """Send the keys of all rows to the workers, as the server does after a commit."""
    dispatcher = Dispatcher(build_broker(bench.redis_url), chunk_rows=group)
    dispatcher.first_deliveries({fill.USER: fill.keys(database)})


def rate(database: Database, since: datetime = _EVER) -> float:
    """Return events/s of what was processed, once the first tenth was done, until the end."""
    times: list[float] = [
        row[0]
        for row in database.query(
            "SELECT extract(epoch FROM processed_at)::float8 FROM events"
            " WHERE processed_at > %s ORDER BY processed_at",
            (since,),
        )
    ]
    warm = times[int(len(times) * _WARM)]
    done = sum(moment > warm for moment in times)
    return done / (times[-1] - warm)
