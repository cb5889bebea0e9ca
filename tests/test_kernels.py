"""Fused operators: references against torch, Triton kernels against the references, and what torch makes of them.

The tests marked `gpu` launch Triton kernels. They run where CUDA is, and everywhere else in Triton's interpreter: that
must be chosen before Triton is imported, so `test_kernels_in_the_interpreter` runs this file again in a process of its
own. `test_kernels_compile` compiles the same kernels for real GPUs, which the interpreter does not prove.
"""

import importlib.util
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from musev_core import kernels
from musev_core.errors import MuseVError
from musev_core.kernels import attention, gating, group_norm, selection

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# of |a - b| / |b|; the interpreter truncates to bfloat16 instead of rounding
_BFLOAT16 = 1e-2 if INTERPRETED else 4e-3
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 6e-4, torch.bfloat16: _BFLOAT16}

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
only_outside = pytest.mark.skipif(INTERPRETED, reason="this process only interprets kernels")


def gpu(test):
    """Launches kernels: on CUDA, or in the interpreter."""
    reason = "no CUDA device (Triton's interpreter runs this in test_kernels_in_the_interpreter)"
    return pytest.mark.gpu(pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason=reason)(test))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def poisoned():
    """Uninitialised memory is NaN, so that an element nobody wrote shows."""
    torch._C._set_deterministic_algorithms(True)  # the public function imports the whole compiler
    assert torch.ones(3).new_empty(3).isnan().all()
    yield
    torch._C._set_deterministic_algorithms(False)


@pytest.fixture
def interpreter_multiplies_bfloat16(monkeypatch):
    """Triton's interpreter keeps bfloat16 as bit patterns, and its matrix product multiplies those as integers."""
    if not INTERPRETED:
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original = InterpreterBuilder.create_dot

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: original(self, widen(a), widen(b), *rest)
    )


def close(actual, expected, dtype=None):
    """Asserts a small relative error in the norm, and that nothing is NaN."""
    actual, expected = actual.cpu().double(), expected.cpu().double()
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < TOLERANCE[dtype or torch.float64], f"relative error {error:.2e}"


def random(*shape, dtype=torch.float32, offset=0.0):
    return (torch.randn(*shape, dtype=torch.float64) + offset).to(DEVICE, dtype)


# ---- references against plain torch


@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shift_shape", [None, (1, 1, 40), (1, 3, 40), (2, 1, 40), (2, 3, 40)])
def test_group_norm_reference(over_time, silu, shift_shape):
    x, weight, bias = random(2, 3, 5, 7, 40, dtype=torch.float64, offset=2), *random(2, 40, dtype=torch.float64)
    shift = None if shift_shape is None else random(*shift_shape, dtype=torch.float64)
    shifted = x if shift is None else x + shift[:, :, None, None]
    first = shifted.permute(0, 4, 1, 2, 3) if over_time else shifted.flatten(0, 1).permute(0, 3, 1, 2)
    y = F.group_norm(first.contiguous(), 4, weight, bias, 1e-5)
    y = y.permute(0, 2, 3, 4, 1) if over_time else y.permute(0, 2, 3, 1).unflatten(0, (2, 3))
    got = kernels.group_norm_silu(x, weight, bias, 4, 1e-5, over_time=over_time, silu=silu, shift=shift)
    close(got, F.silu(y) if silu else y)


def test_geglu_reference():
    x = random(2, 3, 5, 22, dtype=torch.float64)
    value, gate = x.chunk(2, dim=-1)
    close(kernels.geglu(x), value * F.gelu(gate))


