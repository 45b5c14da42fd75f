"""What writers and pollers of the fault suite share: plan, stub, journal, and what is stored."""

import json
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ingest.v1.event_pb2 import EventInput
from ingest.v1.ingest_service_pb2_grpc import IngestServiceStub
from tests.faults.journal import Journal

#: What leaves open whether the call took effect; anything else but a refusal is a violation.
_UNKNOWN = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED"})

#: Reasons and codes that a call may end with while the database is away.
BROKEN = frozenset({"STORAGE_UNAVAILABLE", "OVERLOADED", "UNAVAILABLE", "NO_RECEIPT"})

CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a load process does."""

    target: str
    token: str
    folder: str
    #: Prefix of every idempotency key.
    run: str
    seed: int = 1
    unary: int = 2
    streams: int = 2
    batches: int = 1
    pollers: int = 2
    #: Events per second of each writer.
    unary_rate: float = 30.0
    stream_rate: float = 70.0
    resends: float = 0.05
    conflicts: float = 0.01
    #: Whether the same run was sent before, so that a new event may be a duplicate.
    again: bool = False
    #: Seconds of one attempt, and after its first failure until an operation is given up.
    attempt_timeout: float = 4.0
    patience: float = 45.0

    @property
    def writers(self) -> Sequence[str]:
        """The names of all writers, by which their journals and keys are known."""
        kinds = {"unary": self.unary, "stream": self.streams, "batch": self.batches}
        return [f"{kind}{number}" for kind, count in kinds.items() for number in range(count)]

    def as_argument(self) -> str:
        """Return this as the program's argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, argument: str) -> Self:
        """Read the program's argument."""
        return cls(**json.loads(argument))


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One thing to submit."""

    op: str
    key: str
    event: EventInput
    #: The id that a resend must be answered with.
    event_id: str = ""


class Client:
    """What writers and pollers share: stub, journal, and what is known to be stored."""

    def __init__(self, plan: Plan, name: str, stopping: threading.Event) -> None:
        """Open a channel of its own."""
        self.plan = plan
        self.name = name
        self.stopping = stopping
        self.journal = Journal(Path(plan.folder) / f"{plan.run}-{name}.jsonl")
        self.random = random.Random(f"{plan.seed} {name}")  # noqa: S311  # repeatable, no secret
        self.stub = IngestServiceStub(grpc.insecure_channel(plan.target, options=CHANNEL))
        self.metadata = (("authorization", f"Bearer {plan.token}"),)
        self.stored: deque[tuple[str, str]] = deque(maxlen=200)
        self._numbers = 0

    def operation(self) -> Operation:
        """Choose what comes next: mostly new, now and then a resend or a conflict."""
        dice = self.random.random()
        if self.stored and dice < self.plan.resends + self.plan.conflicts:
            key, event_id = self.random.choice(self.stored)
            conflict = dice < self.plan.conflicts
            op = "conflict" if conflict else "resend"
            event = make_event(key, other=conflict)
            return Operation(op=op, key=key, event=event, event_id=event_id)
        self._numbers += 1
        key = f"{self.plan.run}-{self.name}-{self._numbers}"
        return Operation(op="new", key=key, event=make_event(key))

    def invoke(self, operations: Sequence[Operation]) -> None:
        """Note what is about to be sent."""
        for operation in operations:
            self.journal.note(self.name, operation.op, operation.key, "invoke")

    def ok(
        self, operation: Operation, event_id: str, duplicate: bool, ms: float, tries: int
    ) -> None:
        """Note an OK, and whether it is the right one."""
        self.journal.note(
            self.name, operation.op, operation.key, "ok",
            event_id=event_id, duplicate=duplicate, ms=ms,
        )  # fmt: skip
        if operation.op == "new":
            if duplicate and tries == 1 and not self.plan.again:
                self.violation(operation, "a new event was answered as a duplicate")
            self.stored.append((operation.key, event_id))
        elif operation.op == "conflict":
            self.violation(operation, "other content under a used key was accepted")
        elif not duplicate:
            self.violation(operation, "a duplicate was answered as new")
        elif event_id != operation.event_id:
            self.violation(operation, "a duplicate was answered with another event")

    def refused(self, operation: Operation, reason: str, ms: float) -> None:
        """Note a refusal, and whether it is the right one."""
        self.journal.note(self.name, operation.op, operation.key, "refused", code=reason, ms=ms)
        if operation.op != "conflict" or reason != "IDEMPOTENCY_CONFLICT":
            self.violation(operation, f"refused: {reason}")

    def violation(self, operation: Operation, text: str) -> None:
        """Note what must never happen."""
        self.journal.note(self.name, operation.op, operation.key, "violation", code=text)

    def until_answered(
        self, operations: Sequence[Operation], attempt: Callable[[int], None]
    ) -> None:
        """Repeat an attempt until the server answers, or patience ends."""
        give_up = 0.0
        tries = 1
        while True:
            began = time.monotonic()
            try:
                attempt(tries)
            except grpc.RpcError as error:
                now = time.monotonic()
                code, reason = describe(error)
                ms = (now - began) * 1000
                if code not in _UNKNOWN:
                    for operation in operations:
                        self.refused(operation, reason or code, ms)
                    return
                give_up = give_up or now + self.plan.patience
                fact = "gave_up" if now > give_up else "unknown"
                for operation in operations:
                    self.journal.note(
                        self.name, operation.op, operation.key, fact, code=reason or code, ms=ms
                    )
                if fact == "gave_up":
                    return
                time.sleep(self.random.uniform(0.02, min(1.0, 0.1 * 2**tries)))
                tries += 1
            else:
                return


def make_event(key: str, *, other: bool = False) -> EventInput:
    """Return the event of a key; the same one each time, except for `other` content."""
    payload = {"key": key, "page": f" /{key} ", "duration": "2.5", "other": other}
    return EventInput(
        type="fault.load", source="faults", idempotency_key=key, payload_json=json.dumps(payload)
    )


def describe(error: grpc.RpcError) -> tuple[str, str]:
    """Return the code's name and ErrorInfo's reason, which is empty without one."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # a failed call is both
    reason = ""
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
    return error.code().name, reason
