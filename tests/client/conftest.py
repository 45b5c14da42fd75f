"""Fixtures of the client's tests: a server in this process, and a client of it."""

from collections.abc import Iterator

import pytest

from ingest.client import IngestClient
from ingest.retry import RetryPolicy
from tests.client.fake_service import FakeService, serving


@pytest.fixture
def service() -> Iterator[FakeService]:
    with serving(FakeService()) as running:
        yield running


@pytest.fixture
def policy() -> RetryPolicy:
    """Patient enough for every retry that is scripted, without a noticeable pause."""
    return RetryPolicy(first_backoff=0.001, max_backoff=0.002, patience=5)


@pytest.fixture
def client(service: FakeService, policy: RetryPolicy) -> Iterator[IngestClient]:
    with IngestClient(service.target, "a-token", policy=policy) as connected:
        yield connected
