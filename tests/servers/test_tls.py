"""TLS is spoken, and certificates are asked for."""

from __future__ import annotations

import socket

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.fixtures import StartTls
from tests.servers.tls import TlsServer

ONCE = Retry(NoBackoff(), 0)


def test_a_client_that_trusts_the_authority_gets_through(redis_tls: TlsServer) -> None:
    with redis.Redis.from_url(redis_tls.trusting_url) as secure, redis.Redis(port=redis_tls.plain_port) as plain:
        secure.set("a", "b")
        assert plain.get("a") == b"b"


def test_it_is_tls_with_the_certificate_that_was_made(redis_tls: TlsServer) -> None:
    context = redis_tls.certificates.client_context()
    with (
        socket.create_connection(("127.0.0.1", redis_tls.port), timeout=5) as bare,
        context.wrap_socket(bare, server_hostname="127.0.0.1") as secure,
    ):
        assert (secure.version() or "").startswith("TLSv1.")
        secure.sendall(b"PING\r\n")
        assert secure.recv(100) == b"+PONG\r\n"


def test_a_client_that_does_not_trust_it_turns_away(redis_tls: TlsServer) -> None:
    with (
        redis.Redis.from_url(redis_tls.url, retry=ONCE) as client,
        pytest.raises(redis.ConnectionError, match=r"(?i)certificate verify failed"),
    ):
        client.ping()


def test_plain_words_are_not_understood(redis_tls: TlsServer) -> None:
    with (
        redis.Redis(port=redis_tls.port, retry=ONCE, socket_timeout=5) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()


def test_only_clients_with_a_certificate_are_taken(start_tls: StartTls) -> None:
    server = start_tls(client_certificate=True)
    with redis.Redis.from_url(server.trusting_url) as client:
        assert client.ping()
    unknown = f"{server.url}?ssl_ca_certs={server.certificates.ca}"
    with (
        redis.Redis.from_url(unknown, retry=ONCE, socket_timeout=5) as client,
        pytest.raises(redis.ConnectionError),
    ):
        client.ping()
