"""Training samples made on the device, a batch at a time: one implementation for CPU and GPU.

What `train.data` does to one image with OpenCV in a loader process, this does to a batch with tensors: the same crops,
warps, colours and additions, with the same ranges of chance.  The packed images lie in the device's memory.  Nothing
here waits for the device, and the shapes depend on nothing that is drawn, so a CUDA graph can capture it.

Chance is a hash of seed and sample number, so a sample is the same on every device and in every batch, up to the last
bit of floating-point functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data import DISTANT, DISTRACTED, EDGES, FADED, FAINTEST, LEAST_SHOWN, hair_lines
from .packed import read_objects, read_packed

NORMALS = 1 << 20  # values of the table of noise
HAIRS = 64  # drawn pictures of hairs, each shown in eight orientations
SHRUNK = 1.2  # from so many image pixels to a crop pixel on the image is smoothed first

# streams of chance, one for each thing that is drawn
PICK, CROP, PARTNER, FADE, COLOUR, DISTRACT, SURROUND, CLICK, PROMPT = range(9)


def hashed(x: Tensor) -> Tensor:
    """A 64-bit finaliser (splitmix64, public domain): int64 in, int64 that looks like chance out."""
    x = (x ^ _shifted(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shifted(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right, by one bit or more."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def chance(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """`count` numbers in [0, 1) for each sample number `[B]`: float32 `[B, count]`, alike on every device."""
    start = (seed * 1_000_003 + stream + 2**63) % 2**64 - 2**63  # any seed, as a signed number of 64 bits
    key = hashed(index + hashed(torch.full_like(index, start)))
    step = torch.arange(1, count + 1, device=index.device) * -0x61C8864680B583EB
    return _shifted(hashed(key[:, None] + step), 40).float() / (1 << 24)


class Sampler:
    """The samples of a packed folder.

    Args:
        folder (path): what `train.data.pack` wrote.
        seed (int): of everything that is drawn.
        weights (sequence, optional): share of each source; by default those of the pack, else by number of images.
        device: where images and labels are kept and samples are made.
    """

    def __init__(self, folder: Path, seed: int, weights: tuple[float, ...] | None, device: torch.device) -> None:
        packed = read_packed(folder)
        entries = packed.entries
        self.seed, self.device = seed, device
        self.images = torch.from_numpy(packed.images).view(-1, 3).to(device)
        # 16 bits are only compared here, so their sign does not matter
        self.labels = torch.from_numpy(packed.labels.view(np.int16)).to(device)
        objects = read_objects(folder, entries, EDGES)
        self.values = torch.from_numpy(objects["values"].view(np.int16)).to(device)
        self.box = torch.from_numpy(objects["box"]).float().to(device)
        self.edges = torch.from_numpy(objects["edges"]).float().to(device)
        # places in the pack in 32 bits where they fit: on a GPU this arithmetic is much of the work
        place = torch.int32 if len(self.images) < 2**31 else torch.int64
        self.offset = torch.tensor([e["offset"] for e in entries], dtype=place, device=device)
        self.size = torch.tensor([(e["w"], e["h"]) for e in entries], dtype=torch.float32, device=device)
        source = np.array([e["source"] for e in entries])
        shares = weights or packed.weights
        share = np.ones(len(entries)) if shares is None else np.asarray(shares, float)[source]
        share = share if shares is None else share / np.bincount(source)[source]
        self.upto = torch.from_numpy(np.cumsum(share / share.sum())).float().to(device)
        # runs of objects of an entry, and of entries of a source: (first, number)
        self.own = _runs(objects["entry"], len(entries)).to(device)
        self.alike = _runs(source, int(source.max()) + 1)[torch.from_numpy(source)].to(device)
        self.normals = torch.randn(NORMALS, generator=torch.Generator().manual_seed(0)).to(device)
        self.hairs: dict[int, Tensor] = {}

    def __call__(self, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Sample numbers int64 `[B]` -> image uint8 `[B, 3, S, S]` RGB, label int8 `[B, 1, S, S]`: 0, 1, or -1 beyond
        the image."""
        u = chance(self.seed, PICK, index, 4)
        entry = torch.searchsorted(self.upto, u[:, 0].contiguous()).clamp(max=len(self.upto) - 1)
        distracted, distant = u[:, 1] < DISTRACTED, u[:, 2] < DISTANT
        image, label = self.crop(index, entry, size, CROP)
        first, number = self.alike[entry].unbind(1)
        partner = first + (u[:, 3] * number).long()
        other, other_label = torch.zeros_like(image), torch.zeros_like(label)
        needed = distracted | distant

        def made(index: Tensor, other: Tensor, label: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
            return self.crop(index, partner.flatten(), size, PARTNER)

        share = 1 - (1 - DISTRACTED) * (1 - DISTANT)
        other, other_label = only(needed, made, index, other, other_label, partner.view(-1, 1, 1, 1), share=share)[:2]
        (image,) = only(distracted, self.distract, index, image, label, other, other_label, share=DISTRACTED)[:1]
        image, label = only(distant, self.surround, index, image, label, other, share=DISTANT)[:2]
        return image.add(0.5).clamp(0, 255).to(torch.uint8), label

    def crop(self, index: Tensor, entry: Tensor, size: int, stream: int) -> tuple[Tensor, Tensor]:
        """A random crop of entries `[B]`, of one of the objects of each; see `data.random_crop`.

        Returns float32 image `[B, 3, S, S]` in 0..255 and label int8 `[B, 1, S, S]`.
        """
        u = chance(self.seed, stream, index, 16)
        first, number = self.own[entry].unbind(1)
        picked = first + (u[:, 0] * number).long()
        affine, zoom = self.placed(entry, picked, size, u)
        x, y = _coordinates(affine, size)
        image, member = self.read(entry, picked, x, y)
        w, h = self.size[entry].unbind(1)
        inside = (x >= -0.5) & (x < w.view(-1, 1, 1) - 0.5) & (y >= -0.5) & (y < h.view(-1, 1, 1) - 0.5)
        label = (member > 127 / 255).to(torch.int8).masked_fill(~inside, -1)[:, None]

        def smoothed(index: Tensor, image: Tensor, place: Tensor, entry: Tensor) -> tuple[Tensor]:
            entry = entry.flatten()
            affine = place.flatten(1)[:, :6].view(-1, 2, 3)
            apart = ((place.flatten(1)[:, 6].square() - 1).clamp(min=0) / 6).sqrt().view(-1, 1, 1)
            x, y = _coordinates(affine, size)
            parts = [self.read(entry, None, x + i * apart, y + j * apart)[0] for i in (-1, 1) for j in (-1, 1)]
            return (torch.stack(parts).mean(0),)

        place = torch.cat([affine.flatten(1), zoom[:, None]], 1)[:, :, None, None]
        image = only(zoom > SHRUNK, smoothed, index, image, place, entry.view(-1, 1, 1, 1))[0]
        image = only(u[:, 15] < FADED, self.fade, index + stream, image, label, share=FADED)[0]
        return self.photometric(index + (stream << 40), image), label

    def placed(self, entry: Tensor, picked: Tensor, size: int, u: Tensor) -> tuple[Tensor, Tensor]:
        """Where crops lie, `[B, 2, 3]`: crop pixel (u, v, 1) -> packed pixel (x, y); their scale `[B]`."""
        w, h = self.size[entry].unbind(1)
        x0, y0, x1, y1 = self.box[picked].unbind(1)
        longer = torch.maximum(w, h)
        box = torch.maximum(x1 - x0, y1 - y0).clamp(min=16)
        edge = self.edges[picked, (u[:, 1] * EDGES).long()] + 0.5
        whole, around = u[:, 2] < 0.40, u[:, 2] < 0.85
        side = torch.where(
            whole,
            longer * between(u[:, 3], 0.85, 1.1),
            box * torch.where(around, between(u[:, 3], 1.1, 2.0), between(u[:, 3], 0.4, 0.9)),
        )
        jitter = torch.where(whole, 0.06 * side, torch.where(around, 0.15 * box, 0.2 * side))
        cx = torch.where(whole, w / 2, torch.where(around, (x0 + x1) / 2, edge[:, 0]))
        cy = torch.where(whole, h / 2, torch.where(around, (y0 + y1) / 2, edge[:, 1]))
        side = torch.minimum(side.clamp(min=24), 1.1 * longer)
        cx = _kept_inside(cx + jitter * between(u[:, 4], -1, 1), 0.45 * side, w)
        cy = _kept_inside(cy + jitter * between(u[:, 5], -1, 1), 0.45 * side, h)
        angle = torch.where(u[:, 6] < 0.6, u[:, 7] * 2 * math.pi, (u[:, 7] * 4).floor() * (math.pi / 2))
        stretch = between(u[:, 8], -0.2, 0.2).exp()
        zoom = side / size
        flip = torch.where(u[:, 9] < 0.5, -1.0, 1.0)
        c, s = angle.cos() * zoom, angle.sin() * zoom
        matrix = torch.stack([c * stretch * flip, -s / stretch, s * stretch * flip, c / stretch], 1).view(-1, 2, 2)
        centre = torch.stack([cx, cy], 1) - 0.5 - matrix.sum(2) * (size - 1) / 2
        return torch.cat([matrix, centre[:, :, None]], 2), zoom

    def read(self, entry: Tensor, picked: Tensor | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Bilinear samples of packed images at `[B, S, S]` places, mirrored beyond the border.

        Returns float32 `[B, 3, S, S]` and how far each place lies in the object `picked`, 0..1 `[B, S, S]` (zeros
        without one).
        """
        w, h = (side.to(self.offset.dtype).view(-1, 1, 1) for side in self.size[entry].unbind(1))
        x, y = _mirrored(x, w), _mirrored(y, h)
        x0, y0 = x.to(self.offset.dtype), y.to(self.offset.dtype)
        right, down = (x - x0), (y - y0)
        base = self.offset[entry].view(-1, 1, 1)
        image = torch.zeros(*x.shape, 3, device=self.device)
        member = torch.zeros_like(x)
        for i, across in ((0, 1 - right), (1, right)):
            for j, along in ((0, 1 - down), (1, down)):
                at = (base + (y0 + j).minimum(h - 1) * w + (x0 + i).minimum(w - 1)).flatten()
                weight = across * along
                image += weight[..., None] * self.images.index_select(0, at).view(image.shape)
                if picked is not None:
                    found = self.labels.index_select(0, at).view(len(entry), -1)
                    values = self.values[picked]
                    held = found == values[:, :1]
                    for k in range(1, values.shape[1]):
                        held |= found == values[:, k : k + 1]
                    member += weight * held.view(x.shape)
        return image.permute(0, 3, 1, 2).contiguous(), member

    def noise(self, index: Tensor, channels: int, size: int) -> Tensor:
        """Standard normal noise `[B, channels, S, S]` from the table, at a place and a stride that chance gives."""
        start, step = (hashed(index + k) for k in (11, 12))
        pixels = torch.arange(channels * size * size, device=self.device)
        at = (start[:, None] + pixels * (2 * step[:, None] + 1)) & (NORMALS - 1)
        return self.normals[at].view(-1, channels, size, size)

    def photometric(self, index: Tensor, image: Tensor) -> Tensor:
        """See `data.photometric`."""
        u = chance(self.seed, COLOUR, index, 24)
        size = image.shape[3]
        gain = between(u[:, 0], -0.25, 0.25)[:, None] + between(u[:, 1:4], -0.15, 0.15)
        gamma, offset = between(u[:, 4], -0.4, 0.4).exp(), between(u[:, 5], -0.1, 0.1)
        ramp = (image / 255).clamp(0, 1) ** gamma.view(-1, 1, 1, 1)
        image = (255 * (ramp * gain.exp()[:, :, None, None] + offset.view(-1, 1, 1, 1))).clamp(0, 255)
        grey = 0.299 * image[:, :1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:]
        keep = torch.where(u[:, 7] < 0.85, between(u[:, 8], 0.4, 1.6), torch.zeros_like(u[:, 8]))
        keep = torch.where(u[:, 6] < 0.5, keep, torch.ones_like(keep)).view(-1, 1, 1, 1)
        image = (grey + keep * (image - grey)).clamp(0, 255)
        image = only(u[:, 9] < 0.15, self.with_hairs, index, image, share=0.15)[0]
        image = only(u[:, 10] < 0.1, self.vignette, index, image, share=0.1)[0]

        def blurred(index: Tensor, image: Tensor, sigma: Tensor) -> tuple[Tensor]:
            return (blur(image, sigma.flatten(), 5),)

        def noisy(index: Tensor, image: Tensor, deviation: Tensor) -> tuple[Tensor]:
            return ((image + deviation * self.noise(index, 3, size)).clamp(0, 255),)

        sigma, deviation = (v.view(-1, 1, 1, 1) for v in (between(u[:, 12], 0.5, 1.5), between(u[:, 14], 2, 10)))
        image = only(u[:, 11] < 0.15, blurred, index, image, sigma, share=0.15)[0]
        return only(u[:, 13] < 0.15, noisy, index, image, deviation, share=0.15)[0]

    def with_hairs(self, index: Tensor, image: Tensor) -> tuple[Tensor]:
        """See `data.hairs`.  The hairs come from a stock of pictures, mirrored and turned."""
        size = image.shape[3]
        if size not in self.hairs:
            self.hairs[size] = _hair_pictures(size).to(self.device)
        drawn = hashed(index + 13)
        stock = self.hairs[size][_shifted(drawn, 8) % HAIRS].float()
        for bit, turned in ((0, lambda t: t.flip(2)), (1, lambda t: t.flip(3)), (2, lambda t: t.transpose(2, 3))):
            stock = torch.where((drawn >> bit & 1).bool().view(-1, 1, 1, 1), turned(stock), stock)
        return (image * (1 - stock[:, 3:] / 255) + stock[:, :3],)

    def vignette(self, index: Tensor, image: Tensor) -> tuple[Tensor]:
        """See `data.vignette`."""
        u = chance(self.seed, COLOUR, index + 14, 8)
        size = image.shape[3]
        x, y = _grid(size, self.device)
        cx, cy, reach = (
            (v * size).view(-1, 1, 1) for v in (*between(u[:, :2].T, 0.35, 0.65), between(u[:, 2], 0.5, 0.65))
        )
        beyond = torch.hypot(x - cx, y - cy) - reach
        light = torch.sigmoid(-beyond / (between(u[:, 3], 0.005, 0.08) * size).view(-1, 1, 1))
        dark = between(u[:, 4], 0, 0.35).view(-1, 1, 1)
        return (image * (dark + (1 - dark) * light)[:, None],)

    def fade(self, index: Tensor, image: Tensor, label: Tensor) -> tuple[Tensor]:
        """See `data.fade`."""
        u = chance(self.seed, FADE, index, 2)
        size = image.shape[3]
        inside = (label == 1).float()
        around = (widened(inside, size // 12) - inside).masked_fill(label < 0, 0)
        outer, inner = around.sum((2, 3)), inside.sum((2, 3))
        colour = (image * around).sum((2, 3)) / outer.clamp(min=1)
        contrast = ((image * inside).sum((2, 3)) / inner.clamp(min=1) - colour).norm(dim=1)
        share = torch.minimum(between(u[:, 0], 0.3, 0.8), 1 - FAINTEST / contrast.clamp(min=1)).clamp(min=0)
        share = share * ((outer >= 1) & (inner >= 1))[:, 0]
        weight = share.view(-1, 1, 1, 1) * blur(inside, between(u[:, 1], 0.005, 0.03) * size, math.ceil(0.09 * size))
        return (image + weight * (colour[:, :, None, None] - image),)

    def distract(
        self, index: Tensor, image: Tensor, label: Tensor, other: Tensor, other_label: Tensor
    ) -> tuple[Tensor]:
        """See `data.distract`."""
        size, tries = image.shape[3], 6
        u = chance(self.seed, DISTRACT, index, 8 + 8 * tries)
        x, y = _grid(size, self.device)
        drawn = u[:, 0].view(-1, 1, 1)
        copied, ring = drawn < 0.5, drawn >= 0.8
        gap = (between(u[:, 1], 0.02, 0.06) * size).floor()  # to each side
        taken = boxed((label == 1).float(), gap, math.ceil(0.06 * size))[:, 0] > 0
        theirs = (other_label[:, 0] == 1).flatten(1)
        shape = torch.zeros_like(taken)
        across, down = torch.zeros_like(drawn + x), torch.zeros_like(drawn + x)
        for k in range(tries):
            v = u[:, 8 + 8 * k : 16 + 8 * k, None, None].unbind(1)
            scale = between(v[0], 0.3, 0.9)
            sx, sy = ((between(r, -0.2, 1.2) - scale / 2) * size for r in v[1:3])
            px, py = (x - sx) / scale, (y - sy) / scale
            ix, iy = px.round().long(), py.round().long()
            held = (ix >= 0) & (ix < size) & (iy >= 0) & (iy < size)
            at = (iy.clamp(0, size - 1) * size + ix.clamp(0, size - 1)).flatten(1)
            pasted = held & theirs.gather(1, at).view(held.shape)
            dx, dy = (centre - (between(r, -0.3, 1.3) * size).floor() for centre, r in zip((x, y), v[1:3], strict=True))
            a, b = ((between(r, 0.05, 0.6) * size).floor().clamp(min=1) for r in v[3:5])
            turn = v[5] * math.pi
            p, q = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
            level = (p / a).square() + (q / b).square() - 1
            slope = 2 * torch.hypot(p / a.square(), q / b.square()).clamp(min=1e-6)
            width = (between(v[6], 0.01, 0.04) * size).floor() + 1
            round_ = torch.where(ring, level.abs() / slope <= width / 2, level <= 0)
            new = torch.where(copied, pasted, round_)
            fits = new.flatten(1).any(1) & ~(new & taken).flatten(1).any(1) & ~shape.flatten(1).any(1)
            fits = fits.view(-1, 1, 1)
            shape, across, down = (
                torch.where(fits, new, shape),
                torch.where(fits, px, across),
                torch.where(fits, py, down),
            )
        content = torch.where(
            copied[:, None],
            looked_up(other, across, down),
            (
                255 * u[:, 2:5, None, None] + between(u[:, 5], 1, 15).view(-1, 1, 1, 1) * self.noise(index, 3, size)
            ).clamp(0, 255),
        )
        alpha = blur(shape[:, None].float(), between(u[:, 6], 0.4, 2.0), 6) * ~taken[:, None]
        alpha = alpha * torch.where(copied[:, None], 1.0, between(u[:, 7], 0.5, 1.0).view(-1, 1, 1, 1))
        return (image + alpha * (content - image),)

    def surround(self, index: Tensor, image: Tensor, label: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """See `data.surround`."""
        u = chance(self.seed, SURROUND, index, 16)
        size = image.shape[3]
        held = label[:, 0] == 1
        most = (held.sum((1, 2)) / LEAST_SHOWN).sqrt()
        rim, rim_label = _rim(image), _rim(label)
        able = (most > 1.3) & ~(rim_label == 1).flatten(1).any(1)
        times = between(u[:, 0], math.log(1.3), most.clamp(1.3, 8.0).log()).exp()
        side = (size / times).round()
        left, top = ((r * (size - side + 1)).floor().view(-1, 1, 1) for r in (u[:, 1], u[:, 2]))
        side = side.view(-1, 1, 1)
        x, y = _grid(size, self.device)
        inside = (x >= left) & (x < left + side) & (y >= top) & (y < top + side)
        # an even box filter over `times` pixels, as OpenCV's area interpolation, but for what bilinear samples blur
        smooth = blur(image, ((times.square() - 1) / 12).sqrt(), 8)
        near_x, near_y = (
            (_mirrored(p - start, side.long()) + 0.5) * size / side - 0.5 for p, start in ((x, left), (y, top))
        )
        small = looked_up(smooth, near_x, near_y)
        ix, iy = (
            (((p - start) + 0.5) * size / side).floor().long().clamp(0, size - 1) for p, start in ((x, left), (y, top))
        )
        small_label = label.flatten(1).gather(1, (iy * size + ix).flatten(1)).view(label.shape)
        out_label = torch.where(inside[:, None], small_label, torch.zeros_like(label))
        colour = _median(rim, rim_label == 0)
        drawn = u[:, 3].view(-1, 1, 1, 1)
        field = self.field(index, between(u[:, 4], 2, 33).floor(), size)
        grain = between(u[:, 6], 0.5, 6).view(-1, 1, 1, 1) * self.noise(index, 1, size)
        backdrop = colour + between(u[:, 5], 1, 15).view(-1, 1, 1, 1) * field + grain
        every = other[:, :, ::4, ::4].flatten(2)
        shift = torch.where(drawn < 0.8, colour - _median(every, every[:, :1] >= 0), torch.zeros_like(colour))
        backdrop = torch.where(drawn < 0.6, backdrop, other + shift)
        # a seam as wide as may be, but never across the object: a rectangle with its rim smoothed
        soft = torch.where(u[:, 7] < 0.7, between(u[:, 8], 0.3, 0.08 * side.flatten()), torch.full_like(u[:, 8], 0.3))
        soft = soft.view(-1, 1, 1)
        inset = (2 * soft).floor()
        alpha = _step(x, left + inset, left + side - inset, soft) * _step(y, top + inset, top + side - inset, soft)
        alpha = torch.maximum(alpha, widened((out_label == 1).float(), 2)[:, 0]) * inside
        blended = backdrop + alpha[:, None] * (small - backdrop)
        made = torch.where(drawn < 0.25, small, blended).clamp(0, 255)
        able = able.view(-1, 1, 1, 1)
        return torch.where(able, made, image), torch.where(able, out_label, label)

    def field(self, index: Tensor, cells: Tensor, size: int) -> Tensor:
        """Smooth random shades `[B, 3, S, S]`: noise on a grid of so many cells a side, mostly alike in all colours."""
        x, y = _grid(size, self.device)
        scale = cells.view(-1, 1, 1) / size
        px, py = x * scale, y * scale
        ix, iy = px.long(), py.long()
        fx, fy = ((3 - 2 * f) * f * f for f in (px - ix, py - iy))
        start = hashed(index + 15).view(-1, 1, 1)
        shade: Tensor | float = 0.0
        for i, across in ((0, 1 - fx), (1, fx)):
            for j, along in ((0, 1 - fy), (1, fy)):
                at = start + ((iy + j) * 64 + ix + i) * 4
                values = torch.stack([self.normals[(at + k) & (NORMALS - 1)] for k in range(4)], 1)
                shade = shade + (across * along)[:, None] * (values[:, :1] + 0.3 * values[:, 1:])
        assert isinstance(shade, Tensor)
        return shade


def only(
    chosen: Tensor, change: Callable[..., tuple[Tensor, ...]], index: Tensor, *maps: Tensor, share: float = 1.0
) -> tuple[Tensor, ...]:
    """`maps` with the first of them changed where `chosen` `[B]`.

    `change(index, *maps)` works on each sample alone and returns new first maps.  A CPU runs it on the chosen samples.
    A GPU would have to wait to know how many they are, so it runs on as many as there may be: see `most`.

    Args:
        chosen (Tensor): bool `[B]`, true with a chance of `share` each.
        change: see above.
        index (Tensor): sample numbers, int64 `[B]`.
        maps: `[B, ...]`.
        share (float): how many samples are chosen; 1 where that is not known.
    """
    if may_wait(index):
        rows = chosen.nonzero()[:, 0]
        if not len(rows):
            return maps
        made = change(index[rows], *(m[rows] for m in maps))
        return (*(m.index_copy(0, rows, a) for a, m in zip(made, maps, strict=False)), *maps[len(made) :])
    count = most(len(index), share)
    if count == len(index):
        made = change(index, *maps)
        where = chosen.view(-1, 1, 1, 1)
        return (*(torch.where(where, a, b) for a, b in zip(made, maps, strict=False)), *maps[len(made) :])
    rows = chosen.to(torch.uint8).argsort(descending=True, stable=True)[:count]
    where, held = chosen[rows].view(-1, 1, 1, 1), [m[rows] for m in maps]
    made = change(index[rows], *held)
    changed = [torch.where(where, a, b) for a, b in zip(made, held, strict=False)]
    return (*(m.index_copy(0, rows, a) for a, m in zip(changed, maps, strict=False)), *maps[len(made) :])


def most(batch: int, share: float) -> int:
    """So many of a batch are chosen at most, each with a chance of `share`: five standard deviations above the mean.

    A few times in a million there are more, and those stay as they are.
    """
    return min(batch, math.ceil(batch * share + 5 * math.sqrt(batch * share * (1 - share))))


def may_wait(tensor: Tensor) -> bool:
    """Whether the host may look at values: on a GPU it would wait for them."""
    return not tensor.is_cuda


def between(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Chance in [0, 1) spread over low..high."""
    return low + u * (high - low)


def blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur `[B, C, H, W]` with a deviation for each sample, in pixels; the kernel ends at `radius`."""
    reach = torch.arange(-radius, radius + 1, device=image.device)
    kernel = torch.exp(-0.5 * (reach / sigma.clamp(min=1e-3)[:, None]).square())
    return _separable(image, kernel / kernel.sum(1, keepdim=True), "reflect")


def boxed(mask: Tensor, reach: Tensor, radius: int) -> Tensor:
    """Above 0 where a square of `reach` pixels to each side, a number for each sample, touches the mask."""
    offsets = torch.arange(-radius, radius + 1, device=mask.device)
    return _separable(mask, (offsets.abs() <= reach[:, None]).float(), "constant")


def widened(mask: Tensor, reach: int) -> Tensor:
    """The mask `[B, 1, H, W]` with a square of `reach` pixels to each side around each of its pixels."""
    wide = F.max_pool2d(mask, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(wide, (2 * reach + 1, 1), stride=1, padding=(reach, 0))


def _separable(image: Tensor, kernel: Tensor, padding: str) -> Tensor:
    """Each sample with its own kernel `[B, 2R + 1]`, along both axes."""
    b, c, h, w = image.shape
    radius = kernel.shape[1] // 2
    kernel = kernel.repeat_interleave(c, 0)
    flat = image.reshape(1, b * c, h, w)
    flat = F.conv2d(F.pad(flat, (radius, radius, 0, 0), padding), kernel[:, None, None, :], groups=b * c)
    flat = F.conv2d(F.pad(flat, (0, 0, radius, radius), padding), kernel[:, None, :, None], groups=b * c)
    return flat.view(b, c, h, w)


def looked_up(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear samples of `[B, C, S, S]` at `[B, S, S]` pixels, mirrored beyond the border."""
    grid = torch.stack([x, y], 3) * (2 / (image.shape[3] - 1)) - 1
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=True)


def _grid(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and y of the pixels of a square, `[S, S]` float32."""
    line = torch.arange(size, device=device, dtype=torch.float32)
    return line[None, :].expand(size, size), line[:, None].expand(size, size)


def _coordinates(affine: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where the pixels of crops lie, x and y, each `[B, S, S]`."""
    u, v = _grid(size, affine.device)
    rows = affine[:, :, :, None, None]
    return tuple(rows[:, k, 0] * u + rows[:, k, 1] * v + rows[:, k, 2] for k in range(2))  # type: ignore[return-value]


def _mirrored(x: Tensor, length: Tensor) -> Tensor:
    """Places beyond 0..length - 1 mirrored back about the outermost pixels' centres."""
    last = (length - 1).clamp(min=1)
    x = torch.remainder(x, 2 * last)
    return torch.minimum(torch.minimum(x, 2 * last - x), (length - 1).to(x.dtype))


def _kept_inside(centre: Tensor, margin: Tensor, length: Tensor) -> Tensor:
    """See `data.keep_inside`."""
    return torch.where(2 * margin < length, centre.clamp(margin, length - margin), length / 2)


def _step(x: Tensor, start: Tensor, end: Tensor, deviation: Tensor) -> Tensor:
    """1 between start and end (pixels, half-open), smoothed by a Gaussian."""
    scale = deviation * math.sqrt(2)
    return 0.5 * (torch.erf((x + 0.5 - start) / scale) - torch.erf((x + 0.5 - end) / scale))


def _rim(image: Tensor) -> Tensor:
    """The two outermost pixels on all sides, `[B, C, N]`."""
    sides = image[:, :, :2], image[:, :, -2:], image[:, :, 2:-2, :2], image[:, :, 2:-2, -2:]
    return torch.cat([side.flatten(2) for side in sides], 2)


def _median(pixels: Tensor, counted: Tensor) -> Tensor:
    """Median `[B, 3, 1, 1]` of the `counted` `[B, 1, N]` of pixels `[B, 3, N]`; of all where none is."""
    counted = counted | ~counted.any(2, keepdim=True)
    values, _ = pixels.masked_fill(~counted, math.inf).sort(dim=2)
    middle = (counted.sum(2, keepdim=True) - 1).div(2, rounding_mode="floor").expand(*values.shape[:2], 1)
    return values.gather(2, middle)[..., None]


def _runs(owner: np.ndarray, count: int) -> Tensor:
    """First and number of the rows of each owner, `[count, 2]`; `owner` is sorted."""
    number = np.bincount(owner, minlength=count)
    return torch.from_numpy(np.stack([np.cumsum(number) - number, number], 1))


def _hair_pictures(size: int) -> Tensor:
    """uint8 `[HAIRS, 4, S, S]`: hairs in their colours on black, and how much of each pixel they cover."""
    rng = np.random.default_rng(0)
    pictures = np.zeros((HAIRS, 4, size, size), np.uint8)
    for picture in pictures:
        colours, cover = np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.uint8)
        for points, colour, thickness in hair_lines(size, rng):
            cv2.polylines(colours, [points], False, colour, thickness, cv2.LINE_AA)
            cv2.polylines(cover, [points], False, 255, thickness, cv2.LINE_AA)
        picture[:3], picture[3] = colours.transpose(2, 0, 1), cover
    return torch.from_numpy(pictures)
