"""The comparison that ends every session of hostile tests sees each kind of leak, and no other."""

from pathlib import Path

import pytest

from tests.hostile.session import MORE_BYTES, MORE_THREADS, back_to_baseline, observed
from tests.kit.server import Service, settings_for

#: Calls that leak, for each kind: more than may be left behind, and of memory by what varies.
LEAKS = {
    "memory": (MORE_BYTES >> 20) + 40,
    "threads": MORE_THREADS + 1,
    "sockets": 1,
    "database": 1,
    "tasks": 1,
}


@pytest.mark.parametrize(
    "store_url, kind",
    # What differs between the databases is how their connections are counted.
    [*(("postgresql", kind) for kind in LEAKS), ("sqlite", "database")],
    indirect=["store_url"],
)
def test_what_calls_leave_behind_is_seen(
    store_url: str, redis_url: str, tmp_path: Path, kind: str
) -> None:
    env = settings_for(store_url, redis_url)
    leaking = observed(tmp_path / "server", env, f"leak={kind}")
    with leaking as service, pytest.raises(AssertionError, match=f"last: .*{kind}: "):
        compare(service, LEAKS[kind])


def compare(service: Service, calls: int) -> None:
    """Make so many calls that leak, in a session of their own."""
    with back_to_baseline(service, patience=1):
        for _ in range(calls):
            service.caller().counts()
