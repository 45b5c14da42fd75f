"""Measures peers whose load generator is a program in the peers' own environment."""

from benchmarks.corpus import corpus
from benchmarks.peers.environment import PeerMissingError, peer_python
from benchmarks.sample import Sample
from benchmarks.stack import Bench, free_port
from tests.kit.databases import fresh_database
from tests.kit.processes import Process

_TIMEOUT = 120


def queue_rate(bench: Bench, *, name: str, jobs: int) -> Sample:
    """Return no-op jobs/s of procrastinate or pgqueuer on the same PostgreSQL."""
    jobs = bench.size(jobs, jobs // 4)
    with fresh_database(bench.postgres_url) as url, bench.processes() as started:
        program = "benchmarks.peers.queue_program"
        return _number(started.start(peer_python(), "-m", program, name, url, str(jobs)))


def umadb_rate(bench: Bench, *, events: int, per_append: int, threads: int) -> Sample:
    """Return events/s that UmaDB appends durably."""
    events = bench.size(events, events // 4)
    address = f"127.0.0.1:{free_port()}"
    with bench.processes() as started:
        started.start(
            peer_python().parent / "umadb",
            *("--listen", address, "--db-path", bench.folder / f"uma-{per_append}.db"),
            ready=lambda process: process.output(),
        )
        payload = corpus("small").events[0].payload_json
        return _number(
            started.start(
                *(peer_python(), "-m", "benchmarks.peers.umadb_program"),
                *(f"http://{address}", payload, str(events), str(per_append), str(threads)),
            )
        )


def _number(process: Process) -> Sample:
    if process.wait(_TIMEOUT):
        raise PeerMissingError(process.output()[-2_000:])
    try:
        return Sample(value=float(process.stdout().split()[-1]))
    except (IndexError, ValueError):
        raise PeerMissingError(f"no number in: {process.output()[-2_000:]!r}") from None
