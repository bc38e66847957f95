"""Mixes, and packed data in one file."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from activefreq_engine import cli
from activefreq_engine.errors import DatasetError, InvalidArgumentError
from activefreq_engine.files import alone_at
from activefreq_engine.train.data import PackedDataset
from activefreq_engine.train.loop import pack_data, train
from activefreq_engine.train.mix import MIXES, read_mix
from activefreq_engine.train.parcel import make_parcel, open_parcel

from .conftest import write_pairs
from .tiny_run import tiny


@pytest.fixture
def mix(tmp_path):
    write_pairs(tmp_path / "a", 3)
    write_pairs(tmp_path / "b", 2, seed=4, kind="labels")
    path = tmp_path / "mix.json"
    sets = [
        {"name": "a", "folder": "a", "weight": 1},
        {"name": "b", "folder": "b", "weight": 3, "objects": [[7], [1, 7]]},
    ]
    path.write_text(json.dumps({"sets": sets}))
    return path


def test_a_parcel_holds_labels_exactly_and_images_nearly(mix, tmp_path):
    sources = read_mix(mix, tmp_path)
    assert [(s.name, s.weight, s.objects) for s in sources] == [("a", 1.0, None), ("b", 3.0, ((7,), (1, 7)))]
    path = make_parcel(sources, tmp_path / "mix.safetensors", tmp_path / "work", quality=95)
    data, whole = PackedDataset(open_parcel(path, tmp_path / "opened")), PackedDataset(tmp_path / "work")
    np.testing.assert_array_equal(data.labels, whole.labels)
    assert np.abs(data.images.astype(int) - whole.images).mean() < 12  # noise is what WebP keeps worst
    assert data.entries == whole.entries
    for name in ("values", "entry", "box", "edges"):
        with np.load(tmp_path / "work" / "objects.npz") as a, np.load(tmp_path / "opened" / "objects.npz") as b:
            np.testing.assert_array_equal(a[name], b[name])
    drawn = np.array([data.entries[data.pick(i)]["source"] for i in range(1000)])
    assert drawn.mean() == pytest.approx(0.75, abs=0.07)
    stamp = (tmp_path / "opened" / "index.json").stat().st_mtime_ns
    open_parcel(path, tmp_path / "opened")
    assert (tmp_path / "opened" / "index.json").stat().st_mtime_ns == stamp


def test_16_bit_labels_travel(tmp_path):
    folder = write_pairs(tmp_path / "d", 1, kind="labels")
    path = folder / "labels" / "000.png"
    labels = cv2.imread(str(path), -1).astype(np.uint16) * 9000
    cv2.imwrite(str(path), labels)
    from activefreq_engine.train.mix import Source

    parcel = make_parcel([Source(folder)], tmp_path / "p.safetensors", tmp_path / "work")
    np.testing.assert_array_equal(PackedDataset(open_parcel(parcel, tmp_path / "o")).labels, labels.ravel())


def test_the_command_packs_and_a_run_learns_from_the_file(mix, tmp_path, capsys):
    path = tmp_path / "mix.safetensors"
    with alone_at(path):
        assert cli.main(["pack", str(mix), str(tmp_path), "--out", str(path), "--side", "64"]) == 2
        assert f"error: another process is writing {path}; wait" in capsys.readouterr().err
    assert cli.main(["pack", str(mix), str(tmp_path), "--out", str(path), "--side", "64"]) == 0
    assert f"{path}: 0." in capsys.readouterr().out
    from activefreq_engine.models import read_metadata

    model = train(tiny(path, steps=2), tmp_path / "run", device="cpu")
    assert read_metadata(model)["metadata"]["training_data"] == [[tmp_path.name, "a"], [tmp_path.name, "b"]]


@pytest.mark.parametrize("content", [b"", b"hello", None], ids=["empty", "text", "nothing"])
def test_what_is_no_parcel_is_refused(tmp_path, content):
    path = tmp_path / "p.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match="activefreq pack"):
        open_parcel(path, tmp_path / "o")
    with pytest.raises(InvalidArgumentError, match="alone"):
        pack_data([str(path), "folder"], tmp_path / "o")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"sets": []}',
        '{"sets": [{"name": "a", "folder": "a"}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 0}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 1, "objects": [[0]]}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 1, "objects": []}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 1, "objects": ["12"]}]}',  # not label 1 and 2
        '{"sets": [{"name": "a", "folder": "a", "weight": 1, "objects": [[1.7]]}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 1, "objects": [[Infinity]]}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 1, "objects": [[1, 65536]]}]}',
        '{"sets": [{"name": "a", "folder": "a", "weight": 1' + "0" * 400 + "}]}",
        "[" * 100_000,
    ],
    ids=range(13),
)
def test_bad_mixes(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(DatasetError, match=r"m\.json"):
        read_mix(tmp_path / "m.json", tmp_path)


def test_a_parcel_may_have_any_name(mix, tmp_path):
    path = make_parcel(read_mix(mix, tmp_path), tmp_path / "knees.dat", tmp_path / "work")
    assert pack_data([str(path)], tmp_path / "o") == tmp_path / "o"
    picture = next((tmp_path / "a" / "images").iterdir())
    with pytest.raises(DatasetError, match=r"\.png is no packed data"):
        pack_data([str(picture)], tmp_path / "p")


@pytest.mark.parametrize("name", ["general", "guided"])
def test_a_mix_of_weights_that_ship_names_its_licences(tmp_path, name):
    sources = read_mix(MIXES / f"{name}.json", tmp_path)
    assert len({s.folder for s in sources}) == len(sources)
    described = json.loads((MIXES / f"{name}.json").read_text())["sets"]
    assert all(s["licence"] for s in described)
    assert not any("NC" in s["licence"] for s in described)
    assert {s.name for s in sources}.isdisjoint({"acdc", "brain_tumour"})
    assert sources == read_mix(Path(name), tmp_path)
