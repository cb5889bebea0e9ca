"""Whether somebody has replaced how parts of a UNet compute: MuseV calls its layers, but goes around their containers.

A layer that MuseV calls may be replaced in any way. What has been done to a block, or to the UNet's own forward, would
be left out silently, and is refused by name instead.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from ...musev_core.config import UNetConfig
from ...musev_core.errors import MuseVError
from ...musev_core.weights.files import shorten
from ...musev_core.weights.keymaps import unet_ldm_to_diffusers

Parts = list[tuple[str, nn.Module, list[nn.Module | None]]]  # paths below the UNet, modules, what these consist of

_METHODS = ("forward", "_forward")
_UNET = "diffusion_model"
_COMPILED = "_orig_mod"  # where torch.compile keeps a module


def layer_paths(base: UNetConfig) -> set[str]:
    """The paths of the layers which MuseV calls, below ComfyUI's UNet."""
    return {name.rpartition(".")[0] for name in unet_ldm_to_diffusers(base)}


def named_parts(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its path, as if nothing were compiled."""
    for path, module in unet.named_modules():
        if not hasattr(module, _COMPILED):
            yield path.replace(f"{_COMPILED}.", ""), module


def bypassed(unet: nn.Module, base: UNetConfig) -> Parts:
    """The modules which MuseV never calls: everything but its layers and what these consist of."""
    layers = layer_paths(base)
    return [
        (path, module, list(module._modules.values()))
        for path, module in named_parts(unet)
        if not _within(path, layers)
    ]


def check_parts(parts: Parts) -> None:
    """Raises MuseVError, which names them, if some of these modules no longer compute what ComfyUI's do."""
    classes = {cls: list(_class_changes(cls)) for cls in {type(module) for _, module, _ in parts}}
    _refuse(
        f"{path or 'the UNet'} ({what})"
        for path, module, children in parts
        for what in (*classes[type(module)], *_instance_changes(module), *_other_children(module, children))
    )


def check_patches(patches: Mapping[str, Any], base: UNetConfig) -> None:
    """The same for the object patches of a MODEL, before they are put in."""
    layers, found = layer_paths(base), []
    for name, value in patches.items():
        root, _, path = name.partition(".")
        computes = callable(value) and not hasattr(value, _COMPILED)
        if root == _UNET and path and computes and not _within(path, layers):
            found.append(f"{path} ({origin(value)})")
    _refuse(found)


def is_changed(module: nn.Module) -> bool:
    """Whether this very module does something else than its class, or something beside it."""
    return any(_instance_changes(module))


def is_own(method: Any, module: nn.Module, name: str) -> bool:
    """Whether `method` is the one of the module's class."""
    own = getattr(type(module), name, None)
    return getattr(method, "__self__", None) is module and getattr(method, "__func__", None) is own


def origin(thing: Any) -> str:
    """Where a function or object comes from: `pack.module.name`, without the folders of this machine."""
    thing = getattr(thing, "func", thing)  # of a partial
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    module = str(getattr(thing, "__module__", "?")).replace("\\", "/").rpartition("/")[2]
    return f"{module}.{thing.__qualname__}"


def check_forward(method: Any, unet: nn.Module) -> None:
    """Raises MuseVError if `method`, which is to run the UNet, is not the UNet's own."""
    _refuse([] if is_own(method, unet, "_forward") else [f"the UNet ({origin(method)})"])


def _within(path: str, layers: Collection[str]) -> bool:
    names = path.split(".")
    return any(".".join(names[: i + 1]) in layers for i in range(len(names)))


def _class_changes(cls: type) -> Iterator[str]:
    """Classes which are not ComfyUI's, and methods which were put into its classes from elsewhere."""
    if cls.__module__.partition(".")[0] not in ("comfy", "torch"):
        yield origin(cls)
        return
    for name in _METHODS:
        owner = next((base for base in cls.__mro__ if name in vars(base)), None)
        method = None if owner is None else vars(owner)[name]
        if owner and (getattr(method, "__module__", None) != owner.__module__ or hasattr(method, "__wrapped__")):
            yield origin(method)


def _instance_changes(module: nn.Module) -> Iterator[str]:
    for name in _METHODS:
        # ComfyUI leaves the method itself behind where it has taken a patch away
        if name in vars(module) and not is_own(vars(module)[name], module, name):
            yield origin(vars(module)[name])
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        yield f"hook {origin(hook)}"


def _other_children(module: nn.Module, before: list[nn.Module | None]) -> Iterator[str]:
    for (name, child), known in zip(module._modules.items(), before, strict=False):
        if child is not known:
            yield f"its {name}, {origin(child)}"


def _refuse(found: Iterable[str]) -> None:
    names = list(found)
    if names:
        raise MuseVError(
            f"another node or pack has replaced how parts of this MODEL's UNet compute: {shorten(names)}. MuseV has a "
            "forward pass of its own, which would leave that out. Remove the node, or switch the pack off."
        )
