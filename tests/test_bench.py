"""`musev bench`: the counts are what one counts by hand, the times compare like with like, and torch alone suffices."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musev_core import kernels
from musev_core.bench import cases, report, timing
from musev_core.bench.__main__ import main
from musev_core.bench.cases import Case, Options
from musev_core.bench.command import add_arguments, bench, count_case, variations
from musev_core.bench.meter import Cost, count
from musev_core.errors import MuseVError
from musev_core.models.reference_net import ReferenceNet

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def half(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float16)


# the counting rules


def test_matrix_product() -> None:
    a, b = half(3, 5), half(5, 7)
    expected = Cost(flops=2 * 3 * 5 * 7, kernels=1, bytes=2 * (15 + 35 + 21), peak=2 * 21)
    assert count(lambda: a @ b).total == expected


def test_linear_layer_is_one_kernel() -> None:
    layer, x = nn.Linear(5, 7, dtype=torch.float16), half(3, 5)
    expected = Cost(flops=2 * 3 * 5 * 7, kernels=1, bytes=2 * (15 + 35 + 7 + 21), peak=2 * 21)
    assert count(lambda: layer(x)).total == expected


def test_batched_matrix_products() -> None:
    a, b, c = half(4, 3, 5), half(4, 5, 7), half(4, 3, 7)
    assert count(lambda: torch.bmm(a, b)).total.flops == 4 * 2 * 3 * 5 * 7
    assert count(lambda: torch.baddbmm(c, a, b)).total.flops == 4 * 2 * 3 * 5 * 7


def test_convolution() -> None:
    x, weight = half(2, 3, 8, 8), half(6, 3, 3, 3)
    got = count(lambda: F.conv2d(x, weight, stride=2, padding=1)).total
    out = 2 * 6 * 4 * 4
    assert got == Cost(flops=2 * out * 3 * 9, kernels=1, bytes=2 * (2 * 3 * 64 + 6 * 27 + out), peak=2 * out)


@pytest.mark.parametrize("named", [False, True])
def test_attention_is_one_kernel_without_a_score_matrix(named: bool) -> None:
    q, k = half(2, 4, 10, 8), half(2, 4, 30, 8)
    given = {"query": q, "key": k, "value": k}
    call = (
        (lambda: F.scaled_dot_product_attention(**given)) if named else lambda: F.scaled_dot_product_attention(q, k, k)
    )
    got = count(call).total
    sizes = 2 * 2 * 4 * 8 * (10 + 30 + 30 + 10)
    assert got == Cost(flops=2 * 2 * 4 * 10 * 30 * 16, kernels=1, bytes=sizes, peak=2 * 2 * 4 * 10 * 8)


def test_attention_gives_its_heads_back_side_by_side() -> None:
    q = half(2, 4, 10, 8)
    got = count(lambda: F.scaled_dot_product_attention(q, q, q).transpose(1, 2).reshape(2, 10, 32)).total
    assert got.kernels == 1


def test_views_and_allocations_are_free() -> None:
    x = half(4, 6)
    assert count(lambda: x.t().unsqueeze(0).expand(3, 6, 4)[:, 1:]).total == Cost()
    assert count(lambda: torch.empty_like(x)).total == Cost()


def test_operators_in_place() -> None:
    x, y = half(4, 6), half(4, 6)
    assert count(lambda: x.add_(y)).total.bytes == 3 * 2 * 24
    assert count(lambda: x.copy_(y)).total.bytes == 2 * 2 * 24  # the target is not read
    assert count(lambda: x.zero_()).total.bytes == 2 * 24


def test_gather_and_scatter_move_what_they_touch() -> None:
    x, index, rows = half(100, 6), torch.arange(3), half(3, 6)
    assert count(lambda: x.index_select(0, index)).total.bytes == 2 * 2 * 18
    assert count(lambda: x.index_copy_(0, index, rows)).total.bytes == 2 * 2 * 18


def test_what_makes_the_device_wait() -> None:
    assert count(lambda: torch.tensor([1.0, 2.0])).total.syncs == 1
    assert count(lambda: half(3) + 1).total.syncs == 0


def test_peak_is_what_is_alive_at_once() -> None:
    x = half(1000)

    def one_after_another() -> None:
        y = x
        for _ in range(5):
            y = y + 1

    def all_kept() -> list[Tensor]:
        return [x + 1 for _ in range(5)]

    assert count(one_after_another).total.peak == 2 * 2000
    assert count(all_kept).total.peak == 5 * 2000


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.outer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x)) + 1


def test_parts_add_up_and_hooks_are_taken_off() -> None:
    net, x = _Nested(), torch.randn(2, 4)
    counts = count(lambda: net(x), net, lambda path, current: "inner" if path == "inner" else current)
    assert {name: cost.kernels for name, cost in counts.parts.items()} == {"inner": 2, "rest": 2}
    assert sum(cost.bytes for cost in counts.parts.values()) == counts.total.bytes
    assert sum(cost.bytes for cost in counts.operators.values()) == counts.total.bytes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_fused_temporal_attention_costs_its_arithmetic() -> None:
    b, t, n, heads, d = 2, 13, 6, 4, 8
    qkv = half(b, t, n, 3 * heads * d)
    with kernels.use("on"):
        got = count(lambda: kernels.temporal_attention(qkv, heads)).total
    assert got.kernels == 1
    assert got.flops == 2 * b * n * heads * t * t * (d + d)
    assert got.bytes == 2 * (3 + 1) * b * t * n * heads * d


# the cases


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"variant": "sd15"}, "variant can be musev.*'sd15'"),
        ({"branches": "three"}, "branches can be both, split, one"),
        ({"dtype": "int8"}, "dtype can be"),
        ({"height": 500}, "height must be a positive multiple of 8, got 500"),
        ({"width": 0}, "width must be"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"condition_frames": -1}, "condition_frames must be at least 0"),
        ({"window": 4, "overlap": 4}, "overlap"),
    ],
)
def test_cases_out_of_range_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(MuseVError, match=said):
        Case(**wrong)


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (9, 7)])
def test_feature_shapes_are_those_of_the_reference_net(size: tuple[int, int]) -> None:
    config = Case(tiny=True).config
    features = ReferenceNet(config)(torch.zeros(1, 4, 1, *size), torch.zeros(1, 4, config.context_dim))
    expected = [tuple(x.shape[2:]) for x in (*features.down, features.mid)]
    assert cases.feature_shapes(config, size) == expected


def small_case(**changes) -> Case:
    return Case(**{"tiny": True, "height": 64, "width": 64, "frames": 8, "window": 4, "overlap": 2} | changes)


@pytest.mark.slow
def test_costs_of_guidance_branches() -> None:
    both, split, one = (count_case(small_case(branches=b), Options("off")).window.total for b in cases.BRANCHES)
    assert split.flops == 2 * one.flops
    assert one.flops < both.flops <= split.flops  # both share what comes before the prompt
    assert split.peak < both.peak
    assert split.kernels == 2 * one.kernels + 1  # and both predictions together


def test_a_clip_costs_its_windows() -> None:
    case = small_case()
    assert case.windows == [4, 4, 4]
    costs = count_case(case, Options("off"))
    assert costs.clip.flops == 3 * costs.window.total.flops
    assert costs.clip.peak == costs.window.total.peak
    assert costs.first.total.flops > costs.window.total.flops  # keys and values of the constants


@pytest.mark.parametrize("variant", cases.VARIANTS)
def test_every_part_of_the_network_is_told_apart(variant: str) -> None:
    parts = count_case(small_case(variant=variant), Options("off")).window.parts
    expected = {name for _, name in cases._PARTS} | {"rest"}
    assert set(parts) == expected - (set() if "reference" in variant else {"reference fusion"})
    total = sum(cost.flops for cost in parts.values())
    assert parts["rest"].flops < 0.05 * total


def test_options_are_varied_one_at_a_time() -> None:
    assert variations(small_case(), [], CPU) == [Options()]
    varied = variations(small_case(), ["kernels", "compile", "windows"], torch.device("cuda"))
    assert Options(kernels="off") in varied and Options(compiled=True) in varied
    assert Options(compiled=True, graphs=True) in varied  # which there are on CUDA only
    assert variations(small_case(), ["compile"], CPU) == [Options(), Options(compiled=True)]
    assert Options(windows_per_call=2) in varied and Options(windows_per_call=4) not in varied  # of three windows


# times


def test_times_compare_calls_in_turn() -> None:
    order = []

    def sleeper(name: str, seconds: float):
        def call() -> None:
            order.append(name)
            time.sleep(seconds)

        return call

    calls = {"slow": sleeper("slow", 0.03), "fast": sleeper("fast", 0.01)}
    timings = timing.compare(calls, CPU, rounds=3, warm_up=1)
    assert order == ["slow", "fast"] + ["slow", "fast"] * 3
    assert timings["slow"].median / timings["fast"].median == pytest.approx(3, rel=0.3)
    assert timings["slow"].memory is None


def test_median_and_spread() -> None:
    some = timing.Timing([1.0, 2.0, 3.0, 4.0, 100.0])
    assert some.median == 3
    assert some.spread == pytest.approx(1 / 3)
    assert timing.Timing([5.0]).spread == 0


def test_matrix_rate_is_a_rate() -> None:
    assert 1e8 < timing.matmul_rate(CPU, torch.float32) < 1e15


# the command


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(given)


SMALL = ("--tiny", "--height", "64", "--width", "64", "--frames", "6", "--window", "4", "--overlap", "2")


def test_counts_of_the_full_network_in_seconds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "costs.json"
    assert bench(arguments("--counts", "--json", str(path))) == 0
    shown, written = capsys.readouterr().out, json.loads(path.read_text(encoding="utf-8"))
    plain = written["counts"]["plain torch"]["window"]
    assert f"{plain['total']['flops'] / 1e12:.2f}" in shown
    assert 35e12 < plain["total"]["flops"] < 41e12
    assert sum(part["flops"] for part in plain["parts"].values()) == plain["total"]["flops"]
    assert written["case"]["height"] == 512
    assert written["environment"]["torch"] == torch.__version__
    assert "timings" not in written


def test_times_and_ratios_on_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "times.json"
    options = arguments(*SMALL, "--device", "cpu", "--dtype", "float32", "--quick", "--json", str(path))
    assert bench(options) == 0
    timings = json.loads(path.read_text(encoding="utf-8"))["timings"]
    first, *others = timings.values()
    assert first["speed_against_first"] == 1
    assert others[0]["speed_against_first"] == pytest.approx(first["median_seconds"] / others[0]["median_seconds"])
    assert len(first["seconds"]) == 3
    shown = capsys.readouterr().out
    assert "times as fast" in shown and all(name in shown for name in timings)


def test_without_a_gpu_nothing_is_timed_unasked(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert bench(arguments(*SMALL)) == 0
    assert "nothing was timed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [
        (("--device", "abacus"), "The device 'abacus' cannot be used here"),
        (("--device", "meta"), "The device 'meta' cannot be used here"),
        (("--rounds", "0"), "--rounds must be at least 1"),
        (("--json", "nowhere/at/all.json"), "no folder nowhere/at"),
        (("--height", "63"), "multiple of 8"),
    ],
)
def test_wrong_options_are_refused_before_any_work(wrong: tuple[str, ...], said: str) -> None:
    with pytest.raises(MuseVError, match=said):
        bench(arguments(*wrong))


def test_tables_are_aligned() -> None:
    text = report.costs_table({"a": Cost(2 * 10**12, 3, 4 * 10**9, 5 * 10**8, 0), "much longer": Cost()})
    header, rule, first, last = text.split("\n")
    assert len({len(line) for line in (header, rule, first, last)}) == 1
    assert first.split("|")[2].strip() == "2.00" and first.split("|")[5].strip() == "0.5"


USED = {"torch", "einops"}
_ONLY_THESE = """
import runpy, sys
from importlib.machinery import PathFinder

