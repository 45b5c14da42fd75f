"""Fixtures of the hostile tests: the service on both databases, and empty databases."""

from tests.kit.server import alice, bob, service, start_service, store, store_url

__all__ = ["alice", "bob", "service", "start_service", "store", "store_url"]