@pytest.mark.parametrize("t, n, heads, d", [(13, 6, 2, 40), (1, 1, 1, 8), (40, 2, 3, 5)])
def test_temporal_attention_reference(t, n, heads, d):
    qkv = random(2, t, n, 3 * heads * d, dtype=torch.float64)
    q, k, v = (y.unflatten(-1, (heads, d)).permute(0, 2, 3, 1, 4) for y in qkv.chunk(3, dim=-1))  # (b, n, heads, t, d)
    expected = F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4).flatten(3)
    close(kernels.temporal_attention(qkv, heads), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_add_layer_norm_reference(dtype):
    x, residual = random(2, 2, 3, 40, dtype=dtype)
    weight, bias = random(2, 40, dtype=dtype)
    total, normed = kernels.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert torch.equal(total, x + residual)
    close(normed, F.layer_norm((x + residual).double(), (40,), weight.double(), bias.double()), dtype)


def test_references_count_in_float32():
    """Half precision goes wrong here: the mean of squares overflows, and the variance is lost beside the mean."""
    x = random(1, 2, 9, 9, 16, dtype=torch.float16, offset=300)
    weight, bias = random(2, 16, dtype=torch.float16)
    got = kernels.group_norm_silu(x, weight, bias, 2, 1e-5, over_time=True)
    wide = (x.double(), weight.double(), bias.double())
    close(got, kernels.group_norm_silu(*wide, 2, 1e-5, over_time=True), torch.float16)


# ---- Triton kernels against the references


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, groups, over_time, silu, shift_shape",
    [
        ((2, 3, 5, 7, 40), 4, False, True, (2, 1)),  # one kernel
        ((2, 3, 5, 7, 40), 4, True, False, (1, 3)),
        ((1, 1, 1, 1, 30), 3, True, True, None),
        ((1, 2, 27, 23, 50), 2, False, False, (1, 1)),  # three kernels, last share and last block of channels not full
        ((1, 2, 19, 17, 80), 4, True, True, (1, 2)),
    ],
)
def test_group_norm_kernel(poisoned, shape, groups, over_time, silu, shift_shape, dtype):
    x = random(*shape, dtype=dtype, offset=3)
    weight, bias = random(2, shape[-1], dtype=dtype)
    shift = None if shift_shape is None else random(*shift_shape, shape[-1], dtype=dtype)
    wide = [None if y is None else y.double() for y in (x, weight, bias, shift)]
    from musev_core.kernels.fused.group_norm import group_norm_silu

    got = group_norm_silu(x, weight, bias, groups, 1e-5, over_time=over_time, silu=silu, shift=shift)
    assert got.dtype == dtype and got.is_contiguous()
    close(got, group_norm.reference(*wide[:3], groups, 1e-5, over_time, silu, wide[3]), dtype)


@gpu
def test_group_norm_kernel_merges_tiles_and_shares(monkeypatch, poisoned):
    """On a crowded GPU each program takes several tiles of rows, here with means that drift from tile to tile."""
    from musev_core.kernels.fused import group_norm as fused

    monkeypatch.setattr(fused, "_PROGRAMS", 3)
    x, weight, bias = random(1, 1, 33, 31, 50), *random(2, 50)
    x += torch.linspace(0, 9, 33, device=DEVICE)[:, None, None]
    got = fused.group_norm_silu(x, weight, bias, 2, 1e-5, over_time=False)
    expected = group_norm.reference(x.double(), weight.double(), bias.double(), 2, 1e-5, False, True, None)
    close(got, expected, torch.float32)


