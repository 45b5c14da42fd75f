"""Database URLs: what people write, and what it means here."""

import pytest

from eventstore.engine import build_engine, normalise_url

SECRET_URL = "postgresql://ingest:canary@127.0.0.1:1/ingest"


@pytest.mark.parametrize(
    "url, driver",
    [
        ("postgres://u:p@h/d", "postgresql+psycopg2"),
        ("postgresql://u:p@h/d", "postgresql+psycopg2"),
        ("postgresql+psycopg2://u:p@h/d", "postgresql+psycopg2"),
        ("sqlite:////data/ingest.db", "sqlite"),
        ("sqlite://", "sqlite"),
    ],
)
def test_every_usual_spelling_is_understood(url: str, driver: str) -> None:
    assert normalise_url(url).drivername == driver


def test_the_rest_of_a_url_is_kept() -> None:
    url = normalise_url("postgres://user:p%40ss@host:5433/name?sslmode=require")

    assert (url.username, url.password, url.host, url.port, url.database) == (
        "user",
        "p@ss",
        "host",
        5433,
        "name",
    )
    assert url.query == {"sslmode": "require"}


@pytest.mark.parametrize(
    "url", ["mysql://u@h/d", "postgresql+asyncpg://h/d", "postgresql+psycopg://h/d", "oracle://h"]
)
def test_another_database_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"postgresql:// or sqlite:///"):
        normalise_url(url)


@pytest.mark.parametrize("keyed", [False, True])
def test_building_an_engine_connects_nowhere_and_shows_no_password(keyed: bool) -> None:
    engine = build_engine(SECRET_URL, name="test", pool_size=1, keyed=keyed)

    assert "canary" not in repr(engine)
    assert "canary" not in str(engine.url)
    assert engine.hide_parameters
