"""Compile every Triton kernel in every configuration in use for real GPUs, on any Linux machine, and check its needs.

    python -m bench.gates.triton_kernels              # all configurations, sm_80, sm_90 and sm_100; many minutes
    python -m bench.gates.triton_kernels --quick      # the few that the test suite compiles
    python -m bench.gates.triton_kernels --check      # and compare with the table in bench/results/kernel_resources.csv
    python -m bench.gates.triton_kernels --write      # or record it; with --only NAME, the rows of one kernel

No GPU and no driver are needed: Triton ships NVIDIA's assembler and disassembler.  The table has the rows of every
Triton version that it was recorded with; it is written an architecture at a time, and a run that was stopped goes on
from Triton's own cache.  The exit status is 1 when a limit is broken.  Limits: no local memory (a spilled register
costs a trip through the cache), shared memory within the chip, matrix instructions present where a kernel multiplies
matrices, and these of a single warp (HMMA).  Those of a warp group (HGMMA, sm_90) and of tensor memory (UTC*MMA,
sm_100) have been silently wrong in a kernel that passed everything that can be tested without a device; one ships only
where bench/results/proven_on_device.csv names the device on which that very configuration was right.

FreqModules in a plan get maps of any shape of `zoom.network_shape`: hundreds, and each is compiled by itself.  What it
needs is decided by C' and its longer side, padded to powers of two: with a shorter side all of its products are as
large or smaller.  Of each such class the map with the most masks is compiled, and none that is square where
there is another (`representatives`); maps one sample wide are classes of their own.  That is done for MiT-B0, whose
weights ship; of the other encoders the square inputs are taken, in fp16.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from activefreq_engine.kernels.click_maps import triton_impl as click_maps
from activefreq_engine.kernels.freq_module import LARGEST_TF32
from activefreq_engine.kernels.freq_module import triton_impl as freq_module
from activefreq_engine.kernels.mask_bits import triton_impl as mask_bits
from activefreq_engine.kernels.mask_output import MaskOutput
from activefreq_engine.kernels.mask_output import triton_impl as mask_output
from activefreq_engine.kernels.triton_support import KernelCall, pad
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from activefreq_engine import create_model
from activefreq_engine.conventions import SLOTS, THRESHOLD
from activefreq_engine.models.mit import MIT_SPECS
from activefreq_engine.models.registry import CONFIGS
from activefreq_engine.runtime.engine import SIZES
from activefreq_engine.runtime.painting import WORDS
from activefreq_engine.runtime.plan import Folded
from activefreq_engine.runtime.plan.fused import OPS
from bench.tools.shapes import Map, every_map, level_maps

TABLE = Path(__file__).parents[1] / "results" / "kernel_resources.csv"
PROVEN = Path(__file__).parents[1] / "results" / "proven_on_device.csv"
"""Configurations with instructions of a warp group or of tensor memory that a device has shown right: one a row."""
PROOF = ("configuration", "arch", "device", "driver", "torch", "triton", "commit")
"""The columns of it, all of which must be filled in."""
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

SHARED_LIMIT = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory a block may have, by compute capability.  8.0 has 163 KB, but 8.6 and 8.9 have only 99."""

WAIVED = {
    "tf32x3": (704, "the accuracy mode: its three products hold the high and low parts of both operands at once"),
}
"""Precision -> bytes of stack that are let through, and why."""


@dataclass(frozen=True)
class Configuration:
    """One kernel as it would be launched, and whether the test suite compiles it."""

    name: str
    call: KernelCall
    multiplies: bool
    waiver: str = ""
    quick: bool = False


@dataclass(frozen=True)
class TritonResources:
    """One row of the table."""

    configuration: str
    arch: int
    triton: str
    warps: int
    registers: int
    stack: int
    """Bytes of local memory a thread."""
    local: int
    """Instructions that load from or store to local memory."""
    shared: int
    """Bytes a block."""
    hmma: int
    """Matrix instructions of a warp, of a warp group (sm_90), and on tensor memory (sm_100)."""
    hgmma: int
    utchmma: int
    instructions: int


def freq_module_call(
    size: tuple[int, int, int],
    precision: str,
    *,
    dtype: torch.dtype = torch.float32,
    kernel: int = 3,
    last: bool = False,
    residual: bool = False,
) -> KernelCall:
    """A launch on tensors without storage; `size` is (C', H, W), `last` says channels-last."""
    channels, height, width = size
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.empty(1, 4 * channels, height, width, dtype=dtype, device="meta").to(memory_format=layout)
    operand = torch.float16 if precision == "fp16" else torch.float32
    table, filters, bias = (torch.empty(1, dtype=t, device="meta") for t in (operand, torch.float32, torch.float32))
    weight = torch.empty(channels, 1, kernel, kernel, device="meta")
    added = torch.empty_like(x) if residual else None
    return freq_module.kernel_call(x, torch.empty_like(x), table, filters, weight, bias, precision, added)