@gpu
@pytest.mark.parametrize("size", [4, 65])
def test_group_norm_kernel_keeps_the_variance_beside_a_large_mean(size):
    """E[x^2] - E[x]^2 in float32 has no correct digit left here."""
    x, weight, bias = random(1, 1, size, size, 8, offset=3e4), *random(2, 8)
    from musev_core.kernels.fused.group_norm import group_norm_silu

    expected = group_norm.reference(x.double(), weight.double(), bias.double(), 2, 1e-5, False, True, None)
    got = group_norm_silu(x, weight, bias, 2, 1e-5, over_time=False)
    assert (got.double() - expected).norm() / expected.norm() < 2e-3  # what float32 inputs of that size allow


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 40, 300])
def test_geglu_kernel(poisoned, width, dtype):
    x = random(3, 7, 2 * width, dtype=dtype, offset=0.1)
    from musev_core.kernels.fused.gating import geglu

    close(geglu(x), gating.reference(x.double()), dtype)


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "t, n, heads, d", [(13, 3, 2, 40), (1, 1, 1, 8), (16, 2, 1, 160), (17, 2, 1, 20), (32, 1, 2, 80)]
)
def test_temporal_attention_kernel(poisoned, interpreter_multiplies_bfloat16, t, n, heads, d, dtype):
    qkv = random(2, t, n, 3 * heads * d, dtype=dtype)
    from musev_core.kernels.fused.attention import temporal_attention

    close(temporal_attention(qkv, heads), attention.reference(qkv.double(), heads), dtype)


@gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 9, 40), (3, 1, 321), (1, 3, 2100)])
def test_add_layer_norm_kernel(poisoned, shape, dtype):
    x, residual = random(2, *shape, dtype=dtype, offset=1)
    weight, bias = random(2, shape[-1], dtype=dtype)
    from musev_core.kernels.fused.layer_norm import add_layer_norm

    total, normed = add_layer_norm(x, residual, weight, bias, 1e-5)
    close(total, x.double() + residual.double(), dtype)
    close(normed, F.layer_norm(total.double(), shape[-1:], weight.double(), bias.double()), dtype)


@gpu
def test_kernels_take_strided_and_empty_tensors():
    from musev_core.kernels.fused.gating import geglu
    from musev_core.kernels.fused.group_norm import group_norm_silu

    x, weight, bias = random(1, 8, 2, 3, 4).permute(0, 2, 3, 4, 1), *random(2, 8)
    got = group_norm_silu(x, weight, bias, 2, 1e-5, over_time=False)
    close(got, group_norm.reference(x, weight, bias, 2, 1e-5, False, True, None), torch.float32)
    assert geglu(random(0, 8)).shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
def test_operators_launch_on_cuda():
    """More positions than a grid's second axis allows, by the public function, which must not fall back."""
    qkv = random(1, 13, 70_000, 3 * 8, dtype=torch.float16)
    assert kernels.active(qkv)
    close(kernels.temporal_attention(qkv, 1), attention.reference(qkv.double(), 1), torch.float16)
    assert selection.launchable(qkv)
    long = random(1, 40, 3, 3 * 8, dtype=torch.float16)  # more frames than the kernel takes
    close(kernels.temporal_attention(long, 1), attention.reference(long.double(), 1), torch.float16)


@pytest.mark.slow
@needs_triton
@only_outside
def test_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "0", "-m", "gpu", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = done.stdout.strip().splitlines()[-1]
    assert "passed" in passed and "1 skipped" in passed, passed  # only the test that asks for a real device


# ---- Triton kernels compiled for real GPUs, which needs none


def launches(monkeypatch, call):
    """`(kernel, arguments by name, warps, grid)` of every launch that `call` makes."""
    from triton.runtime.jit import JITFunction

    seen = []

    def record(self, *args, grid, warmup, num_warps, **constants):
        seen.append((self, dict(zip(self.arg_names, args, strict=False)) | constants, num_warps, grid))

    monkeypatch.setattr(JITFunction, "run", record)
    call()
    return seen


def empty(*shape, dtype):
    return torch.empty(*shape, device="meta", dtype=dtype)


def group_norm_call(dtype, *shape, over_time=False, shift=False):
    from musev_core.kernels.fused.group_norm import group_norm_silu

    x, c = empty(*shape, dtype=dtype), shape[-1]
    weight, frames = empty(c, dtype=dtype), empty(*shape[:2], c, dtype=dtype)
    group_norm_silu(x, weight, weight, 32, 1e-5, over_time=over_time, shift=frames if shift else None)


def attention_call(dtype, *shape, heads=8):
    from musev_core.kernels.fused.attention import temporal_attention

    temporal_attention(empty(*shape, dtype=dtype), heads)


