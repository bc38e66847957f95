"""A real server on loopback for each module, and clients that speak to it over the network."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import uvicorn
    import websockets  # noqa: F401

    from activefreq_engine.serve.app import create_app
except ModuleNotFoundError as error:
    MISSING = error.name
else:
    MISSING = None
    import httpx

    from activefreq_engine import Engine
    from activefreq_engine.serve import connections
    from activefreq_engine.serve.journal import Journals
    from activefreq_engine.serve.label_studio import LabelStudio
    from activefreq_engine.serve.pictures import Folder
    from activefreq_engine.serve.security import Gate
    from activefreq_engine.serve.sessions import Limits, Sessions

    from .client import PATIENCE, Client


class WithoutServer(pytest.Module):
    """A file of tests that cannot be imported here."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"the server's tests need {MISSING}: pip install '.[serve]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return WithoutServer.from_parent(parent, path=module_path) if MISSING else None


class Server:
    """A server in a thread of this process."""

    def __init__(
        self,
        engine: Engine,
        journal: Path | None = None,
        images: Path | None = None,
        token: str | None = None,
        limits: Limits | None = None,
        loopback: bool = True,
        label_studio: str | None = None,
    ) -> None:
        self.sessions = Sessions(
            engine,
            limits or Limits(),
            journals=None if journal is None else Journals(journal),
            folder=None if images is None else Folder(images),
        )
        studio = None if label_studio is None else LabelStudio(self.sessions, label_studio)
        app = create_app(self.sessions, Gate(token, loopback=loopback), studio)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self._server = uvicorn.Server(connections.config(app))
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],))
        self._thread.start()
        deadline = time.monotonic() + PATIENCE
        while not self._server.started:
            assert self._thread.is_alive(), "the server does not start"
            assert time.monotonic() < deadline, "the server does not start in time"
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def http(self, **headers: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the server does not stop"


@pytest.fixture(scope="session")
def engine() -> Engine:
    return Engine.shared("freqformer_b0")


@pytest.fixture(scope="module")
def server(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a journal and the example images as its folder."""
    images = Path(__file__).parents[2] / "examples" / "images"
    server = Server(engine, tmp_path_factory.mktemp("journal"), images)
    yield server
    server.close()


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client with a wide picture open."""
    with Client(server.url) as client:
        client.begin()
        yield client
