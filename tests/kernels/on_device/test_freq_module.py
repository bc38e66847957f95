"""The FreqModule kernel against the float64 definition."""

import importlib

import pytest
import torch
from activefreq_engine.kernels import triton_support
from activefreq_engine.kernels.freq_module import FreqModulePlan, freq_module, reference, triton_impl
from activefreq_engine.kernels.freq_module.recent import RecentPlans
from activefreq_engine.kernels.freq_module.triton_impl import Launch, kernel_call

from tests.compiler import needs_compiler

plain = importlib.import_module("activefreq_engine.kernels.freq_module")

TOLERANCE = {"fp16": 1e-3, "tf32x3": 4e-6, "tf32": 5e-3}  # relative L2 error of a spectral quarter
DEPTHWISE_TOLERANCE = 1e-6
ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}  # of the output

CASES = [
    # precision, B, C', H, W, k; large maps have few channels, since the interpreter runs programs one by one, and small
    # ones several, since the roundings of two or three values may add up to more than the tolerance
    ("fp16", 2, 4, 1, 1, 7),
    ("fp16", 1, 2, 1, 13, 5),
    ("fp16", 1, 2, 13, 1, 5),
    ("fp16", 2, 4, 2, 1, 3),
    ("fp16", 2, 1, 7, 12, 3),
    ("fp16", 1, 2, 12, 7, 5),
    ("fp16", 2, 5, 9, 11, 7),
    ("fp16", 1, 8, 14, 16, 3),
    ("fp16", 2, 8, 16, 28, 3),
    ("fp16", 1, 40, 14, 12, 3),
    ("fp16", 1, 40, 8, 8, 5),
    ("fp16", 1, 4, 28, 32, 3),
    ("fp16", 1, 3, 32, 56, 3),
    ("fp16", 1, 6, 56, 14, 3),
    ("fp16", 1, 3, 64, 64, 3),
    ("fp16", 1, 1, 96, 28, 3),
    ("fp16", 1, 2, 12, 96, 3),
    ("fp16", 1, 1, 127, 128, 3),
    ("fp16", 1, 128, 3, 5, 3),
    ("tf32x3", 2, 1, 7, 12, 3),
    ("tf32x3", 1, 2, 13, 1, 3),
    ("tf32x3", 1, 1, 1, 6, 3),
    ("tf32", 1, 3, 7, 1, 3),
    ("tf32x3", 2, 3, 12, 20, 3),
    ("tf32x3", 1, 5, 9, 11, 5),
    ("tf32x3", 1, 12, 14, 14, 3),
    ("tf32x3", 1, 6, 16, 32, 3),
    ("tf32x3", 1, 1, 64, 56, 3),
    ("tf32", 1, 8, 12, 20, 3),
    ("tf32", 1, 5, 28, 14, 7),
]


