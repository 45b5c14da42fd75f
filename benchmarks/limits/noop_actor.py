"""A Dramatiq actor that does nothing: how many messages a second the broker can pass on.

Given to Dramatiq's command line it is the worker; it takes Redis from the environment.
"""

import os
import sys
import time

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker

from benchmarks.sample import Sample
from benchmarks.stack import Bench
from tests.kit.waiting import eventually

_QUEUE = "noop"
#: As large as the product's messages.
_KEYS = {"7a1c5d0e-0000-5000-8000-0000000000aa": ["7a1c5d0e-0000-7000-8000-0000000000aa"] * 500}
_DONE = "bench:done"


def noop_rate(bench: Bench, *, messages: int) -> Sample:
    """Return messages/s of 500 keys each that one worker process of four threads takes."""
    messages = bench.size(messages, messages // 2)
    with redis.Redis.from_url(bench.redis_url) as client, bench.processes() as started:
        client.flushall()
        broker = _broker(bench.redis_url)
        broker.declare_queue(_QUEUE)
        for _ in range(messages):
            broker.enqueue(_message())
        started.start(
            *(bench.python, "-m", "dramatiq", __name__, "--processes", "1", "--threads", "4"),
            env={"BENCH_REDIS_URL": bench.redis_url},
        )

        def done() -> int:
            return int(client.get(_DONE) or 0)

        # As for the worker, the clock starts when a tenth is done.
        eventually(lambda: done() >= messages // 10, timeout=30, interval=0.005)
        begun, first = time.perf_counter(), done()
        eventually(lambda: done() == messages, timeout=60, interval=0.005)
        seconds = time.perf_counter() - begun
    return Sample(value=(messages - first) / seconds)


def _broker(url: str) -> RedisBroker:
    return RedisBroker(url=url, middleware=[])  # type: ignore[no-untyped-call]  # Dramatiq's


def _message() -> "dramatiq.Message[None]":
    return dramatiq.Message(
        queue_name=_QUEUE, actor_name="noop", args=(_KEYS,), kwargs={}, options={}
    )


if "dramatiq.cli" in sys.modules:
    _counter = redis.Redis.from_url(os.environ["BENCH_REDIS_URL"])
    dramatiq.set_broker(_broker(os.environ["BENCH_REDIS_URL"]))

    @dramatiq.actor(actor_name="noop", queue_name=_QUEUE)
    def _noop(_keys: object) -> None:
        _counter.incr(_DONE)
