"""Bugs planted in the CUDA sources: the comparison on the host must catch every one, and pass without any.

Many of them, dropped barriers and lost updates, are invisible when threads run one after the other.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import cuda_on_host

ROOT = Path(__file__).parents[2]
SYNC = "    __syncthreads();\n"

# name: (text that occurs once in the sources, what it becomes)
BUGS = {
    "unite: no second try": ("if (old == b) return;\n        b = old;", "(void)old;\n        return;"),
    "unite: plain store": (
        "const int old = atomicMin(parent + b, a);",
        "const int old = fresh(parent + b); RACE_POINT(); if (a < old) parent[b] = a;",
    ),
    "unite: towards the larger index": ("if (a > b) {", "if (a < b) {"),
    "find_root: one step only": ("while (p != i) {\n        i = p;", "if (p != i) {\n        i = p;"),
    "label_tiles: no barrier after loading": (
        f"{SYNC}\n    // A run of pixels in a row is one tree",
        "\n    // A run of pixels in a row is one tree",
    ),
    "label_tiles: no barrier before the unions": (f"{SYNC}\n    // Unions that", "\n    // Unions that"),
    "label_tiles: no barrier after the unions": (f"{SYNC}\n    if (!inside) return;", "\n    if (!inside) return;"),
    "label_tiles: a union too few": ("if (!(left && upleft)) unite(tree, t, up);", "if (!upleft) unite(tree, t, up);"),
    "label_tiles: sums not zeroed": ("sums[image * SUMS * capacity + k] = 0;", ";"),
    "label_tiles: extents of the first image only": ("extents[image * EXTENTS * capacity + k] = 0;", "extents[k] = 0;"),
    "join_tiles: circular reasoning where four tiles meet": ("|| y % TILE_H == 0)", ")"),
    "join_tiles: no upper right diagonal": (
        "if (is_on(parent, x + 1, y - 1, H, W) && !is_on(parent, x + 1, y, H, W)) unite(parent, i, up + 1);",
        "",
    ),
    "join_tiles: no lower left diagonal": (
        "if (is_on(parent, x - 1, y + 1, H, W) && !is_on(parent, x, y + 1, H, W)) unite(parent, i, i + W - 1);",
        "",
    ),
    "join_tiles: diagonals over seams whatever the connectivity": (
        "} else if (diagonal) {\n            if (upleft && !left) unite(parent, i, up - 1);",
        "} else {\n            if (upleft && !left) unite(parent, i, up - 1);",
    ),
    "count_roots: lost updates": ("atomicAdd(roots, 1);", "{ const int n = *roots; RACE_POINT(); *roots = n + 1; }"),
    "number_roots: earlier chunks forgotten": ("if (sum) atomicAdd(before, sum);", "(void)sum;"),
    "number_roots: earlier words forgotten": ("for (int k = 0; k < t / 32; ++k)", "for (int k = 1; k < t / 32; ++k)"),
    "number_roots: no barrier before the flags are read": (f"1u << t % 32);\n{SYNC}", "1u << t % 32);\n"),
    "measure_regions: runs go on in the next row": ("if (h >= 0 && (tx == 0 || home", "if (h >= 0 && (t == 0 || home"),
    "measure_regions: later of equal peaks": ("if (closeness[k] > best) {", "if (closeness[k] >= best) {"),
    "measure_regions: certainty counts as doubt": (
        "const float m = v <= 0.5f ? v : 1.0f - v; ",
        "const float m = v <= 0.5f ? 0.5f - v : v - 0.5f; ",
    ),
    "measure_regions: lost updates in the tile": (
        "atomicAdd(area + h, (u32)length);",
        "{ const u32 n = area[h]; RACE_POINT(); area[h] = n + length; }",
    ),
    "measure_regions: lost maxima of the image": (
        "atomicMax(sums + (size_t)PEAK * capacity + slot, peak[t]);",
        "{ u64* s = sums + PEAK * capacity + slot; const u64 o = *s; RACE_POINT(); if (o < peak[t]) *s = peak[t]; }",
    ),
    "measure_regions: no barrier before the sums are read": (f"{SYNC}\n    if (area[t]) {{", "\n    if (area[t]) {"),
    "measure_regions: rows beyond the capacity": ("if (slot < capacity) {", "if (slot <= capacity) {"),
    "measure_regions: tile's corner forgotten": ("count * x0 + sum_x[t]", "(u64)sum_x[t]"),
    "finish_regions: box closed on the right": (
        "bbox[4 * row + 2] = extents[(size_t)RIGHT * capacity];",
        "bbox[4 * row + 2] = used ? extents[(size_t)RIGHT * capacity] - 1 : 0;",
    ),
    "column_distances: no barrier": (f"last[t] = high;\n{SYNC}", "last[t] = high;\n"),
    "column_distances: upwards only": ("if (down < gaps[(size_t)y * W]) gaps[(size_t)y * W] = down;", "(void)down;"),
    "column_distances: neighbouring segment only": (
        "for (int k = t - COLUMNS; k >= 0 && start < 0; k -= COLUMNS) start = last[k];",
        "if (t >= COLUMNS) start = last[t - COLUMNS];",
    ),
    "row_distances: search ends early": ("k * k < d; ++k) {", "k * k + 2 * k < d; ++k) {"),
    "row_distances: the border to the left is none": ("|| label[a] != own ||", "||"),
    "row_distances: plateaus are no maxima": ("found[x + 1] > d) continue;", "found[x + 1] >= d) continue;"),
    "row_distances: last of equal maxima": (
        "(u64)d << 32 | (0xffffffffu - (u32)(y * W + x)));", "(u64)d << 32 | (u32)(y * W + x));"
    ),
    "row_distances: lost maxima": (
        "atomicMax(best + image * capacity + own - 1, ",
        "[](u64* p, u64 v) { const u64 o = *p; RACE_POINT(); if (o < v) *p = v; }(best + image * capacity + own - 1, ",
    ),
    "row_distances: no barrier after loading": (
        f"gap[x] = gaps[row + x];\n    }}\n{SYNC}",
        "gap[x] = gaps[row + x];\n    }\n",
    ),
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda_on_host.GPP is None, reason="g++ is not installed"),
]


def exercise(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.cuda_on_host.exercise", "--batches", "24", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )


def test_the_sources_as_they_are():
    done = exercise()
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not cuda_on_host.sanitizers(), reason="the sanitizer libraries are not installed")
def test_address_sanitizer_sees_a_read_beside_an_image():
    there = "const bool inside = x < W && y < H;\n    on[t]"
    planted = "const bool inside = x <= W && y <= H;\n    on[t]"
    done = exercise("--sanitize", "--batches", "2", "--plant", there, planted, **cuda_on_host.preload())
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr


@pytest.mark.parametrize("bug", BUGS)
def test_is_caught(bug):
    done = exercise("--plant", *BUGS[bug])
    assert done.returncode != 0, "the bug was not caught"
    assert "cannot compile" not in done.stderr, done.stderr
    assert "the text to replace" not in done.stderr, done.stderr
