"""The command `ingest-service`: what it prints, and how it ends."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import jwt
import pytest

from tests.kit import forks
from tests.kit.caller import Caller
from tests.kit.forks import Ended
from tests.kit.processes import Processes, has_ended
from tests.kit.rows import add
from tests.kit.server import BIN, Service, closing_engine, settings_for, two_processes
from tests.kit.services import descendants, free_port
from tests.kit.tokens import SECRET
from tests.kit.waiting import eventually


def run(*args: str, cwd: Path | None = None, **env: str) -> Ended:
    return forks.run(*args, env={f"INGEST_{name}": value for name, value in env.items()}, cwd=cwd)


def really_run(*args: str, **env: str) -> Ended:
    """As a user does, without a library loaded by another command: once for each."""
    done = subprocess.run(
        [BIN / "ingest-service", *args],
        env={f"INGEST_{name}": value for name, value in env.items()},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


#: How Python reads bytes of the environment that are not UTF-8.
NOT_UTF8 = "\udcff\udcfe"
COMMANDS = ["dev", "serve", "worker", "migrate", "token", "sweep", "doctor", "health"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    shown = run(command, "--help")

    assert shown.code == 0
    assert "Example:" in shown.stdout


def test_a_token_is_printed_bare_and_is_accepted(service: Service) -> None:
    made = really_run("token", "--subject", "cli", "--email", "a@b.c", JWT_SECRET=SECRET)
    token = made.stdout.strip()
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], audience="ingest", issuer="ingest")

    assert made.code == 0
    assert made.stdout == token + "\n"
    assert claims["exp"] - claims["iat"] == 3_600
    assert (claims["sub"], claims["email"]) == ("cli", "a@b.c")
    assert Caller(service.channel, token).is_served()


def test_scopes_and_life_of_a_token_can_be_chosen() -> None:
    made = run(
        *("token", "--subject", "x", "--scope", "events:read", "--ttl", "90m"), JWT_SECRET=SECRET
    )
    claims = jwt.decode(made.stdout.strip(), options={"verify_signature": False})

    assert claims["scope"] == "events:read"
    assert claims["exp"] - claims["iat"] == 5_400


@pytest.mark.parametrize(
    "args, env, named",
    [
        (["token", "--subject", "x"], {}, "INGEST_JWT_SECRET"),
        (["token"], {"JWT_SECRET": SECRET}, "--subject"),
        (["token", "--subject", "x", "--ttl", "1y"], {"JWT_SECRET": SECRET}, "--ttl"),
        (["token", "--subject", "x", "--ttl", "nan"], {"JWT_SECRET": SECRET}, "--ttl"),
        (["token", "--subject", "x", "--ttl", "0s"], {"JWT_SECRET": SECRET}, "--ttl"),
        (["token", "--subject", "x", "--ttl", "-1s"], {"JWT_SECRET": SECRET}, "--ttl"),
        (["token", "--subject", "x", "--ttl", "400d"], {"JWT_SECRET": SECRET}, "--ttl"),
        (["token", "--subject", "x"], {"JWT_SECRET": "short"}, "INGEST_JWT_SECRET"),
        (["token", "--subject", "x"], {"DATA_DIR": "x" * 300}, "INGEST_"),
        (["dev"], {"DATA_DIR": "x" * 300}, "INGEST_DATA_DIR"),
        (["serve"], {}, "INGEST_DATABASE_URL"),
        (["serve"], {"DATABASE_URL": "sqlite:///x.db"}, "INGEST_BROKER_URL"),
        (["worker"], {}, "INGEST_DATABASE_URL"),
        (["migrate"], {}, "INGEST_DATABASE_URL"),
        (["sweep"], {}, "INGEST_DATABASE_URL"),
        (["serve"], {"TLS_CERT_FILE": "x"}, "INGEST_TLS_KEY_FILE"),
        (
            ["serve"],
            {"DATABASE_URL": "sqlite:///x.db", "BROKER_URL": "redis://127.0.0.1:1/0"},
            "INGEST_JWT_SECRET",
        ),
        (
            ["serve"],
            {
                "DATABASE_URL": "sqlite:///x.db",
                "BROKER_URL": "kafka://127.0.0.1:1/0",
                "JWT_SECRET": SECRET,
            },
            "INGEST_BROKER_URL",
        ),
        (
            ["serve"],
            {
                "DATABASE_URL": "mysql://127.0.0.1:1/canary",
                "BROKER_URL": "redis://127.0.0.1:1/0",
                "JWT_SECRET": SECRET,
            },
            "postgresql://",
        ),
        (["migrate"], {"DATABASE_URL": "mysql://127.0.0.1:1/canary"}, "postgresql://"),
        (["nonsense"], {}, "nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    args: list[str], env: dict[str, str], named: str, tmp_path: Path
) -> None:
    ended = run(*args, cwd=tmp_path, **env)

    assert ended.code == 2, ended.stderr
    assert named in ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "canary" not in ended.stderr


@pytest.mark.parametrize(
    "command", [*([name] for name in COMMANDS if name != "token"), ["token", "--subject", "x"]]
)
@pytest.mark.parametrize(
    "setting", ["JWT_SECRET", "DATABASE_URL", "BROKER_URL", "JWT_ISSUER", "JWT_AUDIENCE"]
)
def test_a_setting_that_is_not_utf8_is_named_by_every_command(
    command: list[str], setting: str, tmp_path: Path
) -> None:
    """Python makes lone surrogates of such bytes; what is quoted of them may be a secret."""
    ended = run(*command, cwd=tmp_path, **{setting: "canary" + NOT_UTF8 * 40})

    assert ended.code == 2, ended.stderr
    assert ended.stderr.startswith(f"Error: set INGEST_{setting}: Input should be ")
    assert re.search("UTF-8|unicode string", ended.stderr)
    assert ended.stderr.count("\n") == 1
    assert "canary" not in ended.stderr


@pytest.mark.parametrize("option", ["--service", "--target"])
def test_health_names_an_option_that_is_not_utf8(option: str) -> None:
    ended = run("health", option, NOT_UTF8)

    assert ended.code == 2
    assert ended.stderr.splitlines()[-1].startswith(f"Error: Invalid value for '{option}'")
    assert ended.stderr.endswith("must be UTF-8\n")


@pytest.mark.parametrize(
    "path", [f"{__file__}/x.db", "/proc/x/y.db", f"/{'x' * 300}", str(Path(__file__).parent)]
)
@pytest.mark.parametrize("command", ["serve", "worker", "migrate", "sweep"])
def test_a_file_that_no_database_can_be_in_is_refused_by_the_settings_name(
    command: str, path: str
) -> None:
    ended = forks.run(command, env=settings_for(f"sqlite:///{path}", "redis://127.0.0.1:1/0"))

    # Of workers Dramatiq makes the exit code.
    assert ended.code == (1 if command == "worker" else 2), ended.stderr
    assert "INGEST_DATABASE_URL" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_stops_the_start_with_a_line(service: Service, redis_url: str) -> None:
    env = settings_for(service.database_url, redis_url, LISTEN=service.address)
    ended = forks.run("serve", env=env)

    assert ended.code == 2
    assert "INGEST_LISTEN" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_migrate_checks_changes_and_checks_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ingest.db'}"

    assert run("migrate", "--check", DATABASE_URL=url).code == 1
    assert really_run("migrate", DATABASE_URL=url).code == 0
    assert run("migrate", "--check", DATABASE_URL=url).code == 0


@pytest.mark.parametrize("command", ["migrate", "sweep"])
def test_a_database_that_is_away_is_exit_code_1_without_a_traceback(command: str) -> None:
    url = "postgresql://canary:canary@127.0.0.1:1/ingest"
    ended = run(command, DATABASE_URL=url, BROKER_URL="redis://127.0.0.1:1/0")

    assert ended.code == 1
    assert "Traceback" not in ended.stderr
    assert "canary" not in ended.stderr


def test_sweep_processes_what_is_due_and_prints_how_many(store_url: str) -> None:
    """Without a broker it does the work itself."""
    with closing_engine(store_url) as store:
        add(store, {}, [], {}, due_in=-1)
    first = really_run("sweep", DATABASE_URL=store_url, BROKER_URL="redis://127.0.0.1:1/0")
    second = run("sweep", DATABASE_URL=store_url, BROKER_URL="redis://127.0.0.1:1/0")

    assert (first.code, first.stdout) == (0, "3\n"), first.stderr
    assert (second.code, second.stdout) == (0, "0\n")


def test_health_tells_by_its_exit_code(service: Service) -> None:
    assert really_run("health", LISTEN=service.address).code == 0
    assert run("health", "--service", "liveness", LISTEN=service.address).code == 0
    assert run("health", "--service", "nothing", LISTEN=service.address).code == 1
    assert run("health", LISTEN="127.0.0.1:1").code == 1


def test_several_processes_share_one_port(
    database_url: str, redis_url: str, processes: Processes
) -> None:
    """Started by a supervisor, which ends them in good order."""
    service = two_processes(processes, database_url, redis_url)
    assert service.caller().is_served()

    assert service.stop() == 0
    assert service.process.stderr().count("server_stopped") == 2


def test_a_process_that_cannot_be_started_again_yet_ends_no_others(
    database_url: str, redis_url: str, processes: Processes, tmp_path: Path
) -> None:
    """A file of settings is half written when it looks; another try comes, and another."""
    revoked = tmp_path / "revoked.json"
    revoked.write_text("{}")
    more = {"JWT_REVOCATION_FILE": str(revoked)}
    service = two_processes(processes, database_url, redis_url, **more)

    def said(what: str) -> int:
        return service.process.stderr().count(what)

    revoked.write_text('{"jti": [')
    os.kill(descendants(service.process.pid)[0], signal.SIGKILL)
    eventually(lambda: said('"server_process_ended"') == 3, timeout=20)
    assert service.caller().is_served()
    revoked.write_text("{}")
    eventually(lambda: said('"server_started"') == 3, timeout=20)

    assert service.stop() == 0
    assert said('"server_stopped"') == 2


def test_several_processes_want_a_port(store_url: str, redis_url: str) -> None:
    """Of 0 each would make one of its own."""
    ended = forks.run("serve", env=settings_for(store_url, redis_url, PROCESSES="2"))

    assert ended.code == 2
    assert "INGEST_LISTEN" in ended.stderr
    assert "INGEST_PROCESSES" in ended.stderr


def test_several_processes_that_are_told_to_end_while_they_start_end_in_good_order(
    store_url: str, redis_url: str, processes: Processes
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    env = settings_for(store_url, redis_url, PROCESSES="2", LISTEN=listen)
    process = processes.start(BIN / "ingest-service", "serve", env=env)
    eventually(lambda: len(descendants(process.pid)) == 2, interval=0.001)
    process.terminate()

    assert process.wait() == 0


def test_wrong_usage_of_several_processes_is_exit_code_2(processes: Processes) -> None:
    """Whichever of them says so first: the others are ended while they start."""
    more = {"PROCESSES": "3", "JWT_ALGORITHM": "RS256", "JWT_PUBLIC_KEY_FILE": "/nowhere"}
    more["LISTEN"] = f"127.0.0.1:{free_port()}"
    env = settings_for("sqlite:///x.db", "redis://127.0.0.1:1", **more)
    del env["INGEST_JWT_SECRET"]
    process = processes.start(BIN / "ingest-service", "serve", env=env)

    assert process.wait() == 2


@pytest.mark.parametrize("command, delay", [("serve", 0.0), ("worker", 0.0), ("worker", 0.2)])
def test_processes_whose_parent_is_killed_while_they_start_end_too(
    store_url: str, redis_url: str, processes: Processes, command: str, delay: float
) -> None:
    """At once: when they look for their parent first, it is gone already.

    A moment later Dramatiq's master waits until the others tell that they have started.
    """
    more = {"PROCESSES": "2", "WORKER_PROCESSES": "2", "LISTEN": f"127.0.0.1:{free_port()}"}
    env = settings_for(store_url, redis_url, **more)
    process = processes.start(BIN / "ingest-service", command, env=env)
    children = eventually(lambda: descendants(process.pid), interval=0.001)
    time.sleep(delay)  # nothing tells from outside that it waits
    process.kill()
    process.wait()

    eventually(lambda: all(map(has_ended, children)), timeout=8)
