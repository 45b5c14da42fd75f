"""The three kinds of writers: calls of one event, of a batch, and streams open for a second."""

import time
from collections.abc import Iterator
from functools import partial

from ingest.v1.ingest_service_pb2 import (
    BatchSubmitEventsRequest,
    StreamEventsRequest,
    SubmitEventRequest,
)
from tests.faults.load import Client, Operation

#: Seconds between two messages of a stream, and messages of one stream.
_MESSAGE_PAUSE = 0.1
_MESSAGES = 10
#: Seconds between two batches, and events of one.
_BATCH_PAUSE = 0.4
_BATCH = 10


class UnaryWriter:
    """Submits one event after the other, at a steady rate."""

    def __init__(self, client: Client) -> None:
        """Take the client's name, journal and stub."""
        self._client = client

    def run(self) -> None:
        """Write until told to stop."""
        client = self._client
        pause = 1.0 / client.plan.unary_rate
        due = time.monotonic()
        while not client.stopping.is_set():
            operation = client.operation()
            client.invoke([operation])
            client.until_answered([operation], partial(self._submit, operation))
            # What a fault held up is not caught up with: the rate is that of a calm client.
            due = max(due + pause, time.monotonic())
            client.stopping.wait(due - time.monotonic())

    def _submit(self, operation: Operation, tries: int) -> None:
        client = self._client
        began = time.monotonic()
        answer = client.stub.SubmitEvent(
            SubmitEventRequest(event=operation.event),
            timeout=client.plan.attempt_timeout,
            metadata=client.metadata,
        )
        ms = (time.monotonic() - began) * 1000
        client.ok(operation, answer.receipt.event_id, answer.receipt.duplicate, ms, tries)


class BatchWriter:
    """Submits one atomic batch after the other, of new events and of resends."""

    def __init__(self, client: Client) -> None:
        """Take the client's name, journal and stub."""
        self._client = client

    def run(self) -> None:
        """Write until told to stop."""
        client = self._client
        while not client.stopping.is_set():
            chosen = [client.operation() for _ in range(_BATCH)]
            # A conflict would refuse the whole batch; row 35 does that.
            batch = _without_repeats([each for each in chosen if each.op != "conflict"])
            client.invoke(batch)
            client.until_answered(batch, partial(self._submit, batch))
            client.stopping.wait(_BATCH_PAUSE)

    def _submit(self, batch: list[Operation], tries: int) -> None:
        client = self._client
        began = time.monotonic()
        answer = client.stub.BatchSubmitEvents(
            BatchSubmitEventsRequest(events=[operation.event for operation in batch]),
            timeout=client.plan.attempt_timeout,
            metadata=client.metadata,
        )
        ms = (time.monotonic() - began) * 1000
        for operation, receipt in zip(batch, answer.receipts, strict=True):
            client.ok(operation, receipt.event_id, receipt.duplicate, ms, tries)


class StreamWriter:
    """Opens stream after stream; what breaks is sent again as a whole."""

    def __init__(self, client: Client) -> None:
        """Take the client's name, journal and stub."""
        self._client = client

    def run(self) -> None:
        """Write until told to stop."""
        client = self._client
        size = max(1, round(client.plan.stream_rate * _MESSAGE_PAUSE))
        while not client.stopping.is_set():
            messages: list[list[Operation]] = []
            client.until_answered(_Flat(messages), partial(self._stream, messages, size))

    def _stream(self, messages: list[list[Operation]], size: int, tries: int) -> None:
        """Send a stream: one that grows as it goes, or again what an earlier attempt sent."""
        client = self._client
        began = time.monotonic()

        def requests() -> Iterator[StreamEventsRequest]:
            if tries == 1:
                for _ in range(_MESSAGES):
                    operations = _without_repeats([client.operation() for _ in range(size)])
                    client.invoke(operations)
                    messages.append(operations)
                    yield StreamEventsRequest(events=[op.event for op in operations])
                    if client.stopping.wait(_MESSAGE_PAUSE):
                        break
            else:
                for operations in tuple(messages):
                    yield StreamEventsRequest(events=[op.event for op in operations])

        answer = client.stub.StreamEvents(
            requests(),
            timeout=client.plan.attempt_timeout + _MESSAGES * _MESSAGE_PAUSE,
            metadata=client.metadata,
        )
        ms = (time.monotonic() - began) * 1000
        sent = [operation for operations in messages for operation in operations]
        receipts = {receipt.index: receipt for receipt in answer.receipts}
        rejections = {rejection.index: rejection for rejection in answer.rejections}
        for index, operation in enumerate(sent):
            if (receipt := receipts.get(index)) is not None:
                client.ok(operation, receipt.event_id, receipt.duplicate, ms, tries)
            elif (rejection := rejections.get(index)) is not None:
                client.refused(operation, rejection.reason, ms)
            else:
                # A stream that was cut reads as one that ended: only what is receipted counts.
                client.journal.note(
                    client.name, operation.op, operation.key, "unknown", code="NO_RECEIPT"
                )


class _Flat(list[Operation]):
    """The operations of a stream that still grows, as one sequence."""

    def __init__(self, messages: list[list[Operation]]) -> None:
        super().__init__()
        self._messages = messages

    def __iter__(self) -> Iterator[Operation]:
        return (operation for operations in self._messages for operation in operations)


def _without_repeats(operations: list[Operation]) -> list[Operation]:
    """Drop a second operation on one key: a resend is only sure to be one after its answer."""
    return list({operation.key: operation for operation in reversed(operations)}.values())[::-1]
