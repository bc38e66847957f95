"""Decides which requests are let in.  docs/security.md says what each check prevents."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from activefreq_engine.serve.errors import ForbiddenError, LateError, NotAllowedError, ServeError, TooLargeError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON_BYTES = 2**20
"""Most bytes of a request that is not a picture, and of a message of the WebSocket."""
BODY_S = 60.0
"""Seconds within which the next part of a request's body must come."""

FAILED = "the server failed at this request; its log says why"
"""All that a client is told when the server itself fails."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
     b"form-action 'none'; frame-ancestors 'none'"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]  # fmt: skip
_log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether an address to bind to reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Gate:
    """Decides on requests by their host name, their origin and their token."""

    def __init__(self, token: str | None, *, loopback: bool, hosts: Iterable[str] = ()) -> None:
        self._token = None if token is None else token.encode()
        self._loopback = loopback
        self._hosts = _LOOPBACK | {h.lower() for h in hosts}

    def check_token(self, given: str | None) -> None:
        """Compare with the token, in constant time.

        Raises:
            NotAllowedError: a token is needed, and this is not the token.
        """
        if self._token is None:
            return
        if given is None or not secrets.compare_digest(self._token, given.encode("utf-8", "replace")):
            raise NotAllowedError("a token is needed; the server printed it when it started")

    def check_place(self, headers: Iterable[tuple[bytes, bytes]], *, link: bool = False) -> None:
        """Refuse names that are not ours (DNS rebinding) and pages of other sites.

        Args:
            headers: of the request.
            link: whether a page of another site may lead here: a person follows a link to our page.

        Raises:
            ForbiddenError: the host name is not ours, or the request comes from another site.
        """
        found: dict[bytes, list[str]] = {}
        for name, value in headers:
            found.setdefault(name.lower(), []).append(value.decode("latin-1"))
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or not self._known(_host_of(f"//{hosts[0]}")):
            raise ForbiddenError("the host name is not one of this server's; start it with --allow-host NAME")
        for origin in found.get(b"origin", []):
            if urlsplit(origin).scheme not in ("http", "https") or urlsplit(origin).netloc.lower() != hosts[0].lower():
                raise ForbiddenError("the request comes from a page of another site")
        kind = [found.get(name) for name in (b"sec-fetch-mode", b"sec-fetch-dest")]
        followed = link and kind == [["navigate"], ["document"]]
        if found.get(b"sec-fetch-site", ["none"])[0] not in ("none", "same-origin") and not followed:
            raise ForbiddenError("the request comes from a page of another site")

    def _known(self, host: str | None) -> bool:
        if host is None:
            return False
        if host in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return address.is_loopback or not self._loopback  # a rebound name is never a number


def _host_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


class Guard:
    """ASGI middleware: the gate before every request, limits on bodies, headers on answers, words instead of traces.

    Args:
        is_open: whether a path needs no token (the page's own files).
        most: how many bytes the body of a request to a path may have.
    """

    def __init__(self, app: Any, gate: Gate, *, is_open: Callable[[str], bool], most: Callable[[str], int]) -> None:
        self._app, self._gate, self._is_open, self._most = app, gate, is_open, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection: let it through to the application, or refuse it."""
        if scope["type"] == "lifespan":

            async def last() -> MutableMapping[str, Any]:
                try:
                    return await receive()
                except asyncio.CancelledError:  # a second Ctrl-C, which does not wait for the first one's shutdown
                    return {"type": "lifespan.shutdown"}

            await self._app(scope, last, send)
            return
        try:
            self._gate.check_place(scope["headers"], link=scope["path"] == "/" and scope.get("method") == "GET")
            if scope["type"] == "http" and not self._is_open(scope["path"]):
                self._gate.check_token(bearer(scope["headers"]))
        except ServeError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": str(error)})
            else:
                await _refuse(send, error.status, str(error))
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, taken, complete = False, 0, False
        refused: ServeError | None = None
        most = self._most(scope["path"])

        async def limited() -> MutableMapping[str, Any]:
            nonlocal taken, complete, refused
            try:
                message = await asyncio.wait_for(receive(), None if complete else BODY_S)
            except asyncio.TimeoutError:
                refused = LateError(f"nothing of the request's body came for {BODY_S:.0f} seconds")
                raise refused from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > most:
                refused = TooLargeError(f"the request has more than {most} bytes")
                raise refused
            return message

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if refused is not None:  # whatever the framework makes of the exception, the answer is ours
                return
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            await send(message)

        try:
            await self._app(scope, limited, with_headers)
        except Exception:
            if refused is None:
                _log.exception("%s %s failed", scope["method"], scope["path"])
                if not started:
                    await _refuse(send, 500, FAILED)
        if refused is not None and not started:
            await _refuse(send, refused.status, str(refused))


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of an ``Authorization`` header: ``Bearer``'s, or the password of ``Basic``, which is all that Label
    Studio can send; or of a header ``Token``, which is what X-AnyLabeling sends."""
    for name, value in headers:
        if name.lower() == b"token" and value:
            return value.decode("latin-1")
        if name.lower() == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return token.strip()
            if scheme.lower() == "basic":
                try:
                    return base64.b64decode(token.strip(), validate=True).decode().partition(":")[2]
                except ValueError:
                    return None
    return None


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"detail": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