def geglu_call(dtype, *shape):
    from musev_core.kernels.fused.gating import geglu

    geglu(empty(*shape, dtype=dtype))


def layer_norm_call(dtype, *shape):
    from musev_core.kernels.fused.layer_norm import add_layer_norm

    x, weight = empty(*shape, dtype=dtype), empty(shape[-1], dtype=dtype)
    add_layer_norm(x, x, weight, weight, 1e-5)


COMPILED = [  # (call, shape, type, compute capability): SD1.5's layers at 512x512, windows of 13 frames
    (partial(group_norm_call, shift=True), (2, 13, 64, 64, 320), torch.float16, 90),
    (partial(group_norm_call, over_time=True), (2, 13, 64, 64, 320), torch.bfloat16, 80),
    (partial(group_norm_call, shift=True), (2, 13, 8, 8, 1280), torch.float16, 75),
    (group_norm_call, (1, 1, 1, 1, 320), torch.float32, 90),  # sizes of 1 reach kernels as constants
    (attention_call, (2, 13, 4096, 960), torch.float16, 90),
    (attention_call, (2, 32, 1, 1920), torch.bfloat16, 80),
    (attention_call, (1, 1, 256, 3840), torch.float16, 75),
    (attention_call, (1, 13, 16, 960), torch.float32, 90),
    (geglu_call, (2, 13, 4096, 2560), torch.float16, 90),
    (geglu_call, (1, 2), torch.float32, 75),
    (layer_norm_call, (2, 13, 4096, 320), torch.float16, 90),
    (layer_norm_call, (1, 1, 1280), torch.bfloat16, 80),
]


@needs_triton
@only_outside
@pytest.mark.parametrize(
    "call, shape, dtype, capability", COMPILED, ids=lambda x: getattr(getattr(x, "func", x), "__name__", str(x))
)
def test_kernels_compile(monkeypatch, tmp_path, call, shape, dtype, capability):
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
    seen = launches(monkeypatch, partial(call, dtype, *shape))
    assert seen
    for kernel, arguments, warps, grid in seen:
        signature, constants = {}, {}
        for parameter in kernel.params:
            value = arguments[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = pointers[value.dtype]
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
        assert binary.asm["cubin"]
        assert binary.metadata.shared <= 48 * 1024
        assert grid[0] < 2**31 and all(size < 2**16 for size in grid[1:])


@needs_triton
@only_outside
@pytest.mark.parametrize("over_time", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (135, 240), (1, 4096)])
def test_group_norm_shares_cover_every_row_once(monkeypatch, over_time, size):
    call = partial(group_norm_call, torch.float16, 2, 13, *size, 320, over_time=over_time)
    for kernel, arguments, _, grid in launches(monkeypatch, call):
        if kernel.__name__ == "_share_moments":
            assert grid[0] == (2 if over_time else 26) * arguments["shares"]
            assert (arguments["shares"] - 1) * arguments["share"] < arguments["positions"]
            assert arguments["positions"] <= arguments["shares"] * arguments["share"]
        if kernel.__name__ == "_group_moments":
            assert arguments["BLOCK_SHARES"] >= arguments["shares"]


@needs_triton
@only_outside
def test_temporal_attention_has_one_grid_axis(monkeypatch):
    ((_, _, _, grid),) = launches(monkeypatch, lambda: attention_call(torch.float16, 2, 13, 128 * 128, 960))
    assert grid == (2 * 128 * 128 * 8,)


# ---- what torch makes of the operators


