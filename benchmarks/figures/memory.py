"""What many streams of large events take of the server's memory, and how many it turns away."""

import json
from collections import Counter

from benchmarks.figures.accept import Shape
from benchmarks.sample import Sample
from benchmarks.stack import Bench, Server
from benchmarks.usage import peak_rss_mb
from tests.kit.waiting import eventually

#: Times that the streams come: what one burst leaves behind, the next one may add to.
_BURSTS = 3


def memory(bench: Bench, shape: Shape) -> Sample:
    """Return the server's peak resident megabytes under streams of this shape.

    A server that has no room refuses streams as OVERLOADED. These are counted by its log, and no
    fault: what must be there is what it has acknowledged, and nothing that was not sent.
    """
    shape = shape.sized(bench)
    with bench.database() as database, bench.server(database) as server:
        streams, seconds = 0, 0.0
        for _ in range(_BURSTS):
            load = shape.send(bench, server, shape.events)
            streams, seconds = streams + load.requests, seconds + load.seconds
            _until_told(server, streams)
        told, rows = _told(server), database.rows()
        sent = _BURSTS * shape.events_in(shape.events)
        refused = streams - told["accepted_streams"]
        faults = server.sent.faults(database, refused=sent - rows if refused else 0)
        if rows < told["accepted"]:
            faults += (f"acknowledged {told['accepted']}, stored {rows}",)
        return Sample(
            value=peak_rss_mb(server.process.pid),
            detail={
                "events_per_s": round(rows / seconds),
                "streams": streams,
                "refused_streams": refused,
                "events_not_stored_percent": round(100 * (sent - rows) / sent, 1),
            },
            faults=faults,
        )


def _until_told(server: Server, streams: int) -> None:
    """Wait for the log to tell of so many streams; refusals are told up to a second later."""
    eventually(lambda: _told(server)["streams"] >= streams, timeout=10, interval=0.2)


def _told(server: Server) -> Counter[str]:
    """Count the streams that the server's log tells of, and the events that it acknowledged."""
    told: Counter[str] = Counter()
    for line in map(json.loads, server.process.output().splitlines()):
        if line["event"] == "stream_accepted":
            told.update(streams=1, accepted_streams=1, accepted=line["accepted"])
        elif line["event"] == "call_refused":
            told.update(streams=line["count"])
    return told
