"""Brokers: which one a URL means, with which timeouts, and how full a queue is."""

import time
from contextlib import suppress
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.brokers.stub import StubBroker
from redis.backoff import NoBackoff
from redis.retry import Retry

from eventstore.engine import build_engine
from eventstore.logs import configure_logs
from eventstore.settings import Settings, SettingsError
from worker.consumer import WaryConsumer

#: First deliveries, and what the sweeper sends again: apart, so that one cannot starve the other.
QUEUE = "ingest"
RECOVERY_QUEUE = "ingest-recovery"

#: Seconds that a producer waits for Redis; a consumer may wait longer, it has nothing else to do.
_PRODUCER_TIMEOUT = 0.25
_CONSUMER_TIMEOUT = 2.0
#: Milliseconds without a sign of life after which a worker's messages go back to the queue.
_HEARTBEAT_TIMEOUT_MS = 15_000
#: Look for dead workers with every command: with Dramatiq's default that takes some ten minutes.
_MAINTENANCE_CHANCE = 1_000_000
#: Messages that a worker process holds ready.
_PREFETCH = 16
#: Milliseconds between two looks at a queue that is not empty, and at one that is never urgent.
_BUSY_POLL_MS = 10
_CALM_POLL_MS = 500
#: Seconds between two looks at an empty queue of which nobody says that it no longer is.
_IDLE_POLL = 0.25
#: A list in Redis: who sends a message pushes to it, who waits for one pops from it.
_WAKE = "ingest-wake"
_MOST_WAKES = 64


class WakingRedisBroker(RedisBroker):
    """Dramatiq's Redis broker, whose consumers are woken by a message in place of polling for it.

    Dramatiq looks at an idle queue more and more seldom, up to once a second; to look a hundred
    times a second instead takes four percent of a core for each process.
    """

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        """Enqueue, and wake a consumer that waits."""
        sent = super().enqueue(message, delay=delay)
        if message.queue_name == QUEUE:
            # If this is lost the message is found a moment later.
            with suppress(redis.RedisError, OSError):
                if self.client.lpush(_WAKE, 1) > _MOST_WAKES:
                    # Nobody is idle, or nobody is there.
                    self.client.ltrim(_WAKE, 0, _MOST_WAKES // 2)
        return sent

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5_000) -> Any:
        """Consume a queue; only that of first deliveries is urgent."""
        urgent = queue_name == QUEUE
        if urgent:
            inner = super().consume(queue_name, max(prefetch, _PREFETCH), _BUSY_POLL_MS)
        else:
            inner = super().consume(queue_name, prefetch, max(timeout, _CALM_POLL_MS))
        return WaryConsumer(self, inner, queue_name, wait=self._await_wake if urgent else None)

    def _await_wake(self) -> None:
        try:
            self.client.blpop(_WAKE, timeout=_IDLE_POLL)
        except (redis.RedisError, OSError):
            time.sleep(_IDLE_POLL)


def build_broker(url: str, *, consumer: bool = False) -> dramatiq.Broker:
    """Build the broker for `redis://`, `rediss://`, `amqp://` or `stub://`; does not connect.

    Nothing is retried by Dramatiq or by the Redis client: an error means "unknown", the row stays
    PENDING, and the sweeper finds it. Raises SettingsError for another scheme.
    """
    # No Retries and no AgeLimit: retries live in the row, and waiting is no failure. No TimeLimit:
    # see timelimit.py.
    chain: list[dramatiq.Middleware] = []
    scheme = url.partition("://")[0]
    if scheme in {"redis", "rediss"}:
        timeout = _CONSUMER_TIMEOUT if consumer else _PRODUCER_TIMEOUT
        try:
            client = redis.Redis.from_url(
                url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
            )
        except ValueError:
            raise SettingsError("INGEST_BROKER_URL cannot be parsed") from None
        broker: dramatiq.Broker = WakingRedisBroker(  # type: ignore[no-untyped-call]  # Dramatiq's
            client=client,
            middleware=chain,
            heartbeat_timeout=_HEARTBEAT_TIMEOUT_MS,
            maintenance_chance=_MAINTENANCE_CHANCE,
        )
        return broker
    if scheme in {"amqp", "amqps"}:
        try:
            from dramatiq.brokers.rabbitmq import RabbitmqBroker  # noqa: PLC0415  # optional extra
        except ImportError:
            raise SettingsError("amqp:// needs the extra: ingest-service[rabbitmq]") from None
        try:
            return RabbitmqBroker(url=url, middleware=chain, confirm_delivery=True)
        except ValueError:
            raise SettingsError("INGEST_BROKER_URL cannot be parsed") from None
    if scheme == "stub":
        return StubBroker(middleware=chain)
    raise SettingsError("INGEST_BROKER_URL must start with redis://, rediss:// or amqp://")


def waiting_messages(broker: dramatiq.Broker, queue: str) -> int:
    """Return how many messages wait in a queue or are in a worker's hands."""
    if isinstance(broker, RedisBroker):
        return int(broker.do_qsize(queue))
    if isinstance(broker, StubBroker):
        return int(broker.queues[queue].qsize())
    return int(broker.get_queue_message_counts(queue)[0])  # type: ignore[attr-defined]  # RabbitMQ


def check_broker(url: str) -> str:
    """Return what is wrong with a broker, or nothing; raises what its client raises.

    SettingsError for a Redis that is full.
    """
    broker = build_broker(url)
    if isinstance(broker, StubBroker):
        return (
            "stub:// delivers nothing to other processes, and events wait for the sweeper: set"
            " INGEST_BROKER_URL to redis://, rediss:// or amqp://"
        )
    broker.declare_queue(QUEUE)
    try:
        waiting_messages(broker, QUEUE)
    except redis.OutOfMemoryError:
        raise SettingsError(
            "Redis is full and takes no messages, events wait for the sweeper: raise its maxmemory,"
            " or see what else fills it"
        ) from None
    if isinstance(broker, RedisBroker):
        memory: Any = broker.client.info("memory")
        if memory.get("maxmemory") and memory.get("maxmemory_policy") != "noeviction":
            return "Redis may evict the queue: set maxmemory-policy noeviction"
    return ""


def set_up() -> None:
    """Make Dramatiq's global broker from the environment, with actors and sweeper."""
    from worker.runtime import Runtime  # noqa: PLC0415  # runtime imports this module

    settings = Settings.load()
    configure_logs(settings.log_level)
    engine = build_engine(
        settings.require_database_url(),
        name="ingest-worker",
        pool_size=settings.worker_threads + 2,
        keyed=True,
    )
    broker = build_broker(settings.require_broker_url(), consumer=True)
    Runtime(settings, engine, broker).install()
    dramatiq.set_broker(broker)
