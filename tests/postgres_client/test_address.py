"""What an address says, and that it tells no secret."""

from __future__ import annotations

import psycopg
import pytest

from connector_sdk.errors import ConfigurationError
from connector_sdk.postgres_client import PostgresAddress


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE", "PGUSER"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("dsn", "label"),
    [
        ("postgresql://u:hush@db.example/shop", "postgresql://db.example:5432/shop"),
        ("postgres://u:hush@[::1]:6543/shop", "postgresql://[::1]:6543/shop"),
        ("host=db port=1234 dbname=shop user=u password=hush", "postgresql://db:1234/shop"),
        ("postgresql://u:hush@one:1,two:2/shop", "postgresql://one:1,two:2/shop"),
        ("postgresql://u:hush@one,two/shop", "postgresql://one:5432,two:5432/shop"),
        ("dbname=shop password='hu sh'", "postgresql://localhost:5432/shop"),
        ("postgresql://u:hush%40hush@db/shop?sslmode=require&connect_timeout=3", "postgresql://db:5432/shop"),
        ("postgresql:///shop?host=/run/socket", "postgresql:///run/socket:5432/shop"),
    ],
)
def test_an_address_is_told_without_user_and_password(dsn: str, label: str) -> None:
    address = PostgresAddress.parse(dsn)
    assert str(address) == address.label == label
    assert repr(address) == f"<PostgresAddress {label}>"
    assert ("hu" in dsn) == ("password" in psycopg.conninfo.conninfo_to_dict(address.dsn))


@pytest.mark.parametrize(
    "dsn",
    [
        "", "  ", None, 5, "redis://u:hush@db/0", "postgresql://u:hush@db:port/shop", "postgresql://u:hush@db:0/shop",
        "postgresql://u:hush@db:70000/shop", "postgresql://u:hu@sh@db/shop", "postgresql://u:hush@db/shop?hush=1",
        "hush", "host=db hush", "postgresql://u:hush@[::1/shop", "host=db\0hush", "postgresql://u:hush%zz@db/shop",
    ],
)  # fmt: skip
def test_an_address_that_cannot_work_is_refused_and_not_repeated(dsn: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        PostgresAddress.parse(dsn, option="url")
    assert caught.value.option == "url"
    assert caught.value.given == "<hidden>"
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_environment_is_shown_where_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("PGPORT", "77")
    assert str(PostgresAddress.parse("dbname=shop")) == "postgresql://elsewhere:77/shop"


def test_of_several_hosts_the_one_that_can_be_written_to_is_wanted() -> None:
    def wanted(dsn: str) -> object:
        return psycopg.conninfo.conninfo_to_dict(PostgresAddress.parse(dsn).dsn).get("target_session_attrs")

    assert wanted("postgresql://one,two/shop") == "read-write"
    assert wanted("postgresql://one,two/shop?target_session_attrs=any") == "any"
    assert wanted("postgresql://one/shop") is None
