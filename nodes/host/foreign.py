"""What other nodes do to a MODEL that cannot be combined with MuseV: refused by name, instead of left out silently.

Whatever uses ComfyUI's patches works; what changes the tree of modules, or looks at single calls of the network, does
not (comfyui.md A9).
"""

from collections.abc import Mapping
from typing import Any

from ...musev_core.errors import MuseVError
from .windows import MuseVContextHandler

_HARMLESS_INJECTIONS = {"bypass_lora"}  # changes how layers answer, not which there are


def refuse_foreign(model: Any) -> None:
    """Raises MuseVError, which names the node, if there is something on the MODEL that MuseV cannot do."""
    injected = [name for name in getattr(model, "injections", None) or () if name not in _HARMLESS_INJECTIONS]
    if injected:
        raise MuseVError(
            f"another pack has put modules into this MODEL ({', '.join(injected)}), for example AnimateDiff. MuseV "
            "replaces the forward pass and would ignore them: use one video method per MODEL."
        )
    handler = model.model_options.get("context_handler")
    if handler is not None and not isinstance(handler, MuseVContextHandler):
        raise MuseVError(
            f"this MODEL has context windows of another node ({type(handler).__name__}). Remove it: MuseV brings its "
            "own windows, see Set Context Windows."
        )
    if "sampler_calc_cond_batch_function" in model.model_options:
        raise MuseVError(
            "a node on this MODEL replaces how conditionings are evaluated (sampler_calc_cond_batch_function), which "
            "bypasses MuseV's windows. Remove it."
        )
    options = model.model_options.get("transformer_options", {})
    if getattr(options.get("easycache"), "name", "") == "EasyCache":
        raise MuseVError(
            "EasyCache on this MODEL looks at every call of the network and cannot tell context windows apart. Remove "
            "it, or use LazyCache, which looks at whole steps."
        )
    replaced = options.get("patches_replace", {}).get("attn1", {}).values()
    if any("SelfAttentionGuidance" in getattr(function, "__qualname__", "") for function in replaced):
        raise MuseVError(
            "Self-Attention Guidance on this MODEL takes the attention of its last call for that of all frames, which "
            "is wrong with context windows. Remove it, or use Perturbed-Attention Guidance."
        )
    if options.get("patches", {}).get("forward_timestep_embed_patch"):
        raise MuseVError(
            "a node on this MODEL replaces whole layers of the UNet (forward_timestep_embed_patch), as SUPIR does. "
            "MuseV has a forward pass of its own, which would leave that out. Remove it."
        )
    windows = getattr(model.get_attachment("ADE_params"), "context_options", None)
    if getattr(windows, "context_length", None):
        raise MuseVError(
            "AnimateDiff-Evolved has put context options on this MODEL (ADE_params). MuseV brings its own windows: "
            "remove them and use Set Context Windows."
        )
    if _multiplies_temporal_attention(model.patches):
        raise MuseVError(
            "UNetTemporalAttentionMultiply on this MODEL looks for the temporal layers of Stable Video Diffusion and "
            "leaves MuseV's as they are. Remove it: the strength of Apply MuseV Motion scales these, "
            "UNetSelfAttentionMultiply and UNetCrossAttentionMultiply all other attention."
        )
    if model.model_options.get("multigpu_clones") or model.get_additional_models_with_key("multigpu"):
        raise MuseVError("MuseV cannot run on several GPUs inside ComfyUI. Remove the multi-GPU node.")


def _multiplies_temporal_attention(patches: Mapping[Any, Any]) -> bool:
    """Of ComfyUI's attention multipliers it is the one which leaves queries, keys and values alone."""

    def multipliers(name: str) -> int:
        found = (patch[1] for patch in patches.get(name, ()))
        return sum(isinstance(x, tuple) and len(x) == 1 and x[0] is None for x in found)

    out, query = ".attn1.to_out.0.weight", ".attn1.to_q.weight"
    names = [name.removesuffix(out) for name in patches if isinstance(name, str) and name.endswith(out)]
    return any(multipliers(name + out) > multipliers(name + query) for name in names)
