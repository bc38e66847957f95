"""Checkpoints: what is written comes back, and nothing else is accepted."""

import json
import pickle
import struct
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from activefreq_engine.errors import ModelLoadError
from activefreq_engine.models import FreqFormer, FreqFormerConfig, load_checkpoint, read_metadata, save_checkpoint
from activefreq_engine.models.checkpoint import weights_digest


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt") as f:
        return {k: f.get_tensor(k).clone() for k in f.keys()}, f.metadata()  # noqa: SIM118


@pytest.fixture
def saved(model: FreqFormer, tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    save_checkpoint(model, path, {"licence": "Apache-2.0", "metrics": {"noc90": 4.5}})
    return path


def rewrite(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, str], *, sign: bool = True) -> None:
    """A file that is whole in itself: with a digest that fits, unless told otherwise."""
    if sign:
        header = {**header, "sha256": weights_digest(tensors)}
    save_file(tensors, path, header)


def refused(path: Path, *words: str) -> None:
    with pytest.raises(ModelLoadError) as e:
        load_checkpoint(path)
    message = str(e.value)
    assert str(path) in message
    assert all(w in message for w in words), message
    assert "\n" not in message


def test_round_trip_in_half_precision(model: FreqFormer, saved: Path) -> None:
    loaded = load_checkpoint(saved)
    assert loaded.config == model.config
    assert not loaded.training
    for k, v in model.state_dict().items():
        got = loaded.state_dict()[k]
        assert got.dtype == v.dtype
        assert torch.equal(got, v.half().to(v.dtype) if v.is_floating_point() else v), k
    stored, _ = parts(saved)
    assert all(v.dtype == torch.float16 for v in stored.values() if v.is_floating_point())
    image, clicks = torch.randn(1, 3, 32, 64), torch.zeros(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image, clicks), model(image, clicks), rtol=0, atol=0.05)


def test_round_trip_in_float32_is_exact(model: FreqFormer, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "m.safetensors", dtype=torch.float32)
    loaded = load_checkpoint(tmp_path / "m.safetensors")
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in model.state_dict().items())


def test_loading_takes_none_of_the_hosts_random_numbers(saved: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_checkpoint(saved)
    assert torch.equal(torch.rand(3), expected)


def test_metadata(model: FreqFormer, saved: Path) -> None:
    facts = read_metadata(saved)
    assert facts["metadata"] == {"licence": "Apache-2.0", "metrics": {"noc90": 4.5}}
    assert facts["architecture"] == "FreqFormer"
    assert FreqFormerConfig(**facts["config"]) == model.config
    assert facts["sha256"] == weights_digest(parts(saved)[0])


def test_digest_depends_on_names_types_shapes_and_values() -> None:
    a = {"x": torch.tensor([[1.0, 2.0]]), "y": torch.tensor(3)}
    digest = weights_digest(a)
    assert digest == weights_digest(dict(reversed(a.items())))
    for other in (
        {"x": a["x"].clone(), "z": a["y"]},
        {"x": a["x"].T, "y": a["y"]},
        {"x": a["x"], "y": torch.tensor(3, dtype=torch.int32)},
        {"x": torch.tensor([[1.0, 2.0000002]]), "y": a["y"]},
        {"x": a["x"]},
    ):
        assert weights_digest(other) != digest


def test_one_flipped_bit_is_noticed(saved: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[-100] ^= 1
    saved.write_bytes(data)
    refused(saved, "sha256", "damaged")


@pytest.mark.parametrize("keep", [0, 5, 100, -1], ids=["empty", "5-bytes", "header-cut", "last-byte-cut"])
def test_truncated_file(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(saved)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    refused(tmp_path / "no.safetensors", "no checkpoint")
    refused(tmp_path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_pickled_file_is_refused_and_not_run(tmp_path: Path, writer: str) -> None:
    path, trap = tmp_path / "m.pt", tmp_path / "ran"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trap)))
    else:
        torch.save({"model": Bomb(trap)}, path)
    refused(path, "pickle")
    with pytest.raises(ModelLoadError):
        read_metadata(path)
    assert not trap.exists()


def test_header_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    refused(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    refused(path, "format None", "activefreq-1")
    save_file({"x": torch.zeros(2)}, path, {"format": "pt"})
    refused(path, "'pt'")


@pytest.mark.parametrize(
    "change",
    [
        {"config": "{"},
        {"metadata": "["},
        {"config": "[" * 100_000},
        {"metadata": '{"a":' * 100_000},
        {"config": "1" * 5000},
        {"metadata": "1" * 5000},
        {"config": "5"},
        {"config": "null"},
        {"config": "[]"},
        {"config": json.dumps({"encoder": "mit_b0"})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "extra": 1})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "encoder": "resnet"})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "embed_dim": "8"})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "embed_dim": -8})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "embed_dim": 1e400})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "embed_dim": 1 << 40})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "axes": "both"})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "guide": "vit_h"})},
        {"config": json.dumps({**asdict(FreqFormerConfig()), "guide": 5})},
    ],
    ids=lambda c: "".join(ch if ch.isalnum() else "." for ch in str(c))[-40:],
)
def test_damaged_header(saved: Path, change: dict[str, str]) -> None:
    tensors, header = parts(saved)
    rewrite(saved, tensors, {**header, **change})
    refused(saved)


