"""Volumes as DICOM, NIfTI and MetaImage have them, written by other libraries; and where they lie in space."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from activefreq_engine import InvalidImageError, InvalidMaskError
from activefreq_engine.images import load_image, load_volume

sitk = pytest.importorskip("SimpleITK")
pydicom = pytest.importorskip("pydicom")


def dicom(path: Path, pixels: NDArray[Any], *, frames: int | None = None, **tags: Any) -> Path:
    """A DICOM file with these stored values."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "OT"
    size = pixels.shape[1:] if frames else pixels.shape
    ds.Rows, ds.Columns = size[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    if len(size) == 3:
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
    if frames:
        ds.NumberOfFrames = frames
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.tobytes()
    ds.save_as(path, enforce_file_format=True)
    return path


def test_rescaling_and_window_are_dicoms(tmp_path: Path, rng: np.random.Generator) -> None:
    from pydicom.pixels import apply_rescale, apply_windowing

    stored = rng.integers(0, 4000, (13, 22)).astype(np.uint16)
    path = dicom(
        tmp_path / "ct", stored, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=[40, 500], WindowWidth=[400, 9]
    )
    for source in (path, path.read_bytes()):
        volume = load_volume(source)
        np.testing.assert_array_equal(volume.planes[0], stored.astype(int) * 2 - 1024)
        assert volume.window == (-160, 239)
        ds = pydicom.dcmread(path)
        # pydicom's window, on the scale that load_image has
        shown = apply_windowing(apply_rescale(ds.pixel_array, ds).astype(np.float64), ds)
        shown = (shown - shown.min()) / (shown.max() - shown.min()) * 255
        assert np.abs(volume.pixels(0) - shown).max() <= 1.01
    exact = dicom(tmp_path / "exact", stored, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")
    assert load_volume(exact).window == (-160, 240)
    assert load_volume(dicom(tmp_path / "none", stored)).window is None


def test_white_is_zero(tmp_path: Path, rng: np.random.Generator) -> None:
    stored = rng.integers(100, 3900, (13, 22)).astype(np.uint16)
    tags = {"WindowCenter": 1000.5, "WindowWidth": 801, "RescaleSlope": 2, "RescaleIntercept": -50}
    plain = load_volume(dicom(tmp_path / "2", stored, **tags))
    turned = load_volume(dicom(tmp_path / "1", stored, PhotometricInterpretation="MONOCHROME1", **tags))
    assert np.abs(turned.pixels(0).astype(int) + plain.pixels(0) - 255).max() <= 1
    without = load_volume(dicom(tmp_path / "0", stored, PhotometricInterpretation="MONOCHROME1")).pixels(0)
    dark = stored > np.median(stored)
    assert without[dark].mean() < without[~dark].mean()


def test_the_page_shows_dicom_through_its_window(tmp_path: Path, rng: np.random.Generator) -> None:
    from activefreq_engine.serve.errors import TooLargeError
    from activefreq_engine.serve.pictures import read_picture

    stored = rng.integers(0, 4000, (13, 22)).astype(np.uint16)
    data = dicom(tmp_path / "ct", stored, WindowCenter=1000.5, WindowWidth=801).read_bytes()
    picture = read_picture(data, "ct", 1000)
    assert (picture.windowed, picture.default_window()) == (True, (600, 1400))
    np.testing.assert_array_equal(picture.pixels(0, picture.default_window()), load_volume(data).pixels(0))
    with pytest.raises(TooLargeError):
        read_picture(data, "ct", 285)


def test_frames_colours_signs_and_eight_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = rng.integers(0, 255, (4, 13, 22)).astype(np.uint8)
    volume = load_volume(dicom(tmp_path / "frames", frames, frames=4))
    np.testing.assert_array_equal(volume.planes, frames)
    np.testing.assert_array_equal(volume.pixels(2), frames[2])
    windowed = load_volume(dicom(tmp_path / "windowed", frames[0], WindowCenter=100.5, WindowWidth=51))
    np.testing.assert_array_equal(windowed.pixels(0), load_image(frames[0].astype(np.int16), window=(75, 125)))
    colour = rng.integers(0, 255, (13, 22, 3)).astype(np.uint8)
    found = load_volume(dicom(tmp_path / "rgb", colour, WindowCenter=100, WindowWidth=51))
    np.testing.assert_array_equal(found.pixels(0), colour)
    signed = rng.integers(-900, 900, (13, 22)).astype(np.int16)
    np.testing.assert_array_equal(load_volume(dicom(tmp_path / "signed", signed)).planes[0], signed)


def test_a_folder_is_a_series_in_its_order_in_space(tmp_path: Path, rng: np.random.Generator) -> None:
    planes = rng.integers(0, 4000, (3, 13, 22)).astype(np.uint16)
    series = pydicom.uid.generate_uid()
    for name, z in (("a", 2), ("b", 0), ("c", 1)):
        place = {"ImagePositionPatient": [5, 6, 7 + 2 * z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        place |= {"PixelSpacing": [0.5, 0.25], "SeriesInstanceUID": series, "InstanceNumber": z}
        uid = pydicom.uid.CTImageStorage
        dicom(tmp_path / name, planes[z], SOPClassUID=uid, StudyInstanceUID=series, **place)
    volume = load_volume(tmp_path)
    np.testing.assert_array_equal(volume.planes, planes)
    assert volume.geometry.origin == pytest.approx((5, 6, 7))
    assert volume.geometry.spacing == pytest.approx((0.25, 0.5, 2))
    dicom(tmp_path / "d", planes[0])
    with pytest.raises(InvalidImageError, match="2 DICOM series"):
        load_volume(tmp_path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd"])
def test_labels_keep_their_place_in_space(tmp_path: Path, ending: str, rng: np.random.Generator) -> None:
    image = sitk.GetImageFromArray(rng.normal(0, 300, (4, 9, 15)).astype(np.float32))
    image.SetOrigin((-12.5, 3, 40))
    image.SetSpacing((0.7, 0.9, 3.5))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / f"scan{ending}"))
    volume = load_volume(tmp_path / f"scan{ending}")
    np.testing.assert_array_equal(volume.planes, sitk.GetArrayFromImage(image))
    labels = rng.integers(0, 3, (4, 9, 15)).astype(np.uint16)
    volume.save_labels(tmp_path / f"labels{ending}", labels)
    again = sitk.ReadImage(str(tmp_path / f"labels{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), labels)
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(again, get)() == pytest.approx(getattr(image, get)(), abs=1e-5)
    if ending.startswith(".nii"):  # as another reader sees it
        nibabel = pytest.importorskip("nibabel")
        scan, drawn = nibabel.load(tmp_path / f"scan{ending}"), nibabel.load(tmp_path / f"labels{ending}")
        np.testing.assert_allclose(scan.affine, drawn.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(drawn.dataobj).transpose(2, 1, 0), labels)


def test_what_is_refused(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom(tmp_path / "a.dcm", rng.integers(0, 9, (13, 22)).astype(np.uint16))
    with pytest.raises(InvalidImageError, match="286 pixels"):
        load_volume(path, max_pixels=285)
    with pytest.raises(InvalidImageError, match="truncated"):
        load_volume(bytes(500), name="x.nii")
    with pytest.raises(InvalidImageError, match="no such"):
        load_volume(tmp_path / "nothing.nii")
    volume = load_volume(path)
    with pytest.raises(InvalidMaskError, match="shape"):
        volume.save_labels(tmp_path / "x.nii", np.zeros((1, 22, 13), np.uint8))
    with pytest.raises(InvalidImageError, match="cannot write"):
        volume.save_labels(tmp_path / "x.unknown", np.zeros((1, 13, 22), np.uint8))
    with pytest.raises(InvalidImageError, match="cannot write"):
        volume.save_labels(tmp_path / "nothing" / "x.nii", np.zeros((1, 13, 22), np.uint8))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InvalidImageError, match=r"\.\[medical\]"):
        load_volume(path)
