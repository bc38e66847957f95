"""The preparation of OAI-ZIB on invented knees: labels must lie on what they name, wherever the files turn them."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sitk = pytest.importorskip("SimpleITK")

from activefreq_engine.eval import load_dataset  # noqa: E402
from examples import oai_zib  # noqa: E402

SLICES, ROWS, COLUMNS = 24, 66, 50
BRIGHTNESS = {0: 40, 1: 90, 2: 200, 3: 110, 4: 240}


def knee(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Scan and labels `[slices, rows, columns]`: a femur above a tibia, each with cartilage, off the middle."""
    labels = np.zeros((SLICES, ROWS, COLUMNS), np.uint8)
    labels[3:15, 6:30, 8:40] = 1
    labels[3:15, 30:36, 8:40] = 2
    labels[4:14, 38:43, 10:38] = 4
    labels[4:14, 43:58, 10:38] = 3
    noise = rng.integers(-8, 9, labels.shape)
    return (np.vectorize(BRIGHTNESS.get)(labels) + noise).astype(np.uint16), labels


def write_dicom(folder: Path, volume: np.ndarray, patient: str) -> None:
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z, picture in enumerate(volume):
        image = sitk.GetImageFromArray(picture)
        uid = f"1.2.826.0.1.3680043.2.1125.{patient}"
        tags = {"0020|000e": f"{uid}.1", "0020|000d": f"{uid}.2", "0008|0018": f"{uid}.3.{z}", "0008|0060": "MR"}
        tags |= {"0020|0032": f"0\\0\\{z}", "0020|0037": "1\\0\\0\\0\\1\\0", "0020|0013": str(z + 1)}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{z:03d}.dcm"))
        writer.Execute(image)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> Path:
    """Four patients, whose labels are turned in four ways; what the script makes of them."""
    zib = tmp_path / "zib"
    for folder in ("doc", "segmentation_masks"):
        (zib / folder).mkdir(parents=True)
    lines = []
    for i, flip in enumerate(oai_zib.FLIPS):
        image, labels = knee(rng)
        write_dicom(tmp_path / "oai" / "0.C.2" / str(9000 + i), image, str(9000 + i))
        stored = np.moveaxis(np.flip(labels, flip), 0, -1)
        mask = zib / "segmentation_masks" / f"{9000 + i}.segmentation_masks.mhd"
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(stored)), str(mask))
        lines.append(f"{9000 + i}: 0.C.2/{9000 + i}")
    (zib / "doc" / "oai_mri_paths.txt").write_text("\n".join(lines) + "\n")
    (zib / "doc" / "2foldCrossValidation-List1.txt").write_text("9000\n9001\n")
    (zib / "doc" / "2foldCrossValidation-List2.txt").write_text("9002\n9003\n")
    arguments = ["oai_zib.py", str(tmp_path / "oai"), str(zib), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    oai_zib.main()
    return tmp_path / "out"


def test_volumes_are_read_by_the_evaluation(prepared: Path) -> None:
    data = load_dataset(prepared / "list2", labels=oai_zib.CARTILAGE, slices=3)
    assert data.layout == "volumes"
    assert {s.image_id.partition(":")[0] for s in data.samples} == {"9002", "9003"}
    assert len(data.samples) == 2 * 3 * 2
    window = {v: round(255 * (b - 32) / (248 - 32)) for v, b in BRIGHTNESS.items()}
    for sample in data.samples:
        inside = sample.load_image()[:, :, 0][sample.load_mask() == 1]
        assert inside.mean() == pytest.approx(window[sample.object], abs=6)
        assert inside.std() < 10  # nothing else lies in it


def test_slices_are_what_training_takes(prepared: Path) -> None:
    data = load_dataset(prepared / "train1")
    assert data.layout == "labels"
    assert {s.object for s in data.samples} == set(oai_zib.CARTILAGE)
    images = sorted((prepared / "train1" / "images").iterdir())
    assert [p.name for p in images] == [p.name for p in sorted((prepared / "train1" / "labels").iterdir())]
    assert len(images) == 2 * 12
    assert Image.open(images[0]).size == (COLUMNS, ROWS)
    for sample in data.samples:
        assert sample.load_image()[:, :, 0][sample.load_mask() == 1].std() < 10


def test_a_second_run_converts_nothing(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in prepared.glob("list*/*/*")}
    assert len(before) == 8
    oai_zib.main()
    assert {p: p.stat().st_mtime_ns for p in prepared.glob("list*/*/*")} == before
    assert "none were converted now" in capsys.readouterr().out


def test_another_size_is_refused(rng: np.random.Generator) -> None:
    image, labels = knee(rng)
    with pytest.raises(SystemExit, match=r"labels of \(24, 66, 50\) voxels .* scan of \(23, 66, 50\)"):
        oai_zib.aligned(np.moveaxis(labels, 0, -1), image[1:])
