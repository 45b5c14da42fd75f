"""Repeating calls that failed for a passing reason; knows nothing of what a call does.

gRPC's own retry policy is not used: it cannot read RetryInfo, in which the server says when a
call is welcome again.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from ingest.errors import IngestError

_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)
#: Not shared with forked processes, which would otherwise wait in step.
_random = secrets.SystemRandom()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long to try. Every value is in seconds."""

    #: Deadline of one attempt of a unary call.
    attempt_timeout: float = 10.0
    #: Deadline of one attempt of a StreamEvents call; at most 16 MiB go into one.
    stream_timeout: float = 120.0
    #: How long after its first failure a call is still repeated; covers the restart of a server.
    patience: float = 30.0
    #: Upper end of the first random pause; it doubles with each further one ...
    first_backoff: float = 0.1
    #: ... up to this.
    max_backoff: float = 5.0

    def backoff(self, failures: int, retry_delay: float | None) -> float:
        """How long to pause after so many failures: full jitter, after the server's own delay."""
        ceiling = min(self.max_backoff, self.first_backoff * 2 ** min(failures - 1, 30))
        return (retry_delay or 0.0) + _random.uniform(0.0, ceiling)


def call_until_answered(
    attempt: Callable[[float], _Answer],
    *,
    policy: RetryPolicy,
    attempt_timeout: float,
    timeout: float | None,
    pause: Callable[[float], object],
) -> _Answer:
    """Call `attempt` with the seconds that it may take, until it answers.

    Errors that are not transient are raised at once. Transient ones are raised when the next
    attempt would come later than `policy.patience` after the first failure, or would not end
    within `timeout`.
    """
    now = time.monotonic()
    deadline = inf if timeout is None else now + timeout
    give_up = inf
    failures = 0
    while True:
        try:
            return attempt(min(attempt_timeout, deadline - now))
        except IngestError as error:
            if not error.transient:
                raise
            now = time.monotonic()
            failures += 1
            give_up = min(give_up, now + policy.patience)
            delay = policy.backoff(failures, error.retry_delay)
            if now + delay >= min(give_up, deadline):
                raise
            _log.info("trying again in %.1f s: %s", delay, error)
        pause(delay)
        now = time.monotonic()
