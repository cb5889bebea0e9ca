"""torch.compile takes the UNet whole, and one compilation serves all steps and clips."""

import copy

import pytest
import torch
from support import golden_models as models
from support.numbers import det

from musev_core import kernels
from musev_core.denoise.denoiser import ClipDenoiser, DenoiserOptions
from musev_core.denoise.windows import WindowOptions
from musev_core.models.conditions import ClipConditions, ReferenceFeatures
from musev_core.models.owned import lay_out_weights
from musev_core.pipeline import MuseVPipeline

ARCH = "musev_referencenet"


def conditions(seed: int, device: str = "cpu") -> ClipConditions:
    """Two guidance branches with the pictures and prompts of one clip."""
    latents = det("reference", (1, 4, 1, 8, 8), seed).repeat(2, 1, 1, 1, 1)
    tokens = det("image", (2, 4, 32), seed)
    features = models.reference_net("tiny", 0)(latents, tokens)
    return ClipConditions(
        det("text", (2, 7, 32), seed).to(device),
        image_tokens=tokens.to(device),
        reference=ReferenceFeatures(tuple(x.to(device) for x in features.down), features.mid.to(device)),
    )


def denoise(net, seed: int, steps: int = 1, *, device: str = "cpu", split: bool = False) -> torch.Tensor:
    denoiser = ClipDenoiser(
        net,
        conditions(seed, device),
        branches=2,
        num_frames=9,
        condition_frames=(0,),
        options=DenoiserOptions(windows=WindowOptions(length=4, overlap=0), split_guidance=split),
    )
    latents = det("latents", (1, 4, 9, 8, 8), seed).to(device)
    for step in range(steps):
        out = denoiser(latents, torch.tensor(900.0 - 100 * step, device=device), step, steps)
    return out


def pipeline_of(net) -> MuseVPipeline:
    return MuseVPipeline(net, vae=None, tokenizer=None, text_encoder=None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [pytest.param("off", marks=pytest.mark.slow), "on"])
def test_one_graph_without_breaks_serves_all_windows_steps_and_clips(mode):
    """With plain torch, and with our operators on weights as loading lays them out."""
    plain = models.unet(ARCH, "tiny", 0)
    compiled = copy.deepcopy(plain)
    if mode == "on":
        lay_out_weights(compiled)
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipeline_of(compiled).compile(backend=count)
    with torch.inference_mode(), kernels.use(mode):
        for seed in (0, 1):  # two clips with nothing in common, two windows, two steps
            torch.testing.assert_close(denoise(compiled, seed, 2), denoise(plain, seed, 2), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("split", [False, True])
def test_a_prediction_outlives_the_next_run_of_its_graph(split):
    """The backend hands out the same memory at every run, as CUDA graphs do; split branches need two at once."""
    plain = models.unet(ARCH, "tiny", 0)
    graphed = copy.deepcopy(plain)
    torch._dynamo.reset()

    def overwriting(graph, inputs, **_):
        outputs: list[torch.Tensor] = []

        def run(*args):
            new = graph.forward(*args)
            if not outputs:
                outputs.extend(new)
            for kept, x in zip(outputs, new, strict=True):
                kept.copy_(x)
            return outputs

        return run

    pipeline_of(graphed).compile(graphs=True, backend=overwriting)
    with torch.inference_mode():
        expected, got = denoise(plain, 0, split=split), denoise(graphed, 0, split=split)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("split", [False, True])
def test_cuda_graphs_give_the_predictions_of_the_plain_network(split):
    plain = copy.deepcopy(models.unet(ARCH, "tiny", 0)).cuda()
    graphed = copy.deepcopy(plain)
    torch._dynamo.reset()
    pipeline_of(graphed).compile(graphs=True)
    with torch.inference_mode():
        for seed in (0, 1):  # a graph must not remember the first clip
            for _ in range(3):  # warm up, record, replay
                got = denoise(graphed, seed, 2, device="cuda", split=split)
            expected = denoise(plain, seed, 2, device="cuda", split=split)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
