"""`ingest-service doctor` on a SQLite file, such as `dev` keeps."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from eventstore import migrations
from ingest_service.doctor_database import judge_space
from tests.integration.test_doctor import examine
from tests.kit.server import running
from tests.kit.tokens import SECRET


def test_after_dev_doctor_looks_at_the_data_directory_and_asks_for_no_broker(
    tmp_path: Path,
) -> None:
    env = {"INGEST_DATA_DIR": str(tmp_path / "data"), "INGEST_LISTEN": "127.0.0.1:0"}
    with running(tmp_path / "dev", env, "dev"):
        code, found = examine(env)

    assert (code, "fail" in {verdict for verdict, _ in found.values()}) == (0, False)
    assert found["database"] == ("ok", "sqlite answers")
    assert found["journal"] == ("ok", "wal")
    assert found["file"] == ("ok", "sound")
    assert found["keys"] == ("ok", "HS256")
    assert re.fullmatch(r"[0-9]+ MiB free.*", found["disk"][1])
    assert "not needed" in found["broker"][1]

    code, found = examine(env | {"INGEST_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"})
    assert (code, found["database"][0], found["broker"][0]) == (1, "fail", "fail")


@pytest.mark.parametrize(
    "mebibytes, verdict", [(0, "fail"), (63, "fail"), (64, "warn"), (1_023, "warn"), (1_024, "ok")]
)
def test_a_disk_that_is_nearly_full_is_told_with_what_to_do(mebibytes: int, verdict: str) -> None:
    finding = judge_space(mebibytes << 20)

    assert (finding.check, finding.verdict.value) == ("disk", verdict)
    assert f"{mebibytes} MiB free" in finding.text
    assert ("make some" in finding.text) == (verdict != "ok")


def test_a_full_disk_of_the_data_directory_fails(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("LEFT OUT: no small tmpfs can be mounted here")
    try:
        migrations.upgrade(f"sqlite:///{disk / 'ingest.db'}")
        code, found = examine({"INGEST_DATA_DIR": str(disk), "INGEST_JWT_SECRET": SECRET})
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert (code, found["disk"][0]) == (1, "fail")
    assert "MiB free" in found["disk"][1]


def test_data_on_a_disk_that_takes_no_writes_fail_and_the_folder_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    migrations.upgrade(f"sqlite:///{disk / 'ingest.db'}")
    if os.geteuid() or subprocess.run(["mount", "--bind", disk, disk], check=False).returncode:
        pytest.skip("LEFT OUT: nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        env = {"INGEST_JWT_SECRET": SECRET}
        code, found = examine(env | {"INGEST_DATA_DIR": str(disk)})
        named = examine(env | {"INGEST_DATABASE_URL": f"sqlite:///{disk / 'ingest.db'}"})
        folder = examine(env | {"INGEST_DATABASE_URL": f"sqlite:///{disk / 'folder' / 'x.db'}"})
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)

    assert code == 1
    assert found["database"] == ("fail", "Read-only file system: check INGEST_DATA_DIR")
    for code, found in (named, folder):
        assert (code, found["database"][0]) == (1, "fail")
        assert "Read-only file system" in found["database"][1]
        assert "INGEST_DATABASE_URL" in found["database"][1]


@pytest.mark.parametrize(
    "path, reason",
    [
        (f"{__file__}/x.db", "File exists"),
        ("/proc/x/y.db", "No such file or directory"),
        (f"/{'x' * 300}", "File name too long"),
        (str(Path(__file__).parent), "Is a directory"),
        (f"{Path(__file__).parent}/a%00b", "no name of a file"),
    ],
)
def test_a_file_that_no_database_can_be_in_fails_and_the_setting_is_named(
    path: str, reason: str
) -> None:
    env = {"INGEST_DATABASE_URL": f"sqlite:///{path}", "INGEST_JWT_SECRET": SECRET}
    code, found = examine(env)

    assert (code, found["database"][0]) == (1, "fail")
    assert "INGEST_DATABASE_URL" in found["database"][1]
    assert reason in found["database"][1]


def test_a_database_file_that_is_not_there_fails_and_is_not_made(tmp_path: Path) -> None:
    file = tmp_path / "ingest.db"

    code, found = examine({"INGEST_DATABASE_URL": f"sqlite:///{file}", "INGEST_JWT_SECRET": SECRET})

    assert (code, found["database"][0]) == (1, "fail")
    assert not file.exists()


def test_a_damaged_database_file_fails(tmp_path: Path) -> None:
    file = tmp_path / "ingest.db"
    url = f"sqlite:///{file}"
    migrations.upgrade(url)
    content = bytearray(file.read_bytes())
    # The last page that holds anything: the schema is still read, and what is stored is not.
    page = int.from_bytes(content[16:18], "big")
    content[-page:] = b"\xff" * page
    file.write_bytes(content)

    code, found = examine({"INGEST_DATABASE_URL": url, "INGEST_JWT_SECRET": SECRET})

    assert (code, found["file"][0]) == (1, "fail")
