"""The embedded mode as a system under test: one process, one SQLite file."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.ledger import SqliteLedger
from tests.faults.rig import BRISK, PYTHONPATH, SECRET, SERVICE
from tests.faults.supervisor import Member
from tests.kit.services import free_port


class EmbeddedRig:
    """`ingest-service dev` under a supervisor; `prefix` goes before its command."""

    def __init__(
        self,
        *,
        data: Path | None = None,
        settings: Mapping[str, str] = BRISK,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start it once, so that its database is there."""
        self.folder = Path(tempfile.mkdtemp(prefix="ingest-embedded-"))
        self.data = data or self.folder / "data"
        self._port = free_port()
        self.service = Member(
            "dev",
            [*prefix, SERVICE, "dev"],
            self.folder / "dev",
            env={
                **settings,
                "INGEST_DATA_DIR": str(self.data),
                "INGEST_LISTEN": self.target(),
                "INGEST_JWT_SECRET": SECRET,
                "PYTHONPATH": PYTHONPATH,
            },
            ready=lambda process: "server_started" in process.stderr(),
        )
        self.service.start()
        self.ledger = SqliteLedger(self.database)
        self.ledger.install()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data / "ingest.db"

    @property
    def members(self) -> Sequence[Member]:
        """The one process."""
        return (self.service,)

    def target(self, server: int = 0) -> str:
        """Return where clients find it."""
        return f"127.0.0.1:{self._port}"

    def close(self) -> None:
        """End it and delete its data."""
        self.service.discard()
        shutil.rmtree(self.folder, ignore_errors=True)
