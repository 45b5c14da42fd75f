"""A consumer that lets only messages for its own actors through to Dramatiq."""

import inspect
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import dramatiq
import redis
import structlog
from dramatiq.errors import ActorNotFound, DecodeError

log = structlog.get_logger()

#: Seconds between two lines about dropped messages, however many there are.
_TELL_EVERY = 1.0
#: All that a message of ours has beside its keys; Redis knows it by this.
_OPTIONS = ["redis_message_id"]


class WaryConsumer(dramatiq.Consumer):
    """Drops whatever a stranger wrote into the queue, and counts it in the log.

    Dramatiq stops for a second at what it cannot decode, holds back for as long as the message
    says what is to come later, and loses the thread that meets the name of another queue.
    """

    def __init__(
        self, broker: Any, inner: Any, queue_name: str, *, wait: Callable[[], None] | None
    ) -> None:
        """Take Dramatiq's consumer, and how to wait while its queue is empty."""
        self._broker = broker
        self._inner = inner
        self._queue_name = queue_name
        self._wait = wait
        self._dropped = 0
        self._told_at = -_TELL_EVERY

    def __next__(self) -> Any:
        """Return the next message, or None when there is none for now."""
        self._tell()
        try:
            message = next(self._inner)
        except (DecodeError, TypeError):
            # TypeError: its id is a list.
            self._dropped += 1
            return None
        if message is None:
            if self._wait is not None and self._inner.outstanding_message_count == 0:
                self._wait()
        elif not self._is_ours(message):
            self._dropped += 1
            # What has no id in Redis stays there; this consumer at least is rid of it.
            with suppress(KeyError, TypeError, redis.RedisError):
                self._inner.ack(message)
            return None
        return message

    def ack(self, message: Any) -> None:
        """Have Redis forget a message that was worked on."""
        self._inner.ack(message)

    def nack(self, message: Any) -> None:
        """Have Redis put a message aside."""
        self._inner.nack(message)

    def requeue(self, messages: Any) -> None:
        """Give messages back to the queue, as a worker does that ends; else the sweeper has them.

        Dramatiq lets no more than its own error pass here: a worker would end with a traceback.
        """
        try:
            self._inner.requeue(messages)
        except (redis.RedisError, OSError) as error:
            log.warning("broker_unavailable", error=type(error).__name__, queue=self._queue_name)

    def close(self) -> None:
        """Tell what was not told yet, and close."""
        self._told_at = -_TELL_EVERY
        self._tell()
        self._inner.close()

    def _is_ours(self, message: Any) -> bool:
        try:
            actor = self._broker.get_actor(message.actor_name)
            inspect.signature(actor.fn).bind(*message.args, **message.kwargs)
            return (
                actor.queue_name == message.queue_name == self._queue_name
                and list(message.options) == _OPTIONS
                and isinstance(message.options["redis_message_id"], str)
            )
        except (ActorNotFound, TypeError):
            return False

    def _tell(self) -> None:
        now = time.monotonic()
        if self._dropped and now >= self._told_at + _TELL_EVERY:
            log.warning(
                "message_dropped",
                reason="not a message of this service",
                queue=self._queue_name,
                count=self._dropped,
            )
            self._dropped, self._told_at = 0, now
