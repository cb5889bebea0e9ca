"""`musev bench` with the straightforward NCHW network beside ours: `python tests/benchmarks/run.py --help`.

Needs torch and einops only, and runs from any checkout.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from musev_core.bench import cases  # noqa: E402
from musev_core.bench.command import add_arguments, bench  # noqa: E402
from musev_core.errors import MuseVError  # noqa: E402
from musev_core.models.conditions import ClipConditions  # noqa: E402

if __name__ == "__main__":
    from naive_unet import NaiveUNet, references_of
else:
    from .naive_unet import NaiveUNet, references_of

NAME = "NCHW, as the original"


class NaiveInClips(nn.Module):
    """The network behind the interface of `MuseVUNet`, for `ClipDenoiser`."""

    def __init__(self, unet: NaiveUNet):
        super().__init__()
        self.unet = unet
        self.config = unet.config

    def prepare(self, *_: Any, **__: Any) -> None:
        """Nothing is computed ahead."""

    def forward(
        self, sample: Tensor, timestep: Tensor, clip: ClipConditions, *, branches: int = 1, **options: Any
    ) -> Tensor:
        sample = sample.repeat(branches, 1, 1, 1, 1)
        batch = sample.shape[0]
        references = clip.once(("naive", batch), lambda: references_of(clip, batch))
        return self.unet(sample, timestep, clip, references, guidance=branches > 1, **options)


def naive(case: cases.Case, device: torch.device) -> NaiveInClips:
    """The rival: the same case, random weights of the same distribution."""
    return NaiveInClips(cases.random_network(lambda layers: NaiveUNet(case.config, layers), case, device))


def part_of(path: str, current: str) -> str:
    """As for our network, and the work whose result is thrown away apart from the rest."""
    if current.startswith("discarded"):
        return current
    if "adain" in path:
        return "discarded AdaIN"
    if "guidance_recompute" in path:
        return "discarded self-attention"
    return cases.part_of(path, current)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    try:
        return bench(parser.parse_args(), {NAME: naive}, part_of)
    except MuseVError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
