"""The command `musev bench`."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..config import VARIANTS
from ..devices import find_device
from ..errors import MuseVError
from .cases import (
    BRANCHES,
    DTYPES,
    Case,
    Options,
    attention_backends,
    clip_step,
    compiled,
    guidance_calls,
    part_of,
    random_clip,
    random_unet,
    weight_bytes,
    window_call,
    with_options,
)
from .meter import Cost, Counts, PartOf, count
from .report import costs_table, counts_json, environment, parts_table, timing_json, timings_table
from .timing import compare, matmul_rate

logger = logging.getLogger(__name__)

DESCRIPTION = "What the network costs: counted without hardware, and timed on the device at hand."
PLAIN, FUSED = "plain torch", "fused kernels"
COMPARISONS = ("kernels", "attention", "compile", "windows")
# makes another network of the case to measure beside ours; it is called as `MuseVUNet` is
Rival = Callable[[Case, torch.device], nn.Module]


@dataclass(frozen=True)
class Counted:
    """One network's costs: the first call of a clip, the later ones, and one step of the whole clip."""

    first: Counts
    window: Counts
    clip: Cost


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `musev bench`."""
    case = Case()
    parser.add_argument("--variant", default=case.variant, choices=list(VARIANTS), help="of the network")
    parser.add_argument("--height", type=int, default=case.height, help="in pixels, a multiple of 8")
    parser.add_argument("--width", type=int, default=case.width, help="in pixels, a multiple of 8")
    parser.add_argument("--frames", type=int, default=case.frames, help="generated frames of the clip")
    parser.add_argument(
        "--condition_frames", type=int, default=case.condition_frames, help="clean frames in front of every window"
    )
    parser.add_argument(
        "--branches",
        default=case.branches,
        choices=BRANCHES,
        help="with guidance in one call, with guidance in two calls, or without guidance",
    )
    parser.add_argument("--window", type=int, default=case.window, help="frames evaluated together")
    parser.add_argument("--overlap", type=int, default=case.overlap, help="frames shared by neighbouring windows")
    parser.add_argument("--dtype", default=case.dtype, choices=list(DTYPES), help="of weights and activations")
    parser.add_argument(
        "--tiny", action="store_true", help="few channels and layers, for trying this out on a small machine"
    )
    parser.add_argument("--device", default=None, help="where to take times; default: the GPU, otherwise counts only")
    parser.add_argument("--counts", action="store_true", help="count only, take no times")
    parser.add_argument(
        "--compare", nargs="*", default=list(COMPARISONS), choices=COMPARISONS, help="what to vary one at a time"
    )
    parser.add_argument("--rounds", type=int, default=7, help="how often everything is timed")
    parser.add_argument("--quick", action="store_true", help="3 rounds, nothing compiled")
    parser.add_argument("--json", type=Path, default=None, help="also write everything to this file")


def bench(options: argparse.Namespace, rivals: Mapping[str, Rival] | None = None, rival_parts: PartOf = part_of) -> int:
    """Counts, takes times where there is a device for it, and prints tables.

    Args:
        options: from `add_arguments`.
        rivals: other networks to measure in the same run; the speeds are then relative to the first of them.
        rival_parts: tells their parts apart.

    Raises:
        MuseVError: for options out of range, before anything is measured.
    """
    case = Case(**{field.name: getattr(options, field.name) for field in fields(Case)})
    if options.rounds < 1:
        raise MuseVError(f"--rounds must be at least 1, got {options.rounds}")
    device = _device(options)
    if options.json is not None and not options.json.parent.is_dir():
        raise MuseVError(f"--json: there is no folder {options.json.parent} to write to")
    rivals = rivals or {}
    result: dict[str, Any] = {"environment": environment(device or torch.device("cpu")), "case": asdict(case)}

    counted = {name: count_case(case, Options(kernels="off"), make, rival_parts) for name, make in rivals.items()}
    counted[PLAIN] = count_case(case, Options(kernels="off"))
    counted[FUSED] = count_case(case, Options(kernels="on"))
    _say(_counts_text(case, counted))
    result["counts"] = {
        name: {
            "window": counts_json(costs.window),
            "first_window_of_clip": costs.first.total.as_dict(),
            "clip_step": costs.clip.as_dict(),
        }
        for name, costs in counted.items()
    }
    if device is not None:
        result |= _timed(case, options, device, rivals, {name: costs.clip.flops for name, costs in counted.items()})
    elif not options.counts:
        _say("There is no GPU here, so nothing was timed; --device cpu times on the CPU, best together with --tiny.")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def count_case(case: Case, options: Options, make: Rival = random_unet, parts: PartOf = part_of) -> Counted:
    """What a network of the case costs, without computing anything."""
    device = torch.device("cpu")
    with FakeTensorMode():
        unet = make(case, device)
        clips = guidance_calls(case, random_clip(case, device))
        wrap = with_options(unet, options)

        def cost(length: int) -> Counts:
            return count(wrap(window_call(case, unet, clips, length)), unet, parts)

        first = cost(max(case.windows))
        by_length = {length: cost(length) for length in set(case.windows)}
    total = Cost()
    for length in case.windows:
        one = by_length[length].total
        total.flops += one.flops
        total.kernels += one.kernels
        total.bytes += one.bytes
        total.syncs += one.syncs
        total.peak = max(total.peak, one.peak)
    return Counted(first, by_length[max(case.windows)], total)


def _device(options: argparse.Namespace) -> torch.device | None:
    """Where to take times, if at all."""
    if options.counts:
        return None
    if options.device is None:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    device = find_device(options.device)
    if device.type not in ("cuda", "cpu"):
        raise MuseVError(f"--device {options.device!r}: times are taken on cuda and cpu only")
    return device


def _counts_text(case: Case, counted: Mapping[str, Counted]) -> str:
    guidance = {"both": "both guidance branches", "split": "guidance branches one by one", "one": "no guidance"}
    title = (
        f"{case.variant}{' (tiny)' if case.tiny else ''}, {case.width}x{case.height}, {max(case.windows)} + "
        f"{case.condition_frames} frames, {case.dtype}, {guidance[case.branches]}"
    )
    lines = [f"# {title}", "", "One window, counted:", ""]
    lines.append(costs_table({name: costs.window.total for name, costs in counted.items()}))
    lines += ["", "The first window of a clip, which also computes what is constant over the clip:", ""]
    lines.append(costs_table({name: costs.first.total for name, costs in counted.items()}))
    if len(case.windows) > 1:
        lines += ["", f"One step of a clip of {case.frames} frames in {len(case.windows)} windows:", ""]
        lines.append(costs_table({name: costs.clip for name, costs in counted.items()}))
    for name, costs in counted.items():
        if name == FUSED and costs.window.total == counted[PLAIN].window.total:
            continue
        lines += ["", f"One window by part, {name}:", "", parts_table(costs.window)]
    return "\n".join([*lines, ""])


# ------------------------------------------------------------------------------------------ times


def variations(case: Case, compared: list[str], device: torch.device) -> list[Options]:
    """The options to time: the defaults, then each comparison with one thing changed."""
    found = [Options()]
    if "kernels" in compared and device.type == "cuda":
        found.append(Options(kernels="off"))
    if "attention" in compared:
        found += [Options(attention=name) for name in attention_backends() if name != Options.attention]
    if "compile" in compared:
        found.append(Options(compiled=True))
        if device.type == "cuda":
            found += [Options(kernels="off", compiled=True), Options(compiled=True, graphs=True)]
    if "windows" in compared:
        found += [Options(windows_per_call=n) for n in (2, 4) if n <= len(case.windows)]
    return found


def _timed(
    case: Case,
    options: argparse.Namespace,
    device: torch.device,
    rivals: Mapping[str, Rival],
    flops_of: Mapping[str, int],
) -> dict[str, Any]:
    """Takes the times, prints them and returns them for JSON."""
    compared = [name for name in options.compare if not (options.quick and name == "compile")]
    clip = random_clip(case, device)
    unet = random_unet(case, device)
    calls: dict[str, Callable[[], Any]] = {}
    flops: dict[str, int] = {}
    for name, make in rivals.items():
        calls[name] = clip_step(case, make(case, device), clip, Options())
        flops[name] = flops_of[name]
    for choice in variations(case, compared, device):
        step = with_options(unet, choice)(clip_step(case, compiled(unet, choice), clip, choice))
        if choice == Options() or _works(step, choice):
            calls[str(choice)] = step
            flops[str(choice)] = flops_of[PLAIN]
    rate = matmul_rate(device, DTYPES[case.dtype])
    timings = compare(calls, device, rounds=3 if options.quick else options.rounds)
    steps, weights = len(case.windows), weight_bytes(unet)
    first = next(iter(timings.values())).median
    about = environment(device)
    _say(f"One step of the clip ({steps} windows), timed on {about['device']} with torch {about['torch']}:\n")
    _say(timings_table(timings, flops, steps, rate))
    _say(
        f"\nMFU is relative to the best matrix product here, {rate / 1e12:.3g} TFLOP/s; weights {weights / 1e9:.2f} GB."
    )
    return {
        "matrix_flops_per_second": rate,
        "weight_bytes": weights,
        "windows": steps,
        "timings": {name: timing_json(timing, flops[name], steps, rate, first) for name, timing in timings.items()},
    }


def _works(step: Callable[[], Any], choice: Options) -> bool:
    """Tries an option which may fail on this machine, so that it costs its line and not the whole run."""
    try:
        with torch.inference_mode():
            step()
    except Exception as error:  # a compiler or backend may raise anything
        logger.warning("left out, %s does not run here: %s: %s", choice, type(error).__name__, str(error)[:200])
        return False
    return True


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
