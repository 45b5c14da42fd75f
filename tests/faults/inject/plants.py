"""Bugs and oddities that FAULTS_PLANT switches on, each as patches of one or more modules.

A plant takes the text after its `=` and returns (module, patch) pairs; a patch runs right after
the module was imported, and `package.*` is every module of a package. The bugs are what the suite
must catch; `note_handlers`, `skew`, `key_seconds` and `cgroup` are tools.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from hurried import hurry_keys  # type: ignore[import-not-found]  # beside this file
from skewed import skew_dates, skew_time  # type: ignore[import-not-found]  # beside this file

Patches = list[tuple[str, Callable[[ModuleType], None]]]
_PRODUCT = ("eventstore.*", "ingest_service.*", "worker.*")


def acknowledge_before_commit(_text: str) -> Patches:
    """Answers at once and writes a little later."""

    def patch(writer: Any) -> None:
        write = writer.Writer.write

        def early(self: Any, submissions: Any, **how: Any) -> Any:
            def later() -> None:
                time.sleep(0.3)
                try:
                    write(self, submissions, **how)
                except Exception:  # noqa: BLE001  # that is the bug
                    self.disconnect()

            threading.Thread(target=later, daemon=True).start()
            return [{} for _ in submissions], {}

        writer.Writer.write = early

    return [("ingest_service.writer", patch)]


def swallow_failed_group(_text: str) -> Patches:
    """Answers OK when the database failed."""

    def patch(writer: Any) -> None:
        write = writer.Writer.write

        def calm(self: Any, submissions: Any, **how: Any) -> Any:
            try:
                return write(self, submissions, **how)
            except Exception:  # noqa: BLE001  # that is the bug
                self.disconnect()
                return [{} for _ in submissions], {}

        writer.Writer.write = calm

    return [("ingest_service.writer", patch)]


def dispatch_before_commit(_text: str) -> Patches:
    """Sends the message first, so that the worker looks for rows that are not there yet."""
    dispatches = []

    def patch_intake(intake: Any) -> None:
        init = intake.Intake.__init__

        def remember(self: Any, writers: Any, settings: Any, dispatch: Any) -> None:
            dispatches.append(dispatch)
            init(self, writers, settings, lambda _keys: None)

        intake.Intake.__init__ = remember

    def patch_writer(writer: Any) -> None:
        accept = writer.accept

        def accept_and_send(connection: Any, *args: Any, **options: Any) -> Any:
            verdicts, rows = accept(connection, *args, **options)
            keys: dict[str, list[str]] = {}
            for row in rows:
                keys.setdefault(row.user_id, []).append(row.id)
            dispatches[-1](keys)
            time.sleep(0.05)
            return verdicts, rows

        writer.accept = accept_and_send

    return [("ingest_service.intake", patch_intake), ("ingest_service.writer", patch_writer)]


def duplicate_as_new(_text: str) -> Patches:
    """Answers a duplicate with a receipt of its own."""

    def patch(module: Any) -> None:
        encode = module.encode_receipts
        module.encode_receipts = lambda stored: encode(
            (index, event, None) for index, event, _verdict in stored
        )

    return [("ingest_service.servicer", patch), ("ingest_service.streaming", patch)]


def no_unique_key(_text: str) -> Patches:
    """Takes every idempotency key for free."""

    def patch(postgres: Any) -> None:
        def insert_keyed(connection: Any, rows: Any, next_attempt: Any) -> set[str]:
            postgres.insert_events(connection, rows, next_attempt)
            return {row.id for row in rows}

        postgres.insert_keyed = insert_keyed
        postgres.insert_keys = lambda _connection, rows: {row.id for row in rows}

    return [("eventstore.postgres", patch)]


def no_sweeper(_text: str) -> Patches:
    """Never looks for what was left over."""

    def patch(sweeper: Any) -> None:
        sweeper.Sweeper.start = lambda _self: None

    return [("worker.sweeper", patch)]


def wall_clock_lease(_text: str) -> Patches:
    """Lets the sweeper ask its own machine what time it is."""

    def patch(processing: Any) -> None:
        in_seconds = processing.in_seconds

        def own_time(seconds: float) -> Any:
            if seconds == 0:
                return datetime.fromtimestamp(time.time(), UTC)
            return in_seconds(seconds)

        processing.in_seconds = own_time

    return [("eventstore.processing", patch)]


def attempt_not_counted(_text: str) -> Patches:
    """Takes a lease without counting the attempt."""

    def patch(postgres: Any) -> None:
        counted = "attempts = e.attempts + 1"
        _reword(postgres, "_LEASE", counted, "attempts = e.attempts")

    return [("eventstore.postgres", patch)]


def _reword(postgres: Any, statement: str, words: str, others: str) -> None:
    """Change the text of a prepared statement."""
    prepared = getattr(postgres, statement)
    assert words in prepared.text
    setattr(postgres, statement, prepared._replace(text=prepared.text.replace(words, others)))


def no_final_guard(_text: str) -> Patches:
    """Processes what it is told to, final or not, and is told twice."""

    def patch_statements(postgres: Any) -> None:
        _reword(postgres, "_WAITING", "AND e.status < 2 ", "")
        _reword(postgres, "_FINISH", "AND e.status < 2 ", "")

    def patch_dispatch(dispatch: Any) -> None:
        first = dispatch.Dispatcher.first_deliveries

        def twice(self: Any, keys: Any) -> None:
            first(self, keys)
            first(self, keys)

        dispatch.Dispatcher.first_deliveries = twice

    return [("eventstore.postgres", patch_statements), ("worker.dispatch", patch_dispatch)]


def asynchronous_commit(_text: str) -> Patches:
    """Commits without waiting for the disk."""

    def patch(engine: Any) -> None:
        create = engine.create_engine

        def lax(*args: Any, **options: Any) -> Any:
            connect = options.get("connect_args", {})
            if "options" in connect:
                connect["options"] = connect["options"].replace(
                    "synchronous_commit=on", "synchronous_commit=off"
                )
            return create(*args, **options)

        engine.create_engine = lax

    return [("eventstore.engine", patch)]


def own_clock_lease(_text: str) -> Patches:
    """Does the same with `datetime.now`, as the product's own line would."""

    def patch(processing: Any) -> None:
        exec(_OWN_CLOCK, vars(processing))  # noqa: S102  # so that its names are the module's

    return [("eventstore.processing", patch)]


