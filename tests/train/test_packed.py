"""Packed folders and parcels that say what cannot be: an error of ours, at once, and nothing is written."""

import json
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from activefreq_engine.errors import DatasetError
from activefreq_engine.train.data import PackedDataset, pack
from activefreq_engine.train.mix import Source
from activefreq_engine.train.packed import read_packed
from activefreq_engine.train.parcel import make_parcel, open_parcel
from activefreq_engine.train.sampler import Sampler

from .conftest import write_pairs


@pytest.fixture(scope="module")
def parcel(tmp_path_factory):
    """A parcel of five images from two sources, and the folder that it was made of."""
    root = tmp_path_factory.mktemp("parcel")
    sources = [Source(write_pairs(root / "a", 3), 1.0), Source(write_pairs(root / "b", 2, kind="labels"), 3.0)]
    return make_parcel(sources, root / "p.safetensors", root / "work"), root / "work"


def png_of(height, width, chunk=b""):
    """A PNG that says that it is so large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)

    def made(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + made(b"IHDR", head) + made(b"IDAT", data) + made(b"IEND", b"")


INDEX = {
    "no entries": lambda i: i["entries"].clear(),
    "entries are none": lambda i: i.update(entries=None),
    "entries are numbers": lambda i: i.update(entries=[1] * 5),
    "one entry less": lambda i: i["entries"].pop(),
    "sources are none": lambda i: i.pop("sources"),
    "sources are numbers": lambda i: i.update(sources=[1, 2]),
    "negative source": lambda i: i["entries"][1].update(source=-1),
    "unknown source": lambda i: i["entries"][1].update(source=2),
    "huge source": lambda i: i["entries"][1].update(source=10**30),
    "source is true": lambda i: i["entries"][1].update(source=True),
    "no objects": lambda i: i["entries"][1].update(objects=[]),
    "empty object": lambda i: i["entries"][1].update(objects=[[]]),
    "object is text": lambda i: i["entries"][1].update(objects="abc"),
    "negative value": lambda i: i["entries"][1].update(objects=[[-1]]),
    "background": lambda i: i["entries"][1].update(objects=[[0]]),
    "huge value": lambda i: i["entries"][1].update(objects=[[10**9]]),
    "id is a list": lambda i: i["entries"][1].update(id=[]),
    "NaN weight": lambda i: i.update(weights=[float("nan"), 1.0]),
    "no weight": lambda i: i.update(weights=[0, 1.0]),
    "endless weight": lambda i: i.update(weights=[float("inf"), 1.0]),
    "one weight": lambda i: i.update(weights=[1.0]),
    "weights are text": lambda i: i.update(weights="ab"),
}


@pytest.mark.parametrize("name", INDEX)
def test_a_parcel_whose_index_is_wrong(parcel, tmp_path, name):
    index = json.loads((parcel[1] / "index.json").read_text())
    index["entries"] = [{k: e[k] for k in ("objects", "source", "id")} for e in index["entries"]]
    INDEX[name](index)
    save_file(load_file(parcel[0]), tmp_path / "p.safetensors", {"index": json.dumps(index)})
    with pytest.raises(DatasetError, match="is no packed data"):
        open_parcel(tmp_path / "p.safetensors", tmp_path / "o")
    assert not (tmp_path / "o" / "index.json").exists()


@pytest.mark.parametrize("index", ["", "[]", "3", "{}", "[" * 100_000, '{"entries": [{}]}', None])
def test_a_parcel_without_an_index(parcel, tmp_path, index):
    save_file(load_file(parcel[0]), tmp_path / "p.safetensors", None if index is None else {"index": index})
    with pytest.raises(DatasetError, match="is no packed data"):
        open_parcel(tmp_path / "p.safetensors", tmp_path / "o")


def _ends(change):
    def changed(tensors):
        change(tensors["ends"])

    return changed


TENSORS = {
    "negative end": _ends(lambda e: e.__setitem__((1, 0), -5)),
    "ends that overlap": _ends(lambda e: e.__setitem__((1, 0), e[0, 0] - 3)),
    "ends that do not rise": _ends(lambda e: e.__setitem__((1, 1), e[0, 1])),
    "ends beyond the data": _ends(lambda e: e.__setitem__((4, 0), 2**40)),
    "ends before the data's": _ends(lambda e: e.__setitem__((4, 1), e[4, 1] - 1)),
    "ends are floats": lambda t: t.update(ends=t["ends"].astype(np.float64)),
    "ends are flat": lambda t: t.update(ends=t["ends"].ravel()),
    "one end less": lambda t: t.update(ends=t["ends"][:-1]),
    "no ends": lambda t: t.update(ends=np.zeros((0, 2), np.int64)),
    "images are floats": lambda t: t.update(images=t["images"].astype(np.float32)),
    "images are a table": lambda t: t.update(images=t["images"][None]),
    "no labels": lambda t: t.pop("labels"),
    "rubbish": lambda t: t.update(images=np.zeros_like(t["images"])),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_parcel_whose_files_lie_elsewhere(parcel, tmp_path, name):
    tensors = load_file(parcel[0])
    TENSORS[name](tensors)
    index = json.loads((parcel[1] / "index.json").read_text())
    save_file(tensors, tmp_path / "p.safetensors", {"index": json.dumps(index)})
    with pytest.raises(DatasetError, match="is no packed data"):
        open_parcel(tmp_path / "p.safetensors", tmp_path / "o")
    assert not list(tmp_path.glob("o/*"))


@pytest.mark.parametrize(
    ("image", "labels", "reason"),
    [
        ((60, 70), (60, 71), "of its size"),
        ((60, 70), png_of(30_000, 40_000), "of its size"),
        (png_of(60, 70), (60, 70), "no WebP or JPEG"),
        ((60, 70), png_of(60, 70), "damaged|no packed data"),
        ((4096, 4097), png_of(4096, 4097), "more than 16777216 pixels"),
        ((60, 70), cv2.imencode(".png", np.ones((60, 70, 3), np.uint8))[1].tobytes(), "damaged"),
    ],
    ids=["other size", "huge labels", "PNG for WebP", "empty PNG", "too large", "colours"],
)
def test_a_parcel_of_wrong_pictures(tmp_path, image, labels, reason):
    if isinstance(image, tuple):
        image = cv2.imencode(".jpg", np.zeros((*image, 3), np.uint8))[1].tobytes()
    if isinstance(labels, tuple):
        labels = cv2.imencode(".png", np.ones(labels, np.uint8))[1].tobytes()
    tensors = {"images": np.frombuffer(image, np.uint8), "labels": np.frombuffer(labels, np.uint8)}
    tensors["ends"] = np.array([[len(image), len(labels)]])
    index = {"sources": [{"folder": "a"}], "entries": [{"id": "x", "source": 0, "objects": [[1]]}]}
    save_file(tensors, tmp_path / "p.safetensors", {"index": json.dumps(index)})
    with pytest.raises(DatasetError, match=reason):
        open_parcel(tmp_path / "p.safetensors", tmp_path / "o")


def test_a_parcel_is_opened_again_where_the_folder_is_damaged(parcel, tmp_path):
    for content in (b"", b"[]", b"\xff\xfe", b'{"parcel": 3}', b"[" * 100_000):
        (tmp_path / "index.json").write_bytes(content)
        assert len(PackedDataset(open_parcel(parcel[0], tmp_path))) == 5


FOLDER = {
    **{name: ("index.json", change) for name, change in INDEX.items()},
    "negative height": ("index.json", lambda i: i["entries"][0].update(h=-3)),
    "huge width": ("index.json", lambda i: i["entries"][0].update(w=2**40)),
    "height is a float": ("index.json", lambda i: i["entries"][0].update(h=45.0)),
    "offsets that overlap": ("index.json", lambda i: i["entries"][1].update(offset=5)),
    "no size": ("index.json", lambda i: i["entries"][1].pop("h")),
    "fewer pixels": ("images.u8", lambda data: data[:-1]),
    "more labels": ("labels.u16", lambda data: data + b"x"),
    "empty": ("images.u8", lambda data: b""),
}


@pytest.mark.parametrize("name", FOLDER)
def test_a_packed_folder_that_cannot_be(parcel, tmp_path, name):
    folder = shutil.copytree(parcel[1], tmp_path / "d")
    file, change = FOLDER[name]
    if file == "index.json":
        index = json.loads((folder / file).read_text())
        change(index)
        (folder / file).write_text(json.dumps(index))
    else:
        (folder / file).write_bytes(change((folder / file).read_bytes()))
    for reader in (read_packed, PackedDataset, lambda d: Sampler(d, 0, None, torch.device("cpu"))):
        with pytest.raises(DatasetError, match=r"or is damaged: .* Remove it"):
            reader(folder)


OBJECTS = {
    "one object less": lambda o: {name: a[:-1] for name, a in o.items()},
    "another's": lambda o: {**o, "entry": o["entry"][::-1].copy()},
    "negative entry": lambda o: {**o, "entry": o["entry"] - 1},
    "box outside": lambda o: {**o, "box": o["box"] + np.int32(2**20)},
    "empty box": lambda o: {**o, "box": o["box"][:, [0, 1, 0, 1]]},
    "edge outside": lambda o: {**o, "edges": o["edges"] - np.int16(9999)},
    "floats": lambda o: {**o, "box": o["box"].astype(np.float32)},
    "no values": lambda o: {name: a for name, a in o.items() if name != "values"},
    "pickles": lambda o: {**o, "box": np.array([{}] * len(o["box"]), object)},
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_are_not_there(parcel, tmp_path, name):
    folder = shutil.copytree(parcel[1], tmp_path / "d")
    with np.load(folder / "objects.npz") as objects:
        changed = OBJECTS[name](dict(objects))
    np.savez(folder / "objects.npz", **changed)
    with pytest.raises(DatasetError, match="or is damaged"):
        Sampler(folder, 0, None, torch.device("cpu"))


def test_objects_that_unpack_to_gigabytes_or_claim_them(parcel, tmp_path):
    folder = shutil.copytree(parcel[1], tmp_path / "d")
    with np.load(folder / "objects.npz") as objects:
        good = dict(objects)
    np.savez_compressed(folder / "objects.npz", **{**good, "box": np.zeros((10_000_000, 4), np.int32)})
    with pytest.raises(DatasetError, match="box has 160000128 bytes"):
        Sampler(folder, 0, None, torch.device("cpu"))
    np.savez(folder / "objects.npz", **good)
    data = (folder / "objects.npz").read_bytes()
    shape = f"({len(good['box'])}, 4)".encode()
    lie = b"(%d,4)" % 10**11
    at = data.index(shape)
    (folder / "objects.npz").write_bytes(data[:at] + lie + data[at + len(lie) :])
    with pytest.raises(DatasetError, match="or is damaged"):
        Sampler(folder, 0, None, torch.device("cpu"))
    for content in (b"", b"PK\x03\x04", b"hello"):
        (folder / "objects.npz").write_bytes(content)
        with pytest.raises(DatasetError, match="or is damaged"):
            Sampler(folder, 0, None, torch.device("cpu"))


def test_a_folder_with_a_broken_index_is_packed_anew(tmp_path, caplog):
    data = write_pairs(tmp_path / "a", 2)
    for content in (b"", b"[]", b"\xff\xfe", b'{"sources": 3}', b"[" * 100_000):
        target = tmp_path / "packed"
        target.mkdir(exist_ok=True)
        (target / "index.json").write_bytes(content)
        assert len(PackedDataset(pack([data], target))) == 2
    assert "made anew" in caplog.text


def test_an_object_without_pixels_is_named(tmp_path):
    folder = pack([write_pairs(tmp_path / "a", 1)], tmp_path / "packed")
    size = (folder / "labels.u16").stat().st_size
    (folder / "labels.u16").write_bytes(bytes(size))
    with pytest.raises(DatasetError, match="has no pixels"):
        PackedDataset(folder)[0, 64]
