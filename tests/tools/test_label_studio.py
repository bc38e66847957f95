"""A real Label Studio server: project, picture, key points and rectangles, brush saved, export."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from activefreq_engine import Session, masks

from .driving import PATIENCE, run, variables

LESION = Path(__file__).parents[2] / "examples" / "images" / "ISIC_0014809.jpg"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="brush" toName="image"><Label value="Lesion"/></BrushLabels>
  <KeyPointLabels name="points" toName="image" smart="true"><Label value="Lesion" smart="true"/></KeyPointLabels>
  <RectangleLabels name="boxes" toName="image" smart="true"><Label value="Lesion" smart="true"/></RectangleLabels>
</View>"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def database(tools: Path) -> Path:
    """A folder with Label Studio's database, without anything in it.

    To make it takes some three hundred migrations, which are most of a first start, so it is made once.
    """
    made = tools / "label-studio" / "database"
    if not made.exists():
        part = made.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        run(tools / "label-studio" / "bin" / "label-studio", "version", env={"LABEL_STUDIO_BASE_DATA_DIR": str(part)})
        part.rename(made)
    return made


@pytest.fixture(scope="module")
def studio(tools: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Label Studio with one user; its address."""
    if running := os.environ.get("ACTIVEFREQ_LABEL_STUDIO"):
        yield running
        return
    folder, port = tmp_path_factory.mktemp("label-studio"), free_port()
    shutil.copytree(request.getfixturevalue("database"), folder, dirs_exist_ok=True)
    env = {
        **variables(),
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "USE_DEFAULT_BANNED_SUBNETS": "false",  # it would not speak to a backend on loopback
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "DJANGO_SETTINGS_MODULE": "core.settings.label_studio",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(str(tools / "label-studio" / "bin" / "label-studio"), "start", "--no-browser", "--port", str(port)),
                *("--username", "a@example.org", "--password", "a-password", "--user-token", TOKEN),
            ],
            env=env,
            stdout=log,
            stderr=log,
        )
        try:
            url, until = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
            while True:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
                assert time.monotonic() < until, (folder / "log").read_text()[-2000:]
                try:
                    if httpx.get(url + "/health", timeout=60).status_code == 200:
                        break
                except httpx.HTTPError:
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(300)


@pytest.fixture(scope="module")
def backend(studio: str) -> Iterator[str]:
    """`activefreq serve`; its address for Label Studio."""
    command = [
        sys.executable,
        "-m",
        "activefreq_engine.cli",
        "serve",
        "--model",
        "freqformer_b0",
        "--port",
        "0",
        "--no-journal",
    ]
    process = subprocess.Popen([*command, "--label-studio", studio], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("activefreq serves on http://127.0.0.1:"), line
    yield line.split()[-1] + "label-studio"
    process.terminate()
    process.wait(30)


def annotated(api: httpx.Client, ml: int, task: int, result: list[dict[str, Any]]) -> dict[str, Any]:
    answer = api.post(f"/api/ml/{ml}/interactive-annotating", json={"task": task, "context": {"result": result}})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert "errors" not in found, found
    return found["data"]


def test_a_mask_from_first_click_to_export(studio: str, backend: str) -> None:
    pixels = np.asarray(Image.open(LESION))[:300]  # W != H
    height, width = pixels.shape[:2]
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    with httpx.Client(base_url=studio, headers={"Authorization": f"Token {TOKEN}"}, timeout=600) as api:
        project = api.post("/api/projects", json={"title": "lesions", "label_config": CONFIG}).json()["id"]
        answer = api.post(f"/api/projects/{project}/import", files={"file": ("lesion.png", data.getvalue())})
        assert answer.status_code == 201, answer.text
        answer = api.post(
            "/api/ml",
            json={
                "url": backend,
                "project": project,
                "is_interactive": True,
                "title": "activefreq",
            },
        )
        assert answer.status_code == 201, answer.text
        ml = answer.json()["id"]
        task = api.get("/api/tasks", params={"project": project}).json()["tasks"][0]["id"]

        def keypoint(x: int, y: int, positive: bool) -> dict[str, Any]:
            value = {"x": (x + 0.5) * 100 / width, "y": (y + 0.5) * 100 / height, "width": 0.3}
            return {
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "is_positive": positive,
                "value": {**value, "keypointlabels": ["Lesion"]},
                "from_name": "points",
                "to_name": "image",
                "type": "keypointlabels",
            }

        clicks = [keypoint(160, 230, True)]
        first = annotated(api, ml, task, clicks)["result"]
        clicks.append(keypoint(40, 60, False))
        second = annotated(api, ml, task, clicks)
        with Session("freqformer_b0") as session:
            session.set_image(data.getvalue())
            session.predict([[160.5, 230.5]], [1])
            expected = session.predict([[160.5, 230.5], [40.5, 60.5]], [1, 0]).mask
        assert first[0]["value"]["brushlabels"] == ["Lesion"]
        assert expected.sum() > 1000

        answer = api.post(f"/api/tasks/{task}/annotations", json={"result": second["result"]})
        assert answer.status_code == 201, answer.text
        saved = api.get(f"/api/tasks/{task}/annotations").json()
        assert saved[0]["result"][0]["value"]["rle"] == second["result"][0]["value"]["rle"]
        # Label Studio's own reader of brushes
        exported = api.get(f"/api/projects/{project}/export", params={"exportType": "BRUSH_TO_PNG"})
        assert exported.status_code == 200, exported.text
        # a single picture comes as it is, more in an archive
        mask = np.asarray(Image.open(io.BytesIO(exported.content))) > 0
        np.testing.assert_array_equal(mask, expected)

        exported = api.get(f"/api/projects/{project}/export", params={"exportType": "BRUSH_TO_COCO"})
        assert exported.status_code == 200, exported.text
        with zipfile.ZipFile(io.BytesIO(exported.content)) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith(".json")]
            coco = json.loads(archive.read(name))
        assert abs(coco["annotations"][0]["area"] - expected.sum()) <= 0.02 * expected.sum()

        # a rectangle begins anew
        value = {"x": 10, "y": 20, "width": 75, "height": 79, "rectanglelabels": ["Lesion"]}
        rectangle = {**clicks[0], "value": value, "from_name": "boxes", "type": "rectanglelabels"}
        boxed = [region["value"]["rle"] for region in annotated(api, ml, task, [rectangle])["result"]]
        with Session("freqformer_b0") as session:
            session.set_image(data.getvalue())
            corners = (0.1 * width, 0.2 * height, 0.85 * width, 0.99 * height)
            mask = session.predict([], [], box=corners).mask
        assert boxed == ([masks.to_label_studio_rle(mask)] if mask.any() else [])

        # what cannot be done is told, and nothing breaks
        answer = api.post(
            f"/api/ml/{ml}/interactive-annotating",
            json={"task": task, "context": {"result": [{**clicks[0], "original_width": 5}]}},
        )
        assert answer.json()["errors"], answer.text
        assert annotated(api, ml, task, [])["result"] == []
