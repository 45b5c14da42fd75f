"""Settings: what contradicts itself stops the start, with one line that says what to set."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from eventstore.settings import Settings, SettingsError
from ingest_service.auth import build_key_source
from tests.kit.tokens import SECRET


@pytest.fixture(autouse=True)
def _no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("INGEST_"):
            monkeypatch.delenv(name)


def load(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"INGEST_{name}", value)
    return Settings.load()


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS_CERT_FILE", "JWT_SECRET", "LISTEN"):
        monkeypatch.setenv(f"INGEST_{name}", "")

    assert Settings.load() == Settings()


@pytest.mark.parametrize(
    "values, named",
    [
        ({"TLS_CERT_FILE": "cert.pem"}, "INGEST_TLS_KEY_FILE"),
        ({"TLS_KEY_FILE": "key.pem"}, "INGEST_TLS_CERT_FILE"),
        ({"TLS_CLIENT_CA_FILE": "ca.pem"}, "INGEST_TLS_CERT_FILE"),
        ({"JWT_SECRET": "short"}, "INGEST_JWT_SECRET"),
        ({"JWT_ALGORITHM": "none"}, "INGEST_JWT_ALGORITHM"),
        ({"JWT_ALGORITHM": "HS512"}, "INGEST_JWT_ALGORITHM"),
        ({"JWT_ISSUER": " "}, "INGEST_JWT_ISSUER"),
        ({"JWT_AUDIENCE": " "}, "INGEST_JWT_AUDIENCE"),
        ({"JWT_MAX_TTL_SECONDS": "0"}, "INGEST_JWT_MAX_TTL_SECONDS"),
        ({"LISTEN": " "}, "INGEST_LISTEN"),
        ({"LISTEN": "localhost"}, "INGEST_LISTEN"),
        ({"LISTEN": "127.0.0.1:99999"}, "INGEST_LISTEN"),
        ({"PROCESSES": "0"}, "INGEST_PROCESSES"),
        ({"PROCESSES": "many"}, "INGEST_PROCESSES"),
        ({"REFLECTION": "perhaps"}, "INGEST_REFLECTION"),
        ({"DRAIN_SECONDS": "-1"}, "INGEST_DRAIN_SECONDS"),
        ({"GROUP_ROWS": "0"}, "INGEST_GROUP_ROWS"),
        ({"STREAM_IDLE_SECONDS": "0"}, "INGEST_STREAM_IDLE_SECONDS"),
        ({"LEASE_SECONDS": "1"}, "INGEST_LEASE_SECONDS"),
        ({"MAX_ATTEMPTS": "0"}, "INGEST_MAX_ATTEMPTS"),
        ({"RETENTION_DAYS": "-1"}, "INGEST_RETENTION_DAYS"),
        ({"LOG_LEVEL": "LOUD"}, "INGEST_LOG_LEVEL"),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], named: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **values)

    text = str(caught.value)
    assert named in text
    assert "\n" not in text
    assert len(text) < 300


NUMBERS = [
    name for name, field in Settings.model_fields.items() if field.annotation in {int, float}
]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "1e400", "9" * 23, "soon"])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_none_can_mean_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, number: str
) -> None:
    """No end, no number, or a number that dates and time-outs do not know."""
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **{name.upper(): number})

    told = str(caught.value)
    assert told.startswith(f"set INGEST_{name.upper()}: Input should be ")
    assert any(allowed in told for allowed in ("than", "valid integer", "valid number"))


@pytest.mark.parametrize(
    "name, number, allowed",
    [
        ("STREAM_IDLE_SECONDS", "1e-9", "greater than or equal to 1"),
        ("STREAM_IDLE_SECONDS", "86401", "less than or equal to 86400"),
        ("UNARY_MAX_SECONDS", "0.05", "greater than or equal to 0.1"),
        ("UNARY_MAX_SECONDS", "86401", "less than or equal to 86400"),
        ("STREAM_MAX_SECONDS", "1e-300", "greater than or equal to 1"),
        ("STREAM_MAX_SECONDS", "86401", "less than or equal to 86400"),
        ("SWEEP_SECONDS", "1e-9", "greater than or equal to 0.01"),
        ("DISPATCH_GRACE_SECONDS", "1e-9", "greater than or equal to 0.1"),
        ("DISPATCH_GRACE_SECONDS", "86401", "less than or equal to 86400"),
        ("LEASE_SECONDS", "86401", "less than or equal to 86400"),
        ("LEASE_SECONDS", "1e300", "less than or equal to 86400"),
        ("USER_EVENTS_PER_SECOND", "1e-300", "0 or greater than or equal to 0.001"),
        ("USER_BYTES_PER_SECOND", "0.0009", "0 or greater than or equal to 0.001"),
        ("USER_READS_PER_SECOND", "1e-300", "0 or greater than or equal to 0.001"),
        ("USER_STREAMS", "1000001", "less than or equal to 1000000"),
        ("GROUP_BYTES", "67108865", "less than or equal to 67108864"),
        ("WAITING_ROWS", "10000001", "less than or equal to 10000000"),
        ("WAITING_BYTES", "8589934593", "less than or equal to 8589934592"),
    ],
)
def test_a_number_that_makes_no_sense_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, name: str, number: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, **{name: number})

    assert str(caught.value) == f"set INGEST_{name}: Input should be {allowed}"


@pytest.mark.parametrize("rate", ["0", "0.001", "10"])
def test_a_rate_is_none_at_all_or_one_that_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    assert load(monkeypatch, USER_EVENTS_PER_SECOND=rate).user_events_per_second == float(rate)


def test_several_mistakes_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"INGEST_PROCESSES.*INGEST_LOG_LEVEL"):
        load(monkeypatch, PROCESSES="0", LOG_LEVEL="LOUD")


@pytest.mark.parametrize(
    "values, named",
    [
        ({}, "INGEST_JWT_SECRET"),
        ({"JWT_SECRET": SECRET, "JWT_PUBLIC_KEY_FILE": "key.pem"}, "INGEST_JWT_SECRET"),
        ({"JWT_SECRET": SECRET, "JWT_JWKS_FILE": "keys.json"}, "INGEST_JWT_SECRET"),
        ({"JWT_ALGORITHM": "RS256"}, "INGEST_JWT_PUBLIC_KEY_FILE"),
        ({"JWT_ALGORITHM": "RS256", "JWT_SECRET": SECRET}, "INGEST_JWT_PUBLIC_KEY_FILE"),
        ({"JWT_ALGORITHM": "ES256", "JWT_PUBLIC_KEY_FILE": "none.pem"}, "JWT_PUBLIC_KEY_FILE"),
        ({"JWT_ALGORITHM": "EdDSA", "JWT_JWKS_FILE": "none.json"}, "INGEST_JWT_JWKS_FILE"),
        (
            {"JWT_ALGORITHM": "ES256", "JWT_JWKS_FILE": "a", "JWT_PUBLIC_KEY_FILE": "b"},
            "exactly one",
        ),
    ],
)
def test_without_one_usable_key_nothing_starts(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], named: str
) -> None:
    """Fail closed: no key, two keys or an unreadable one is no way to serve anybody."""
    settings = load(monkeypatch, **values)

    with pytest.raises(SettingsError) as caught:
        build_key_source(settings)

    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "garbage", "-----BEGIN PUBLIC KEY-----\nAAAA\n", SECRET])
def test_a_key_file_that_holds_no_key_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "key.pem"
    file.write_text(text)
    settings = load(monkeypatch, JWT_ALGORITHM="RS256", JWT_PUBLIC_KEY_FILE=str(file))

    with pytest.raises(SettingsError, match="INGEST_JWT_PUBLIC_KEY_FILE"):
        build_key_source(settings)


@pytest.mark.parametrize("ask", [Settings.require_database_url, Settings.require_broker_url])
def test_what_is_needed_and_not_set_is_named(ask: Callable[[Settings], str]) -> None:
    with pytest.raises(SettingsError, match=r"set INGEST_(DATABASE|BROKER)_URL, such as"):
        ask(Settings.load())


def test_neither_repr_nor_str_nor_an_error_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load(
        monkeypatch,
        JWT_SECRET="canary-secret-" + SECRET,
        DATABASE_URL="postgresql://ingest:canary-password@db/ingest",
        BROKER_URL="redis://:canary-broker@redis/0",
    )
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    with pytest.raises(SettingsError) as caught:
        load(monkeypatch, JWT_SECRET="canary-short")

    assert "canary" not in shown
    assert "canary" not in str(caught.value)


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings.load().listen = "0.0.0.0:1"  # type: ignore[misc]


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_REFLECTION", "false")

    assert Settings.load(reflection=True).reflection is True


def test_variables_that_are_no_settings_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGEST_WORKER_THREAD", "4")
    monkeypatch.setenv("INGEST_WORKER_THREADS", "4")
    monkeypatch.setenv("INGEST_TOKEN", "x")

    assert Settings.unknown() == ["INGEST_WORKER_THREAD"]
