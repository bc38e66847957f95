"""Requests made from the OpenAPI document by schemathesis, right and wrong ones: each answer must be as documented.

FUZZ_EXAMPLES (make fuzz-serve) draws more of them than CI does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from activefreq_engine import Engine
from activefreq_engine.serve.sessions import Limits
from bench.tools.memory import resident

from .client import PATIENCE
from .conftest import Server
from .test_fuzz import existing_lease, existing_session

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
"""For each operation."""
AT_ONCE = 10
"""Of one operation, before it is the next one's turn."""
IMAGES = Path(__file__).parents[2] / "examples" / "images"
# What is right by the document may still be refused for the session's present state, and what is wrong for that first.
STATES = [400, 401, 403, 404, 409, 410, 413, 503]
CONFIG = {
    "checks": {
        "positive_data_acceptance": {"expected-statuses": ["2xx", *STATES]},
        "negative_data_rejection": {"expected-statuses": [422, *STATES]},
    }
}


@pytest.fixture(scope="module")
def documented(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(engine, tmp_path_factory.mktemp("journal"), IMAGES, limits=Limits(sessions=4, upload=200_000))
    yield server
    server.close()


def test_answers_are_as_documented(documented: Server) -> None:
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_url(f"{documented.url}/v1/openapi.json", config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 35
    grown: list[float] = []
    with documented.http() as http:
        for done in range(0, EXAMPLES, AT_ONCE):
            for operation in operations:
                ask(documented, http, operation, min(AT_ONCE, EXAMPLES - done))
            grown.append(resident())
    assert len(documented.sessions) <= 4
    assert threading.active_count() < 60
    if len(grown) > 3:
        print(f"{EXAMPLES} requests for each of {len(operations)} operations; MB resident: {[round(g) for g in grown]}")
        assert grown[-1] < grown[len(grown) // 2] + 100, grown


def ask(server: Server, http: httpx.Client, operation: Any, examples: int) -> None:
    """Draw requests for one operation; most of the right ones name a session that exists."""

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(case=operation.as_strategy(), exists=st.sampled_from([True, True, False]))
    def run(case: Any, exists: bool) -> None:
        if exists and case.meta.generation.mode == schemathesis.GenerationMode.POSITIVE:
            if "identity" in case.path_parameters:
                case.path_parameters["identity"] = existing_session(server, http)
            elif not case.path.startswith("/v1"):
                case.headers = {**(case.headers or {}), "X-Lease-Token": existing_lease(server, http)}
        case.validate_response(case.call(timeout=PATIENCE))

    run()