def calls():
    """Every operation by name: a function and its tensors, without gradients."""
    x, weight, bias = torch.randn(2, 3, 4, 5, 8), torch.randn(8), torch.randn(8)
    shift = torch.randn(1, 3, 8)

    def norm(x, weight, bias, shift):
        return kernels.group_norm_silu(x, weight, bias, 2, 1e-5, over_time=True, shift=shift)

    def add_norm(x, residual, weight, bias):
        return kernels.add_layer_norm(x, residual, weight, bias, 1e-5)

    return {
        "group_norm_silu": (norm, (x, weight, bias, shift)),
        "geglu": (kernels.geglu, (x,)),
        "temporal_attention": (lambda qkv: kernels.temporal_attention(qkv, 2), (torch.randn(2, 3, 5, 24),)),
        "add_layer_norm": (add_norm, (x, x + 1, weight, bias)),
    }


OPERATIONS = tuple(calls())


class Dispatched(TorchDispatchMode):
    """Names of the operators that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@only_outside
@pytest.mark.parametrize("name", OPERATIONS)
def test_opcheck(name):
    x, weight, bias, shift = calls()["group_norm_silu"][1]
    arguments = {
        "group_norm_silu": [
            (x, weight, bias, 2, 1e-5, False, True, None),
            (x, weight, bias, 2, 1e-5, True, True, shift),
        ],
        "geglu": [(x,), (x.half().transpose(1, 3),)],
        "temporal_attention": [(torch.randn(2, 3, 5, 24), 2), (torch.randn(2, 5, 3, 24).transpose(1, 2), 1)],
        "add_layer_norm": [(x, x + 1, weight, bias, 1e-5)],
    }
    for case in arguments[name]:
        torch.library.opcheck(getattr(torch.ops.musev, name).default, case)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_fake_results_are_like_real_ones(name, dtype):
    call, tensors = calls()[name]
    tensors = [y.to(dtype) for y in tensors]
    tensors[0] = tensors[0].transpose(0, 1).contiguous().transpose(0, 1)  # strided input, contiguous result
    with kernels.use("on"):
        real = call(*tensors)
        with FakeTensorMode() as mode:
            fake = call(*(mode.from_tensor(y) for y in tensors))
    for r, f in zip(*((y if isinstance(y, tuple) else (y,)) for y in (real, fake)), strict=True):
        assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)


@pytest.mark.parametrize("name", OPERATIONS)
def test_one_kernel_under_fake_tensors(name):
    call, tensors = calls()[name]
    with FakeTensorMode() as mode, torch.no_grad(), kernels.use("on"):
        tensors = [mode.from_tensor(y) for y in tensors]
        with Dispatched() as dispatched:
            call(*tensors)
    assert dispatched.names == [f"musev.{name}.default"]


@only_outside
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_one_node_in_a_compiled_graph(name, dynamic):
    call, tensors = calls()[name]
    nodes = []

    def backend(graph, _):
        nodes.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    with kernels.use("on"):
        torch._dynamo.reset()
        got = torch.compile(call, backend=backend, fullgraph=True, dynamic=dynamic)(*tensors)
        torch.testing.assert_close(got, call(*tensors))
    assert [node for node in nodes if "musev" in node] == [f"musev.{name}.default"]
    assert not [node for node in nodes if "aten" in node or "torch" in node]


# ---- selection


@pytest.mark.parametrize("name", OPERATIONS)
def test_off_is_plain_torch(name):
    call, tensors = calls()[name]
    with kernels.use("on"):
        on = call(*tensors)
    with kernels.use("off"), Dispatched() as dispatched:
        assert not kernels.active(tensors[0])
        off = call(*tensors)
    assert dispatched.names and not [n for n in dispatched.names if n.startswith("musev")]
    torch.testing.assert_close(on, off, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_take_the_plain_path(name):
    call, tensors = calls()[name]
    tensors = [y.double().requires_grad_() for y in tensors]
    with kernels.use("on"):
        assert not kernels.active(tensors[0])
        assert not kernels.active(torch.ones(1), None, tensors[0])
        assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
        with torch.no_grad():
            assert kernels.active(*tensors)


def test_auto_is_for_cuda_and_types_with_a_kernel():
    assert not kernels.active(torch.ones(2))
    with FakeTensorMode():
        for dtype in DTYPES:
            assert kernels.active(torch.empty(2, device="cuda", dtype=dtype)) == HAS_TRITON
        assert not kernels.active(torch.empty(2, device="cuda", dtype=torch.float64))


def test_use_is_a_setter_and_a_context():
    x = torch.ones(2)
    with kernels.use("off"):
        kernels.use("on")
        assert kernels.active(x)
        with kernels.use("off"):
            assert not kernels.active(x)
        assert kernels.active(x)
    assert not kernels.active(x)
    with pytest.raises(MuseVError, match="auto, off, on, but 'fast'"):
        kernels.use("fast")


@only_outside
@needs_triton
def test_a_triton_that_cannot_run_is_noted_once_and_avoided(monkeypatch, caplog):
    """Here it cannot, for want of a GPU driver; elsewhere it may be a missing C compiler."""
    monkeypatch.setattr(selection, "_unfit", ())
    assert not selection._prove(torch.device("cpu", 1))
    assert selection._unfit == (1,)  # another device may do
    assert "no fused kernels on cpu:1: Triton cannot run there" in caplog.text


@only_outside
@needs_triton
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no 8 bytes"), RuntimeError("Triton Error: out of memory")])
def test_a_full_memory_says_nothing_about_the_device(monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(torch, "ones", full)
    with pytest.raises(torch.OutOfMemoryError):
        selection._prove(torch.device("cpu"))
    assert selection._unfit == selection._proven == ()


@only_outside
def test_environment_and_import():
    program = """
