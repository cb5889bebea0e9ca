"""The results as tables for people and as JSON for programs."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from .meter import Cost, Counts
from .timing import Timing


def environment(device: torch.device) -> dict[str, str]:
    """Date, machine and versions, without which a number says little."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    found = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": name,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for package in ("triton", "xformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for reading as plain text: the first column to the left, the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def text(line: Sequence[str]) -> str:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        return "| " + " | ".join(cells) + " |"

    return "\n".join(text(line) for line in [lines[0], rule, *lines[1:]])


_COST_HEADER = ("TFLOP", "kernels", "GB moved", "GB peak", "syncs")


def _cost_cells(cost: Cost) -> list[str]:
    flops, moved, peak = (_short(x) for x in (cost.flops / 1e12, cost.bytes / 1e9, cost.peak / 1e9))
    return [flops, str(cost.kernels), moved, peak, str(cost.syncs)]


def _short(x: float) -> str:
    """Two decimals, more for small numbers."""
    return f"{x:.2f}" if x >= 1 or x == 0 else f"{x:.2g}"


def costs_table(costs: Mapping[str, Cost]) -> str:
    """One line per name."""
    return table(("", *_COST_HEADER), [[name, *_cost_cells(cost)] for name, cost in costs.items()])


def parts_table(counts: Counts) -> str:
    """The parts of a network, the most bytes first, and the sum."""
    parts = sorted(counts.parts.items(), key=lambda item: -item[1].bytes)
    return costs_table({**dict(parts), "total": counts.total})


def timings_table(timings: Mapping[str, Timing], flops: Mapping[str, int], steps: int, rate: float) -> str:
    """One line per name: ms, spread, ms per window step, share of the matrix rate, memory, and speed against line one.

    Args:
        timings: of one denoising step of a clip each.
        flops: of the same steps.
        steps: windows in a clip.
        rate: the device's matrix rate in FLOP/s.
    """
    first = next(iter(timings.values())).median
    rows = []
    for name, timing in timings.items():
        memory = "-" if timing.memory is None else f"{timing.memory / 1e9:.2f}"
        rows.append(
            [
                name,
                f"{1e3 * timing.median:.1f}",
                f"{100 * timing.spread:.1f} %",
                f"{1e3 * timing.median / steps:.1f}",
                f"{100 * flops[name] / timing.median / rate:.1f} %",
                memory,
                f"{first / timing.median:.2f}",
            ]
        )
    header = ("", "ms", "spread", "ms per window", "MFU", "GB activations", "times as fast")
    return table(header, rows)


def counts_json(counts: Counts) -> dict[str, Any]:
    """Everything that was counted."""
    return {
        "total": counts.total.as_dict(),
        "parts": {name: cost.as_dict() for name, cost in counts.parts.items()},
        "operators": {name: cost.as_dict() for name, cost in counts.operators.items() if cost.kernels or cost.syncs},
    }


def timing_json(timing: Timing, flops: int, steps: int, rate: float, first: float) -> dict[str, Any]:
    """One line of `timings_table` with every single time."""
    return {
        "seconds": timing.seconds,
        "median_seconds": timing.median,
        "spread": timing.spread,
        "seconds_per_window": timing.median / steps,
        "flops": flops,
        "mfu": flops / timing.median / rate,
        "activation_bytes": timing.memory,
        "speed_against_first": first / timing.median,
    }
