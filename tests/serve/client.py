"""What the page does, in Python: numbered requests over the WebSocket, masks put together from their parts."""

from __future__ import annotations

import io
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from websockets.sync.client import connect

from activefreq_engine.serve import frames

WIDTH, HEIGHT = 181, 97
PATIENCE = 300  # seconds until something is taken to hang: a busy machine may be slow
LESION = Path(__file__).parents[2] / "examples" / "images" / "ISIC_0014809.jpg"


def picture(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> NDArray[np.uint8]:
    """A dark blob, left of the middle and low, on a light noisy ground."""
    y, x = np.mgrid[:height, :width]
    blob = ((x - 0.35 * width) / (0.2 * width)) ** 2 + ((y - 0.6 * height) / (0.27 * height)) ** 2 < 1
    grey = np.where(blob, 70, 190)[..., None] + np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    return np.clip(grey, 0, 255).astype(np.uint8)


def png(pixels: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


class Client:
    """One page."""

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url, self.token = url, token
        self.http = httpx.Client(
            base_url=url, timeout=PATIENCE, headers={"Authorization": f"Bearer {token}"} if token is not None else {}
        )
        self.masks: dict[int, NDArray[np.bool_]] = {}
        self.state: dict[str, Any] = {}
        self.texts: list[dict[str, Any]] = []
        self.heat: NDArray[np.uint8] | None = None
        self.seq = 0
        self._socket: Any = None
        self._open = ExitStack()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self.http.close()

    def begin(self, data: bytes | None = None, name: str = "blob.png") -> str:
        """A new session with a picture, and a connection to it."""
        answer = self.http.post("/v1/sessions")
        assert answer.status_code == 201, answer.text
        identity: str = answer.json()["id"]
        answer = self.http.put(
            f"/v1/sessions/{identity}/image", params={"name": name}, content=png(picture()) if data is None else data
        )
        assert answer.status_code == 200, answer.text
        self.dial(identity)
        return identity

    def dial(self, identity: str) -> None:
        self.hang_up()
        self.masks.clear()
        address = self.url.replace("http", "ws") + f"/v1/sessions/{identity}/live"
        waits = {"open_timeout": PATIENCE, "ping_timeout": PATIENCE}
        self._socket = self._open.enter_context(connect(address, max_size=None, compression=None, **waits))
        self._socket.send(json.dumps({"type": "hello", "token": self.token}))
        self.take("state")
        self.seq = max(self.seq, self.state["seq"])
        if self.state["picture"] is not None:
            self.take("suggestions")

    def hang_up(self) -> None:
        if self._socket is not None:
            self._open.close()
            self._socket = None

    def post(self, op: str, **arguments: Any) -> int:
        """Send a request and do not wait."""
        self.seq += 1
        self._socket.send(json.dumps({"op": op, "seq": self.seq, **arguments}))
        return self.seq

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send a request; its "done" or "error"."""
        seq = self.post(op, **arguments)
        while True:
            message = self.take("done", "error")
            if message["seq"] == seq:
                return message

    def raw(self, text: str | bytes) -> None:
        self._socket.send(text)

    def take(self, *types: str) -> dict[str, Any]:
        """Read on to a message of one of these types."""
        while True:
            data = self._socket.recv(timeout=PATIENCE)
            if isinstance(data, bytes):
                self._frame(data)
                continue
            message: dict[str, Any] = json.loads(data)
            self.texts.append(message)
            if message["type"] == "state" or (message["type"] == "done" and "id" in message):
                self.state = message
            elif message["type"] == "done":
                changed = {o["number"]: o for o in message["objects"]}
                self.state["objects"] = [changed.get(o["number"], o) for o in self.state["objects"]]
            if message["type"] in types:
                return message

    def take_heat(self) -> NDArray[np.uint8]:
        self.heat = None
        while self.heat is None:
            data = self._socket.recv(timeout=PATIENCE)
            if isinstance(data, bytes):
                self._frame(data)
        return self.heat

    def mask(self, number: int = 1) -> NDArray[np.bool_]:
        size = self.state["picture"]["height"], self.state["picture"]["width"]
        return self.masks.get(number, np.zeros(size, np.bool_))

    def _frame(self, data: bytes) -> None:
        kind, flags, number, _, x0, y0, x1, y1, _, width, height = frames.HEAD.unpack_from(data)
        body = np.frombuffer(data, np.uint8, offset=frames.HEAD.size)
        if kind == frames.UNCERTAINTY:
            self.heat = body.reshape(height, width)
            return
        mask = self.mask(number).copy()
        if flags & frames.WHOLE:
            mask[:] = False
        if x1 > x0:
            mask[y0:y1, x0:x1] = np.unpackbits(body.reshape(y1 - y0, -1), axis=1, count=x1 - x0)
        self.masks[number] = mask
