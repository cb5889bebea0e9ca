"""Wall time of calls on a device, side by side, and how much of the device they use."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Timing:
    """Times of one call, each in seconds, in the order in which they were taken.

    `memory` is what the call allocates on the device at its peak beyond what was there before (None on the CPU).
    """

    seconds: list[float] = field(default_factory=list)
    memory: int | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a fraction of the median; 0 for a single time."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def compare(
    calls: Mapping[str, Callable[[], Any]], device: torch.device, *, rounds: int = 7, warm_up: int = 2
) -> dict[str, Timing]:
    """Times all calls in turn, round after round, so that a device which slows down slows all of them down."""
    timings = {name: Timing() for name in calls}
    with torch.inference_mode():
        for name, call in calls.items():
            for _ in range(warm_up):
                call()
            timings[name].memory = _memory(call, device)
        for _ in range(rounds):
            for name, call in calls.items():
                timings[name].seconds.append(_seconds(call, device))
    return timings


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def _memory(call: Callable[[], Any], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of the best matrix product found: the ceiling to compare with."""
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024)
    repeats = 10 if device.type == "cuda" else 3
    rates = []
    for n in sizes:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # zeros would run faster

        def products(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(repeats):
                torch.mm(a, b)

        median = compare({"mm": products}, device, rounds=5, warm_up=1)["mm"].median
        rates.append(repeats * 2 * n**3 / median)
    return max(rates)
