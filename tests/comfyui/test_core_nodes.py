"""ComfyUI's own nodes that change a MODEL work before and after MuseV's, and do there what they do elsewhere."""

import comfy.controlnet
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_apg import APG
from comfy_extras.nodes_attention_multiply import UNetCrossAttentionMultiply
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_easycache import LazyCacheNode
from comfy_extras.nodes_freelunch import FreeU, FreeU_V2
from comfy_extras.nodes_hypertile import HyperTile
from comfy_extras.nodes_model_advanced import ModelSamplingContinuousEDM, ModelSamplingDiscrete, RescaleCFG
from comfy_extras.nodes_model_downscale import PatchModelAddDownscale
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_tomesd import TomePatchModel
from support.comfy_clips import Clip, Nodes, base, prompt, sample

CLIP = Clip(frames=3, size=16)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    return Nodes(tmp_path_factory.mktemp("networks"))


def moved(nodes: Nodes, model):
    return nodes.windows(nodes.motion(model))


@pytest.fixture(scope="module")
def unpatched(nodes):
    with torch.inference_mode():
        return sample(moved(nodes, base()), CLIP)


def output(result):
    return getattr(result, "result", result)[0]


NODES = {
    "Perturbed-Attention Guidance": lambda m: output(PerturbedAttentionGuidance.execute(m, 3.0)),
    "Normalized Attention Guidance": lambda m: output(NAGuidance.execute(m, 5.0, 0.5, 1.5)),
    "FreeU": lambda m: output(FreeU.execute(m, 1.1, 1.2, 0.9, 0.2)),
    "FreeU_V2": lambda m: output(FreeU_V2.execute(m, 1.3, 1.4, 0.9, 0.2)),
    "HyperTile": lambda m: output(HyperTile.execute(m, 32, 2, 1, False)),
    "ToMe": lambda m: output(TomePatchModel.execute(m, 0.3)),
    "Deep Shrink": lambda m: output(PatchModelAddDownscale.execute(m, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic")),
    "Cross Attention Multiply": lambda m: output(UNetCrossAttentionMultiply.execute(m, 1.2, 1.0, 0.8, 1.0)),
    "RescaleCFG": lambda m: output(RescaleCFG().patch(m, 0.7)),
    "APG": lambda m: output(APG.execute(m, 1.0, 5.0, 0.0)),
    "LCM": lambda m: output(ModelSamplingDiscrete().patch(m, "lcm", False)),
    "v-prediction, zero SNR": lambda m: output(ModelSamplingDiscrete().patch(m, "v_prediction", True)),
    "Continuous EDM": lambda m: output(ModelSamplingContinuousEDM().patch(m, "eps", 14.0, 0.03)),
}


@pytest.mark.parametrize("name", NODES)
def test_a_node_works_before_and_after_musev(name, nodes, unpatched):
    node, results = NODES[name], []
    for model in (node(moved(nodes, base())), moved(nodes, node(base()))):
        torch.manual_seed(0)  # some draw tiles or tokens
        results.append(sample(model, CLIP))
    assert torch.isfinite(results[0]).all()
    assert torch.equal(*results)
    assert not torch.equal(results[0], unpatched)
    assert torch.equal(results[0][:1], CLIP.latents[:1])


def test_differential_diffusion_takes_a_mask_with_shades(nodes):
    clip = Clip(frames=4)
    clip.mask[1:, :, :4] = 0.4
    clip.latents[1:] = 0.3
    results = [
        sample(model, clip, steps=3)
        for model in (
            output(DifferentialDiffusion.execute(moved(nodes, base()))),
            moved(nodes, output(DifferentialDiffusion.execute(base()))),
        )
    ]
    assert torch.isfinite(results[0]).all()
    assert torch.equal(*results)
    assert torch.equal(results[0][:1], clip.latents[:1])
    assert not torch.equal(results[0], sample(moved(nodes, base()), clip, steps=3))


def test_lazycache_skips_whole_steps(nodes, caplog):
    caplog.set_level("INFO")
    out = sample(output(LazyCacheNode.execute(moved(nodes, base()), 10.0, 0.0, 1.0, False)), steps=6)
    assert torch.isfinite(out).all()
    assert "skipped 4/6 steps" in caplog.text


def test_hypertile_gives_every_tile_its_part_of_the_condition_frame(nodes):
    """A token sees its tile of its own frame, and the same tile of the condition frame."""
    tiled = []
    model = output(HyperTile.execute(moved(nodes, base()), 32, 2, 0, False))

    def attention(function, q, k, v, *args, **kwargs):
        if q.shape[0] == k.shape[0] == 3 * 16:  # three frames of 4 x 4 tiles
            tiled.append(k[:16].chunk(2, dim=1))  # of the condition frame, which sees itself twice
        return function(q, k, v, *args, **kwargs)

    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    torch.manual_seed(0)
    sample(model, CLIP, steps=1, cfg=1.0)
    assert tiled
    assert all(torch.equal(*own_and_condition) for own_and_condition in tiled)


# What functions around the network do to its inputs is not known: branches share nothing then, nothing of the prompt is
# kept, and results are equal to rounding.


def close(out, other) -> bool:
    return bool((out - other).abs().max() < 1e-4 * other.std())


@pytest.mark.parametrize("kind", ["APPLY_MODEL", "DIFFUSION_MODEL"])
def test_wrappers_of_other_packs_still_run(kind, nodes, unpatched):
    calls = []

    def wrapper(executor, x, *args, **kwargs):
        calls.append(x.shape[0])
        return executor(x, *args, **kwargs)

    def wrapped(model):
        new = model.clone()
        new.add_wrapper_with_key(getattr(WrappersMP, kind), "other", wrapper)
        return new

    for model in (wrapped(moved(nodes, base())), moved(nodes, wrapped(base()))):
        assert close(sample(model, CLIP), unpatched)
    assert calls == 4 * [6]  # two steps each, of three frames in two branches


def test_a_wrapper_may_treat_the_branches_differently(nodes):
    """As one would expect from evaluating them one after the other."""

    def wrapper(executor, x, timesteps, context, y, control, options, **kwargs):
        chunks = torch.tensor(options["cond_or_uncond"]).repeat_interleave(len(x) // len(options["cond_or_uncond"]))
        x = x * (1 + 0.5 * chunks[:, None, None, None])
        return executor(x, timesteps, context * (1 + timesteps[0] / 999), y, control, options, **kwargs)

    model = moved(nodes, base())
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "other", wrapper)
    one_by_one = model.clone()
    one_by_one.add_object_patch("memory_usage_factor", 1e12)  # ComfyUI does not dare to batch them
    assert close(sample(model), sample(one_by_one))


def test_a_function_around_the_model_is_called_for_every_window(nodes, unpatched):
    calls = []

    def around(apply_model, arguments):
        calls.append(arguments["input"].shape[0])
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    model = moved(nodes, base())
    model.set_model_unet_function_wrapper(around)
    assert close(sample(model, CLIP), unpatched)
    assert calls == [6, 6]


class Residuals(comfy.controlnet.ControlBase):
    """Gives what a T2I adapter gives: something to add behind some of the input blocks."""

    def __init__(self):
        super().__init__()
        self.cond_hint_original = torch.zeros(1, 3, 64, 64)

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        at = {"input": [None, None, torch.full((x_noisy.shape[0], 32, 8, 8), 0.5)]}
        return self.control_merge(at, None, x_noisy.dtype)

    def get_models(self):
        return []


def test_residuals_of_t2i_adapters_are_added_behind_the_input_blocks(nodes):
    def patch(h, options):
        return h + 0.5 if options["block"] == ("input", 0) else h

    model = moved(nodes, base())
    patched = model.clone()
    patched.set_model_input_block_patch(patch)
    control = Residuals()
    settings = {"control": control, "control_apply_to_uncond": True}
    out = sample(model, steps=1, positive=prompt("positive", **settings), negative=prompt("negative", **settings))
    assert torch.equal(out, sample(patched, steps=1))
    assert not torch.equal(out, sample(model, steps=1))
