"""torch.compile takes the UNet whole, and one compilation serves all steps and clips."""

import copy

import pytest
import torch
from support import golden_models as models
from support.numbers import det

from musev_core.denoise.denoiser import ClipDenoiser, DenoiserOptions
from musev_core.denoise.windows import WindowOptions
from musev_core.models.conditions import ClipConditions, ReferenceFeatures

ARCH = "musev_referencenet"


def conditions(seed: int) -> ClipConditions:
    """Two guidance branches with the pictures and prompts of one clip."""
    latents = det("reference", (1, 4, 1, 8, 8), seed).repeat(2, 1, 1, 1, 1)
    tokens = det("image", (2, 4, 32), seed)
    features = models.reference_net("tiny", 0)(latents, tokens)
    return ClipConditions(
        det("text", (2, 7, 32), seed), image_tokens=tokens, reference=ReferenceFeatures(features.down, features.mid)
    )


def denoise(net, seed: int, steps: int = 1) -> torch.Tensor:
    denoiser = ClipDenoiser(
        net,
        conditions(seed),
        branches=2,
        num_frames=9,
        condition_frames=(0,),
        options=DenoiserOptions(windows=WindowOptions(length=4, overlap=0)),
    )
    latents = det("latents", (1, 4, 9, 8, 8), seed)
    for step in range(steps):
        out = denoiser(latents, torch.tensor(900.0 - 100 * step), step, steps)
    return out


@pytest.mark.filterwarnings("ignore")
def test_one_graph_without_breaks_serves_all_windows_steps_and_clips():
    plain = models.unet(ARCH, "tiny", 0)
    compiled = copy.deepcopy(plain)
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled.compile(fullgraph=True, backend=count)
    with torch.inference_mode():
        for seed in (0, 1):  # two clips with nothing in common, two windows, two steps
            torch.testing.assert_close(denoise(compiled, seed, 2), denoise(plain, seed, 2), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1
