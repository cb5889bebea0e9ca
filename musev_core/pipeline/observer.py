"""How the outside follows a run, and stops it."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import Cancelled


@dataclass(frozen=True)
class StepInfo:
    """State after a step. Latents are `(videos, 4, generated frames of the part, h, w)`; `predicted` is the clean
    video so far."""

    run: str
    step: int
    num_steps: int
    timestep: float
    latents: Tensor
    predicted: Tensor


@dataclass
class Observer:
    """How the outside follows a run, and stops it.

    Args:
        on_step: called after every step.
        on_window: called with (run, step, windows done, windows in all) before every call of the network and once more
            when a step's windows are done.
        cancelled: asked before every call of the network; True raises `Cancelled`.
    """

    on_step: Callable[[StepInfo], None] | None = None
    on_window: Callable[[str, int, int, int], None] | None = None
    cancelled: Callable[[], bool] | None = None

    def check(self) -> None:
        """Raises `Cancelled` if that is wanted."""
        if self.cancelled is not None and self.cancelled():
            raise Cancelled("stopped on request")
