"""A graph with everything in it at once: each part still matters, alone, and only for the frames that are generated."""

from typing import Any

import comfy.hooks
import comfy.sd
import nodes
import pytest
import torch
from comfy_extras.nodes_hooks import SetModelHooksOnCond
from support.node_results import Faces, face_adapter, noisy
from support.numbers import det
from support.sensitivity import Changed, Results, Subject, changed, unnoticed
from support.small_comfy import (
    REFERENCENET,
    SMALL,
    Vision,
    adapter,
    base,
    clip,
    comfy_control_net,
    control_net,
    ksample,
    pictures,
    prompt,
    reference_net,
    video_model,
)
from support.tiny_comfy import tiny_vae

from musev_core.weights.keymaps import unet_ldm_to_diffusers
from musev_pack.nodes.reference import ApplyFaceID, ApplyIPAdapter, ApplyReferenceNet

FRAMES = 3
GENERATED = "latents frames"  # the results of what is generated, and what it is decoded to


LORAS = ("before", "after", "hook")


def lora(name: str) -> dict[str, torch.Tensor]:
    """A LoRA file for one layer, another one for each name."""
    layers = sorted(old for old, new in unet_ldm_to_diffusers(SMALL).items() if new.endswith("attn2.to_v.weight"))
    layer = layers[LORAS.index(name)]
    out, width = SMALL.block_out_channels[0], SMALL.context_dim
    key = "lora_unet_" + layer.removesuffix(".weight").replace(".", "_")
    return {
        f"{key}.lora_up.weight": det(f"{name} up", (out, 4), scale=0.5),
        f"{key}.lora_down.weight": det(f"{name} down", (4, width), scale=0.5),
    }


def with_lora(model: Any, name: str, strength: float | None) -> Any:
    """Load LoRA; None leaves the node out."""
    if strength is None:
        return model
    return comfy.sd.load_lora_for_models(model, None, lora(name), strength, 0.0)[0]


def hooked(conditionings: tuple[list, ...], strength: float | None) -> tuple[list, ...]:
    """Prompts with a LoRA as their hook."""
    if strength is None:
        return conditionings
    hook = comfy.hooks.create_hook_lora(lora("hook"), strength, 0.0)
    return tuple(SetModelHooksOnCond().attach_hook(each, hook)[0] for each in conditionings)


def film(**given: Any) -> Results:
    """The graph from model files to frames; a strength of None leaves that part out."""
    model = with_lora(base(), "before", given["lora_before"])
    model = video_model(model, variant=REFERENCENET)
    model = with_lora(model, "after", given["lora_after"])
    span = {"start_percent": 0.0, "end_percent": 1.0}
    if (strength := given["reference"]) is not None:
        (model,) = ApplyReferenceNet.execute(
            model, reference_net(), tiny_vae(), given["reference_picture"], strength, **span, width=0, height=0
        ).args
    if (weight := given["image_prompt"]) is not None:
        (model,) = ApplyIPAdapter.execute(
            *(model, adapter("plain"), Vision(), given["prompt_picture"], weight, "concat"),
            **span,
            mask=given["attention_mask"],
        ).args
    if (weight := given["face"]) is not None:
        (model,) = ApplyFaceID.execute(
            model,
            face_adapter(),
            given["face_picture"],
            weight,
            **span,
            lora_strength=given["face_lora"],
            insightface=Faces(),
        ).args
    positive, negative = prompt(given["positive"]), prompt(given["negative"])
    if given["prompt_mask"] is not None:
        mask, share = given["prompt_mask"], given["prompt_mask_strength"]
        (masked,) = nodes.ConditioningSetMask().append(prompt(given["masked"]), mask, "default", share)
        positive = positive + masked
    positive, negative = hooked((positive, negative), given["lora_hook"])
    for i in "12":
        if (strength := given[f"control_{i}"]) is not None:
            positive, negative = nodes.ControlNetApplyAdvanced().apply_controlnet(
                *(positive, negative, control_net(comfy_control_net(int(i))), given[f"hint_{i}"], strength),
                *(given[f"control_start_{i}"], given[f"control_end_{i}"]),
            )
    start = clip(FRAMES)
    start["samples"][1:] = noisy(FRAMES)["samples"][1:]
    start["samples"][0] = tiny_vae().encode(given["picture"])[0]
    start["noise_mask"][1:] = given["mask"]
    names = ("seed", "steps", "cfg", "sampler", "scheduler", "denoise", "start_step", "last_step")
    out = ksample(model, start, positive, negative, **{name: given[name] for name in names})
    frames = given["vae"].decode(out)
    return {"condition": out[:1], "latents": out[1:], "first": frames[:1], "frames": frames[1:]}