def make(b, cq, h, w, k, device, dtype=torch.float32):
    """x with a positive mean, filters around 1, weights, bias."""

    def spectrum(*shape):
        return torch.complex(1 + 0.3 * torch.randn(shape), 0.3 * torch.randn(shape)).to(device)

    x = (torch.randn(b, 4 * cq, h, w) + 0.5).to(dtype).to(device)
    filters = spectrum(cq, h, w // 2 + 1), spectrum(cq, w // 2 + 1), spectrum(cq, h // 2 + 1)
    return x, (*filters, (torch.randn(cq, 1, k, k) / k).to(device), torch.randn(cq).to(device))


def exact(x, parameters):
    """In float64 and on the CPU: a device has an FFT library of its own, which is not what is tested."""
    wide = (p if p is None else p.to("cpu", torch.complex128 if p.is_complex() else torch.float64) for p in parameters)
    return reference.freq_module(x.cpu().double(), *wide)


def errors(y, expected):
    """Relative L2 error of each quarter."""
    quarters = zip(y.cpu().double().chunk(4, 1), expected.cpu().double().chunk(4, 1), strict=True)
    return [((a - e).norm() / e.norm()).item() for a, e in quarters]


def check(y, expected, precision):
    found = errors(y, expected)
    print("errors", *(f"{e:.1e}" for e in found))
    extra = ROUNDING[y.dtype]
    assert max(found[:3]) <= TOLERANCE[precision] + extra, found
    assert found[3] <= DEPTHWISE_TOLERANCE + extra, found


@pytest.mark.parametrize("case", CASES, ids=lambda c: "{}-B{}-C{}-{}x{}-k{}".format(*c))
def test_matches_float64(case, device):
    precision, *shape = case
    x, parameters = make(*shape, device)
    y = freq_module(x, *parameters, precision=precision, backend="triton")
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    check(y, exact(x, parameters), precision)


@pytest.mark.parametrize("precision", ["fp16", "tf32x3"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_input_and_output(dtype, precision, device):
    x, parameters = make(1, 5, 6, 9, 3, device, dtype)
    y = freq_module(x, *parameters, precision=precision, backend="triton")
    assert y.dtype == dtype
    check(y, exact(x, parameters), precision)


@pytest.mark.parametrize(("h", "w"), [(48, 48), (12, 24), (40, 8)])
def test_a_constant_map_keeps_its_value_in_half_precision(h, w, device):
    """The entries of the tables that it meets are powers of two, so no rounding changes it."""
    ones = [
        torch.ones(*shape, dtype=torch.complex64) for shape in ((12, h, w // 2 + 1), (12, w // 2 + 1), (12, h // 2 + 1))
    ]
    parameters = [f.to(device) for f in ones] + [torch.zeros(12, 1, 3, 3, device=device), None]
    x = torch.full((1, 48, h, w), 0.75, device=device)
    y = FreqModulePlan(*parameters, size=(h, w), backend="triton")(x)
    assert (y[:, :36] - x[:, :36]).abs().max() <= 1e-6


def test_no_bias(device):
    x, parameters = make(1, 2, 7, 10, 3, device)
    parameters = (*parameters[:4], None)
    y = freq_module(x, *parameters, backend="triton")
    check(y, exact(x, parameters), "fp16")


LAYOUTS = {
    "channels-last": lambda x: x.to(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channel-slice": lambda x: torch.cat([x + 7, x, x - 7], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "every-other-pixel": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, :, ::2, 1::2],
    "expanded-batch": lambda x: x[:1].expand(3, -1, -1, -1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strided_input(layout, device):
    x, parameters = make(2, 3, 6, 11, 5, device)
    x = LAYOUTS[layout](x)
    assert not x.is_contiguous()
    y = freq_module(x, *parameters, backend="triton")
    assert y.stride() == torch.empty_like(x).stride()
    check(y, exact(x, parameters), "fp16")


@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_residual_of_any_layout_is_added_in_the_same_launch(dtype, planes, device, monkeypatch):
    x, parameters = make(2, 3, 7, 10, 3, device, dtype)
    residual = (3 * torch.randn(2, 12, 20, 7, device=device)).to(dtype)[:, :, ::2].transpose(2, 3)
    monkeypatch.setattr(triton_impl, "default_launch", lambda *size: Launch(4, planes))
    launches = []
    run = triton_support.KernelCall.run
    monkeypatch.setattr(triton_support.KernelCall, "run", lambda call: (launches.append(call), run(call)))
    plan = FreqModulePlan(*parameters, size=(7, 10), backend="triton")
    y = plan(x, residual=residual)
    assert len(launches) == 1
    check(y, exact(x, parameters) + residual.cpu().double(), "fp16")


@pytest.mark.parametrize("layout", ["contiguous", "channels-last", "window"])
def test_output_argument(layout, device):
    x, parameters = make(2, 2, 9, 6, 3, device)
    plan = FreqModulePlan(*parameters, size=(9, 6), backend="triton")
    if layout == "window":
        whole = torch.full((2, 10, 12, 9), 5.0, device=device)
        out = whole[:, 1:9, 2:11, 1:7]
    else:
        form = torch.channels_last if layout == "channels-last" else torch.contiguous_format
        out = torch.empty(x.shape, device=device, memory_format=form)
    assert plan(x, out=out) is out
    check(out, exact(x, parameters), "fp16")
    other = torch.empty_like(out)
    assert freq_module(x, *parameters, backend="triton", out=other) is other
    assert torch.equal(out, other)
    if layout == "window":
        out.fill_(5.0)
        assert (whole == 5.0).all(), "something was written outside of the window"


@pytest.mark.parametrize(
    ("size", "launch"),
    [((3, 37), Launch(2)), ((35, 3), Launch(4, planes=4)), ((7, 5), Launch(8, planes=3))],
    ids=str,
)
def test_tuning_does_not_change_the_result(size, launch, device):
    x, parameters = make(1, 2, *size, 3, device)
    runner = triton_impl.Runner(*parameters, size=size, precision="fp16")
    y = torch.empty_like(x)
    kernel_call(x, y, runner.tables, runner.filters, runner.weight, runner.bias, "fp16", launch=launch).run()
    check(y, exact(x, parameters), "fp16")


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((1, 8, 13, 1), torch.contiguous_format, (0, 13, 1, 0)),
        ((2, 8, 13, 1), torch.channels_last, (104, 1, 8, 0)),
        ((2, 8, 1, 13), torch.contiguous_format, (104, 13, 0, 1)),
        ((1, 4, 1, 1), torch.contiguous_format, (0, 1, 0, 0)),
        ((2, 4, 3, 5), torch.contiguous_format, (60, 15, 5, 1)),
    ],
    ids=str,
)
def test_an_axis_of_one_element_has_no_stride(shape, layout, expected):
    def made():
        return torch.empty(shape, device="meta").to(memory_format=layout)

    x, out, residual, packed = made(), made(), made(), torch.empty(1, device="meta")
    weight = torch.empty(shape[1] // 4, 1, 3, 3, device="meta")
    arguments = kernel_call(x, out, packed, packed, weight, packed, "tf32x3", residual).arguments
    for name in "xyr":
        assert tuple(arguments[f"{name}_stride_{axis}"] for axis in "bchw") == expected


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("size", [(7, 1), (1, 6)], ids=str)
def test_maps_one_sample_wide_in_a_plan_layout(size, precision, device):
    x, parameters = make(2, 2, *size, 3, device)
    x, residual = x.to(memory_format=torch.channels_last), torch.randn_like(x)
    plan = FreqModulePlan(*parameters, size=size, precision=precision, backend="triton")
    out = torch.full_like(x, float("nan"))
    plan(x, out=out, residual=residual)
    check(out, exact(x, parameters) + residual.cpu().double(), precision)


# ---- properties, in the mode that is close to float32


def test_unit_filters_are_the_identity(device):
    x, parameters = make(1, 5, 10, 7, 3, device)
    units = (torch.ones_like(f) for f in parameters[:3])
    y = freq_module(x, *units, *parameters[3:], precision="tf32x3", backend="triton")
    assert max(errors(y, x.double())[:3]) <= 4e-6


def test_linear(device):
    x, parameters = make(2, 3, 6, 5, 3, device)
    plan = FreqModulePlan(*parameters[:4], None, size=(6, 5), precision="tf32x3", backend="triton")
    a, b = x[:1], x[1:]
    assert max(errors(plan(2 * a - 3 * b), 2 * plan(a).double() - 3 * plan(b).double())) <= 8e-6


def test_shifting_the_input_shifts_the_output(device):
    x, parameters = make(1, 4, 6, 8, 3, device)
    plan = FreqModulePlan(*parameters, size=(6, 8), precision="tf32x3", backend="triton")
    y = plan(x).double()
    shifted = plan(x.roll((3, 5), (2, 3)))
    assert max(errors(shifted, y.roll((3, 5), (2, 3)))[:3]) <= 8e-6
    for quarter in (1, 2):  # these two run over channels too
        own = slice(4 * quarter, 4 * quarter + 4)
        turned = x.clone()
        turned[:, own] = x[:, own].roll(1, 1)
        assert (plan(turned)[:, own] - y[:, own].roll(1, 1)).norm() <= 8e-6 * y[:, own].norm()


def test_a_delta_gives_the_impulse_response_of_each_filter(device):
    cq, h, w = 6, 10, 9
    _, parameters = make(1, cq, h, w, 3, device)
    x = torch.zeros(1, 4 * cq, h, w, device=device)
    x[0, ::cq, 0, 0] = 1.0  # the first channel of each quarter
    x[0, 1:cq, 0, 0] = 1.0  # (H, W) planes are independent: a delta in each
    y = freq_module(x, *parameters, precision="tf32x3", backend="triton")[0].double()
    hw, cw, ch = (f.to(torch.complex128) for f in parameters[:3])
    expected = torch.zeros(3 * cq, h, w, dtype=torch.float64, device=device)
    expected[:cq] = torch.fft.irfft2(hw, s=(h, w))
    expected[cq : 2 * cq, 0] = torch.fft.irfft2(cw, s=(cq, w))
    expected[2 * cq :, :, 0] = torch.fft.irfft2(ch, s=(cq, h))
    for quarter in range(3):
        own = slice(quarter * cq, (quarter + 1) * cq)
        assert (y[own] - expected[own]).norm() <= 4e-6 * expected[own].norm()


# ---- the plan


def test_fp16_is_finite_up_to_the_input_limit_and_not_far_beyond(device):
    _, parameters = make(1, 2, 12, 8, 3, device)
    filters = [3 * f / f.abs().max() for f in parameters[:3]]
    filters[0][:, 0, 0] = 3.0
    plan = FreqModulePlan(*filters, *parameters[3:], size=(12, 8), backend="triton")
    x = torch.full((1, 8, 12, 8), plan.input_limit, device=device)  # all of its energy is in one bin
    check(plan(x), exact(x, (*filters, *parameters[3:])), "fp16")
    assert not torch.isfinite(plan(2 * x)).all()


def test_filters_that_would_overflow_are_refused_in_fp16_only(device):
    x, parameters = make(1, 2, 12, 8, 3, device)
    parameters = (parameters[0] * 1e3, *parameters[1:])
    with pytest.raises(ValueError, match=r"\|G\| = .* on 12x8 maps.*tf32x3"):
        freq_module(x, *parameters, backend="triton")
    check(freq_module(x, *parameters, precision="tf32x3", backend="triton"), exact(x, parameters), "tf32x3")
    parameters[1][0, 0] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        FreqModulePlan(*parameters, size=(12, 8), precision="tf32x3", backend="triton")


def test_a_plan_is_a_snapshot_and_one_launch(device, monkeypatch):
    x, parameters = make(2, 2, 7, 8, 3, device)
    plan = FreqModulePlan(*parameters, size=(7, 8), backend="triton")
    expected = exact(x, parameters)
    for p in parameters:
        p.zero_()
    launches = []
    run = triton_support.KernelCall.run
    monkeypatch.setattr(triton_support.KernelCall, "run", lambda call: (launches.append(call), run(call)))
    check(plan(x), expected, "fp16")
    assert len(launches) == 1
    check(plan(x[:1]), expected[:1], "fp16")  # any batch


@needs_compiler
def test_compile_and_export_see_one_op(device):
    x, parameters = make(1, 1, 5, 6, 3, device)
    plan = FreqModulePlan(*parameters, size=(5, 6), backend="triton")
    y = plan(x)

    class Module(torch.nn.Module):
        def forward(self, x):
            return plan(x) * 2

    compiled = torch.compile(Module(), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), y * 2)
    program = torch.export.export(Module(), (x,))
    ops = [str(n.target) for n in program.graph.nodes if "activefreq" in str(n.target)]
    assert ops == ["activefreq.freq_module_packed.default"]
    assert torch.equal(program.module()(x), y * 2)


@needs_compiler
def test_ops_keep_their_schema(device):
    x, parameters = make(1, 1, 5, 6, 3, device)
    runner = triton_impl.Runner(*parameters, size=(5, 6), precision="fp16")
    packed = (x, runner.tables, runner.filters, runner.weight, runner.bias, "fp16", x.flip(0))
    torch.library.opcheck(torch.ops.activefreq.freq_module_packed.default, packed)
    torch.library.opcheck(torch.ops.activefreq.freq_module_packed_out.default, (*packed, torch.zeros_like(x)))
    torch.library.opcheck(torch.ops.activefreq.freq_module.default, (x, *parameters, "fp16", "triton", None))


# ---- the plain function


@pytest.fixture
def packed(monkeypatch):
    """One entry for each time that filters were packed."""
    times = []
    pack = triton_impl.pack_filters
    monkeypatch.setattr(triton_impl, "pack_filters", lambda *a: (times.append(a), pack(*a))[1])
    monkeypatch.setattr(plain, "_recent", RecentPlans(3))
    return times


@needs_compiler
def test_the_plain_function_packs_once(packed, device):
    x, parameters = make(1, 1, 5, 6, 3, device)
    for i in range(3):
        x = x + i
        check(freq_module(x, *parameters, backend="triton"), exact(x, parameters), "fp16")
    freq_module(torch.cat([x, x]), *parameters, backend="triton", out=torch.empty(2, 4, 5, 6, device=device))
    torch.compile(freq_module, backend="aot_eager", fullgraph=True)(x, *parameters, backend="triton")
    assert len(packed) == 1
    check(
        freq_module(x, *parameters[:4], None, backend="triton"), exact(x, (*parameters[:4], parameters[4] * 0)), "fp16"
    )
    check(freq_module(x, *parameters, precision="tf32x3", backend="triton"), exact(x, parameters), "tf32x3")
    assert len(packed) == 3


@pytest.mark.parametrize("which", range(5))
def test_the_plain_function_notices_a_change_in_place(which, packed, device):
    x, parameters = make(1, 1, 5, 6, 3, device)
    freq_module(x, *parameters, backend="triton")
    parameters[which].mul_(1.5).add_(0.25)
    check(freq_module(x, *parameters, backend="triton"), exact(x, parameters), "fp16")
    parameters[which].data = parameters[which] - 0.5
    check(freq_module(x, *parameters, backend="triton"), exact(x, parameters), "fp16")
    assert (len(packed), len(plain._recent)) == (3, 1)


def test_the_plain_function_packs_tensors_without_version_every_time(packed, device):
    with torch.inference_mode():
        x, parameters = make(1, 1, 5, 6, 3, device)
        for _ in range(2):
            parameters[0].mul_(1.5)
            check(freq_module(x, *parameters, backend="triton"), exact(x, parameters), "fp16")
    assert (len(packed), len(plain._recent)) == (2, 0)


def test_plans_behind_the_plain_function_are_few_and_go_with_their_tensors(packed, device):
    x, parameters = make(1, 1, 2, 3, 3, device)
    kept = [(*parameters[:4], torch.randn(1, device=device)) for _ in range(5)]
    for p in kept:
        freq_module(x, *p, backend="triton")
    assert (len(packed), len(plain._recent)) == (5, 3)
    freq_module(x, *kept[2], backend="triton")  # makes it the last one used
    freq_module(x, *parameters, backend="triton")
    freq_module(x, *kept[2], backend="triton")
    assert len(packed) == 6
    del kept, p
    assert len(plain._recent) == 1


@pytest.mark.gpu
def test_a_cuda_graph_replays_a_plan_as_one_kernel(device):
    x, parameters = make(2, 8, 32, 32, 3, device)
    plan = FreqModulePlan(*parameters, size=(32, 32), backend="triton")
    out = torch.empty_like(x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        plan(x, out)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan(x, out)
    x.copy_(torch.randn_like(x))
    out.fill_(float("nan"))
    graph.replay()
    check(out, exact(x, parameters), "fp16")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        plan(x, out)
        torch.cuda.synchronize()
    kernels = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    assert kernels == ["freq_module_kernel"]
