"""What a log record may hold."""

import json
import subprocess
import sys

PROGRAM = """
import logging
import structlog
from eventstore.logs import configure_logs
configure_logs("INFO")
structlog.get_logger().info("ours", long="x" * 201, whole="y" * 200, number=10 ** 300)
logging.getLogger("library").warning("z" * 201)
"""


def test_a_long_text_is_cut_in_our_records_and_in_those_of_libraries() -> None:
    """In a process of its own: there is one configuration of logs in each."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    ours, theirs = map(json.loads, done.stderr.splitlines())

    assert ours["long"] == "x" * 200 + "..."
    assert (ours["whole"], ours["number"]) == ("y" * 200, 10**300)
    assert theirs["event"] == "z" * 200 + "..."


FAILURES = """
import logging
import structlog
from eventstore.logs import configure_logs
configure_logs("INFO")
try:
    raise ValueError("canary")
except ValueError as error:
    structlog.get_logger().exception("ours")
    structlog.get_logger().error("given", exc_info=error)
    logging.getLogger("library").exception("theirs")
"""


def test_the_text_of_an_exception_is_in_no_record() -> None:
    """It may quote the values of a row; its type and its place are told."""
    done = subprocess.run(
        [sys.executable, "-c", FAILURES], capture_output=True, text=True, timeout=60, check=True
    )
    records = [json.loads(line) for line in done.stderr.splitlines()]

    assert [record["event"] for record in records] == ["ours", "given", "theirs"]
    assert [record["error"] for record in records] == ["ValueError"] * 3
    assert all(record["at"].startswith("<module>:") for record in records)
    assert "canary" not in done.stderr