class BareMachine(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else super().find_spec(name, path, target)

sys.meta_path = [BareMachine if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = ["bench", *sys.argv[2:]]
runpy.run_module(MODULE, run_name="__main__")
"""


def packages_not_there() -> set[str]:
    """What the project asks for beside these, by import name."""
    config = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = config.partition("\ndependencies = [")[2].partition("]")[0]
    names = {re.match(r"[\w-]+", entry).group() for entry in re.findall(r'"(.+?)"', listed)}
    different = {"Pillow": "PIL", "opencv-python-headless": "cv2", "pyyaml": "yaml"}
    return {different.get(name, name) for name in names - USED} | {"triton", "xformers"}


def run_bare(module: str, *given: str) -> subprocess.CompletedProcess:
    code = f"MISSING = {packages_not_there()!r}\nMODULE = {module!r}\n{_ONLY_THESE}"
    return subprocess.run([sys.executable, "-c", code, "--", *given], cwd=ROOT, capture_output=True, text=True)


def test_the_packages_that_are_not_there_are_known() -> None:
    assert {"diffusers", "transformers", "numpy", "PIL", "cv2"} <= packages_not_there()
    assert not USED & packages_not_there()


@pytest.mark.parametrize(
    "module, command", [pytest.param("musev_core.bench", (), marks=pytest.mark.slow), ("musev_core.cli", ("bench",))]
)
def test_needs_torch_and_einops_only(module: str, command: tuple[str, ...]) -> None:
    run = run_bare(module, *command, *SMALL, "--device", "cpu", "--dtype", "float32", "--quick", "--compare")
    assert run.returncode == 0, run.stderr
    assert "MFU" in run.stdout


def test_errors_are_sentences(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--height", "7"])
    assert main() == 1
    assert capsys.readouterr().err == "musev bench: height must be a positive multiple of 8, got 7\n"