def mask_output_call(low: tuple[int, int], high: tuple[int, int], dtype: torch.dtype) -> KernelCall:
    """A launch on tensors without storage."""
    logits = torch.empty(1, 1, *low, dtype=dtype, device="meta")
    previous = torch.empty(1, *high, dtype=torch.bool, device="meta")
    probs, changed = torch.empty(1, *high, device="meta"), torch.empty(1, 4, dtype=torch.int32, device="meta")
    return mask_output.kernel_call(logits, previous, MaskOutput(probs, previous, probs, changed), THRESHOLD)


def mask_bits_call() -> KernelCall:
    """A launch on tensors without storage."""
    levels = torch.empty(1, 384, 384, dtype=torch.uint16, device="meta")
    asked, bits, found = (torch.empty(1, n, dtype=torch.int32, device="meta") for n in (8, WORDS, 8))
    return mask_bits.kernel_call(levels, asked, bits, found)


def click_maps_call(slots: int, height: int, width: int) -> KernelCall:
    """A launch on tensors without storage."""
    out = torch.empty(1, 2, height, width, device="meta")
    return click_maps.kernel_call(torch.empty(1, 2 * slots, 2, device="meta"), out, 5.0)


Class = tuple[int, int, bool, bool]


def class_of(map_: Map) -> Class:
    """What decides how much a map's kernel needs: C' and the longer side, padded, and whether a side is 1."""
    c, h, w = map_
    return pad(c), pad(max(h, w)), h == 1, w == 1


def representatives(maps: Iterable[Map]) -> dict[Class, Map]:
    """The map of each class that needs most: both sides padded to the same, with the most masks, and of these the
    largest that is no square."""

    def needs(map_: Map) -> tuple[bool, int, bool, int]:
        c, h, w = map_
        return pad(h) == pad(w), sum(n != pad(n) for n in map_), h != w, c * h * w

    return {class_of(map_): map_ for map_ in sorted(maps, key=needs)}


def planned() -> Iterator[tuple[Map, str]]:
    """What the FreqModules of plans are compiled for, and the precision: the smallest maps first."""
    encoders = {config.encoder for config in CONFIGS.values()} & MIT_SPECS.keys()  # tests add specs of their own
    shipped, others = MIT_SPECS["mit_b0"].channels, {MIT_SPECS[name].channels for name in encoders}
    squares = [m for channels in others for size in SIZES for m in level_maps(channels, (size, size))]
    ours = representatives(every_map(shipped))
    for class_, map_ in sorted((representatives(squares) | ours).items()):
        yield map_, "fp16"
        if class_ in ours and max(class_[:2]) <= LARGEST_TF32:
            yield map_, "tf32x3"


FUSED = ("freqformer_b0", "freqformer_b0_guided", "freqformer_b1", "freqformer_b3")
"""Models whose fused ops are compiled, for 384 x 384 px: what is compiled depends on the network shape by the number of
keys, padded, alone.  Attention to fewer keys is not compiled here; a device tries it before it uses it.  B2's ops are
B3's."""


def fused() -> Iterator[Configuration]:
    """The fused ops of a click, every binary once."""
    seen = set()
    for model in FUSED:
        click = Folded(create_model(model), "cpu", "fp16").fuse()
        assert click is not None
        for name, args in click.calls(384, 384):
            op, kind = OPS[name], "fused " + model.rpartition("_")[2]
            form = op.form(*args)
            if (name, form.key) in seen:
                continue
            if op.limits(*args):
                raise SystemExit(f"error: {name} is not offered for {model}: {op.limits(*args)}")
            seen.add((name, form.key))
            label = f"{name} {kind} {form.size}"
            call = op.kernel_call(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in args))
            same = sum(label in other for other, _ in seen)
            seen.add((label + f" #{same + 1}", ""))
            # the head multiplies in float32
            quick = label.startswith(("attention fused b0 24x24x160", "click_head fused b0"))
            yield Configuration(label + (f" #{same + 1}" if same else ""), call, name != "click_head", quick=quick)


