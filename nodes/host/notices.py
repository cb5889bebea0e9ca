"""What an artist should know about a run that works: in the log, and where it matters on the node itself."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from comfy_execution.utils import get_executing_context
from torch import Tensor

log = logging.getLogger(__name__)


def warn(text: str) -> None:
    """A warning on the node that is running, and in the log."""
    log.warning("%s", text)
    running = get_executing_context()
    if running is not None:
        from server import PromptServer

        PromptServer.instance.send_progress_text(text, running.node_id)


def noise_is_replaced(model: Any, noise: Tensor, seed: int | None, around: Sequence[str]) -> None:
    """Says in the log that noise of another node makes room for MuseV's, if there is any.

    Args:
        model: the MODEL.
        noise: what came to the sampler, `(frames, 4, h, w)`.
        around: names of what other packs have wrapped round the run.
    """
    made = [] if seed is None or not bool(noise.any()) or _is_plain(noise, seed) else list(around) or ["a noise node"]
    if getattr(model.get_attachment("ADE_sample_settings"), "ancestral_opts", None) is not None:
        made.append("the ancestral options of ADE_sample_settings")
    if made:
        log.warning(
            "MuseV's video_fusion noise takes the place of the noise that came to the sampler (from %s). To keep "
            "that, set noise_type of Set Video Noise to random.",
            ", ".join(made),
        )


def _is_plain(noise: Tensor, seed: int) -> bool:
    """Whether it is what ComfyUI draws for a seed."""
    plain = torch.randn(noise.shape, generator=torch.Generator("cpu").manual_seed(seed))
    return torch.equal(plain.to(noise), noise)
