"""Places inside the forward pass where a host may look or change something."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from .conditions import ClipConditions


class ForwardHooks(Protocol):
    """Called in the order in which data meets the places; without hooks nothing of it costs anything.

    Blocks are counted as in the original Stable Diffusion UNet: input block 0 is the first convolution, a layer with
    everything behind it (temporal layers, reference fusion) is one block, so is a downsampler. Activations are
    `(b, t, h, w, c)`; where guidance branches are still one, `b` is smaller than in the output.
    """

    def time_embedding(self, emb: Tensor) -> Tensor:
        """`(1 or b, 1, dim)` before its SiLU, to `(1 or b, 1 or t, dim)`."""
        ...

    def input_block(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Output of an input block, to what is kept for the up path and what goes on."""
        ...

    def middle_block(self, x: Tensor) -> Tensor:
        """Output of the mid block."""
        ...

    def output_block(self, index: int, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of an output block, before they are joined."""
        ...

    def transformer_block(
        self,
        block: nn.Module,
        x: Tensor,
        clip: ClipConditions,
        condition_frames: Sequence[int],
        batch: int,
        size: tuple[int, int],
    ) -> Tensor | None:
        """A whole spatial `TransformerBlock` on `x (b, t, n, c)` of `size (h, w)`; None: compute it as usual."""
        ...