def configurations() -> Iterator[Configuration]:
    """Everything that ships."""

    def freq(size: Map, precision: str, name: str, quick: bool = False, **how: Any) -> Configuration:
        label = f"freq_module C{size[0]} {size[1]}x{size[2]} {precision} {name}"
        waiver = precision if precision in WAIVED else ""
        return Configuration(label, freq_module_call(size, precision, **how), True, waiver, quick)

    for map_, precision in planned():
        dtype = torch.float16 if precision == "fp16" else torch.float32
        quick = (class_of(map_), precision) in (((64, 16, False, False), "fp16"), ((16, 32, False, False), "tf32x3"))
        yield freq(map_, precision, "in a plan", quick, dtype=dtype, last=True, residual=True)
    yield freq((16, 96, 96), "fp16", "of fp32 maps")
    yield freq((16, 32, 32), "tf32", "of fp32 maps")
    yield freq((16, 64, 64), "fp16", "of fp32 maps, k7", kernel=7)
    yield freq((5, 31, 45), "fp16", "odd")
    for size in ((64, 128, 128), (128, 64, 64)):
        yield freq(size, "fp16", "largest", dtype=torch.float16, last=True, residual=True)
    yield freq((64, 64, 64), "tf32x3", "largest")
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        name = f"mask_output 64x64 to 256x256 {dtype}".replace("torch.", "")
        yield Configuration(name, mask_output_call((64, 64), (256, 256), dtype), False, quick=dtype == torch.float32)
    yield Configuration("mask_output odd", mask_output_call((31, 45), (123, 179), torch.float32), False)
    yield Configuration("mask_output one pixel", mask_output_call((1, 1), (1, 1), torch.float32), False)
    yield Configuration("click_maps 24+24 256x256", click_maps_call(SLOTS, 256, 256), False, quick=True)
    yield Configuration("click_maps odd", click_maps_call(1, 1, 45), False)
    yield Configuration("mask_bits", mask_bits_call(), False, quick=True)
    yield from fused()


def compile_offline(call: KernelCall, arch: int) -> Any:
    """Compile as a launch would: integers of 1 become constants, those divisible by 16 and all pointers are marked."""
    signature, constants, attributes = {}, {}, {}
    names = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
    names |= {torch.uint8: "*u8", torch.int32: "*i32", torch.uint16: "*u16"}
    constexprs = {p.name for p in call.kernel.params if p.is_constexpr}
    plain = {p.name for p in call.kernel.params if p.do_not_specialize}
    for i, name in enumerate(call.kernel.arg_names):
        value = call.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = names[value.dtype]
        elif name in constexprs or value is None or (isinstance(value, int) and value == 1 and name not in plain):
            signature[name] = "constexpr"
            constants[(i,)] = value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (signature[name] == "i32" and value % 16 == 0 and name not in plain):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(call.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=call.options)