_OWN_CLOCK = """
from datetime import UTC, datetime
from eventstore.clock import in_seconds as database_time
def in_seconds(seconds):
    return database_time(seconds) if seconds else datetime.now(UTC)
"""


def crash(text: str) -> Patches:
    """Ends server and worker by SIGSEGV so many seconds after each start."""

    def soon() -> None:
        time.sleep(float(text))  # as told
        os.kill(os.getpid(), signal.SIGSEGV)

    def patch(name: str) -> Callable[[ModuleType], None]:
        def patch_start(module: Any) -> None:
            starting = getattr(module, name)
            start = starting.start

            def start_and_crash(self: Any) -> None:
                start(self)
                threading.Thread(target=soon, daemon=True).start()

            starting.start = start_and_crash

        return patch_start

    return [("ingest_service.intake", patch("Intake")), ("worker.sweeper", patch("Sweeper"))]


def receipt_lost(_text: str) -> Patches:
    """Answers a batch with a receipt too few."""

    def patch(servicer: Any) -> None:
        encode = servicer.encode_receipts

        def short(stored: Any) -> Any:
            stored = list(stored)
            return encode(stored[:-1] if len(stored) > 1 else stored)

        servicer.encode_receipts = short

    return [("ingest_service.servicer", patch)]


def wait_for_redis(_text: str) -> Patches:
    """Has a submit wait for a Redis that is away, for three seconds and some more."""

    def patch(writer: Any) -> None:
        import redis  # noqa: PLC0415  # of this plant alone

        write = writer.Writer.write
        client = redis.Redis.from_url(os.environ["INGEST_BROKER_URL"], socket_timeout=0.3)

        def patient(self: Any, submissions: Any, **how: Any) -> Any:
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(3.3)  # that is the bug
            return write(self, submissions, **how)

        writer.Writer.write = patient

    return [("ingest_service.writer", patch)]


def note_handlers(text: str) -> Patches:
    """Writes a line to a file when a handler of a call is entered and when it is left; no bug."""
    file = os.open(text, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def noting(handler: Any) -> Any:
        async def noted(*args: Any) -> Any:
            os.write(file, f"entered {handler.__name__}\n".encode())
            try:
                return await handler(*args)
            finally:
                os.write(file, f"left {handler.__name__}\n".encode())

        return noted

    def patch(module: Any) -> None:
        servicer = getattr(module, "IngestServicer", None) or module.Statuses
        for name, found in list(vars(servicer).items()):
            if name[0].isupper():
                setattr(servicer, name, noting(found))

    return [("ingest_service.servicer", patch), ("ingest_service.health", patch)]


def skew(text: str) -> Patches:
    """Moves the wall clock of the process by so many seconds; no bug."""
    skew_time(float(text))

    def patch_deadlines(interceptors: Any) -> None:
        # gRPC's core keeps the true clock, so what is left of a deadline would be wrong here only.
        interceptors._LEAST_REMAINING = float("-inf")

    return [
        ("ingest_service.interceptors", patch_deadlines),
        *((module, skew_dates(float(text))) for module in ("jwt.api_jwt", *_PRODUCT)),
    ]


def key_seconds(text: str) -> Patches:
    """A key server has so many seconds for an answer, and a quarter until the next; no bug."""
    return [("ingest_service.jwks", hurry_keys(float(text)))]


def cgroup(text: str) -> Patches:
    """Puts the process, and what it starts, into cgroups; no bug."""
    for folder in text.split(":"):
        Path(folder, "cgroup.procs").write_text("0")
    return []


PLANTS: dict[str, Callable[[str], Patches]] = {
    plant.__name__.replace("_", "-"): plant
    for plant in (
        acknowledge_before_commit,
        swallow_failed_group,
        dispatch_before_commit,
        duplicate_as_new,
        no_unique_key,
        no_sweeper,
        wall_clock_lease,
        attempt_not_counted,
        no_final_guard,
        asynchronous_commit,
        own_clock_lease,
        crash,
        receipt_lost,
        wait_for_redis,
        note_handlers,
        skew,
        key_seconds,
        cgroup,
    )
}