import importlib, os, sys, torch
from musev_core.kernels import selection
for value in ("", "off", "Off"):
    os.environ["MUSEV_KERNELS"] = value
    print(importlib.reload(selection)._auto_is_fused)
print("triton" in sys.modules, "torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(HAS_TRITON), "False", "False", "False", "False"], done.stderr


# ---- errors


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kernels.geglu(torch.ones(2, 3)), "two halves in the last axis, but its size is 3"),
        (lambda: kernels.temporal_attention(torch.ones(2, 3, 12), 2), r"qkv \(b, t, n, 3 c\), but .* \(2, 3, 12\)"),
        (lambda: kernels.temporal_attention(torch.ones(1, 2, 3, 12), 3), "last axis of 12 does not hold .* 3 heads"),
        (lambda: norm(torch.ones(2, 3, 8)), r"x \(b, t, h, w, c\), but its shape is \(2, 3, 8\)"),
        (lambda: norm(groups=3), "8 channels cannot be divided into 3 groups"),
        (lambda: norm(weight=torch.ones(4)), r"must be \(8,\), but they are \(4,\) and \(8,\)"),
        (lambda: norm(shift=torch.ones(3, 1, 8)), r"must be \(1 or 2, 1 or 3, 8\) for this x, but it is \(3, 1, 8\)"),
        (lambda: add(residual=torch.ones(3, 8)), r"one shape and type, but they are \(2, 8\) .* and \(3, 8\)"),
        (lambda: add(residual=torch.ones(2, 8).half()), "torch.float32 and .* torch.float16"),
        (lambda: add(weight=torch.ones(2, 8)), r"must be \(8,\), but they are \(2, 8\) and \(8,\)"),
    ],
)  # fmt: skip
def test_errors(call, message):
    with pytest.raises(MuseVError, match=message):
        call()


def norm(x=None, weight=None, groups=2, shift=None):
    x = torch.ones(2, 3, 4, 4, 8) if x is None else x
    weight = torch.ones(8) if weight is None else weight
    return kernels.group_norm_silu(x, weight, torch.ones(8), groups, 1e-5, over_time=False, shift=shift)


def add(residual=None, weight=None):
    residual = torch.ones(2, 8) if residual is None else residual
    weight = torch.ones(8) if weight is None else weight
    return kernels.add_layer_norm(torch.ones(2, 8), residual, weight, torch.ones(8), 1e-5)
