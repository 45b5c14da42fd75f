"""`ingest-service dev` whose worker stands still: a program, to measure the accept half alone."""

import dramatiq

from ingest_service.cli import main


class _Idle(dramatiq.Worker):
    def start(self) -> None:
        pass

    def stop(self, timeout: int = 0) -> None:
        pass


if __name__ == "__main__":
    dramatiq.Worker = _Idle  # type: ignore[misc]  # the one that the composition root builds
    main(["dev"])
