"""What changes with the number of the step, as functions of it: so nothing of it has to be saved."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from .options import TrainOptions


def learning_rate(options: TrainOptions, step: int) -> float:
    """Of step 0, 1, 2, ...: a linear rise over the warm-up, then the schedule."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / (options.warmup_steps + 1)
    done = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    if options.learning_rate_schedule == "linear":
        return options.learning_rate * max(0.0, 1 - done)
    if options.learning_rate_schedule == "cosine":
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return options.learning_rate


def ema_decay(limit: float, step: int) -> float:
    """Small at first, so that the average forgets the random beginning."""
    return min(limit, (1 + step) / (10 + step))


def derived_seed(*numbers: int) -> int:
    """A seed for a purpose with these numbers; different numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def generator(*numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for the purpose with these numbers."""
    return torch.Generator(device).manual_seed(derived_seed(*numbers))


def place_in_epoch(number: int, length: int, seed: int) -> tuple[int, int]:
    """(epoch, item) of sample `number` of an endless run: every epoch is a shuffle of its own."""
    epoch, place = divmod(number, length)
    return epoch, int(np.random.default_rng((seed, epoch)).permutation(length)[place])


class RunSampler(Sampler[int]):
    """Numbers of the samples of an endless run for one of several processes, from a step on."""

    def __init__(self, first_step: int, options: TrainOptions, rank: int = 0, world: int = 1):
        self.first = first_step
        self.options = options
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[int]:
        size = self.options.batch_size
        passes = self.options.accumulation * (self.options.steps - self.first)
        start = self.first * self.options.accumulation * self.world
        for i in range(passes):
            batch = start + i * self.world + self.rank
            yield from range(batch * size, (batch + 1) * size)

    def __len__(self) -> int:
        return self.options.batch_size * self.options.accumulation * (self.options.steps - self.first)
