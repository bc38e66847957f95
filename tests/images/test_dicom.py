"""DICOM in all its kinds, and with headers that lie: what GDCM reads wrong or takes gigabytes for is refused before."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from activefreq_engine import InvalidImageError
from activefreq_engine.images import load_volume

from .test_volumes import dicom

pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")

H, W = 13, 22
ITEM = b"\xfe\xff\x00\xe0"
OPEN = b"\xff\xff\xff\xff"


def jpeg(pixels: NDArray[Any]) -> bytes:
    data: bytes = cv2.imencode(".jpg", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes()
    return data


def jpeg_2000(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG2000", no_jp2=True, mct=0)
    return file.getvalue()


def compressed(path: Path, frames: Sequence[bytes], like: NDArray[Any], syntax: str, **tags: Any) -> Path:
    """A file with these compressed frames, of which each looks like `like`."""
    from pydicom.encaps import encapsulate

    data = pydicom.dcmread(dicom(path, np.stack([like] * len(frames)), frames=len(frames)))
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    data.file_meta.TransferSyntaxUID = getattr(pydicom.uid, syntax)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)
    return path


def pixels_at(data: bytes) -> int:
    return data.rfind(b"\xe0\x7f\x10\x00O")


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("frames", [1, 3])
def test_compressed_frames_are_read(tmp_path: Path, colours: int, frames: int, rng: np.random.Generator) -> None:
    shape = (frames, H, W) if colours == 1 else (frames, H, W, 3)
    values = rng.integers(0, 256, shape).astype(np.uint8)
    tags = {"PhotometricInterpretation": "YBR_FULL_422"} if colours == 3 else {}
    path = compressed(tmp_path / "a", [jpeg(v) for v in values], values[0], "JPEGBaseline8Bit", **tags)
    as_read = [cv2.imdecode(np.frombuffer(jpeg(v), np.uint8), cv2.IMREAD_UNCHANGED) for v in values]
    wanted = np.stack(as_read)[..., ::-1] if colours == 3 else np.stack(as_read)
    assert np.abs(load_volume(path).planes.astype(int) - wanted).max() <= 2  # two decoders round differently
    path = compressed(tmp_path / "b", [jpeg_2000(v) for v in values], values[0], "JPEG2000Lossless")
    np.testing.assert_array_equal(load_volume(path).planes, values)
    packed = pydicom.dcmread(dicom(tmp_path / "c", values, frames=frames))
    packed.compress(pydicom.uid.RLELossless)
    packed.save_as(tmp_path / "c")
    np.testing.assert_array_equal(load_volume(tmp_path / "c").planes, values)


def test_deep_grey_signed_or_not(tmp_path: Path, rng: np.random.Generator) -> None:
    for dtype, low, high in ((np.uint16, 0, 4096), (np.int16, -2048, 2048), (np.uint32, 0, 2**32)):
        values = rng.integers(low, high, (3, H, W)).astype(dtype)
        packed = pydicom.dcmread(dicom(tmp_path / "a", values, frames=3, RescaleSlope=-1, RescaleIntercept=7))
        if dtype != np.uint32:
            packed.compress(pydicom.uid.RLELossless)
        packed.save_as(tmp_path / "a")
        np.testing.assert_array_equal(load_volume(tmp_path / "a").planes, 7 - values.astype(np.float64))
    stored = rng.integers(0, 4096, (H, W)).astype(np.uint16)
    path = compressed(tmp_path / "b", [jpeg_2000(stored)], stored, "JPEG2000Lossless", BitsStored=16)
    np.testing.assert_array_equal(load_volume(path).planes[0], stored)


def test_white_is_zero_with_signed_values(tmp_path: Path, rng: np.random.Generator) -> None:
    stored = rng.integers(-900, 900, (H, W)).astype(np.int16)
    tags = {"WindowCenter": 100.5, "WindowWidth": 801, "RescaleSlope": 2, "RescaleIntercept": -50}
    plain = load_volume(dicom(tmp_path / "2", stored, **tags))
    turned = load_volume(dicom(tmp_path / "1", stored, PhotometricInterpretation="MONOCHROME1", **tags))
    assert turned.window is not None
    assert np.abs(turned.pixels(0).astype(int) + plain.pixels(0) - 255).max() <= 1


def palette(path: Path, indices: NDArray[Any], entries: int) -> Path:
    data = pydicom.dcmread(dicom(path, indices))
    data.PhotometricInterpretation = "PALETTE COLOR"
    for k in range(3):
        data.add_new(0x00281101 + k, "US", [entries, 0, 16])
        data.add_new(0x00281201 + k, "OW", np.arange(entries, dtype=np.uint16).tobytes())
    data.save_as(path)
    return path


WRONG = {
    "bits": (np.uint16, {"BitsStored": 12, "HighBit": 15}, "lowest"),
    "slope": (np.uint16, {"RescaleSlope": 0, "RescaleIntercept": 3}, "slope of 0"),
    "white": (np.int16, {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"}, "12 of 16 bits"),
    "deep white": (np.uint32, {"PhotometricInterpretation": "MONOCHROME1"}, "32 of 32 bits"),
    "some of 32 bits": (np.uint32, {"BitsStored": 24, "HighBit": 23}, "24 of 32 bits"),
    "12 bits in a row": (np.uint16, {"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11}, "12 of 12 bits"),
    "more bits than room": (np.uint8, {"BitsStored": 12, "HighBit": 11}, "12 of 8 bits"),
    "two values": (np.uint16, {"SamplesPerPixel": 2}, "2 values a pixel"),
    "another meaning": (np.uint8, {"PhotometricInterpretation": "HSV"}, "HSV"),
    "planes": ("colour", {"PlanarConfiguration": 1}, "in planes"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_gdcm_reads_wrong_is_refused(tmp_path: Path, kind: str, rng: np.random.Generator) -> None:
    dtype, tags, words = WRONG[kind]
    shape, dtype = ((H, W, 3), np.uint32) if dtype == "colour" else ((H, W), dtype)
    with pytest.raises(InvalidImageError, match=f"{words}.* does not read right; write it anew"):
        load_volume(dicom(tmp_path / "a", rng.integers(0, 100, shape).astype(dtype), **tags))


def test_units_by_a_lookup_table_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = dicom(tmp_path / "a", rng.integers(0, 256, (H, W)).astype(np.uint8))
    data, table = pydicom.dcmread(path), pydicom.Dataset()
    table.add_new(0x00283002, "US", [256, 0, 16])
    table.add_new(0x00283006, "US", list(range(4095, 4095 - 256, -1)))
    data.ModalityLUTSequence = pydicom.Sequence([table])
    for undefined in (False, True):
        data["ModalityLUTSequence"].is_undefined_length = undefined
        data.save_as(path)
        with pytest.raises(InvalidImageError, match="Modality LUT"):
            load_volume(path)


def test_kinds_of_colour_that_gdcm_reads_wrong_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    colour = rng.integers(0, 256, (H, W, 3)).astype(np.uint8)
    path = tmp_path / "a"
    with pytest.raises(InvalidImageError, match="fewer than 65536 colours"):
        load_volume(palette(path, rng.integers(0, 200, (H, W)).astype(np.uint16), 256))
    assert load_volume(palette(path, rng.integers(0, 200, (H, W)).astype(np.uint8), 256)).planes.shape == (1, H, W, 3)
    with pytest.raises(InvalidImageError, match=r"planes of colour in .*decompress"):
        load_volume(compressed(path, [jpeg_2000(colour)], colour, "JPEG2000Lossless", PlanarConfiguration=1))
    with pytest.raises(InvalidImageError, match="set its photometric interpretation to YBR_FULL_422"):
        load_volume(compressed(path, [jpeg(colour)], colour, "JPEGBaseline8Bit"))
    with pytest.raises(InvalidImageError, match=r"transfer syntax 1\.2\.840\.10008\.1\.2\.4\.102"):
        load_volume(compressed(path, [jpeg(colour)], colour, "MPEG4HP41"))
    for dtype, meaning, planes, words in (
        (np.uint16, "RGB", 1, "RGB of 16"),
        (np.uint8, "YBR_FULL", 1, "YBR_FULL of 8 bits in RLE"),
        (np.uint8, "YBR_FULL_422", 0, "YBR_FULL_422 of 8 bits in RLE"),  # GDCM writes beyond its memory
    ):
        data = pydicom.dcmread(dicom(path, colour.astype(dtype)))
        data.compress(pydicom.uid.RLELossless)
        data.PhotometricInterpretation, data.PlanarConfiguration = meaning, planes
        data.save_as(path)
        with pytest.raises(InvalidImageError, match=words):
            load_volume(path)
    swapped = pydicom.dcmread(dicom(path, rng.integers(0, 2**31, (H, W)).astype(np.uint32)))
    swapped.PixelData = np.frombuffer(swapped.PixelData, "<u4").astype(">u4").tobytes()
    swapped.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    pydicom.dcmwrite(path, swapped, implicit_vr=False, little_endian=False, force_encoding=True)
    with pytest.raises(InvalidImageError, match="big-endian"):
        load_volume(path)


def cut(of_end: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:-of_end]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[: pixels_at(data)] + data[pixels_at(data) :].replace(old, new, 1)


def tagged(**tags: Any) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        found = pydicom.dcmread(io.BytesIO(data))
        for name, value in tags.items():
            setattr(found, name, value)
        file = io.BytesIO()
        found.save_as(file)
        return file.getvalue()

    return change


def before_pixels(more: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data[: pixels_at(data)] + more + data[pixels_at(data) :]


PRIVATE = b"\x09\x00\x10\x10"
LIES = {
    # a few bytes of file that asked for 4 GB and up to 20 s, or ended the process
    "offset table": replaced(ITEM, ITEM + b"\xf0\xff\xff\xff"),
    "fragment": lambda data: data[: data.rfind(ITEM) + 4] + b"\xf0\xff\xff\xff" + data[data.rfind(ITEM) + 8 :],
    "twice": before_pixels(b"\x28\x00\x10\x00US\x02\x00\x00\x10"),
    "element": before_pixels(PRIVATE + b"OB\0\0\xf0\xff\xff\xff"),
    "nested element": before_pixels(
        PRIVATE + b"SQ\0\0\x14\0\0\0" + ITEM + b"\x0c\0\0\0" + PRIVATE + b"OB\0\0\xf0\xff\xff\xff"
    ),
    "no end": before_pixels(PRIVATE + b"SQ\0\0" + OPEN + ITEM + OPEN),
    "deep": before_pixels((PRIVATE + b"SQ\0\0" + OPEN + ITEM + OPEN) * 5000),
    "no type": before_pixels(PRIVATE + bytes(8)),
    "cut a little": cut(3),
    "cut a lot": cut(400),
    "frames": tagged(NumberOfFrames=4),
    "size": tagged(Rows=9000, Columns=9000),
    "bits": tagged(BitsAllocated=8, BitsStored=8, HighBit=7),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_at_once(tmp_path: Path, lie: str, rng: np.random.Generator) -> None:
    values = rng.integers(0, 4096, (3, H, W)).astype(np.uint16)
    packed = pydicom.dcmread(dicom(tmp_path / "a", values, frames=3))
    packed.compress(pydicom.uid.RLELossless)
    packed.save_as(tmp_path / "a")
    for data in (
        (tmp_path / "a").read_bytes(),
        compressed(tmp_path / "b", [jpeg_2000(v) for v in values], values[0], "JPEG2000Lossless").read_bytes(),
    ):
        load_volume(data)
        with pytest.raises(InvalidImageError, match="is truncated or corrupt: "):
            load_volume(LIES[lie](data))


@pytest.mark.parametrize("count", [0, 1, 3, 16, 2**32 - 1])
def test_rle_of_other_segments_is_refused(tmp_path: Path, count: int, rng: np.random.Generator) -> None:
    """GDCM divides by their number, which ends the process where it is 0."""
    packed = pydicom.dcmread(dicom(tmp_path / "a", rng.integers(0, 4096, (H, W)).astype(np.uint16)))
    packed.compress(pydicom.uid.RLELossless)
    packed.save_as(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    at = data.find(struct.pack("<II", 2, 64), pixels_at(data))
    with pytest.raises(InvalidImageError, match="no RLE of its size"):
        load_volume(data[:at] + struct.pack("<I", count) + data[at + 4 :])


def test_what_is_packed_as_a_whole_is_unpacked_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((300, 400), np.uint8)
    data = pydicom.dcmread(dicom(tmp_path / "a", values))
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(tmp_path / "a")
    np.testing.assert_array_equal(load_volume(tmp_path / "a").planes[0], values)
    monkeypatch.setattr("activefreq_engine.images.dicom._INFLATED", 100_000)
    with pytest.raises(InvalidImageError, match="does not end, or not within"):
        load_volume(tmp_path / "a")
    head = (tmp_path / "a").read_bytes()
    with pytest.raises(InvalidImageError, match="truncated or corrupt"):
        load_volume(head[:-20] + zlib.compress(b"x" * 30)[:20])


def test_zeros_after_the_pixels_do_not_matter(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 4096, (H, W)).astype(np.uint16)
    data = dicom(tmp_path / "a", values).read_bytes() + bytes(513)
    np.testing.assert_array_equal(load_volume(data).planes[0], values)


def test_the_ending_does_not_open_another_reader(tmp_path: Path, rng: np.random.Generator) -> None:
    """SimpleITK takes whichever reader likes the content, which may not have been looked through."""
    values = rng.integers(0, 256, (H, W)).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    for data, words in ((tmp_path / "a.png", "lacks the mark DICM"), (tmp_path / "b", "without a picture")):
        if words != "lacks the mark DICM":
            report = pydicom.dcmread(dicom(data, values))
            del report.PixelData
            report.save_as(data)
        with pytest.raises(InvalidImageError, match=words):
            load_volume(data.read_bytes(), name="a.dcm")
    scan = dicom(tmp_path / "c", values).read_bytes()
    for name in ("a.nii", "a.mha", "a.dcm", "a.nrrd"):
        if name in ("a.mha", "a.nrrd"):
            with pytest.raises(InvalidImageError, match="holds its pixels itself"):
                load_volume(scan, name=name)
        else:
            np.testing.assert_array_equal(load_volume(scan, name=name).planes[0], values)
