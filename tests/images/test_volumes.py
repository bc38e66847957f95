"""Volumes as DICOM, NIfTI and MetaImage have them, written by other libraries; and where they lie in space."""

from __future__ import annotations

import gzip
import io
import struct
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


def series(folder: Path, places: list[dict[str, Any]]) -> Path:
    """A folder with one series, a slice at each place."""
    uid = pydicom.uid.generate_uid()
    for number, place in enumerate(places):
        tags = {"SOPClassUID": pydicom.uid.MRImageStorage, "StudyInstanceUID": uid, "SeriesInstanceUID": uid}
        tags |= {"PixelSpacing": [1, 1], "InstanceNumber": number + 1, "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom(folder / str(number), np.full((5, 7), number, np.uint16), **(tags | place))
    return folder


UNEVEN = {
    "a slice is missing": [(0, 0, 0), (0, 0, 2), (0, 0, 6), (0, 0, 8)],
    "two volumes, one after the other": [(0, 0, 0), (0, 0, 2), (0, 0, 4)] * 2,
    "two volumes, slice by slice": [(0, 0, z) for z in (0, 0, 2, 2, 4, 4)],
    "a tilted gantry": [(0, 0.05 * z, z) for z in range(0, 8, 2)],
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_slices_at_uneven_places_are_no_volume(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidImageError, match="even distances"):
        load_volume(series(tmp_path, [{"ImagePositionPatient": list(at)} for at in UNEVEN[kind]]))


@pytest.mark.parametrize("kind", [*UNEVEN, "even", "downwards"])
def test_frames_at_uneven_places_are_named(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    even = {"even": [(1, 2, 0), (1, 2, 3), (1, 2, 6)], "downwards": [(0, 0, 6), (0, 0, 3), (0, 0, 0)]}
    places = {**UNEVEN, **even}[kind]

    def items(**tags: Any) -> Any:
        item = pydicom.Dataset()
        for name, value in tags.items():
            setattr(item, name, value)
        return pydicom.Sequence([item])

    pixels = np.repeat(np.arange(len(places), dtype=np.uint16), 35).reshape(-1, 5, 7)
    shared = items(
        PixelMeasuresSequence=items(PixelSpacing=[1, 1], SliceThickness=2),
        PlaneOrientationSequence=items(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
    )
    own = [items(PlanePositionSequence=items(ImagePositionPatient=list(at)))[0] for at in places]
    path = dicom(
        tmp_path / f"{kind}.dcm",
        pixels,
        frames=len(places),
        SOPClassUID=pydicom.uid.EnhancedMRImageStorage,
        SharedFunctionalGroupsSequence=shared,
        PerFrameFunctionalGroupsSequence=pydicom.Sequence(own),
    )
    volume = load_volume(path)
    np.testing.assert_array_equal(volume.planes, pixels)
    assert ("uneven distances" in caplog.text) == (kind in UNEVEN)


def test_slices_of_several_directions_are_no_volume(tmp_path: Path) -> None:
    turned = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    with pytest.raises(InvalidImageError, match="several directions"):
        load_volume(
            series(tmp_path, [{"ImagePositionPatient": [0, 0, 0]}, {"ImagePositionPatient": [0, 0, 0], **turned}])
        )


def test_places_may_be_rounded_or_missing(tmp_path: Path) -> None:
    (tmp_path / "rounded").mkdir()
    (tmp_path / "none").mkdir()
    rounded = [{"ImagePositionPatient": [0.01, 0, z]} for z in (0, 0.63, 1.25, 1.88, 2.5)]
    for volume in (
        load_volume(series(tmp_path / "rounded", rounded)),
        load_volume(series(tmp_path / "none", [{} for _ in rounded])),
    ):
        assert volume.planes[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


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
    volume.save_labels(tmp_path / f"labels{ending}", labels.astype(">u2"))
    again = sitk.ReadImage(str(tmp_path / f"labels{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), labels)
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(again, get)() == pytest.approx(getattr(image, get)(), abs=1e-5)
    if ending.startswith(".nii"):  # as another reader sees it
        nibabel = pytest.importorskip("nibabel")
        scan, drawn = nibabel.load(tmp_path / f"scan{ending}"), nibabel.load(tmp_path / f"labels{ending}")
        np.testing.assert_allclose(scan.affine, drawn.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(drawn.dataobj).transpose(2, 1, 0), labels)


@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (1, 1), (0, 4), (1, 0), (0, 0)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_labels_keep_both_places_of_a_nifti(
    tmp_path: Path, codes: tuple[int, int], order: str, rng: np.random.Generator
) -> None:
    nibabel = pytest.importorskip("nibabel")
    scanner, moved = np.diag([-1.0, 2, 3, 1]), np.diag([1.0, 2, 3, 1])[[1, 0, 2, 3]]
    scanner[:3, 3], moved[:3, 3] = (10, 20, 30), (-5, 3, 8)
    head = nibabel.Nifti1Header(endianness=order)
    scan = nibabel.Nifti1Image(rng.integers(0, 500, (7, 6, 5)).astype(f"{order}i2"), None, head)
    scan.header.set_qform(scanner, 1)
    scan.header.set_sform(moved, 1)
    scan.header["qform_code"], scan.header["sform_code"] = codes
    scan.header.set_xyzt_units("micron")
    scan.to_filename(tmp_path / "scan.nii")
    scan = nibabel.load(tmp_path / "scan.nii")
    assert (int(scan.header["qform_code"]), int(scan.header["sform_code"])) == codes
    volume = load_volume(tmp_path / "scan.nii")
    for name in ("labels.nii", "labels.nii.gz"):
        volume.save_labels(tmp_path / name, volume.planes > 250)
        labels = nibabel.load(tmp_path / name)
        np.testing.assert_array_equal(labels.affine, scan.affine)
        for field in ("qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z"):
            np.testing.assert_array_equal(labels.header[field], scan.header[field])
        assert labels.header.get_zooms() == scan.header.get_zooms()
        assert labels.header.get_xyzt_units()[0] == "micron"
        np.testing.assert_array_equal(np.asarray(labels.dataobj), np.asarray(scan.dataobj) > 250)
        again = load_volume(tmp_path / name)
        assert again.geometry.origin == volume.geometry.origin


def test_what_is_refused(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    path = dicom(tmp_path / "a.dcm", rng.integers(0, 9, (13, 22)).astype(np.uint16))
    with pytest.raises(InvalidImageError, match="286 pixels"):
        load_volume(path, max_pixels=285)
    with pytest.raises(InvalidImageError, match="truncated"):
        load_volume(bytes(500), name="x.nii")
    with pytest.raises(InvalidImageError, match="No such"):
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


def nifti(path: Path, values: NDArray[Any], *, slope: float = 1, intercept: float = 0, sform: Any = None) -> Path:
    """A NIfTI file of `[Z, H, W]`, whose header is then changed."""
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.eye(4) if sform is None else sform), path)
    raw = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    raw[112:120] = struct.pack("<ff", slope, intercept)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize(
    ("slope", "intercept", "scale", "shift"),
    [(2, 3, 2, 3), (0, 7, 1, 0), (float("nan"), 3, 1, 0), (float("inf"), 3, 1, 0), (1, float("nan"), 1, 0)],
)
def test_a_nifti_slope_that_is_none_scales_nothing(
    tmp_path: Path, slope: float, intercept: float, scale: float, shift: float, rng: np.random.Generator
) -> None:
    values = rng.integers(-1000, 3000, (3, 7, 11)).astype(np.int16)
    volume = load_volume(nifti(tmp_path / "a.nii.gz", values, slope=slope, intercept=intercept))
    np.testing.assert_array_equal(volume.planes, values * scale + shift)


@pytest.mark.parametrize(("name", "left"), [("a.nii", -1), ("a.nii", 352), ("b.nii.gz", -100), ("b.nii.gz", 900)])
def test_a_truncated_nifti_is_refused(tmp_path: Path, name: str, left: int, rng: np.random.Generator) -> None:
    path = nifti(tmp_path / name, rng.integers(-1000, 3000, (3, 17, 31)).astype(np.int16))
    load_volume(path)
    with pytest.raises(InvalidImageError, match=r"is truncated: .* 3514 bytes"):
        load_volume(path.read_bytes()[:left], name=name)


def test_sheared_axes_are_refused_in_words(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 1] = 0.4
    with pytest.raises(InvalidImageError, match="sheared"):
        load_volume(nifti(tmp_path / "a.nii", np.zeros((3, 7, 11), np.int16), sform=sheared))


def test_dicom_that_lies_about_its_size_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 4000, (13, 22)).astype(np.uint16)
    with pytest.raises(InvalidImageError, match=r"truncated: .* 8000000 bytes"):
        load_volume(dicom(tmp_path / "a.dcm", values, Rows=2000, Columns=2000))
    compressed = pydicom.dcmread(dicom(tmp_path / "b.dcm", np.zeros((200, 300), np.uint16)))
    compressed.compress(pydicom.uid.RLELossless)
    compressed.save_as(tmp_path / "c.dcm")
    assert (tmp_path / "c.dcm").stat().st_size < 200 * 300  # the check is not for these
    assert load_volume(tmp_path / "c.dcm").planes.shape == (1, 200, 300)


def test_pixels_of_one_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    """As segmentations in DICOM have them.  GDCM leaves the last byte out where bits do not fill it."""
    for height, width, right in ((4, 6, True), (11, 13, False)):
        bits = rng.integers(0, 2, (3, height, width)).astype(np.uint8)
        data = pydicom.dcmread(dicom(tmp_path / "a.dcm", bits, frames=3))
        data.BitsAllocated, data.BitsStored, data.HighBit = 1, 1, 0
        packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
        data.PixelData = packed + bytes(len(packed) % 2)
        data.save_as(tmp_path / "b.dcm")
        if right:
            np.testing.assert_array_equal(load_volume(tmp_path / "b.dcm").planes, bits * 255)
        else:
            with pytest.raises(InvalidImageError, match="429 pixels of one bit"):
                load_volume(tmp_path / "b.dcm")


def test_frames_with_slopes_of_their_own_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 4000, (3, 13, 22)).astype(np.uint16)

    def enhanced(*slopes: float) -> Path:
        frames = []
        for slope in slopes:
            scale, frame = pydicom.Dataset(), pydicom.Dataset()
            scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = slope, -100, "US"
            frame.PixelValueTransformationSequence = [scale]
            frames.append(frame)
        path = dicom(tmp_path / "a.dcm", values, frames=3, PerFrameFunctionalGroupsSequence=frames)
        data = pydicom.dcmread(path)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedMRImageStorage
        data.save_as(path)
        return path

    np.testing.assert_array_equal(load_volume(enhanced(2, 2, 2)).planes, values * 2.0 - 100)
    with pytest.raises(InvalidImageError, match="2 different rescale slopes"):
        load_volume(enhanced(2, 2, 3))


def test_slices_of_a_series_have_slopes_of_their_own(tmp_path: Path, rng: np.random.Generator) -> None:
    """As in PET: the first one's whole numbers do not hold the others."""
    values, slopes = rng.integers(0, 65536, (3, 7, 11)).astype(np.uint16), (1, 0.5, 2.25)
    folder = tmp_path / "series"
    folder.mkdir()
    for k, slope in enumerate(slopes):
        place = {"ImagePositionPatient": [0, 0, k], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        path = dicom(folder / f"{k}.dcm", values[k], RescaleSlope=slope, RescaleIntercept=0, **place)
        data = pydicom.dcmread(path)
        data.SeriesInstanceUID = "1.2.3"
        data.save_as(path)
    np.testing.assert_array_equal(load_volume(folder).planes, values * np.array(slopes)[:, None, None])


META = "ObjectType = Image\nNDims = 2\nDimSize = 8 8\nElementType = MET_UCHAR\n{}"
NRRD = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 8 8\nencoding: raw\n{}\n"


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mha", META.format("ElementDataFile = {}\n")),
        ("a.mha", META.format("ElementDataFile : {}\n")),
        ("a.mha", META.format("Comment = ElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.mha", META.format("Comment\nElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.mha", META.format("Offset =\nElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.mha", META.format("x" * 499 + "\nElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.mha", META.format("Offset = 0\nElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.mha", META.format("Color = 1e39 0 0 0\nElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.mha", META.format("Comment = :\nElementDataFile = LOCAL\nElementDataFile = {}\n")),
        ("a.nrrd", NRRD.format("data file: {}\n")),
        ("a.nrrd", NRRD.format("DATAFILE: {}\n")),
    ],
)
def test_a_header_cannot_show_another_file(tmp_path: Path, name: str, header: str) -> None:
    """Some of these, ITK reads as the file that is named, though the first line says LOCAL."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"S" * 64)
    (tmp_path / name).write_bytes(header.format(secret).encode() + bytes(64))
    for source in (tmp_path / name, (tmp_path / name).read_bytes()):
        with pytest.raises(InvalidImageError, match="holds its pixels itself"):
            load_volume(source, name=name)


def test_an_empty_volume_is_refused() -> None:
    header = META.replace("8 8", "0 8").format("ElementDataFile = LOCAL\n")
    with pytest.raises(InvalidImageError, match="0 pixels"):
        load_volume(header.encode(), name="a.mha")


@pytest.mark.parametrize("line", ["Name = " + "x" * 300, "NDims = 100000000000", "NDims = -1", "NDims = 1e5 1"])
def test_headers_that_end_metaio_are_refused(line: str) -> None:
    """It writes beyond its memory at each of these."""
    header = META.format(line + "\nElementDataFile = LOCAL\n")
    with pytest.raises(InvalidImageError, match="holds its pixels itself"):
        load_volume(header.encode() + bytes(64), name="a.mha")


def test_of_a_large_volume_only_the_header_is_looked_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from activefreq_engine.images.volume_files import check_alone

    def is_read_whole(path: Path) -> bool:
        read: list[int] = []

        class Counting(io.BufferedReader):
            def read(self, size: int | None = -1) -> bytes:
                read.append(-1 if size is None else size)
                return super().read(size)

        monkeypatch.setattr(Path, "open", lambda self, mode: Counting(io.FileIO(self, "rb")))
        try:
            check_alone(path, path.name)
        finally:
            monkeypatch.undo()
        return -1 in read

    image = sitk.GetImageFromArray(np.zeros((3, 9, 15), np.float32))
    image.SetOrigin((-12.5, 3e-17, 40))
    for ending in ("mha", "nrrd"):
        sitk.WriteImage(image, str(tmp_path / f"a.{ending}"))
        assert not is_read_whole(tmp_path / f"a.{ending}")
    unusual = META.format("Mine = 1\nElementDataFile = LOCAL\n").encode() + bytes(64)
    (tmp_path / "b.mha").write_bytes(unusual)
    assert is_read_whole(tmp_path / "b.mha")
    assert load_volume(tmp_path / "b.mha").planes.shape == (1, 8, 8)


@pytest.mark.parametrize("line", ["Caf\xe9 = 1", "vox_offset = 8", "scl_slope = x", "0028|1050 = 1"])
def test_other_keys_in_a_header_do_not_matter(line: str) -> None:
    header = META.format(line + "\nElementDataFile = LOCAL\n")
    assert load_volume(header.encode("latin-1") + bytes(64), name="a.mha").planes.shape == (1, 8, 8)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.NII.GZ"])
def test_a_packed_file_is_not_taken_for_the_unpacked_one_beside_it(
    tmp_path: Path, rng: np.random.Generator, name: str, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    if not links:  # as on Windows without the right to make them

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("no right")

        monkeypatch.setattr(Path, "symlink_to", refuse)
    packed, unpacked = rng.integers(-900, 900, (2, 3, 5, 7)).astype(np.int16)
    for pixels, file in ((packed, "scan.nii.gz"), (unpacked, "scan.nii")):
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / file))
    (tmp_path / "scan.nii.gz").rename(tmp_path / name)
    assert np.array_equal(load_volume(tmp_path / name).planes, packed)
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(load_volume(name).planes, packed)
    assert np.array_equal(load_volume("scan.nii").planes, unpacked)
