"""Fixtures of the integration tests: the service on both databases, and empty databases."""

from tests.kit.key_server import key_server
from tests.kit.server import alice, bob, service, start_service, store, store_url

__all__ = ["alice", "bob", "key_server", "service", "start_service", "store", "store_url"]