def measure(configuration: Configuration, arch: int) -> TritonResources:
    """Compile and read the binary."""
    compiled = compile_offline(configuration.call, arch)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        assembly = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing about registers: {usage[:400]!r}")

    def count(pattern: str) -> int:
        return len(re.findall(pattern, assembly))

    return TritonResources(
        configuration.name,
        arch,
        triton.__version__,
        configuration.call.num_warps,
        registers=int(found[1]),
        stack=int(found[2]),
        local=count(r"\b(?:LDL|STL)\b"),
        shared=compiled.metadata.shared,
        hmma=count(r"\bHMMA"),
        hgmma=count(r"\bHGMMA"),
        utchmma=count(r"\bUTC\w*MMA"),
        instructions=count(r"(?m)^\s*/\*[0-9a-f]{4,}\*/\s+\S"),
    )


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([str(TOOLS / name), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr or done.stdout}")
    return done.stdout + done.stderr


def faults(configuration: Configuration, r: TritonResources, proven: Collection[tuple[str, int, str]]) -> list[str]:
    """Limits that these resources break; `proven` as `read_proven` has it."""
    out = []
    allowed, _ = WAIVED.get(configuration.waiver, (0, ""))
    if r.stack > allowed or (allowed == 0 and r.local):
        out.append(f"{r.stack} bytes of stack and {r.local} local memory instructions; allowed are {allowed} bytes")
    if r.shared > SHARED_LIMIT[r.arch]:
        out.append(f"{r.shared} bytes of shared memory; the chip has {SHARED_LIMIT[r.arch]}")
    if configuration.multiplies and r.hmma + r.hgmma + r.utchmma == 0:
        out.append("no matrix instruction")
    if not configuration.multiplies and r.hmma + r.hgmma + r.utchmma:
        out.append("a matrix instruction, which rounds its operands, where everything is meant in float32")
    if r.hgmma + r.utchmma and (r.configuration, r.arch, r.triton) not in proven:
        out.append(
            f"{r.hgmma} HGMMA and {r.utchmma} UTC*MMA instructions, which no device has shown right: launch it so that "
            f"products have fewer than 64 rows, or prove it and add it to {PROVEN.name}"
        )
    return out


def read_proven() -> set[tuple[str, int, str]]:
    """(configuration, arch, Triton version) of the rows of PROVEN."""
    with PROVEN.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != PROOF:
            raise SystemExit(f"error: {PROVEN} has the columns {reader.fieldnames}; they must be {', '.join(PROOF)}")
        rows = list(reader)
    for row in rows:
        if not all(row[column] for column in PROOF):
            raise SystemExit(f"error: a row of {PROVEN} says nothing in some column: {row}")
    return {(row["configuration"], int(row["arch"]), row["triton"]) for row in rows}


def differences(r: TritonResources, table: list[TritonResources]) -> list[str]:
    """How these resources differ from the recorded ones; a Triton version without a table has none to differ from."""
    mine = [t for t in table if (t.triton, t.arch) == (r.triton, r.arch)]
    recorded = next((t for t in mine if t.configuration == r.configuration), None)
    if recorded is None:
        return ["not recorded"] if mine else []
    pairs = ((f.name, getattr(recorded, f.name), getattr(r, f.name)) for f in fields(r))
    return [f"{name} was {old}, is {new}" for name, old, new in pairs if old != new]


def read_table() -> list[TritonResources]:
    """The recorded rows; none when there is no table yet."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        types = {f.name: str if f.name in ("configuration", "triton") else int for f in fields(TritonResources)}
        return [TritonResources(**{k: types[k](v) for k, v in row.items()}) for row in csv.DictReader(file)]


def write_table(rows: list[TritonResources], only: str = "") -> None:
    """Replace the rows of the Triton versions and architectures in `rows` whose names hold `only`; keep the others.

    Runs of two Triton versions may write at the same time.
    """
    fresh = {(r.triton, r.arch) for r in rows}
    with TABLE.open("a+", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        kept = [r for r in read_table() if (r.triton, r.arch) not in fresh or only not in r.configuration]
        file.truncate(0)
        writer = csv.DictWriter(file, [f.name for f in fields(TritonResources)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in sorted(kept + rows, key=lambda r: (r.triton, r.arch, r.configuration)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only what the test suite compiles")
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90, 100], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--check", action="store_true", help="fail where the recorded table says something else")
    parser.add_argument("--write", action="store_true", help=f"record the table in {TABLE}")
    parser.add_argument("--only", default="", help="only configurations whose name holds this text")
    arguments = parser.parse_args()
    if arguments.write and arguments.quick:
        parser.error("--write records whole tables; leave out --quick")
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("the interpreter compiles nothing; unset TRITON_INTERPRET")
    todo = [c for c in configurations() if (c.quick or not arguments.quick) and arguments.only in c.name]
    compiled, broken, changed, table = 0, 0, 0, read_table() if arguments.check else []
    proven = read_proven()
    print(f"triton {triton.__version__}")
    bar = tqdm(total=len(arguments.arch) * len(todo), disable=None)
    for arch in arguments.arch:
        rows = []
        for configuration in todo:
            r = measure(configuration, arch)
            rows.append(r)
            wrong, different = faults(configuration, r, proven), differences(r, table)
            broken += bool(wrong)
            changed += bool(different)
            bar.update()
            bar.write(
                f"sm_{arch:<3} {r.configuration:44s} w={r.warps} reg {r.registers:3d} stack {r.stack:4d} "
                f"local {r.local:4d} shared {r.shared / 1024:5.1f}K mma {r.hmma}/{r.hgmma}/{r.utchmma} "
                + ("FAULT: " + "; ".join(wrong) if wrong else "ok")
                + (" CHANGED: " + "; ".join(different) if different else ""),
                file=sys.stdout,
            )
            sys.stdout.flush()
        compiled += len(rows)
        if arguments.write:
            write_table(rows, arguments.only)
    print(f"{compiled} compiled, {broken} break a limit, {changed} differ from the recorded table")
    if changed:
        again = "python -m bench.gates.triton_kernels --write"
        print(f"if the change is meant, run `{again}` and commit {TABLE.name} with it")
    return 1 if broken or changed else 0


if __name__ == "__main__":
    sys.exit(main())
