"""Functions of other packs around the network: which there are, and what they may not do.

They may change what goes in and comes out. Context windows need that one call has whole windows in it, and that the
network is really called for each.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP

from ...musev_core.errors import MuseVError
from .forwards import origin
from .options import KEY

_HARMLESS = {KEY, "torch.compile"}
_ADVICE = (
    "Remove it. Context options of AnimateDiff-Evolved are replaced by Set Context Windows; Tiled Diffusion works with "
    "a tile_batch_size of 1."
)


def change_rows(model_options: dict[str, Any]) -> bool:
    """Whether there are some right before the network: they may change latents and prompts of single rows."""
    kinds = {kind for kind, key, _ in _wrappers(model_options) if key not in _HARMLESS}
    return "model_function_wrapper" in model_options or bool(
        kinds & {WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL}
    )


def names(model_options: dict[str, Any]) -> list[str]:
    """What other packs have wrapped round the network, for messages."""
    found = [f"{kind} {key!r} ({origin(wrapper)})" for kind, key, wrapper in _wrappers(model_options) if key != KEY]
    function = model_options.get("model_function_wrapper")
    return found if function is None else [f"model_function_wrapper ({origin(function)})", *found]


def wrong_batch(found: Sequence[str], came: str, expected: str) -> MuseVError:
    """The error about a call with other frames in it than those of one window."""
    return MuseVError(
        f"{_listed(found)} calls the network with {came}, where MuseV needs {expected}: every frame of a window has to "
        f"be there to be moved. {_ADVICE}"
    )


def no_call(found: Sequence[str]) -> MuseVError:
    """The error about a window for which the network was not asked."""
    return MuseVError(
        f"{_listed(found)} gives answers of its own instead of calling the network, for example from a cache, and "
        f"cannot tell context windows apart. {_ADVICE}"
    )


def _listed(found: Sequence[str]) -> str:
    return f"a node on this MODEL ({', '.join(found)})" if found else "another pack"


def _wrappers(model_options: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Kind, key and function of all."""
    for kind, by_key in model_options.get("transformer_options", {}).get("wrappers", {}).items():
        for key, functions in by_key.items():
            for function in functions:
                yield kind, key, function
