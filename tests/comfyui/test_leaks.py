"""After an error nothing keeps a MODEL alive: ComfyUI takes what outlives its patcher for a leak, at every prompt."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import comfy.model_management
import pytest
from support.small_comfy import REFERENCENET, base, clip, ksample, video_model

from musev_pack.nodes.host.options import KEY


class Broken(Exception):
    pass


def fails(*_: Any, **__: Any) -> Any:
    raise Broken


def interrupted(*_: Any, **__: Any) -> Any:
    raise comfy.model_management.InterruptProcessingException


def wrapped(kind: str, function: Callable) -> Callable[[Any], None]:
    return lambda model: model.add_wrapper_with_key(kind, "another pack", function)


def patched(model: Any) -> None:
    model.set_model_attn2_patch(fails)


def fails_after(executor: Any, *args: Any, **kwargs: Any) -> Any:
    executor(*args, **kwargs)
    raise Broken


PLACES: dict[str, Callable[[Any], Any]] = {
    "a patch inside our forward": patched,
    "a function around the network": lambda model: model.set_model_unet_function_wrapper(fails),
    "around the forward": wrapped("diffusion_model", fails),
    "after the forward": wrapped("diffusion_model", fails_after),
    "around the model": wrapped("apply_model", fails_after),
    "around the conditionings": wrapped("calc_cond_batch", fails_after),
    "around the guidance": wrapped("predict_noise", fails_after),
    "around the sampler": wrapped("sampler_sample", fails_after),
    "around the run": wrapped("outer_sample", fails_after),
    "before the run": wrapped("outer_sample", fails),
    "after the guidance": lambda model: model.set_model_sampler_post_cfg_function(fails),
    "an interrupt": wrapped("calc_cond_batch", interrupted),
    "a batch of ours": lambda model: model.set_model_unet_function_wrapper(
        lambda function, given: function(given["input"][:1], given["timestep"][:1], **given["c"])
    ),
}


def run(place: Callable[[Any], Any]) -> dict[str, weakref.ref]:
    """Samples until it fails; what must be gone then."""
    model = video_model(base(), variant=REFERENCENET).clone()
    place(model)
    held = {"network": weakref.ref(model.model), "UNet": weakref.ref(model.model.diffusion_model)}
    held["patcher"] = weakref.ref(model)
    held["layer"] = weakref.ref(model.model.diffusion_model.input_blocks[0][0])

    def note(executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        held["run"] = weakref.ref(guider.model_options["transformer_options"][KEY])
        held["guider"] = weakref.ref(guider)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key("outer_sample", "note", note)
    with pytest.raises((Broken, ValueError, comfy.model_management.InterruptProcessingException)):
        ksample(model, clip(), cfg=3.5)
    return held


@pytest.mark.parametrize("place", PLACES)
def test_an_error_keeps_nothing_alive(place):
    held = run(PLACES[place])
    gc.collect()
    assert [name for name, reference in held.items() if reference() is not None] == []
    comfy.model_management.cleanup_models_gc()
    assert not any(loaded.is_dead() for loaded in comfy.model_management.current_loaded_models)
