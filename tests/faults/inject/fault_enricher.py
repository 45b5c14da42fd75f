"""An enricher for fault tests, installed by an entry point: it does what the payload asks for.

{"fault": "raise"}                 raises
{"fault": "exit"}                  ends the process at once, as a crash does
{"fault": "grow"}                  takes memory until somebody ends the process
{"fault": "take", "bytes": 1024}   takes so much memory for a moment
{"fault": "loop"}                  never returns
{"fault": "until", "file": path}   raises until the file exists
{"fault": "sleep", "seconds": 1}   takes its time
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def enrich(payload: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Obey the payload; without "fault" nothing happens."""
    fault = payload.get("fault") if payload else None
    if fault is None or payload is None:
        return {}
    if fault == "exit":
        os._exit(137)
    if fault == "grow":
        _grow()
    if fault == "take":
        bytearray(payload["bytes"])
    while fault == "loop":
        pass
    if fault == "sleep":
        time.sleep(payload["seconds"])
    if fault == "raise" or (fault == "until" and not Path(payload["file"]).exists()):
        raise RuntimeError("as the payload asks")
    return {"fault": fault}


def _grow() -> None:
    taken = []
    while True:
        taken.append(bytearray(8 << 20))
        time.sleep(0.02)
