"""Every op is one operator to `torch.compile` and `torch.export`."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from activefreq_engine.kernels import dispatch
from activefreq_engine.kernels.distance import inscribed_points
from activefreq_engine.kernels.region_stats import region_stats

from tests.compiler import needs_compiler
from tests.kernels.on_device.test_fused import CASES, OPS


def freq_module(*, out=False):
    c, h, w = 2, 5, 6
    filters = (torch.randn(s, dtype=torch.complex64) for s in ((c, h, w // 2 + 1), (c, w // 2 + 1), (c, h // 2 + 1)))
    x = torch.randn(1, 4 * c, h, w)
    arguments = (x, *filters, torch.randn(c, 1, 3, 3), torch.randn(c), "fp16", "auto", torch.randn_like(x))
    return (*arguments, torch.zeros_like(x)) if out else arguments


def regions():
    return torch.rand(2, 9, 14) < 0.5, torch.rand(2, 9, 14)


def labels():
    stats = region_stats(*regions())
    return stats.labels, stats.counts


def fused(name):
    """The first case of a fused op, at float32, in which its reference computes on a CPU."""
    arguments = next(arguments for op, arguments in CASES if op == name)
    made = OPS[name].drawn(arguments, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
    halves = [isinstance(a, torch.Tensor) and a.dtype == torch.float16 for a in made]
    return (*(a.float() if half else a for a, half in zip(made, halves, strict=True)), "auto")


def bits():
    """A region of 10 x 40 pixels of two images."""
    asked = torch.tensor([[10, 40, 2**31 - 1, 0, 10, 0, 0, 0]] * 2, dtype=torch.int32)
    levels = torch.randint(0, 65536, (2, 5, 7)).to(torch.uint16)
    return levels, asked, torch.zeros(2, 32, dtype=torch.int32), torch.zeros(2, 8, dtype=torch.int32), "auto"


SAMPLES = {
    **{name: partial(fused, name) for name in OPS},
    "click_maps": lambda: (torch.rand(2, 6, 2) * 9, 9, 11, 2.0, "auto"),
    "distance_transform": lambda: (torch.rand(2, 9, 14) < 0.8, "auto"),
    "freq_module": freq_module,
    "inscribed_points": lambda: (*labels(), "auto"),
    "inscribed_points_fixed": lambda: (labels()[0], 3, "auto"),
    "mask_bits": bits,
    "mask_output": lambda: (torch.randn(2, 1, 3, 4), torch.rand(2, 6, 8) < 0.5, 0.49, "auto"),
    "region_stats": lambda: (*regions(), 4, "auto"),
    "region_stats_fixed": lambda: (*regions(), 8, 6, "auto"),
}


def test_every_op_has_a_sample():
    assert {row.op for row in dispatch.table()} == set(SAMPLES)


@needs_compiler
@pytest.mark.parametrize(("op", "sample"), [*SAMPLES.items(), ("freq_module_out", lambda: freq_module(out=True))])
def test_schema_fake_implementation_and_autograd(op, sample):
    dispatch.table()  # imports every op
    torch.library.opcheck(getattr(torch.ops.activefreq, op).default, sample())


@needs_compiler
def test_compile_and_export_of_sizes_that_depend_on_the_data():
    def click(masks, probs):
        stats = region_stats(masks, probs)
        return stats.area, stats.mean_entropy, *inscribed_points(stats.labels, stats.counts)

    class Click(torch.nn.Module):
        def forward(self, masks, probs):
            return click(masks, probs)

    compiled = torch.compile(click, backend="eager", fullgraph=True)
    program = torch.export.export(Click(), regions())
    ours = [str(node.target) for node in program.graph.nodes if str(node.target).startswith("activefreq.")]
    assert ours == ["activefreq.region_stats.default", "activefreq.inscribed_points.default"]
    for _ in range(2):
        inputs = regions()
        expected = click(*inputs)
        assert all(map(torch.equal, compiled(*inputs), expected))
        assert all(map(torch.equal, program.module()(*inputs), expected))


def test_a_first_call_imports_no_compiler():
    program = (
        "import sys, torch\n"
        "from tests.kernels.test_operators import SAMPLES, dispatch\n"
        "dispatch.table()  # imports every op\n"
        "for op, sample in SAMPLES.items(): getattr(torch.ops.activefreq, op)(*sample())\n"
        "print('torch._dynamo' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "False"
