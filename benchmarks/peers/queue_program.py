"""A program for .venv-bench: jobs a second of PostgreSQL job queues, with jobs that do nothing.

    python -m benchmarks.peers.queue_program procrastinate|pgqueuer URL JOBS

Prints one number. The job is a no-op, so this is more than such a queue could process.
"""

import asyncio
import sys
import time
from datetime import timedelta

_CONCURRENCY = 32
_BATCH = 100


async def _procrastinate(url: str, jobs: int) -> float:
    import procrastinate  # noqa: PLC0415  # only the peer that is asked for

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

    async def nothing(number: int) -> None:  # noqa: ARG001  # as queued
        await asyncio.sleep(0)

    task = app.task(nothing, name="nothing")
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await task.batch_defer_async(*({"number": number} for number in range(jobs)))
        begun = time.perf_counter()
        await app.run_worker_async(
            concurrency=_CONCURRENCY, wait=False, install_signal_handlers=False
        )
        return jobs / (time.perf_counter() - begun)


async def _pgqueuer(url: str, jobs: int) -> float:
    import asyncpg  # noqa: PLC0415  # only the peer that is asked for
    from pgqueuer import PgQueuer, Queries  # noqa: PLC0415  # only the peer that is asked for
    from pgqueuer.db import AsyncpgDriver  # noqa: PLC0415  # only the peer that is asked for

    driver = AsyncpgDriver(await asyncpg.connect(url))
    queries = Queries(driver)
    await queries.install()
    await queries.enqueue(["nothing"] * jobs, [None] * jobs, [0] * jobs)
    queue, done, finished = PgQueuer(driver), 0, asyncio.Event()

    async def nothing(_job: object) -> None:
        nonlocal done
        done += 1
        if done == jobs:
            finished.set()

    queue.entrypoint("nothing")(nothing)
    begun = time.perf_counter()
    running = asyncio.create_task(
        queue.run(dequeue_timeout=timedelta(seconds=1), batch_size=_BATCH)
    )
    await finished.wait()
    seconds = time.perf_counter() - begun
    running.cancel()
    return jobs / seconds


if __name__ == "__main__":
    run = {"procrastinate": _procrastinate, "pgqueuer": _pgqueuer}[sys.argv[1]]
    print(asyncio.run(run(sys.argv[2], int(sys.argv[3]))))
