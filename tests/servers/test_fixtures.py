"""The fixtures give what they say."""

from __future__ import annotations

import pytest
import redis

from connector_sdk.testing import RedisServer
from tests.servers.fixtures import MakeUser, Server, one_kind
from tests.servers.proxy import Proxy


def test_the_kind_is_what_it_is_called(redis_kind: str, redis_server: Server) -> None:
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        about = client.info("server")
    assert isinstance(about, dict)
    assert about[f"{redis_server.product}_version"] == redis_server.version
    if redis_kind != "external":
        assert f"{redis_server.product}-{redis_server.version}".startswith(redis_kind)


@pytest.mark.parametrize("turn", [1, 2])
@one_kind
def test_a_shared_server_is_empty_at_first(redis_server: Server, redis_prefix: str, turn: int) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        assert list(client.scan_iter(f"*{redis_prefix}*")) == []
        if isinstance(redis_server, RedisServer):
            assert client.dbsize() == 0, turn
        client.set(f"{redis_prefix}:left", "behind")


def test_a_user_may_do_what_is_listed_and_nothing_else(redis_server: Server, redis_user: MakeUser) -> None:
    user = redis_user(commands=["set", "get", "eval"], keys=["mine:*"])
    with redis.Redis.from_url(user.url, decode_responses=True) as client:
        client.set("mine:a", "1")
        assert client.get("mine:a") == "1"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.set("other", "1")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.delete("mine:a")
        with pytest.raises(redis.exceptions.ResponseError, match=r"permission|script can't run"):
            client.eval("return redis.call('del', KEYS[1])", 1, "mine:a")
    with redis.Redis.from_url(redis_server.url) as admin:
        assert admin.get("mine:a") == b"1"


@one_kind
def test_the_proxy_leads_to_the_server(redis_server: Server, redis_proxy: Proxy, redis_prefix: str) -> None:
    with redis.Redis(port=redis_proxy.port) as near, redis.Redis.from_url(redis_server.url) as far:
        near.set(redis_prefix, "through")
        assert far.get(redis_prefix) == b"through"
        assert redis_proxy.accepted == 1
