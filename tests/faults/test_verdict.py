"""What a verdict says of a load that did nothing: that is no load, and no latency of zero."""

import pytest

from tests.faults.journal import Entry, History
from tests.faults.load import Plan
from tests.faults.verdict import idle_writers

_PLAN = Plan(target="", token="", folder="", run="run-0", unary=2, streams=0, batches=1)


def answered(*writers: str, fact: str = "ok") -> History:
    return History(
        tuple(
            Entry(at=1.0, writer=writer, op="new", key=f"run-0-{writer}-1", fact=fact)
            for writer in writers
        )
    )


def test_every_writer_must_have_been_answered() -> None:
    assert idle_writers(answered("unary0", "unary1", "batch0"), [_PLAN]) == []
    (told,) = idle_writers(answered("unary0", "batch0"), [_PLAN])
    assert told == "no load: unary1 of run-0 was never answered OK"


def test_what_is_not_ok_is_no_answer() -> None:
    everybody = answered("unary0", "unary1", "batch0", fact="unknown")
    assert len(idle_writers(everybody, [_PLAN])) == 3


def test_no_answers_have_no_latency() -> None:
    with pytest.raises(AssertionError, match="nothing was answered"):
        History(()).milliseconds()
