"""Row 33: many open rows when the service starts."""

import time
from contextlib import closing

import psycopg2
import pytest

from eventstore import processing
from eventstore.engine import build_engine
from tests.faults.conftest import Case
from tests.faults.rig import Rig
from tests.faults.trial import Trial
from tests.kit.plans import Plans
from worker.sweeper import SWEEP_ROWS

_NOISE_MS = 50.0

_BACKLOG = """
INSERT INTO events (user_id, id, received_at, occurred_at, next_attempt_at, type, source, subject,
                    idempotency_key, payload)
SELECT u.id,
       (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint + n / 4096), 12, '0') || '7'
        || lpad(to_hex(n %% 4096), 3, '0') || '8' || lpad(to_hex(n), 15, '0'))::uuid,
       now(), now(), now() - interval '1 hour', 'fault.backlog', '', '', %s || '-backlog-' || n,
       json_build_object('key', %s || '-backlog-' || n)
FROM users u, generate_series(1, %s) AS n
WHERE u.subject = %s
"""


@pytest.mark.row(33, "backlog of open rows at the start")
@pytest.mark.timeout(1200)
def test_a_backlog_at_the_start(trial: Trial, rig: Rig, case: Case) -> None:
    """The server is ready at once, live events hardly notice, and the sweeper reads an index."""
    rows = case.count(30_000, 1_000_000)
    trial.submit({})
    load = trial.load()
    time.sleep(2)  # so long for a baseline
    load.stop()
    calm = trial.unary_ms()
    for worker in rig.workers:
        worker.stop()
    with (
        closing(psycopg2.connect(rig.url)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(_BACKLOG, (trial.subject, trial.subject, rows, trial.subject))
        assert cursor.rowcount == rows
    for number in range(1, rows + 1):
        trial.journal.note("trial", "new", f"{trial.subject}-backlog-{number}", "invoke")
    plans = _sweep_plans(rig)
    took = sum(plans.took)
    rig.server.stop()
    began = time.monotonic()
    rig.server.start()
    ready = time.monotonic() - began
    for worker in rig.workers:
        worker.start()
    began = time.monotonic()
    load = trial.load()
    time.sleep(2)  # as long beside the backlog
    ended = time.monotonic()
    load.stop()
    live = trial.steady_ms(load, began, ended)
    trial.settle(600)
    drained = time.monotonic() - began
    trial.verdict()

    case.note(
        f"{rows} rows drained in {drained:.0f} s; server ready in {ready:.1f} s;"
        f" sweep query {took:.1f} ms; p99 {calm:.0f} ms, then {live:.0f} ms"
    )
    assert ready <= 5
    assert {kind for _, kind in plans.scans()} == {"Index Scan"}
    assert plans.took
    assert took <= 50
    assert live <= max(2 * calm, calm + 2 * _NOISE_MS)


def _sweep_plans(rig: Rig) -> Plans:
    """Sweep as a worker does, on a connection with its settings, and take it back."""
    url = rig.url.replace("//postgres@", "//ingest@")
    engine = build_engine(url, name="ingest-worker", pool_size=1, keyed=True)
    try:
        with engine.connect() as connection:
            plans = Plans(connection, timed="SELECT")
            taken = processing.take_due(
                connection, limit=SWEEP_ROWS, again_after=5.0, max_attempts=5
            )
            connection.rollback()
        assert len(taken) == SWEEP_ROWS
    finally:
        engine.dispose()
    return plans
