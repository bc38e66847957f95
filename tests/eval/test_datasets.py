"""Adapters: what is read, in which order, and what is said about bad data."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from activefreq_engine.errors import DatasetError, InvalidArgumentError
from activefreq_engine.eval.datasets import load_dataset

from .fakes import write_pairs


def test_pairs_of_image_and_mask(tmp_path):
    truths = write_pairs(tmp_path, [(21, 34), (40, 17)])
    data = load_dataset(tmp_path)
    assert (data.layout, data.name) == ("masks", tmp_path.name)
    assert [s.id for s in data.samples] == ["case00", "case01"]
    for sample, truth in zip(data.samples, truths, strict=True):
        image, mask = sample.load_image(), sample.load_mask()
        stored = cv2.imread(str(tmp_path / "images" / f"{sample.id}.png"))
        assert np.array_equal(image, stored[:, :, ::-1])  # RGB
        assert mask.dtype == np.int8
        assert np.array_equal(mask, truth)


@pytest.mark.parametrize(("folder", "objects"), [("labels", 3), ("instances", 300)])
def test_every_value_of_a_label_map_is_an_object(tmp_path, folder, objects):
    truth = write_pairs(tmp_path, [(11, 700)], kind=folder, objects=objects)[0]
    data = load_dataset(tmp_path)
    assert data.layout == "labels"
    assert [s.object for s in data.samples] == list(range(1, objects + 1))
    assert {s.image_id for s in data.samples} == {"case00"}
    assert len({s.id for s in data.samples}) == objects
    assert np.array_equal(data.samples[-1].load_mask(), truth == objects)


def test_labels_can_be_chosen_and_ignored(tmp_path):
    truth = write_pairs(tmp_path, [(9, 40), (12, 31)], kind="labels", objects=3)
    data = load_dataset(tmp_path, labels=[2, 3], ignore_label=3)
    assert [s.id for s in data.samples] == ["case00#2", "case01#2"]
    expected = np.select([truth[1] == 2, truth[1] == 3], [1, -1], 0)
    assert np.array_equal(data.samples[1].load_mask(), expected)
    assert len(load_dataset(tmp_path, limit=4).samples) == 4


def test_background_cannot_be_ignored_in_masks(tmp_path):
    """Nothing but the object would count, and a mask of the whole image would be perfect."""
    write_pairs(tmp_path / "a", [(9, 14)])
    (tmp_path / "b").mkdir()
    isic(tmp_path / "b", "val", ["ISIC_0000001"])
    for data in ("a", "b"):
        with pytest.raises(DatasetError, match=r"ignore_label is 0, .*leave it out"):
            load_dataset(tmp_path / data, ignore_label=0)
    # a label map may hold what is no object under other values, and pixels that nobody labelled as 0
    truth = write_pairs(tmp_path / "c", [(9, 40)], kind="labels", objects=2)[0]
    sample = load_dataset(tmp_path / "c", ignore_label=0).samples[0]
    assert np.array_equal(sample.load_mask(), np.select([truth == 1, truth == 2], [1, 0], -1))


def test_a_mask_of_ignored_pixels_alone_is_not_called_empty(tmp_path):
    write_pairs(tmp_path, [(9, 14)])
    sample = load_dataset(tmp_path, ignore_label=255).samples[0]
    with pytest.raises(DatasetError, match=r"case00\.png is empty but for pixels of the ignore label 255; "):
        sample.load_mask()


def test_negative_values_are_no_objects(tmp_path):
    """Training refuses them too; a value of pixels that do not count may be negative."""
    truth = write_pairs(tmp_path, [(9, 40)], kind="labels", objects=3)[0]
    (tmp_path / "labels" / "case00.png").unlink()
    tifffile.imwrite(tmp_path / "labels" / "case00.tif", np.where(truth == 3, -7, truth).astype(np.int16))
    with pytest.raises(DatasetError, match=r"case00\.tif has negative values, \[-7\].*--ignore-label"):
        load_dataset(tmp_path)
    data = load_dataset(tmp_path, ignore_label=-7)
    assert [s.object for s in data.samples] == [1, 2]
    assert np.array_equal(data.samples[0].load_mask() == -1, truth == 3)


def test_palette_and_rgb_masks(tmp_path):
    write_pairs(tmp_path, [(8, 13)])
    values = np.zeros((8, 13), np.uint8)
    values[2:5, 3:9] = 1
    palette = Image.fromarray(values, "P")
    palette.putpalette([0, 0, 0, 200, 10, 30])
    palette.save(tmp_path / "masks" / "case00.png")
    assert np.array_equal(load_dataset(tmp_path).samples[0].load_mask(), values)
    Image.fromarray(np.repeat(values[:, :, None] * 255, 3, 2)).save(tmp_path / "masks" / "case00.png")
    assert np.array_equal(load_dataset(tmp_path).samples[0].load_mask(), values)
    Image.fromarray(np.stack([values, values * 9, values], 2)).save(tmp_path / "masks" / "case00.png")
    with pytest.raises(DatasetError, match="colour"):
        load_dataset(tmp_path).samples[0].load_mask()


def test_exif_orientation_turns_the_image(tmp_path):
    write_pairs(tmp_path, [(20, 32)])
    upright = cv2.imread(str(tmp_path / "images" / "case00.png"))[:, :, ::-1]
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    lying = Image.fromarray(np.rot90(upright).copy())
    lying.save(tmp_path / "images" / "case00.png", exif=exif)
    assert np.array_equal(load_dataset(tmp_path).samples[0].load_image(), upright)


def isic(root, split, ids, part="_Part1"):
    random = np.random.default_rng(len(split))
    data, truth = root / f"ISIC-2017_{split}_Data", root / f"ISIC-2017_{split}{part}_GroundTruth"
    data.mkdir()
    truth.mkdir()
    for name in ids:
        Image.fromarray(random.integers(0, 255, (14, 22, 3), dtype=np.uint8)).save(data / f"{name}.jpg")
        Image.fromarray(random.integers(0, 255, (14, 22, 3), dtype=np.uint8)).save(data / f"{name}_superpixels.png")
        mask = np.zeros((14, 22), np.uint8)
        mask[3:9, 5:20] = 255
        Image.fromarray(mask).save(truth / f"{name}_segmentation.png")
    (data / f"ISIC-2017_{split}_Data_metadata.csv").write_text("image_id,age_approximate,sex\n")


def test_official_isic_2017_layout(tmp_path):
    isic(tmp_path, "Test_v2", ["ISIC_0012086", "ISIC_0000003"])
    data = load_dataset(tmp_path)
    assert data.layout == "isic2017"
    assert [s.id for s in data.samples] == ["ISIC_0000003", "ISIC_0012086"]
    assert data.samples[0].load_image().shape == (14, 22, 3)
    assert data.samples[0].load_mask().sum() == 6 * 15
    isic(tmp_path, "Training", ["ISIC_0000000"])
    with pytest.raises(DatasetError, match=r"several splits.*Test_v2, Training"):
        load_dataset(tmp_path)
    assert [s.id for s in load_dataset(tmp_path, split="Training").samples] == ["ISIC_0000000"]
    with pytest.raises(DatasetError, match="no split 'val'"):
        load_dataset(tmp_path, split="val")


@pytest.fixture
def volume_folder(tmp_path):
    """Two scans of 12 slices, 18 x 25, with label values 2 and 4; returns (folder, intensities, labels)."""
    sitk = pytest.importorskip("SimpleITK")
    random = np.random.default_rng(7)
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    volumes, labels = [], []
    for name in ("9001104", "9003406"):
        volume = random.integers(-50, 900, (12, 18, 25)).astype(np.int16)
        label = np.zeros((12, 18, 25), np.uint8)
        label[3:10, 2:9, 4:20] = 2
        label[5:7, 12:16, 6:22] = 4
        sitk.WriteImage(sitk.GetImageFromArray(volume), str(tmp_path / "images" / f"{name}.mhd"))
        sitk.WriteImage(sitk.GetImageFromArray(label), str(tmp_path / "labels" / f"{name}.segmentation_masks.mhd"))
        volumes.append(volume)
        labels.append(label)
    return tmp_path, volumes, labels


def test_oai_zib_volumes(volume_folder):
    folder, volumes, labels = volume_folder
    assert (folder / "images" / "9001104.raw").exists()
    data = load_dataset(folder)
    assert data.layout == "volumes"
    # 7 slices (3..9) hold an object; three of them, evenly spread: 4, 6, 8.  Slice 6 holds both objects.
    one = ["004#2", "006#2", "006#4", "008#2"]
    assert [s.id for s in data.samples] == [f"{v}:{s}" for v in ("9001104", "9003406") for s in one]
    sample = data.samples[6]
    assert np.array_equal(sample.load_mask(), labels[1][6] == 4)
    low, high = np.percentile(volumes[1], (0.5, 99.5))
    expected = np.clip((volumes[1][6] - low) / (high - low), 0, 1) * 255
    image = sample.load_image()
    assert image.shape == (18, 25, 3)
    assert image.dtype == np.uint8
    assert np.abs(image - expected[:, :, None]).max() <= 0.51
    assert len(load_dataset(folder, slices=None).samples) == 2 * (7 + 2)
    assert {s.object for s in load_dataset(folder, slices=None, labels=[4]).samples} == {4}


def test_volume_errors(volume_folder):
    folder, _, _ = volume_folder
    (folder / "images" / "9003406.raw").unlink()
    with pytest.raises(DatasetError, match=r"9003406\.mhd"):
        load_dataset(folder).samples[-1].load_image()
    (folder / "labels" / "9001104.segmentation_masks.raw").write_bytes(b"short")
    with pytest.raises(DatasetError, match=r"9001104\.segmentation_masks\.mhd"):
        load_dataset(folder)
    kept = load_dataset(folder, broken="keep").samples
    assert [s.id for s in kept][:2] == ["9001104", "9003406:004#2"]  # a volume costs itself, not the evaluation
    with pytest.raises(DatasetError, match=r"9001104\.segmentation_masks\.mhd"):
        kept[0].load_mask()


def remove_a_mask(root):
    (root / "masks" / "case01.png").unlink()


def shrink_a_mask(root):
    cv2.imwrite(str(root / "masks" / "case01.png"), np.full((17, 40), 255, np.uint8))


def break_an_image(root):
    (root / "images" / "case01.png").write_bytes(b"not a picture")


def truncate_an_image(root):
    path = root / "images" / "case01.png"
    path.write_bytes(path.read_bytes()[:-500])


def empty_a_mask(root):
    cv2.imwrite(str(root / "masks" / "case01.png"), np.zeros((40, 17), np.uint8))


def many_values(root):
    cv2.imwrite(str(root / "masks" / "case01.png"), np.arange(680, dtype=np.uint16).reshape(40, 17).astype(np.uint8))


def double_name(root):
    cv2.imwrite(str(root / "images" / "case01.jpg"), np.zeros((40, 17, 3), np.uint8))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_mask, r"no mask for 1 of 2 images: case01\.png"),
        (shrink_a_mask, r"case01\.png is 17 x 40.*is 40 x 17"),
        (break_an_image, r"cannot read .*case01\.png"),
        (truncate_an_image, r"cannot decode .*case01\.png"),
        (empty_a_mask, r"case01\.png is empty"),
        (many_values, r"case01\.png holds 255 non-zero values"),
        (double_name, r"same name 'case01'"),
    ],
)
def test_bad_pairs_are_named(tmp_path, damage, message):
    write_pairs(tmp_path, [(21, 34), (40, 17)])
    damage(tmp_path)

    def load_all():
        for sample in load_dataset(tmp_path).samples:
            sample.load_image()
            sample.load_mask()

    with pytest.raises(DatasetError, match=message):
        load_all()


def test_a_split_is_named_with_its_data_set(tmp_path):
    write_pairs(tmp_path / "isic" / "val", [(9, 14)])
    assert load_dataset(tmp_path / "isic" / "val").name == "isic/val"


def test_bad_folders(tmp_path):
    with pytest.raises(DatasetError, match="not a folder"):
        load_dataset(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(DatasetError, match="holds the folders: train; expected images/ with masks/"):
        load_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match=r"no file in .*images ends in"):
        load_dataset(tmp_path)
    (tmp_path / "labels").mkdir()
    with pytest.raises(DatasetError, match="masks and labels"):
        load_dataset(tmp_path)
    with pytest.raises(DatasetError, match="unknown layout"):
        load_dataset(tmp_path, layout="coco")
    with pytest.raises(DatasetError, match="limit"):
        load_dataset(tmp_path, limit=0)


def test_options_that_would_have_no_effect_are_refused(tmp_path):
    """Nobody shall take all masks for those of one label, or one split for another."""
    write_pairs(tmp_path / "a", [(9, 14)])
    write_pairs(tmp_path / "b", [(9, 40)], kind="labels", objects=2)
    with pytest.raises(DatasetError, match=r"labels choose .* layout masks: leave them out"):
        load_dataset(tmp_path / "a", labels=[7])
    for data in ("a", "b"):
        with pytest.raises(DatasetError, match="split is for layout isic2017"):
            load_dataset(tmp_path / data, split="val")


@pytest.mark.parametrize(
    "options",
    [
        {"labels": ["1"]},
        {"labels": "12"},
        {"labels": 1},
        {"ignore_label": "1"},
        {"ignore_label": 1.5},
        {"limit": "3"},
        {"limit": 1.5},
        {"slices": 1.5},
    ],
    ids=repr,
)
def test_options_that_are_no_whole_numbers(tmp_path, options):
    write_pairs(tmp_path, [(9, 40)], kind="labels", objects=2)
    assert len(load_dataset(tmp_path, labels=np.array([1.0, 2]), limit=np.int64(5)).samples) == 2
    with pytest.raises(InvalidArgumentError, match=r"whole number|several label values"):
        load_dataset(tmp_path, **options)


@pytest.mark.parametrize("folder", ["x" * 300, "a\0b", None, 5])
def test_what_is_no_path(folder):
    with pytest.raises(DatasetError, match=r"not a folder|expected a path"):
        load_dataset(folder)


def test_label_maps_without_an_object(tmp_path):
    write_pairs(tmp_path, [(9, 40)], kind="labels", objects=2)
    with pytest.raises(DatasetError, match="no object"):
        load_dataset(tmp_path, labels=[7])


def test_a_scanner_s_padding_does_not_flatten_a_volume(volume_folder):
    sitk = pytest.importorskip("SimpleITK")
    folder, volumes, _ = volume_folder
    padded = volumes[0].copy()
    padded[:, :2] = -3024
    sitk.WriteImage(sitk.GetImageFromArray(padded), str(folder / "images" / "9001104.mhd"))
    low, high = np.percentile(padded[:, 2:], (0.5, 99.5))
    expected = np.rint(np.clip((padded[4].astype(float) - low) / (high - low), 0, 1) * 255)
    assert np.abs(load_dataset(folder).samples[0].load_image()[..., 0] - expected).max() <= 1