def corner(share: float) -> torch.Tensor:
    """A mask that is 1 but for its upper left corner."""
    mask = torch.ones(1, 4, 4)
    mask[:, :2, :2] = share
    return mask


CONTROL = {"control_{}": 1.0, "control_start_{}": 0.0, "control_end_{}": 1.0}
BASELINE = {
    **{name.format(i): value for i in "12" for name, value in CONTROL.items()},
    "hint_1": lambda: pictures(FRAMES, seed=11),
    "hint_2": lambda: pictures(FRAMES, seed=12),
    **{f"lora_{name}": 0.7 for name in LORAS},
    **{"reference": 1.0, "reference_picture": lambda: pictures(1, seed=1)},
    **{"image_prompt": 1.0, "prompt_picture": lambda: pictures(1, seed=2), "attention_mask": lambda: corner(0.5)},
    **{"face": 1.0, "face_picture": lambda: pictures(1, seed=3), "face_lora": 0.5},
    **{"positive": "good", "negative": "bad", "masked": "good here"},
    **{"prompt_mask": lambda: corner(0.0), "prompt_mask_strength": 1.0},
    **{"picture": lambda: pictures(1, seed=4), "mask": lambda: corner(0.5), "vae": tiny_vae},
    **{"seed": 1, "steps": 2, "cfg": 3.5, "sampler": "euler", "scheduler": "sgm_uniform"},
    **{"denoise": 1.0, "start_step": 0, "last_step": None},
}
PATH = Subject(
    film,
    BASELINE,
    {
        **{f"lora_{name}": Changed(0.3, GENERATED, off=0.0) for name in LORAS},
        **{name: Changed(0.5, GENERATED, off=0.0) for name in ("control_1", "control_2", "reference")},
        "image_prompt": Changed(0.5, GENERATED, off=0.0),
        "face": Changed(0.5, GENERATED, beside={"face_lora": 0.0}, off=0.0),
        "face_lora": Changed(1.0, GENERATED),
        **{f"control_start_{i}": Changed(0.4, GENERATED) for i in "12"},
        **{f"control_end_{i}": Changed(0.4, GENERATED) for i in "12"},
        **{name: Changed(lambda: pictures(FRAMES, seed=13), GENERATED) for name in ("hint_1", "hint_2")},
        "reference_picture": Changed(lambda: pictures(1, seed=13), GENERATED),
        "prompt_picture": Changed(lambda: pictures(1, seed=13), GENERATED),
        "face_picture": Changed(lambda: pictures(1, seed=13), GENERATED),
        "picture": Changed(lambda: pictures(1, seed=13), f"condition first {GENERATED}"),
        **{name: Changed("other words", GENERATED) for name in ("positive", "negative", "masked")},
        "attention_mask": Changed(lambda: corner(0.0), GENERATED),
        "prompt_mask": Changed(lambda: corner(0.5), GENERATED),
        "prompt_mask_strength": Changed(0.5, GENERATED),
        "mask": Changed(lambda: corner(1.0), GENERATED),
        "vae": Changed(lambda: tiny_vae(seed=1), "first frames"),
        "seed": Changed(2, GENERATED),
        "steps": Changed(3, GENERATED),
        "cfg": Changed(7.0, GENERATED),
        "sampler": Changed("euler_ancestral", GENERATED),
        "scheduler": Changed("karras", GENERATED),
        "denoise": Changed(0.5, GENERATED),
        "start_step": Changed(1, GENERATED),
        "last_step": Changed(1, GENERATED),
    },
)


def test_every_part_has_a_row():
    assert PATH.rows.keys() == BASELINE.keys()


@pytest.mark.parametrize("name", PATH.rows)
def test_a_part_changes_what_is_generated_and_nothing_else(name):
    row = PATH.rows[name]
    before, after = PATH.baseline(row.beside), PATH.results(**{**row.beside, name: row.to})
    assert changed(before, after) == set(row.see.split())
    assert not unnoticed(before, after)


def test_the_same_graph_gives_the_same_film():
    assert not changed(PATH.baseline({}), PATH.results())


@pytest.mark.parametrize("name", [name for name, row in PATH.rows.items() if row.off is not None])
def test_a_strength_of_0_is_as_if_the_part_were_not_there(name):
    beside = PATH.rows[name].beside
    off, absent = (PATH.results(**{**beside, name: strength}) for strength in (PATH.rows[name].off, None))
    assert not changed(off, absent)
