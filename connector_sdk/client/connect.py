"""Opening the stream: token, request, redirects, the judgement of the answer."""

from __future__ import annotations

import contextlib
import inspect
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from functools import cache
from typing import Final, cast
from urllib.parse import parse_qsl, urlsplit

import anyio
import anyio.to_thread
import httpx

from connector_sdk.callbacks import is_async_callable
from connector_sdk.client.options import ClientOptions, check_token
from connector_sdk.client.session import (
    BODY_START,
    MAX_REDIRECTS,
    Session,
    check_head,
    is_event_stream,
    redirect_target,
    same_origin,
)
from connector_sdk.errors import ConfigurationError, FatalStreamError, TransientStreamError
from connector_sdk.observe import redact_url

__all__ = ["Opener", "body_of", "close_response", "http_client_for"]

_BODY_TIMEOUT: Final = 2.0  # seconds to wait for the text of an error
_CLOSE_TIMEOUT: Final = 1.0


class _QuietURL(httpx.URL):
    """A URL that shows no secret: httpx logs each request's URL at INFO."""

    def __str__(self) -> str:
        return redact_url(super().__str__())

    def __repr__(self) -> str:
        return f"URL({str(self)!r})"


class Opener:
    """Opens one connection after the other for one client."""

    def __init__(self, options: ClientOptions, client: httpx.AsyncClient) -> None:
        self._options = options
        self._client = client
        self._token = ""
        self._timeout = httpx.Timeout(options.connect_timeout, read=options.read_timeout)

    async def open(self, session: Session) -> httpx.Response | None:
        """
        Send the request and judge the answer: a response whose body is the stream, or None when the server said 204.

        Redirects are followed, up to ten, the token going to the first origin only. After a 401 a token function is asked
        once more. Raises TransientStreamError, FatalStreamError, ConfigurationError, or what httpx raises.
        """
        url = self._options.url
        token = self._token = await self._ask_for_token()
        may_refresh = callable(self._options.token)
        for _ in range(MAX_REDIRECTS + 2):
            try:
                response = await self._send(session, url, token)
            except UnicodeError as error:  # httpx reads the target of a redirect even when it is not to follow it
                raise FatalStreamError(f"{self._options.stream} redirects to a host that is no name") from error
            try:
                headers = _plain_headers(response)
                target = redirect_target(url, response.status_code, headers)
                if target is not None:
                    url = target
                elif response.status_code == 401 and may_refresh:
                    may_refresh = False
                    token = self._token = await self._ask_for_token()
                else:
                    return await self._judge(response, url, headers)
            except BaseException:
                await close_response(response)
                raise
            await close_response(response)
        raise FatalStreamError(f"{self._options.stream} redirects more than {MAX_REDIRECTS} times: is it a loop?")

    async def _send(self, session: Session, url: str, token: str) -> httpx.Response:
        at_home = same_origin(url, self._options.url)
        request = self._client.build_request(
            "GET", url, headers=session.request_headers(token if at_home else ""), timeout=self._timeout
        )
        request.url = _QuietURL(request.url)
        if not at_home:
            # What the caller's own client adds to each request is a secret of the first origin, too.
            for name in ("Authorization", "Cookie", "Proxy-Authorization"):
                request.headers.pop(name, None)
        if token or not at_home:
            # An Auth that adds nothing: with None httpx would put what the URL names in place of our header.
            return await self._client.send(request, stream=True, follow_redirects=False, auth=httpx.Auth())
        return await self._client.send(request, stream=True, follow_redirects=False)

    async def _judge(self, response: httpx.Response, url: str, headers: Mapping[str, str]) -> httpx.Response | None:
        body_start = b""
        if not is_event_stream(response.status_code, headers):
            body_start = self._without_secrets(await _start_of(response))
        if check_head(url, response.status_code, headers, body_start, wall_clock=time.time()):
            return response
        await close_response(response)
        return None

    def _without_secrets(self, text: bytes) -> bytes:
        """Hide what an answer repeats of the request's secrets: its beginning goes into an error and into logs."""
        parts = urlsplit(self._options.url)
        secrets = {self._token, parts.username, parts.password, parts.query, parts.fragment}
        secrets |= {value for _, value in parse_qsl(parts.query)}
        for secret in sorted(filter(None, secrets), key=len, reverse=True):
            text = text.replace(secret.encode(), b"<hidden>")
        return text

    async def _ask_for_token(self) -> str:
        token = self._options.token
        if isinstance(token, str):
            return token
        try:
            if is_async_callable(token):
                answer: object = token()
            else:
                answer = await anyio.to_thread.run_sync(token, abandon_on_cancel=True)
            if inspect.isawaitable(answer):
                answer = await answer
        except ConfigurationError:
            raise
        except Exception as error:
            raise TransientStreamError(f"the token function raised {type(error).__name__}") from error
        return check_token("token", answer)


@contextlib.asynccontextmanager
async def http_client_for(options: ClientOptions) -> AsyncIterator[httpx.AsyncClient]:
    """The caller's client, left open; or one of our own for this run, closed at its end."""
    if options.http_client is not None:
        yield options.http_client
        return
    client = httpx.AsyncClient(verify=_tls_context(), limits=httpx.Limits(max_keepalive_connections=0))
    try:
        yield client
    finally:
        with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await client.aclose()


def body_of(response: httpx.Response) -> AsyncIterator[bytes]:
    """The bytes of the stream as they come; decompressed when a proxy compressed them although we asked it not to."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "deflate"):
        raise FatalStreamError(
            f"the stream is compressed ({encoding}), although identity was asked for, and cannot be read"
        )
    if encoding == "identity":
        # One layer of generators less than `aiter_raw`, which would only count the bytes.
        return cast(httpx.AsyncByteStream, response.stream).__aiter__()
    return response.aiter_bytes()


async def close_response(response: httpx.Response, body: AsyncIterator[bytes] | None = None) -> None:
    """Close the connection, also when we are being cancelled; *body* is what was being iterated over."""
    with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        if body is not None:
            await _end(body)
        await response.aclose()


async def _end(body: AsyncIterator[bytes]) -> None:
    """
    End a body that was left in the middle.

    httpx nests generators, and closing the outermost would leave the others to the garbage collector. A read that is
    cancelled ends them all, from the innermost outwards.
    """
    with anyio.CancelScope() as scope, contextlib.suppress(httpx.HTTPError, httpx.StreamError):
        scope.cancel()
        async for _ in body:
            pass


@cache
def _tls_context() -> ssl.SSLContext:
    """Building it costs some 16 ms, which no reconnect should pay again."""
    return httpx.create_ssl_context()


def _plain_headers(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


async def _start_of(response: httpx.Response) -> bytes:
    start = b""
    body = response.aiter_bytes()
    # The status is what matters; the text only explains it.
    with contextlib.suppress(httpx.HTTPError), anyio.move_on_after(_BODY_TIMEOUT):
        async for chunk in body:
            start += chunk
            if len(start) >= BODY_START:
                break
    await _end(body)
    return start[:BODY_START]
