"""The fused ops of a click against their definitions in float64: odd sizes, W != H, poisoned outputs."""

import pytest
import torch
from activefreq_engine.kernels import (
    attention,
    click_embed,
    click_head,
    conv_ffn,
    norm_linear,
    patch_embed,
    point_ffn,
    reduce_kv,
)

OPS = {
    m.op.name: m.op
    for m in (attention, click_embed, click_head, conv_ffn, norm_linear, patch_embed, point_ffn, reduce_kv)
}


def half(*shape: int) -> dict:
    return {"shape": list(shape), "dtype": "float16"}


def full(*shape: int) -> dict:
    return {"shape": list(shape), "dtype": "float32"}


def levels(*shape: int) -> dict:
    return {"shape": list(shape), "dtype": "uint16"}


def head(b: int, h: int, w: int, e: int, keep: bool) -> list:
    maps = [half(b, h >> k, w >> k, e) for k in range(4)]
    return [*maps, full(e), full(1), levels(b, 4 * h, 4 * w), full(b), keep]


def clicks(b: int, h: int, w: int, c: int, before: dict) -> list:
    c1 = half(b, -(-h // 4), -(-w // 4), c)
    return [before, full(b, 48, 2), half(3, 64, c), half(c), half(c), half(c), c1, 1e-5, 5.0]


def ffn(b: int, h: int, w: int, c: int, k: int, splits: int, ended: bool) -> list:
    norm = [half(c), half(c)] if ended else [None, None]
    weights = [half(9, k), half(k), half(c, k), half(c)]
    return [half(b, h, w, k), half(b, h, w, c), *weights, *norm, 1e-5, *norm, 1e-6, splits]


def embed(b: int, h: int, w: int, i: int, c: int, splits: int, *, guided: bool = False) -> list:
    added = half(b, -(-h // 2), -(-w // 2), c) if guided else None
    return [half(b, h, w, i), half(c, 3, 3, i), half(c), half(c), half(c), added, 1e-5, 1e-6, splits]


def attend(b: int, h: int, w: int, c: int, heads: int, keys: int | None, splits: int) -> list:
    x = half(b, h, w, c)
    asked = [half(b, h, w, 3 * c), x, None, None, None]
    if keys is not None:
        asked = [x, x, half(b, keys, 2 * c), half(c, c), half(c)]
    return [*asked, half(c, c), half(c), heads, 1e-6, splits]


def linear(
    b: int, h: int, w: int, c: int, o: int, *, bias: bool, residual: bool, eps: float | None, gelu: bool
) -> list:
    return [half(b, h, w, c), half(o, c), half(o) if bias else None, half(b, h, w, o) if residual else None, eps, gelu]


CASES = [
    ("norm_linear", linear(2, 3, 7, 160, 72, bias=True, residual=True, eps=1e-6, gelu=False)),
    ("norm_linear", linear(1, 5, 4, 64, 48, bias=True, residual=False, eps=1e-5, gelu=True)),
    ("norm_linear", linear(1, 1, 3, 32, 200, bias=False, residual=False, eps=None, gelu=False)),
    ("reduce_kv", [half(2, 9, 14, 64), half(64, 4, 4, 64), half(64), half(128, 64), 1e-5, 4]),
    ("reduce_kv", [half(1, 11, 6, 160), half(160, 2, 2, 160), half(160), half(320, 160), 1e-5, 5]),
    ("reduce_kv", [half(1, 3, 4, 320), half(320, 2, 2, 320), half(320), half(640, 320), 1e-5, 5]),
    ("reduce_kv", [half(1, 4, 6, 32), half(32, 2, 2, 32), half(32), half(64, 32), 1e-6, 1]),
    ("attention", attend(2, 3, 7, 64, 2, 9, 1)),
    ("attention", attend(1, 5, 3, 160, 5, 37, 5)),
    ("attention", attend(2, 3, 5, 256, 8, None, 8)),
    ("attention", attend(1, 4, 5, 128, 2, 17, 2)),  # heads of 64 channels
    ("conv_ffn", ffn(2, 3, 7, 64, 256, 1, False)),
    ("conv_ffn", ffn(1, 5, 4, 160, 640, 5, True)),
    ("conv_ffn", ffn(1, 1, 5, 256, 1024, 16, True)),
    ("patch_embed", embed(2, 5, 7, 32, 64, 1)),
    ("patch_embed", embed(1, 7, 4, 64, 160, 5)),
    ("patch_embed", embed(1, 6, 9, 160, 256, 8)),
    ("patch_embed", embed(2, 3, 8, 32, 64, 1, guided=True)),
    ("patch_embed", embed(2, 5, 6, 64, 160, 5, guided=True)),
    ("point_ffn", [half(2, 3, 7, 64), half(128, 64), half(128), half(64, 128), half(64, 64), half(64), 1e-5, 1]),
    ("point_ffn", [half(1, 5, 3, 160), half(320, 160), half(320), half(64, 320), half(64, 160), half(64), 1e-5, 5]),
    ("click_embed", clicks(2, 32, 64, 32, levels(2, 32, 64))),
    ("click_embed", clicks(1, 37, 26, 64, full(1, 37, 26))),
    ("click_head", head(2, 8, 24, 64, True)),
    ("click_head", head(1, 24, 16, 32, False)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[f"{name}-{k}" for k, (name, _) in enumerate(CASES)])
def test_matches_float64(name, arguments, device):
    op = OPS[name]
    made = op.drawn(arguments, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in made]
    assert op.verify(*args) == (True, "")
    for part in op.compare(args):
        print(part)
        assert part.ok, part


@pytest.mark.parametrize("name", ["attention", "conv_ffn", "patch_embed", "reduce_kv", "point_ffn", "click_head"])
def test_runs_again_with_the_same_bits(name, device):
    """Counters are zero again after a launch, and the result does not depend on the order of programs."""
    op, arguments = OPS[name], [a for n, a in CASES if n == name][-1]
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in op.drawn(arguments, torch.Generator())]
    first, again = ([t.clone() for t in (*op("triton", *args), *written(args))] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def written(args):
    """Arguments that `click_head` fills."""
    return [a for a in args if isinstance(a, torch.Tensor) and (a.dtype == torch.uint16 or a.dim() == 1)]


def test_levels_are_written_where_nothing_is_kept(device):
    op, arguments = OPS["click_head"], head(1, 8, 16, 32, False)
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in op.drawn(arguments, torch.Generator())]
    exact = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
    args[7].fill_(float("nan"))
    assert [len(t) for t in op("triton", *args)] == [0, 0]
    op("reference", *exact)
    assert torch.allclose(args[7], exact[7], rtol=1e-3)
    assert (args[6].cpu().int() - exact[6].cpu().int()).abs().max() <= 2**7  # the reference adds maps up in fp16


@pytest.mark.parametrize("name", sorted(OPS))
def test_no_image(name, device):
    arguments = next(a for n, a in CASES if n == name)
    args = OPS[name].drawn(arguments, torch.Generator())
    maps = {"x", "xn", "kv", "h", "residual", "previous", "points", "c1", "p1", "p2", "p3", "p4", "levels", "total"}
    names = OPS[name].names
    args = [a[:0] if n in maps and a is not None else a for n, a in zip(names, args, strict=True)]
    args = [a.to(device) if isinstance(a, torch.Tensor) else a for a in args]
    assert all(len(t) == 0 for t in OPS[name]("triton", *args))