@pytest.mark.parametrize("key", ["config", "metadata", "sha256"])
def test_header_without_an_entry(saved: Path, key: str) -> None:
    tensors, header = parts(saved)
    del header[key]
    rewrite(saved, tensors, header, sign=False)
    refused(saved)
    with pytest.raises(ModelLoadError, match="damaged header"):
        read_metadata(saved)


def test_other_architecture(saved: Path) -> None:
    tensors, header = parts(saved)
    rewrite(saved, tensors, {**header, "architecture": "SegFormer"})
    refused(saved, "SegFormer", "FreqFormer")


def test_weights_that_do_not_fit(saved: Path) -> None:
    tensors, header = parts(saved)
    name = "decoder.head.bias"
    rewrite(saved, {k: v for k, v in tensors.items() if k != name}, header)
    refused(saved, f"missing {name}")
    rewrite(saved, {**tensors, "extra.weight": torch.zeros(1)}, header)
    refused(saved, "unexpected extra.weight")
    rewrite(saved, {**tensors, name: torch.zeros(2, dtype=torch.float16)}, header)
    refused(saved, name, "(2,)", "(1,)")
    rewrite(saved, {name: tensors[name]}, header)
    refused(saved, "more)")
    for dtype in (torch.float8_e4m3fn, torch.int64, torch.complex64, torch.bool):
        try:
            rewrite(saved, {**tensors, name: tensors[name].to(dtype)}, header)
        except KeyError:  # older versions of safetensors cannot write complex numbers
            assert dtype is torch.complex64
            continue
        refused(saved, f"{name} is {dtype}, expected floats of 16 to 64 bits")
    for value in (float("nan"), float("inf")):
        rewrite(saved, {**tensors, name: torch.full((1,), value, dtype=torch.float16)}, header)
        refused(saved, f"{name} is not finite")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("freq_depth", 10**6),
        ("refine_size", 10**7),
        ("refine_size", 192.5),
        ("click_radius", float("nan")),
        ("drop_path", "0.1"),
        ("ffn_ratio", True),
    ],
)
def test_numbers_that_no_weight_contradicts_are_bounded(saved: Path, name: str, value: object) -> None:
    """A million blocks would take an hour, and a crop of ten million pixels a side fails at the first click."""
    tensors, header = parts(saved)
    config = {**json.loads(header["config"]), name: value}
    rewrite(saved, tensors, {**header, "config": json.dumps(config)})
    refused(saved, name, "allowed")


def test_expected_configuration(model: FreqFormer, saved: Path) -> None:
    load_checkpoint(saved, expected=model.config)
    with pytest.raises(ModelLoadError, match="embed_dim: 8 in the file, 16 wanted"):
        load_checkpoint(saved, expected=replace(model.config, embed_dim=16))


def test_target_is_written_whole_or_not_at_all(model: FreqFormer, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in the middle of writing leaves the earlier file as it was, under its own name."""
    before = saved.read_bytes()

    def crash(state: object, path: Path, metadata: object) -> None:
        assert Path(path) != saved
        Path(path).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr("activefreq_engine.models.checkpoint.save_file", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, saved)
    assert saved.read_bytes() == before
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, saved.with_name("new.safetensors"))
    assert not saved.with_name("new.safetensors").exists()


def test_values_too_large_for_the_storage_type_are_refused(model: FreqFormer, tmp_path: Path) -> None:
    """Otherwise the file would be written and never load."""
    with torch.no_grad():
        model.decoder.head.bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"decoder\.head\.bias.*float32"):
        save_checkpoint(model, tmp_path / "m.safetensors")
    save_checkpoint(model, tmp_path / "m.safetensors", dtype=torch.float32)
    assert float(load_checkpoint(tmp_path / "m.safetensors").decoder.head.bias.detach()) == 1e6
