"""How uvicorn holds connections for us: how large and how slow a client may be before anybody knows who it is."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from activefreq_engine.serve.security import JSON_BYTES

HEAD_S = 10.0
"""Seconds within which a connection must send the head of a request."""


class PatientProtocol(H11Protocol):
    """HTTP as uvicorn speaks it, but whoever sends no request, or one byte of it now and then, is hung up on.

    uvicorn waits for the head of a request without a limit, and for the rest of a body that was refused.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._last: Any = None
        self.loop.call_later(HEAD_S, self._look)

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # gone, or a WebSocket by now
            return
        cycle = self.cycle
        if cycle is self._last and (cycle is None or cycle.response_complete):  # no request came since the last look
            self.transport.close()
            return
        self._last = cycle
        self.loop.call_later(HEAD_S, self._look)


def config(app: Any) -> uvicorn.Config:
    """How the server is run."""
    return uvicorn.Config(
        app,
        http=PatientProtocol,
        access_log=False,
        log_level="warning",
        server_header=False,
        ws_max_size=JSON_BYTES,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
    )
